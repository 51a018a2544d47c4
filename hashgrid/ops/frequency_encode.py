"""Frequency encoding (Mildenhall et al. 2020, eq. 4) on the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.maths import waves
from hashgrid.ops._autograd import differentiable_by_formula
from hashgrid.ops._tensors import at_least_fp32, flatten, unflatten
from hashgrid.ops._vmap import register_vmap

MAX_FREQUENCIES = 64


def frequency_encode(x: Tensor, n_frequencies: int = 12, pi: bool = True) -> Tensor:
    """``sin(2^k pi x), cos(2^k pi x)`` for each input dimension and k in 0..K-1. Differentiable any number of times.

    Whole turns are taken off ``2^k x`` before pi comes in, which is exact: the error stays near one rounding at every
    frequency and for any ``x``.

    Args:
        x: [..., D], fp32 or fp64 (half precision is read as fp32).
        n_frequencies: K, 1..64.
        pi: whether frequencies have the factor pi. Without it ``x`` is divided by pi in twice its digits, so that the
            same holds.

    Returns:
        [..., D * 2 * K], channel ``(d * K + k) * 2`` for the sine, the next one for the cosine.

    Raises:
        ValueError: ``n_frequencies`` is out of range or ``x`` is a scalar.
    """
    if not 1 <= n_frequencies <= MAX_FREQUENCIES:
        raise ValueError(f"`n_frequencies` must be in 1..{MAX_FREQUENCIES}, got {n_frequencies}")
    batch = x.shape[:-1]
    flat = flatten(at_least_fp32(x), None, "x")
    return unflatten(_encode(flat, n_frequencies, pi), batch)


_encode = differentiable_by_formula("frequency_encode", waves)


def _register() -> None:
    """Registers fake kernels of ``torch.ops.hashgrid.frequency_encode`` and its derivative, and vmap over them."""

    @torch.library.register_fake("hashgrid::frequency_encode")
    def _(x, n_frequencies, pi):
        return x.new_empty(x.shape[0], x.shape[1] * 2 * n_frequencies)

    @torch.library.register_fake("hashgrid::frequency_encode_backward")
    def _(grad_y, x, n_frequencies, pi):
        return torch.empty_like(x)

    register_vmap("frequency_encode", ["x"])
    register_vmap("frequency_encode_backward", ["grad_y", "x"])


if _extension.module is not None:
    _register()
