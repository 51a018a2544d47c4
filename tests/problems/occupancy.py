"""The state of an occupancy grid, and cameras that look at it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

AABB = torch.tensor([-1.0, -1.5, -0.5, 1.0, 1.0, 0.5])


def make_state(n_cells: int, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    density = torch.rand(n_cells) * scale
    density[3::5] = -1
    cells = torch.randperm(n_cells)[: n_cells // 3]
    values = torch.rand(len(cells)) * scale
    values[::11] = math.nan
    return density, torch.full(((n_cells + 7) // 8,), 255, dtype=torch.uint8), cells, values


def look_at(eye: Tensor, target: Tensor) -> Tensor:
    """Poses [N, 3, 4]: x right, y up, looking along -z."""
    back = torch.nn.functional.normalize(eye - target, dim=-1)
    right = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 0, 1]).expand_as(back), back), dim=-1)
    return torch.stack([right, torch.linalg.cross(back, right), back, eye], dim=-1)


def make_cameras(n: int) -> tuple[Tensor, Tensor, Tensor]:
    eye = torch.nn.functional.normalize(torch.randn(n, 3), dim=-1) * 3
    intrinsics = torch.tensor([1000.0, 900.0, 210.0, 190.0]).repeat(n, 1)
    return look_at(eye, torch.randn(n, 3) * 0.3), intrinsics, torch.tensor([[400, 360]]).repeat(n, 1)
