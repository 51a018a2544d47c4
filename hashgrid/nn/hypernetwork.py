"""A network whose outputs are the parameters of another one, chosen by samples of a signal."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hashgrid.nn.fused_mlp import FusedMLP


class HyperNetwork(nn.Module):
    """Makes the parameters of a SIREN from some of a signal's values: a network of each sample, the mean of what it
    says, and from that one network per parameter (Sitzmann et al. 2020, section 4.4 and their code).

    The heads begin with matrices a hundred times smaller than Kaiming's, and with last biases from +-1/fan-in of the
    layer that they make: at first all signals get about the same network, one with SIREN's scale of weights (omega
    beside them, as in :class:`hashgrid.fields.modulated.ModulatedSiren`, not inside).

    Args:
        model: whose parameters are made: any module whose biases have the names of their weights but for that word.
        n_input_dims, n_output_dims: of that model.
        n_latent: entries of the code of a signal.
        n_neurons: width of hidden layers.
        backend: ``"native"`` or ``"reference"``.
        latent_weight, made_weight: of the mean squares of the code and of the parameters in the penalty.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 3)
        >>> network = HyperNetwork(model, 2, 3)
        >>> params, penalty = network(torch.rand(10, 2), torch.rand(10, 3))
        >>> {name: list(value.shape) for name, value in params.items()}
        {'weight': [3, 2], 'bias': [3]}
    """

    def __init__(
        self,
        model: nn.Module,
        n_input_dims: int,
        n_output_dims: int,
        n_latent: int = 256,
        n_neurons: int = 256,
        backend: str = "native",
        latent_weight: float = 0.1,
        made_weight: float = 100.0,
    ) -> None:
        super().__init__()
        self.latent_weight, self.made_weight = latent_weight, made_weight
        self.shapes = {name: param.shape for name, param in model.named_parameters()}
        n_inputs = n_input_dims + n_output_dims
        self.encoder = FusedMLP(n_inputs, n_latent, n_neurons, 3, bias=True, backend=backend)
        for weight, bias in zip(self.encoder.weights, self.encoder.biases, strict=True):
            _kaiming(weight, bias)
        self.heads = nn.ModuleList()
        for name, shape in self.shapes.items():
            first, last = nn.Linear(n_latent, n_neurons), nn.Linear(n_neurons, shape.numel())
            _kaiming(first.weight, first.bias)
            _kaiming(last.weight, last.bias)
            bound = 1 / self._fan_in(name)
            with torch.no_grad():
                last.weight.div_(100)
                last.bias.uniform_(-bound, bound)
            self.heads.append(nn.Sequential(first, nn.ReLU(), last))  # few rows: nothing to fuse

    def _fan_in(self, name: str) -> int:
        shape = self.shapes[name]
        if len(shape) < 2:
            shape = self.shapes.get(name.replace("biases", "weights").replace("bias", "weight"), shape)
        return shape[-1]

    def forward(self, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Parameters by name, [..., *shape], and the penalty ``latent_weight mean(z^2) + made_weight mean(w^2)`` [...],
        of samples of values ``y`` [..., N, C] at ``x`` [..., N, D], in any order and number.

        Raises:
            ValueError: there are no samples.
        """
        if x.shape[-2] == 0:
            raise ValueError(f"`x` must hold at least one sample, got {list(x.shape)}")
        z = self.encoder(torch.cat((2 * x - 1, y), dim=-1)).mean(-2)  # [..., n_latent]
        made = {name: head(z) for name, head in zip(self.shapes, self.heads, strict=True)}
        n_made = sum(value.shape[-1] for value in made.values())
        squares = torch.stack([value.square().sum(-1) for value in made.values()]).sum(0) / n_made
        penalty = self.latent_weight * z.square().mean(-1) + self.made_weight * squares
        return {name: value.unflatten(-1, self.shapes[name]) for name, value in made.items()}, penalty


def _kaiming(weight: Tensor, bias: Tensor) -> None:
    nn.init.kaiming_normal_(weight, nonlinearity="relu")
    bound = 1 / math.sqrt(weight.shape[1])
    nn.init.uniform_(bias, -bound, bound)
