"""Cells of an occupancy grid that some camera sees, on the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid import _extension


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
        RuntimeError: a shape does not fit.
    """
    planes, aabb = planes.detach().float().contiguous(), aabb.detach().float().contiguous()
    return _extension.ops().occupancy_visible(planes, aabb, list(resolution), n_cascades)


def _register() -> None:
    @torch.library.register_fake("hashgrid::occupancy_visible")
    def _(planes, aabb, resolution, n_cascades):
        n_cells = n_cascades * resolution[0] * resolution[1] * resolution[2]
        return aabb.new_empty(n_cells, dtype=torch.bool)


if _extension.module is not None:
    _register()
