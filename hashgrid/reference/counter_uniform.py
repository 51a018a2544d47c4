"""Counter-based random numbers: the same on every device, whatever the order of evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid.util.choices import as_integer

UINT32_MASK = 0xFFFFFFFF


def counter_uniform(seed: int | Tensor, step: int | Tensor, index: Tensor) -> Tensor:
    """One uniform number per (seed, step, index): 24 random bits of an integer hash.

    Args:
        seed: 64 bits are used. This and ``step`` may be int64 tensors with one element.
        step: 32 bits are used.
        index: int64 of any shape, 32 bits are used.

    Returns:
        fp32 in [0, 1), of the shape of ``index``.
    """
    seed = seed if isinstance(seed, Tensor) else as_integer("seed", seed)
    step = step if isinstance(step, Tensor) else as_integer("step", step)
    h = torch.zeros_like(index, dtype=torch.int64) + ((seed & UINT32_MASK) ^ 0x9E3779B9)
    for word in ((seed >> 32) & UINT32_MASK, step & UINT32_MASK, index.long() & UINT32_MASK):
        h = _mix(h) ^ word
    return (_mix(h) >> 8).float() * 2.0**-24


def _mix(h: Tensor) -> Tensor:
    """Bijection of 32-bit integers held in int64 ("lowbias32", Wellons 2018)."""
    h = h ^ (h >> 16)
    h = (h * 0x7FEB352D) & UINT32_MASK
    h = h ^ (h >> 15)
    h = (h * (0x846CA68B - 2**32)) & UINT32_MASK  # congruent and below 2^31 in magnitude: int64 holds the product
    return h ^ (h >> 16)
