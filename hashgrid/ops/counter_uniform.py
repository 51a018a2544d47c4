"""Counter-based random numbers on the native kernels: the same on every device, whatever the order of evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid import _extension


def counter_uniform(seed: int, step: int, index: Tensor) -> Tensor:
    """One uniform number per (seed, step, index): 24 random bits of an integer hash.

    Args:
        seed: 64 bits are used.
        step: 32 bits are used.
        index: int64 of any shape, 32 bits are used.

    Returns:
        fp32 in [0, 1), of the shape of ``index``.

    Raises:
        RuntimeError: ``index`` is not int64.
    """
    flat = index.reshape(-1).contiguous()
    return _extension.ops().counter_uniform(signed64(seed), step & 0xFFFFFFFF, flat).reshape(index.shape)


def signed64(seed: int) -> int:
    """The low 64 bits of ``seed`` as the signed number a schema can carry."""
    return (seed + 2**63) % 2**64 - 2**63


def _register() -> None:
    @torch.library.register_fake("hashgrid::counter_uniform")
    def _(seed, step, index):
        return torch.empty_like(index, dtype=torch.float32)


if _extension.module is not None:
    _register()
