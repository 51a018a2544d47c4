"""Middles of samples in space."""

from __future__ import annotations

from torch import Tensor

from hashgrid.maths import middles
from hashgrid.ops._tensors import at_least_fp32


def sample_positions(rays_o: Tensor, rays_d: Tensor, ray_indices: Tensor, t_starts: Tensor, t_ends: Tensor) -> Tensor:
    """See :func:`hashgrid.ops._ngp.sample_positions`; differentiable any number of times."""
    return middles(at_least_fp32(rays_o), at_least_fp32(rays_d), ray_indices, t_starts, t_ends)
