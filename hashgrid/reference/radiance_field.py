"""The radiance field of Instant-NGP (Müller et al. 2022, section 5.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hashgrid.levels import LevelTable
from hashgrid.reference.hash_encode import hash_encode_into
from hashgrid.reference.radiance_mlp import radiance_mlp


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
    half_table: Tensor | None = None,
    output_activation: str = "sigmoid",
    compute_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`hashgrid.ops._ngp.radiance_field`."""
    encoded = hash_encode_into(positions, table, levels, interpolation, bounds, None, half_table)
    return radiance_mlp(encoded, ray_features, rays, density_weights, color_weights, output_activation, compute_dtype)
