"""A network without corners over the unit cube, for losses that hold its derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from hashgrid.fields.base import SignalField
from hashgrid.nn import FusedMLP
from hashgrid.util.config import Config


@dataclass(frozen=True)
class SmoothConfig(Config):
    """Sizes of a :class:`SmoothField`."""

    name = "smooth"

    n_neurons: int = 32  # of a hidden layer
    n_hidden_layers: int = 4  # of the network, at most 8
    activation: Literal["tanh", "sine", "silu", "softplus", "sigmoid"] = "tanh"  # of hidden layers


class SmoothField(SignalField):
    """An MLP with biases and smooth units on [-1, 1]^D, without an encoding, as physics-informed networks are (Raissi
    et al. 2019).

    Args:
        config: sizes of the field.
        n_input_dims: D.
        n_output_dims: C.
        backend: ``"native"`` or ``"reference"``.

    Example:
        >>> import torch
        >>> from hashgrid import derivatives_along
        >>> field = SmoothField(SmoothConfig(), 2, 1)
        >>> u, first, second = derivatives_along(field, torch.rand(5, 2), torch.eye(2))
        >>> u.shape, first.shape, second.shape
        (torch.Size([5, 1]), torch.Size([5, 2, 1]), torch.Size([5, 2, 1]))
    """

    Config = SmoothConfig

    def __init__(self, config: SmoothConfig, n_input_dims: int, n_output_dims: int, backend: str = "native") -> None:
        super().__init__(config, n_input_dims, n_output_dims, backend)
        sizes = config.n_neurons, config.n_hidden_layers, config.activation
        self.mlp = FusedMLP(n_input_dims, n_output_dims, *sizes, bias=True, backend=backend)

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Values [..., C] of points [..., D]."""
        return self.mlp(2 * x - 1)

    def jet(
        self, x: Tensor, directions: Tensor, accelerations: Tensor | None = None, operators: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values with first and second derivatives; see `derivatives_along`."""
        accelerations = None if accelerations is None else 2 * accelerations
        return self.mlp.jet(2 * x - 1, 2 * directions, accelerations, operators)
