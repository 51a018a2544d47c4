"""Rays and occupied cells to march through, and options of the march.

Apart from test_march_rays.py, which needs hypothesis.
"""

from __future__ import annotations

import math

import torch
from test_reference_march_rays import make_rays, pack, random_cells

AABB = torch.tensor([-1.0, -1.0, -0.5, 1.0, 1.0, 0.5], dtype=torch.float64)
OPTIONS = [
    {"step_size": 0.013},
    {"step_size": 0.02, "seed": 2**63 + 5, "step": 7, "max_samples_per_ray": 9},
    {"step_size": 0.01, "near": 1.2, "far": 2.1},
    {"step_size": 0.01, "cone_angle": 0.02},
    {"step_size": 0.005, "cone_angle": 1 / 256, "seed": -3, "step": 2**32 + 1},
    {"step_size": 0.7},
]


def scene(n_rays: int, resolution: tuple[int, int, int], n_cascades: int, occupied: float, dtype: torch.dtype) -> tuple:
    """Positional arguments of march_rays, rays of every kind included."""
    rays_o, rays_d = make_rays(max(n_rays, 12))
    rays_o[4], rays_d[5], rays_d[6] = math.nan, 0, torch.tensor([1.0, math.nan, 0])
    rays_o[7], rays_o[8, 0] = 100, math.inf
    bits = pack(random_cells(n_cascades * math.prod(resolution), occupied))
    return rays_o[:n_rays].to(dtype), rays_d[:n_rays].to(dtype), AABB.to(dtype), bits, resolution, n_cascades
