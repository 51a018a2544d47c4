"""Unsigned distances (Chibane et al. 2020, NDF): surfaces with holes and rims, which have no inside."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hashgrid.fields.deepsdf import DeepSdfConfig
from hashgrid.fields.latent import LatentField
from hashgrid.nn.latent_mlp import LatentMLP


@dataclass(frozen=True)
class UnsignedDistanceConfig(DeepSdfConfig):
    """Sizes and learning rates of an :class:`UnsignedDistance`."""

    name = "udf"


class UnsignedDistance(LatentField):
    """Distances of a point and a code that are never negative: the network of DeepSDF with a ReLU at its end.

    Args:
        config: sizes of the field.
        backend: ``"native"`` or ``"reference"``.
    """

    Config = UnsignedDistanceConfig
    target = "unsigned"
    level = 0.005  # of what is shown: a thin shell

    def __init__(self, config: UnsignedDistanceConfig | None = None, backend: str = "native") -> None:
        super().__init__()
        config = UnsignedDistanceConfig() if config is None else config
        self.code_shape = (config.n_latent,)
        sizes = (config.n_neurons, config.n_hidden_layers, config.weight_norm, config.dropout)
        self.mlp = LatentMLP(3, config.n_latent, 1, *sizes, "relu", backend)
        with torch.no_grad():
            nn.init.constant_(self.mlp.biases[-1], 0.05)  # not dead from the start

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        """Distances [B, N] of points [B, N, 3] in [0, 1]^3; the network sees [-1, 1]^3, and lengths of it."""
        return 0.5 * self.mlp(2 * x - 1, latent).squeeze(-1)
