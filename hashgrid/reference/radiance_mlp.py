"""Density and colour networks of a radiance field, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hashgrid.maths import color_inputs, density_of
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
    """See :func:`hashgrid.ops._ngp.radiance_mlp`; differentiable any number of times."""
    geometry = mlp(x, density_weights, compute_dtype=compute_dtype)
    inputs = color_inputs(geometry, ray_features, rays)
    return density_of(geometry), mlp(inputs, color_weights, None, "relu", output_activation, compute_dtype)
