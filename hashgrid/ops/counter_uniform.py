"""Counter-based random numbers on the native kernels: the same on every device, whatever the order of evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.util.choices import as_integer


def counter_uniform(seed: int | Tensor, step: int | Tensor, index: Tensor) -> Tensor:
    """One uniform number per (seed, step, index): 24 random bits of an integer hash.

    Args:
        seed: 64 bits are used. This and ``step`` may be int64 tensors with one element on the device of ``index``,
            which are read on the device: a captured CUDA graph follows them.
        step: 32 bits are used.
        index: int64 of any shape, 32 bits are used.

    Returns:
        fp32 in [0, 1), of the shape of ``index``.

    Raises:
        RuntimeError: ``index`` is not int64.
    """
    flat = index.reshape(-1).contiguous()
    return _extension.ops().counter_uniform(as_counter(seed, step, index.device), flat).reshape(index.shape)


def as_counter(seed: int | Tensor, step: int | Tensor, device: torch.device) -> Tensor:
    """Returns seed and step as the int64 tensor [2] on ``device`` that kernels read."""
    if not isinstance(seed, Tensor) and not isinstance(step, Tensor):
        words = [_signed64(as_integer("seed", seed)), as_integer("step", step) & 0xFFFFFFFF]
        return torch.tensor(words, dtype=torch.int64, device=device)
    parts = [
        x.reshape(1)
        if isinstance(x, Tensor)
        else torch.full((1,), _signed64(as_integer(name, x)), dtype=torch.int64, device=device)
        for name, x in (("seed", seed), ("step", step))
    ]
    return torch.cat(parts)


def _signed64(value: int) -> int:
    """Returns the low 64 bits of ``value`` as the signed number that a tensor can carry."""
    return (value + 2**63) % 2**64 - 2**63


def _register() -> None:
    @torch.library.register_fake("hashgrid::counter_uniform")
    def _(counter, index):
        return torch.empty_like(index, dtype=torch.float32)


if _extension.module is not None:
    _register()
