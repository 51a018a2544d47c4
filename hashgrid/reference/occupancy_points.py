"""Points in the cells of an occupancy grid, in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hashgrid.ops._tensors import at_least_fp32
from hashgrid.reference.counter_uniform import counter_uniform


def occupancy_points(
    cells: Tensor,
    aabb: Tensor,
    resolution: tuple[int, int, int],
    n_cascades: int = 1,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
) -> Tensor:
    """A point in each cell: its centre, or a uniform random one that depends on (seed, step, cell) only.

    Args:
        cells: [M] int64, ``((c * X + x) * Y + y) * Z + z``.
        aabb: [6], box of cascade 0, (x_min, y_min, z_min, x_max, y_max, z_max); cascade c is 2^c times as large.
        resolution: cells per axis (X, Y, Z).
        n_cascades: number of cascades C.
        seed: of the position within the cell; None for the centre.
        step: training step, varies the position.

    Returns:
        [M, 3] in the dtype of ``aabb``, at least fp32.

    Raises:
        ValueError: a shape does not fit, or a cell does not exist.
    """
    if cells.dim() != 1:
        raise ValueError(f"`cells` must have shape [M], got {list(cells.shape)}")
    if aabb.shape != (6,):
        raise ValueError(f"`aabb` must have shape [6], got {list(aabb.shape)}")
    if len(resolution) != 3 or min(resolution) < 1:
        raise ValueError(f"`resolution` must be three positive numbers, got {tuple(resolution)}")
    n_cells = n_cascades * math.prod(resolution)
    if cells.numel() and not (0 <= int(cells.min()) and int(cells.max()) < n_cells):
        raise ValueError(f"`cells` must lie in 0..{n_cells - 1}, got {int(cells.min())}..{int(cells.max())}")
    aabb = at_least_fp32(aabb)
    low, high = aabb.view(2, 3)
    centre, half = (low + high) / 2, (high - low) / 2
    side = 2 * half / torch.tensor(resolution, device=aabb.device)  # [3]

    cascade, coordinates = cells, []
    for axis in (2, 1, 0):
        coordinates.append(cascade % resolution[axis])
        cascade = cascade // resolution[axis]
    growth = (2.0**cascade).to(aabb)  # [M]
    points = []
    for axis, cell in enumerate(reversed(coordinates)):
        u = 0.5 if seed is None else counter_uniform(seed, step, 3 * cells + axis).to(aabb)
        points.append(centre[axis] - half[axis] * growth + (cell.to(aabb) + u) * (side[axis] * growth))
    return torch.stack(points, dim=-1)
