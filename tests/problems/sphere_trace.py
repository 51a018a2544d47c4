"""Rays towards the unit box, strange ones among them, and a field that takes every branch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hashgrid import reference

AABB = torch.tensor([-1.0, -1, -1, 1, 1, 1])


def unit_rays(n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rays from around the box [-1, 1]^3 towards it, of any speed, and where they pass it."""
    rays_o = torch.nn.functional.normalize(torch.randn(n, 3, dtype=torch.float64), dim=-1) * 2.5
    rays_d = (torch.rand(n, 3, dtype=torch.float64) * 2.4 - 1.2 - rays_o) * (torch.rand(n, 1) * 2 + 0.1).double()
    rays_o, rays_d = rays_o.to(dtype), rays_d.to(dtype)
    return rays_o, rays_d, *reference.ray_aabb(rays_o, rays_d, AABB)


def rough(x: Tensor) -> Tensor:
    """Neither smooth nor a distance, and NaN in places: every branch there is. Of single sums and products alone, which
    have the same bits on every device."""
    x, y, z = x.unbind(-1)
    wave = ((x * 7).frac().abs() + (y * 7).frac().abs() + (z * 7).frac().abs()) * 0.3
    d = x * x + y * y + z * z - 0.4 + wave * (x > 0.2) - 0.15
    return torch.where((y * 31).frac().abs() > 0.97, math.nan, d * (1 + 2 * (z > 0)))


def strange_rays(n: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """With some that are dead, begin inside, or have no end."""
    rays_o, rays_d, t_min, t_max = unit_rays(n, dtype)
    rays_o[::5] *= 0.2
    t_min[::5] = 0
    t_max[::3] = math.inf
    if n > 20:
        rays_o[11, 1], rays_d[12] = math.nan, 0
    return rays_o, rays_d, t_min, t_max
