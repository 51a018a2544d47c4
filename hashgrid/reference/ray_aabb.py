"""Intersection of rays with an axis-aligned box (slab method, Kay & Kajiya 1986) in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hashgrid.ops._tensors import maths_dtype


def ray_aabb(
    rays_o: Tensor, rays_d: Tensor, aabb: Tensor, near: float = 0.0, far: float = math.inf
) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave a box, in units of the length of their direction.

    An axis along which the direction is zero does not constrain a ray that starts within its slab; outside it the ray
    misses.

    Args:
        rays_o: [R, 3], origins (half precision is read as fp32).
        rays_d: [R, 3], directions of any length.
        aabb: [6], (x_min, y_min, z_min, x_max, y_max, z_max).
        near: lower limit of the entry.
        far: upper limit of the exit.

    Returns:
        t_min [R] and t_max [R], both inf where the ray misses the box or has NaN coordinates.

    Raises:
        ValueError: a shape does not fit.
    """
    check_rays(rays_o, rays_d, aabb)
    rays_o, rays_d = (x.to(maths_dtype(rays_o)) for x in (rays_o, rays_d))
    low, high = aabb.to(rays_o).view(2, 3)
    parallel = rays_d == 0
    divisor = torch.where(parallel, 1, rays_d)
    t_low, t_high = (low - rays_o) / divisor, (high - rays_o) / divisor  # [R, 3]

    inside = (rays_o >= low) & (rays_o <= high)
    t_enter = torch.where(parallel, torch.where(inside, -math.inf, math.inf), torch.minimum(t_low, t_high))
    t_leave = torch.where(parallel, torch.where(inside, math.inf, -math.inf), torch.maximum(t_low, t_high))
    t_min, t_max = t_enter.amax(-1).clamp(min=near), t_leave.amin(-1).clamp(max=far)
    hit = t_min <= t_max  # false for NaN
    return torch.where(hit, t_min, math.inf), torch.where(hit, t_max, math.inf)


def check_rays(rays_o: Tensor, rays_d: Tensor, aabb: Tensor) -> None:
    """Raises ValueError unless the shapes are [R, 3], [R, 3] and [6]."""
    if rays_o.dim() != 2 or rays_o.shape[1] != 3:
        raise ValueError(f"`rays_o` must have shape [R, 3], got {list(rays_o.shape)}")
    if rays_d.shape != rays_o.shape:
        raise ValueError(f"`rays_d` must have the shape of `rays_o`, {list(rays_o.shape)}, got {list(rays_d.shape)}")
    if aabb.shape != (6,):
        raise ValueError(f"`aabb` must have shape [6], got {list(aabb.shape)}")
