"""SIREN whose signal is chosen by a latent vector: COIN++ (Dupont et al. 2022). Without one it is SIREN as its
authors parametrise it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hashgrid.fields.base import SignalField
from hashgrid.nn import jets
from hashgrid.ops._backend import backend_ops
from hashgrid.util.config import Config


@dataclass(frozen=True)
class ModulatedConfig(Config):
    """Sizes of a :class:`ModulatedSiren`."""

    name = "modulated"

    n_neurons: int = 64  # of a hidden layer
    n_hidden_layers: int = 3  # of the network
    omega: float = 30.0  # frequency of the sines
    n_latent: int = 0  # entries of the latent vector; 0 for none
    offset: float = 0.5  # what is added to outputs: about the mean of a signal

    def check(self) -> None:
        super().check()
        if min(self.n_neurons, self.n_hidden_layers) < 1 or self.n_latent < 0 or not self.omega > 0:
            raise ValueError(
                "`n_neurons`, `n_hidden_layers` and `omega` must be positive and `n_latent` at least 0, got"
                f" {self.n_neurons}, {self.n_hidden_layers}, {self.omega} and {self.n_latent}"
            )


class ModulatedSiren(SignalField):
    """``sin(omega (W x + b + shift))`` over [-1, 1]^D, each layer's shift a linear function of one latent vector
    (Dupont et al. 2022, section 3). Without latent vector it is SIREN (Sitzmann et al. 2020). omega is beside
    the parameters, not part of them: a step of gradient descent moves a layer ``omega^2`` times as far, which is what
    published rates of such steps are for.

    Args:
        config: sizes.
        n_input_dims: D.
        n_output_dims: C.
        backend: ``"native"`` or ``"reference"``.

    Attributes:
        latent: buffer [n_latent] of zeros; what the inner steps of a learned start change.

    Example:
        >>> import torch
        >>> field = ModulatedSiren(ModulatedConfig(n_latent=8), 2, 3)
        >>> field(torch.rand(5, 2)).shape
        torch.Size([5, 3])
    """

    Config = ModulatedConfig
    recipe = {"learning_rate": 1e-3, "final_learning_rate": 2e-5}
    latent: Tensor

    def __init__(self, config: ModulatedConfig, n_input_dims: int, n_output_dims: int, backend: str = "native") -> None:
        super().__init__(config, n_input_dims, n_output_dims, backend)
        self.omega, self.offset, self.backend = config.omega, config.offset, backend
        widths = [n_input_dims, *[config.n_neurons] * config.n_hidden_layers, n_output_dims]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for layer, (n_in, n_out) in enumerate(zip(widths, widths[1:], strict=False)):
            bound = 1 / n_in if layer == 0 else math.sqrt(6 / n_in) / config.omega
            self.weights.append(nn.Parameter(torch.empty(n_out, n_in).uniform_(-bound, bound)))
            bound = 1 / math.sqrt(n_in)
            self.biases.append(nn.Parameter(torch.empty(n_out).uniform_(-bound, bound)))
        self.register_buffer("latent", torch.zeros(config.n_latent))
        n_shifts = config.n_neurons * config.n_hidden_layers
        self.shift = nn.Linear(config.n_latent, n_shifts) if config.n_latent > 0 else None

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Values [..., C] of points [..., D] in the unit cube; there are no levels to weigh."""
        return backend_ops(self.backend).mlp(2 * x - 1, *self._layers(), "sine")

    def jet(
        self, x: Tensor, directions: Tensor, accelerations: Tensor | None = None, operators: Tensor | None = None
    ) -> jets.Jet:
        """Values with first and second derivatives; see `derivatives_along`."""
        *inputs, acceleration = jets.mapped((x - 0.5, directions, accelerations), lambda part: 2 * part)
        options = {"accelerations": acceleration, "operators": operators}
        return backend_ops(self.backend).mlp_jet(*inputs, *self._layers(), "sine", **options)

    def _layers(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases of a network of plain sines."""
        # a part of a ParameterList would be made of new parameters, that know nothing of what took the old ones' place
        weights, biases = list(self.weights), list(self.biases)
        if self.shift is not None:
            shifts = self.shift(self.latent).chunk(len(biases) - 1)
            biases[:-1] = [bias + shift for bias, shift in zip(biases, shifts, strict=False)]
        weights = [*(self.omega * weight for weight in weights[:-1]), weights[-1]]
        return weights, [*(self.omega * bias for bias in biases[:-1]), biases[-1] + self.offset]
