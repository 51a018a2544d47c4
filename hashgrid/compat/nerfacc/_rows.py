"""Samples of rays as a matrix whose rows belong to one ray each, so that PyTorch's scans run along rows.

A single scan over all samples, less what it was before each ray, would be shorter. But its sums lose the digits that
earlier rays have filled, and one NaN reaches every ray behind it.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from hashgrid.compat.nerfacc._checks import wrong

# samples of a row; with the widest, a ray of up to 1024 is scanned in two steps
_NARROWEST, _WIDEST = 4, 32


class Rows:
    """Where the samples of rays lie in a matrix of rows.

    Args:
        packed_info: [R, 2], first sample and number of samples of each ray. Rays may lie anywhere, but must not share
            samples; what belongs to no ray is zero after a scan.
        n_samples: S, of the tensors that are scanned.

    Raises:
        ValueError: a ray begins before the first sample or ends behind the last.
    """

    def __init__(self, packed_info: Tensor, n_samples: int) -> None:
        starts, counts = packed_info.long().unbind(dim=1)
        n_rays = len(starts)
        # at least as long as an average ray where that is short: the matrix is then at most a few times the samples
        self.width = min(max(_NARROWEST, 1 << (n_samples // max(n_rays, 1)).bit_length()), _WIDEST)
        n_rows = (counts + (self.width - 1)) // self.width  # of each ray
        behind = counts.cumsum(0)
        first_row = n_rows.cumsum(0) - n_rows
        n, self.n_rows, self.is_split, is_ordered = 0, 0, False, True
        if n_rays:
            ends = starts + counts
            # read together, as a GPU is waited for
            facts = (
                behind[-1],
                n_rows.sum(),
                n_rows.max(),
                (starts != behind - counts).sum(),
                starts.min(),
                ends.max(),
            )
            n, self.n_rows, most, displaced, first, last, least = torch.stack((*facts, counts.min())).tolist()
            if least < 0 or (n and (last > n_samples or first < 0)):
                actual = f"rays from sample {first} to sample {last}, the shortest of {least}"
                wrong("packed_info", f"have rays within the {n_samples} samples", actual)
            self.is_split, is_ordered = most > 1, displaced == 0
        ray = torch.repeat_interleave(n_rows, output_size=self.n_rows)  # of each row
        skipped = (torch.arange(self.n_rows, device=ray.device) - first_row[ray]) * self.width  # of its ray, before it
        columns = torch.arange(self.width, device=ray.device)
        used = columns < (counts[ray] - skipped)[:, None]
        # of each sample: its place in the matrix, and among the tensors that are scanned
        self.places = used.flatten().nonzero()[:, 0]
        in_place = is_ordered and n == n_samples
        self.samples = None if in_place else ((starts[ray] + skipped)[:, None] + columns)[used]
        self.n_samples, self.packed_rows = n_samples, torch.stack((first_row, n_rows), dim=1)

    def scan(self, x: Tensor, kind: Literal["sum", "prod"], exclusive: bool) -> Tensor:
        """Returns the sums or products of the samples [S] of a ray up to each one, without itself if ``exclusive``."""
        neutral = 0 if kind == "sum" else 1
        picked = x if self.samples is None else _Pick.apply(x, self.samples)
        rows = _Place.apply(picked, self.places, self.n_rows * self.width, neutral).view(self.n_rows, self.width)
        if self.is_split:
            totals = rows.sum(dim=1) if kind == "sum" else _product(rows)
            before = Rows(self.packed_rows, self.n_rows).scan(totals, kind, exclusive=True)
        else:
            before = rows.new_full((self.n_rows,), neutral)
        rows = torch.cat((before[:, None], rows[:, : self.width - 1] if exclusive else rows), dim=1)
        rows = rows.cumsum(dim=1) if kind == "sum" else rows.cumprod(dim=1)
        scanned = _Pick.apply((rows if exclusive else rows[:, 1:]).flatten(), self.places)
        return scanned if self.samples is None else _Place.apply(scanned, self.samples, self.n_samples, 0)


def _product(rows: Tensor) -> Tensor:
    """Products [n] of rows [n, a power of two] by halves, in half the time of ``prod``."""
    while rows.shape[1] > 1:
        left, right = rows.chunk(2, dim=1)
        rows = left * right
    return rows[:, 0]


# Nothing is picked twice, so that either one is the other's derivative; PyTorch would add up with atomics.


class _Pick(torch.autograd.Function):
    """``x[places]`` of a vector."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.size = len(x)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Place.apply(grad, *ctx.saved_tensors, ctx.size, 0), None


class _Place(torch.autograd.Function):
    """A vector of ``size``, ``fill`` but for ``x`` at ``places``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, size: int, fill: float) -> Tensor:
        ctx.save_for_backward(places)
        return x.new_full((size,), fill).index_copy_(0, places, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _Pick.apply(grad, *ctx.saved_tensors), None, None, None


def runs(indices: Tensor) -> Tensor:
    """First samples and counts [runs, 2] of neighbours that have one index."""
    counts = torch.unique_consecutive(indices, return_counts=True)[1]
    return torch.stack((counts.cumsum(0) - counts, counts), dim=1)
