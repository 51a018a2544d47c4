"""The network of DeepSDF: an MLP of a point and a code that are put in once more half way."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hashgrid.ops._backend import backend_ops
from hashgrid.util.choices import BACKENDS, check_option


class LatentMLP(nn.Module):
    """ReLU network of points and a code per shape, both of which the layer half way gets once more (Park et al. 2019,
    section 4).

    What a layer makes of a code is the same for all points of a shape, so that it is computed once and is a bias of
    the fused kernels. With dropout a training step goes layer by layer.

    Args:
        n_input_dims: D of points.
        n_latent_dims: Z of codes; 0 for none.
        n_output_dims: outputs.
        n_neurons: width; the layer before the skip is narrower by what is put in there.
        n_hidden_layers: 2..16; the skip enters in the middle.
        weight_norm: hidden layers have a length and a direction per row (Salimans & Kingma 2016).
        dropout: share of hidden values that a training step leaves out.
        output_activation: of the last layer.
        backend: ``"native"`` or ``"reference"``.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> LatentMLP(3, 8, 1, n_neurons=32, n_hidden_layers=4)(torch.rand(2, 5, 3), torch.rand(2, 8)).shape
        torch.Size([2, 5, 1])
    """

    def __init__(
        self,
        n_input_dims: int = 3,
        n_latent_dims: int = 64,
        n_output_dims: int = 1,
        n_neurons: int = 256,
        n_hidden_layers: int = 8,
        weight_norm: bool = True,
        dropout: float = 0.0,
        output_activation: str = "tanh",
        backend: str = "native",
    ) -> None:
        super().__init__()
        put_in = n_input_dims + n_latent_dims
        if not 2 <= n_hidden_layers <= 16:
            raise ValueError(f"`n_hidden_layers` must be in 2..16, got {n_hidden_layers}")
        if n_neurons <= put_in:
            raise ValueError(
                f"`n_neurons` must be more than the {put_in} inputs that are put in again, got {n_neurons}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {dropout}")
        self.n_input_dims, self.n_latent_dims, self.n_output_dims = n_input_dims, n_latent_dims, n_output_dims
        self.skip, self.dropout, self.output_activation = n_hidden_layers // 2, dropout, output_activation
        self.backend = check_option("backend", backend, BACKENDS)
        widths = [n_neurons] * n_hidden_layers
        widths[self.skip - 1] -= put_in
        sizes = list(zip([put_in, *widths], [*widths, n_output_dims], strict=True))
        sizes[self.skip] = (n_neurons, sizes[self.skip][1])
        self.weights = nn.ParameterList([nn.Parameter(torch.empty(n_out, n_in)) for n_in, n_out in sizes])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(n_out)) for _, n_out in sizes])
        for weight in self.weights:
            nn.init.kaiming_uniform_(weight, nonlinearity="relu")
        with torch.no_grad():
            self.weights[-1].mul_(0.1)  # values of some hundredths: where a clamped loss has a gradient
        lengths = [weight.detach().norm(dim=1, keepdim=True) for weight in self.weights[:-1]] if weight_norm else []
        self.lengths = nn.ParameterList([nn.Parameter(length) for length in lengths])  # after the initialisation

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        """Outputs [B, N, C] of points [B, N, D] of shapes with codes [B, Z]."""
        if x.dim() != 3 or x.shape[-1] != self.n_input_dims:
            raise ValueError(f"`x` must have shape [B, N, {self.n_input_dims}], got {list(x.shape)}")
        if latent.shape != (len(x), self.n_latent_dims):
            raise ValueError(f"`latent` must have shape {[len(x), self.n_latent_dims]}, got {list(latent.shape)}")
        weights = list(self.weights)
        for layer, length in enumerate(self.lengths):
            weights[layer] = weights[layer] * (length / weights[layer].norm(dim=1, keepdim=True))
        ends = [self.n_input_dims, weights[self.skip].shape[1] - self.n_latent_dims]
        halves = [weights[: self.skip], weights[self.skip :]]
        biases = [list(self.biases[: self.skip]), list(self.biases[self.skip :])]
        # [B, out] each: what the codes add to the bias of the first layer of each half
        shifts = [latent @ half[0][:, end:].t() + b[0] for half, end, b in zip(halves, ends, biases, strict=True)]
        halves = [[half[0][:, :end].contiguous(), *half[1:]] for half, end in zip(halves, ends, strict=True)]
        rows = []
        for shape, points in enumerate(x):
            first, second = ([shift[shape], *b[1:]] for shift, b in zip(shifts, biases, strict=True))
            hidden = self._run(points, halves[0], first, "relu")
            rows.append(self._run(torch.cat([hidden, points], dim=-1), halves[1], second, self.output_activation))
        return torch.stack(rows) if rows else x.new_zeros(0, x.shape[1], self.n_output_dims)

    def _run(self, x: Tensor, weights: list[Tensor], biases: list[Tensor], output_activation: str) -> Tensor:
        mlp = backend_ops(self.backend).mlp
        if not (self.training and self.dropout > 0):
            return mlp(x, weights, biases, "relu", output_activation, None)
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            last = layer == len(weights) - 1
            x = mlp(x, [weight], [bias], "none", output_activation if last else "relu", None)
            if not last or output_activation == "relu":
                x = nn.functional.dropout(x, self.dropout)
        return x

    def extra_repr(self) -> str:
        sizes = f"{self.n_input_dims}, {self.n_latent_dims}, {self.n_output_dims}"
        return f"{sizes}, skip={self.skip}, dropout={self.dropout}, backend={self.backend!r}"
