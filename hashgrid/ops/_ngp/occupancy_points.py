"""Points in the cells of an occupancy grid, on the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.ops._tensors import at_least_fp32
from hashgrid.ops.counter_uniform import as_counter


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
        aabb: [6], box of cascade 0, (x_min, y_min, z_min, x_max, y_max, z_max), fp32 or fp64; cascade c is 2^c times
            as large.
        resolution: cells per axis (X, Y, Z).
        n_cascades: number of cascades C.
        seed: of the position within the cell; None for the centre.
        step: training step, varies the position.

    Returns:
        [M, 3] in the dtype of ``aabb``, at least fp32.

    Raises:
        RuntimeError: a shape or a dtype does not fit, or a cell does not exist.
    """
    return _extension.ops().occupancy_points(
        cells.contiguous(), at_least_fp32(aabb.detach()).contiguous(), list(resolution), n_cascades,
        None if seed is None else as_counter(seed, step, aabb.device),
    )  # fmt: skip


def _register() -> None:
    @torch.library.register_fake("hashgrid::occupancy_points")
    def _(cells, aabb, resolution, n_cascades, counter):
        return aabb.new_empty(cells.shape[0], 3)


if _extension.module is not None:
    _register()
