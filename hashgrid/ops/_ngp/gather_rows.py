"""Rows of tensors that lie one below the other, on the native kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.ops._kernels import has_kernel
from hashgrid.util.autograd import is_recorded


def gather_rows(
    blocks: Sequence[Tensor], rows: Tensor, beside: Tensor | None = None, beside_rows: Tensor | None = None
) -> Tensor:
    """``torch.cat(blocks)[rows]``, and ``beside[beside_rows]`` to the right of it.

    On the CPU one pass on the threads of the kernels, if no gradient is recorded: PyTorch's ``cat`` and
    ``index_select`` are three passes, on one thread within :func:`hashgrid.own_threads`. The same values either way.

    Args:
        blocks: each [N_i, C], of one dtype.
        rows: [K] int64, below the sum of the N_i.
        beside: [R, E], of the same dtype.
        beside_rows: [K] int64, below R.

    Returns:
        [K, C + E].

    Raises:
        RuntimeError, IndexError: a shape or a dtype does not fit, or a row does not exist.
    """
    recorded = is_recorded(*blocks) or (beside is not None and is_recorded(beside))
    if recorded or not has_kernel("gather_rows", rows.device.type):
        gathered = torch.cat(tuple(blocks)).index_select(0, rows)
        if beside is None or beside_rows is None:
            return gathered
        return torch.cat((gathered, beside.to(gathered.dtype).index_select(0, beside_rows)), dim=1)
    if beside is not None:
        beside = beside.detach().to(blocks[0].dtype).contiguous()
    if beside_rows is not None:
        beside_rows = beside_rows.contiguous()
    blocks = [block.detach().contiguous() for block in blocks]
    return _extension.ops().gather_rows(blocks, rows.contiguous(), beside, beside_rows)


def _register() -> None:
    @torch.library.register_fake("hashgrid::gather_rows")
    def _(blocks, rows, beside, beside_rows):
        n_columns = blocks[0].shape[1] + (0 if beside is None else beside.shape[1])
        return blocks[0].new_empty(rows.shape[0], n_columns)


if _extension.module is not None:
    _register()
