"""Density and colour networks of a radiance field, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hashgrid.reference.activation import activate
from hashgrid.reference.mlp import mlp


def radiance_mlp(
    x: Tensor,
    ray_features: Tensor,
    rays: Tensor,
    density_weights: Sequence[Tensor],
    color_weights: Sequence[Tensor],
    output_activation: str = "sigmoid",
    compute_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`hashgrid.ops.radiance_mlp`; differentiable any number of times."""
    geometry = mlp(x, density_weights, compute_dtype=compute_dtype)
    inputs = color_inputs(geometry, ray_features, rays)
    return density_of(geometry), mlp(inputs, color_weights, None, "relu", output_activation, compute_dtype)


def density_of(geometry: Tensor) -> Tensor:
    """[N] of the density network's outputs [N, G]."""
    return activate(geometry[:, 0], "exp")


def color_inputs(geometry: Tensor, ray_features: Tensor, rays: Tensor) -> Tensor:
    """[N, G + E] of the density network's outputs [N, G] and features [R, E] of rays [N]."""
    return torch.cat((geometry, ray_features.to(geometry.dtype).index_select(0, rays)), dim=1)
