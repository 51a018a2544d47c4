"""Rays towards a box and past it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def random_rays(n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Rays towards the box and past it, along axes, without direction, with NaN and infinite coordinates."""
    rays_o = torch.randn(n, 3, dtype=dtype) * 2
    rays_d = torch.rand(n, 3, dtype=dtype) * 2 - 1 - rays_o
    rays_d[::7] = torch.eye(3, dtype=dtype)[torch.arange(len(rays_d[::7])) % 3] * -1.3
    if n > 40:
        rays_o[30, 1], rays_d[31, 2], rays_o[32, 0], rays_d[33, 0] = math.nan, math.nan, math.inf, -math.inf
        rays_d[34] = 0
    return rays_o, rays_d
