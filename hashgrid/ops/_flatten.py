"""Batch dimensions: ops work on [N, D]; public functions accept [..., D]."""

from __future__ import annotations

import torch
from torch import Tensor


def flatten(x: Tensor, n_dims: int | None, name: str) -> Tensor:
    """``x`` [..., D] as a contiguous [N, D].

    Raises:
        ValueError: ``x`` has no dimension, or its last one is not ``n_dims``.
    """
    if x.dim() == 0 or (n_dims is not None and x.shape[-1] != n_dims):
        wanted = "D" if n_dims is None else n_dims
        raise ValueError(f"`{name}` must have shape [..., {wanted}], got {list(x.shape)}")
    return x.reshape(-1, x.shape[-1]).contiguous() if x.dim() != 2 else x.contiguous()


def unflatten(y: Tensor, batch: torch.Size) -> Tensor:
    """The inverse for an output [N, C]: [*batch, C]."""
    return y if len(batch) == 1 else y.reshape(*batch, y.shape[-1])
