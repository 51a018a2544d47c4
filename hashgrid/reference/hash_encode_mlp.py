"""A hash grid and the network behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hashgrid.levels import LevelTable
from hashgrid.ops._ngp.hash_encode_mlp_gradient import Slopes
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


def hash_encode_mlp_gradient(
    positions: Tensor,
    table: Tensor,
    levels: LevelTable,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    interpolation: str = "linear",
    bounds: str = "clamp",
    level_weights: Tensor | None = None,
    activation: str = "relu",
    output_activation: str = "none",
    softplus_beta: float = 1.0,
    precomputed: Any = None,
    grad_buffer: Tensor | None = None,
) -> Slopes:
    """See :func:`hashgrid.ops._ngp.hash_encode_mlp_gradient`; what is known already is computed again."""
    is_recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        x = positions if positions.requires_grad else positions.detach().requires_grad_()
        features = hash_encode_into(x, table, levels, interpolation, bounds, level_weights, grad_buffer=grad_buffer)
        values = mlp(features, weights, biases, activation, output_activation, None, softplus_beta)
        (of_features,) = torch.autograd.grad(values[:, 0].sum(), features, create_graph=is_recorded)
        (gradient,) = torch.autograd.grad(features, x, of_features, create_graph=is_recorded, retain_graph=True)
    found = Slopes(values, gradient, features.detach(), of_features.detach())
    return found if is_recorded else Slopes(*(tensor.detach() for tensor in found))
