"""Cells of an occupancy grid that are to be evaluated, on the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.ops._kernels import has_kernel


def visible_cells(density: Tensor, chosen: Tensor | None = None) -> Tensor:
    """Cells that a camera sees, those of ``density >= 0``, in order.

    Counted and written on the threads of the kernels: PyTorch's ``nonzero`` takes 8 ms for 2 million cells on one
    thread.

    Args:
        density: [n] float32.
        chosen: [n] bool, the cells in question; None for all.

    Returns:
        [M] int64.

    Raises:
        RuntimeError: a shape or a dtype does not fit.
    """
    if not has_kernel("visible_cells", density.device.type):
        visible = density >= 0
        return (visible if chosen is None else visible & chosen).nonzero().squeeze(-1)
    return _extension.ops().visible_cells(density.detach().contiguous(), chosen)


def _register() -> None:
    @torch.library.register_fake("hashgrid::visible_cells")
    def _(density, chosen):
        n = torch.library.get_ctx().new_dynamic_size()
        return density.new_empty(n, dtype=torch.int64)


if _extension.module is not None:
    _register()
