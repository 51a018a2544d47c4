"""A hash grid and the network behind it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hashgrid.levels import LevelTable
from hashgrid.reference.hash_encode import hash_encode_into
from hashgrid.reference.mlp import mlp


def hash_encode_mlp(
    positions: Tensor,
    table: Tensor,
    levels: LevelTable,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    interpolation: str = "linear",
    bounds: str = "clamp",
    level_weights: Tensor | None = None,
    half_table: Tensor | None = None,
    activation: str = "relu",
    output_activation: str = "none",
    compute_dtype: torch.dtype | None = None,
    softplus_beta: float = 1.0,
) -> Tensor:
    """See :func:`hashgrid.ops._ngp.hash_encode_mlp`."""
    encoded = hash_encode_into(positions, table, levels, interpolation, bounds, level_weights, half_table)
    return mlp(encoded, weights, biases, activation, output_activation, compute_dtype, softplus_beta)
