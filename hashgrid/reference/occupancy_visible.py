"""Cells of an occupancy grid that some camera sees, in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hashgrid.ops._tensors import at_least_fp32, without_autocast
from hashgrid.reference.occupancy_points import occupancy_points

_CELLS_AT_ONCE = 1 << 14


@torch.no_grad()
@without_autocast
def occupancy_visible(planes: Tensor, aabb: Tensor, resolution: tuple[int, int, int], n_cascades: int = 1) -> Tensor:
    """Returns whether the sphere around each cell reaches into a view.

    Args:
        planes: [N, 5, 4], planes of N view frusta; a point x is inside where ``plane[:3] @ x + plane[3] >= 0`` for all
            five, in units of length.
        aabb: [6], box of cascade 0, (x_min, y_min, z_min, x_max, y_max, z_max); cascade c is 2^c times as large.
        resolution: cells per axis (X, Y, Z).
        n_cascades: number of cascades C.

    Returns:
        [C * X * Y * Z] bool, cell ``((c * X + x) * Y + y) * Z + z``.

    Raises:
        ValueError: a shape does not fit.
    """
    if planes.dim() != 3 or planes.shape[1:] != (5, 4):
        raise ValueError(f"`planes` must have shape [N, 5, 4], got {list(planes.shape)}")
    aabb = at_least_fp32(aabb)
    planes = planes.to(aabb)
    low, high = aabb.view(2, 3)
    radius = ((high - low) / torch.tensor(resolution, device=aabb.device)).norm() / 2
    cells_per_cascade = math.prod(resolution)
    visible = torch.zeros(n_cascades * cells_per_cascade, dtype=torch.bool, device=aabb.device)
    for begin in range(0, len(visible), _CELLS_AT_ONCE):
        cells = torch.arange(begin, min(begin + _CELLS_AT_ONCE, len(visible)), device=aabb.device)
        points = occupancy_points(cells, aabb, resolution, n_cascades)
        reach = radius * 2.0 ** (cells // cells_per_cascade)
        first, n_views = 0, 1
        while first < len(planes) and len(cells) > 0:  # few views first: they leave few cells for the others
            views = planes[first : first + n_views]
            distances = points @ views[..., :3].reshape(-1, 3).T + views[..., 3].reshape(-1)
            inside = (distances >= -reach.unsqueeze(-1)).view(len(cells), -1, 5).all(-1).any(-1)
            visible[cells[inside]] = True
            cells, points, reach = cells[~inside], points[~inside], reach[~inside]
            first, n_views = first + n_views, min(2 * n_views, 64)
    return visible
