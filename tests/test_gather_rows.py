"""Rows of stacked blocks: PyTorch's values, gradients, contracts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hashgrid.ops._ngp.gather_rows import gather_rows

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32]


def blocks_of(sizes: list[int], n_columns: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randint(-100, 100, (n, n_columns)).to(dtype) for n in sizes]


@pytest.mark.parametrize("dtype", DTYPES)
def test_has_the_rows_of_the_blocks(dtype: torch.dtype) -> None:
    for sizes, n_columns, n in (([5], 1, 1), ([3000, 0, 1, 2000], 16, 5000), ([0, 7], 33, 20), ([4], 3, 0)):
        blocks, rows = blocks_of(sizes, n_columns, dtype), torch.randint(sum(sizes), (n,))
        assert torch.equal(gather_rows(blocks, rows), torch.cat(blocks)[rows])
        beside, beside_rows = torch.randint(-9, 9, (11, 5)).to(dtype), torch.randint(11, (n,))
        expected = torch.cat((torch.cat(blocks)[rows], beside[beside_rows]), dim=1)
        assert torch.equal(gather_rows(blocks, rows, beside, beside_rows), expected)


def test_reads_what_lies_scattered_in_memory() -> None:
    wide, rows = torch.randn(50, 8), torch.randint(50, (60,))
    some, others = rows[::3], rows[1::3]
    expected = torch.cat((wide[some][:, ::2], wide[others][:, 1:2]), dim=1)
    assert torch.equal(gather_rows([wide[:, ::2]], some, wide[:, 1:2], others), expected)


def test_gradients_reach_blocks_and_what_is_beside_them() -> None:
    blocks = [block.requires_grad_() for block in blocks_of([2, 3], 2)]
    beside = torch.randn(2, 1, requires_grad=True)
    gather_rows(blocks, torch.tensor([4, 0, 4]), beside, torch.tensor([1, 1, 0])).sum().backward()
    assert blocks[0].grad.tolist() == [[1, 1], [0, 0]] and blocks[1].grad.tolist() == [[0, 0], [0, 0], [2, 2]]
    assert beside.grad.tolist() == [[1], [2]]


def test_bad_input_is_refused() -> None:
    a, b = blocks_of([4, 5], 3)
    rows = torch.zeros(6, dtype=torch.int64)
    for arguments, message in (
        (([], rows), "`blocks` must hold one tensor at least, got none"),
        (([a[:, 0]], rows), r"`blocks` must have shape \[N, C\], got \[4\]"),
        (([a, b[:, 1:]], rows), r"`blocks` must have shape \[N, 3\], got \[5, 2\]"),
        (([a, b.double()], rows), "`blocks` must be float32, got float64"),
        (([a], rows.int()), "`rows` must be int64, got int32"),
        (([a], rows, b), "`beside` and `beside_rows` must come together"),
        (([a], rows, b, rows[1:]), r"`beside_rows` must have shape \[6\], got \[5\]"),
        (([a, b], rows + 9), "a row of `rows` or `beside_rows` does not exist: there are 9 and 0"),
        (([a, b], rows - 1), "a row of `rows` or `beside_rows` does not exist"),
        (([a, b], rows, b, rows + 5), "does not exist: there are 9 and 5"),
    ):
        with pytest.raises(RuntimeError, match=message):
            gather_rows(*arguments)
