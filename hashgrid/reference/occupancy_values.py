"""Optical thickness of the cells of an occupancy grid by a radiance field, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hashgrid.levels import LevelTable
from hashgrid.maths import optical_thickness
from hashgrid.reference.hash_encode import hash_encode_into
from hashgrid.reference.mlp import mlp
from hashgrid.reference.occupancy_points import occupancy_points


@torch.no_grad()
def occupancy_values(
    cells: Tensor,
    aabb: Tensor,
    resolution: tuple[int, int, int],
    n_cascades: int,
    seed: int | Tensor | None,
    step: int | Tensor,
    field_aabb: Tensor,
    table: Tensor,
    levels: LevelTable,
    weights: Sequence[Tensor],
    interpolation: str = "linear",
    bounds: str = "clamp",
    half_table: Tensor | None = None,
    compute_dtype: torch.dtype | None = None,
    *,
    step_size: float,
) -> Tensor:
    """See :func:`hashgrid.ops._ngp.occupancy_values`."""
    points = occupancy_points(cells, aabb, resolution, n_cascades, seed, step)
    low, high = field_aabb.to(points).split(3)
    encoded = hash_encode_into(
        (points - low) * (1.0 / (high - low)), table, levels, interpolation, bounds, None, half_table
    )
    return optical_thickness(
        mlp(encoded, weights, compute_dtype=compute_dtype), cells, resolution, n_cascades, step_size
    )
