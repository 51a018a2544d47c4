"""Middles of samples in space."""

from __future__ import annotations

from torch import Tensor

from hashgrid.precision import at_least_fp32


def sample_positions(rays_o: Tensor, rays_d: Tensor, ray_indices: Tensor, t_starts: Tensor, t_ends: Tensor) -> Tensor:
    """See :func:`hashgrid.ops.sample_positions`; differentiable any number of times."""
    rays_o, rays_d = at_least_fp32(rays_o), at_least_fp32(rays_d)
    middle = ((t_starts + t_ends) * 0.5).unsqueeze(-1)
    return rays_o.index_select(0, ray_indices) + rays_d.index_select(0, ray_indices) * middle
