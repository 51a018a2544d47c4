"""Frequency encoding (Mildenhall et al. 2020, eq. 4) on the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.autograd import Function, apply
from hashgrid.maths import waves
from hashgrid.ops._composed import pull_back_gradient
from hashgrid.ops._flatten import flatten, unflatten
from hashgrid.ops._vmap import register_vmap
from hashgrid.precision import at_least_fp32

MAX_FREQUENCIES = 64


def frequency_encode(x: Tensor, n_frequencies: int = 12) -> Tensor:
    """``sin(2^k pi x), cos(2^k pi x)`` for each input dimension and k in 0..K-1. Differentiable any number of times.

    Whole turns are taken off ``2^k x`` before pi comes in, which is exact: the error stays near one rounding at every
    frequency and for any ``x``.

    Args:
        x: [..., D], fp32 or fp64 (half precision is read as fp32).
        n_frequencies: K, 1..64.

    Returns:
        [..., D * 2 * K], channel ``(d * K + k) * 2`` for the sine, the next one for the cosine.

    Raises:
        ValueError: ``n_frequencies`` is out of range or ``x`` is a scalar.
    """
    if not 1 <= n_frequencies <= MAX_FREQUENCIES:
        raise ValueError(f"`n_frequencies` must be in 1..{MAX_FREQUENCIES}, got {n_frequencies}")
    batch = x.shape[:-1]
    flat = flatten(at_least_fp32(x), None, "x")
    return unflatten(apply(_FrequencyEncode, flat, n_frequencies), batch)


def _pull_back_twice(ctx, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    grad_y, x = ctx.saved_tensors
    return pull_back_gradient(lambda x: waves(x, ctx.n_frequencies), x, grad_y, cotangent, ctx.needs_input_grad[:2])


class _FrequencyEncode(Function):
    @staticmethod
    def forward(x, n_frequencies):  # type: ignore[override]
        return _extension.ops().frequency_encode(x, n_frequencies)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[override]
        x, ctx.n_frequencies = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, grad_y):  # type: ignore[override]
        return apply(_FrequencyEncodeBackward, grad_y.contiguous(), *ctx.saved_tensors, ctx.n_frequencies), None


class _FrequencyEncodeBackward(Function):
    """The first derivative as a function of its own, so that it can be differentiated once more."""

    @staticmethod
    def forward(grad_y, x, n_frequencies):  # type: ignore[override]
        return _extension.ops().frequency_encode_backward(grad_y, x, n_frequencies)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[override]
        grad_y, x, ctx.n_frequencies = inputs
        ctx.save_for_backward(grad_y, x)

    @staticmethod
    def backward(ctx, cotangent):  # type: ignore[override]
        return *_pull_back_twice(ctx, cotangent), None


def _register() -> None:
    """Fake kernels and autograd of ``torch.ops.hashgrid.frequency_encode``."""

    @torch.library.register_fake("hashgrid::frequency_encode")
    def _(x, n_frequencies):
        return x.new_empty(x.shape[0], x.shape[1] * 2 * n_frequencies)

    @torch.library.register_fake("hashgrid::frequency_encode_backward")
    def _(grad_y, x, n_frequencies):
        return torch.empty_like(x)

    def backward(ctx, grad_y):
        return torch.ops.hashgrid.frequency_encode_backward(
            grad_y.contiguous(), *ctx.saved_tensors, ctx.n_frequencies
        ), None

    def backward_backward(ctx, cotangent):
        return *_pull_back_twice(ctx, cotangent), None

    torch.library.register_autograd(
        "hashgrid::frequency_encode", backward, setup_context=_FrequencyEncode.setup_context
    )
    torch.library.register_autograd(
        "hashgrid::frequency_encode_backward", backward_backward, setup_context=_FrequencyEncodeBackward.setup_context
    )

    register_vmap("frequency_encode", ["x"])
    register_vmap("frequency_encode_backward", ["grad_y", "x"])


if _extension.module is not None:
    _register()
