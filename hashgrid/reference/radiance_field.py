"""The radiance field of Instant-NGP (Müller et al. 2022, section 5.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hashgrid.levels import LevelTable
from hashgrid.reference.activation import activate
from hashgrid.reference.hash_encode_mlp import hash_encode_mlp
from hashgrid.reference.mlp import mlp


def radiance_field(
    positions: Tensor,
    ray_features: Tensor,
    rays: Tensor,
    table: Tensor,
    levels: LevelTable,
    density_weights: Sequence[Tensor],
    color_weights: Sequence[Tensor],
    interpolation: str = "linear",
    bounds: str = "clamp",
    shadow: Tensor | None = None,
    output_activation: str = "sigmoid",
    compute_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`hashgrid.ops.radiance_field`."""
    geometry = hash_encode_mlp(
        positions, table, levels, density_weights, None, interpolation, bounds, None, shadow,
        compute_dtype=compute_dtype,
    )  # fmt: skip
    return density_of(geometry), mlp(
        color_inputs(geometry, ray_features, rays), color_weights, None, "relu", output_activation, compute_dtype
    )


def density_of(geometry: Tensor) -> Tensor:
    """[N] of the density network's outputs [N, G]."""
    return activate(geometry[:, 0], "exp")


def color_inputs(geometry: Tensor, ray_features: Tensor, rays: Tensor) -> Tensor:
    """[N, G + E] of the density network's outputs [N, G] and features [R, E] of rays [N]."""
    return torch.cat((geometry, ray_features.index_select(0, rays)), dim=1)
