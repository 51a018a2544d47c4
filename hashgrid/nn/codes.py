"""What is learned of each of many things that are not seen in every step."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Codes(nn.Module):
    """A vector for each of ``n`` things, zero at first. :func:`hashgrid.train.groups.adam_groups` has those that a step
    does not see stay where they are, momentum and all.

    Args:
        n: how many things.
        n_dims: D.
        rate: by how much faster these vectors move than other parameters, under an optimiser whose steps do not know
            how large a gradient is.

    Attributes:
        table: parameter [n, D], the vectors divided by ``rate``.
    """

    table: nn.Parameter

    def __init__(self, n: int, n_dims: int, rate: float = 1.0) -> None:
        super().__init__()
        self.rate = rate
        self.table = nn.Parameter(torch.zeros(n, n_dims))

    def forward(self, index: Tensor | None = None) -> Tensor:
        """The vectors [..., D] of things ``index`` [...] int64; those of all [n, D] without."""
        return self.rate * (self.table if index is None else self.table.index_select(0, index))

    def centre(self) -> Tensor:
        """The mean of all vectors [D], without gradient."""
        return self.rate * self.table.detach().mean(0)
