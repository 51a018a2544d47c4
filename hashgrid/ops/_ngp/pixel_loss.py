"""Smooth L1 loss of composited pixels on the native kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.autograd import Function, apply
from hashgrid.maths import smooth_l1
from hashgrid.ops._vmap import register_vmap
from hashgrid.precision import maths_dtype


def pixel_loss(
    colors: Tensor,
    opacities: Tensor,
    background: Tensor,
    targets: Tensor,
    beta: float = 0.1,
    n_rays: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean smooth L1 loss (Girshick 2015) of rays over their backgrounds: ``x^2 / (2 beta)`` of differences x up to
    ``beta``, ``|x| - beta / 2`` beyond; that is the Huber loss divided by its delta.

    Loss and gradient are one pass over the rays; the sums are fp64, in an order that their number fixes. Twice
    differentiable to ``colors`` and ``opacities``, by PyTorch's ops the second time.

    Args:
        colors: [R, C], what `composite` gives, without a background; fp32 or fp64 (half precision is read as fp32).
        opacities: [R].
        background: [R, C], seen where a ray is not opaque.
        targets: [R, C], the pixels, over the same background.
        beta: positive.
        n_rays: int64 [1] on the device of ``colors``: the rays that count, from the first on, read there so that a
            captured CUDA graph follows it. None: all.

    Returns:
        The loss [], and [2] fp64: the loss and the mean squared error, not differentiable. 0 where no ray counts.

    Raises:
        RuntimeError: a shape or a dtype does not fit, or ``beta`` is not positive.
    """
    dtype = maths_dtype(colors)
    arguments = [x.to(dtype).contiguous() for x in (colors, opacities, background, targets)]
    if torch.compiler.is_compiling():
        loss, means, _, _ = _extension.ops().pixel_loss(*arguments, n_rays, beta)
        return loss, means
    return apply(_PixelLoss, *arguments, n_rays, beta)[:2]


class _PixelLoss(Function):
    @staticmethod
    def forward(*arguments):  # type: ignore[override]
        return _extension.ops().pixel_loss(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[override]
        *tensors, n_rays, ctx.beta = inputs
        ctx.save_for_backward(*tensors, n_rays, *output[2:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad_loss, *_):  # type: ignore[override]
        colors, opacities, background, targets, n_rays, *grads = ctx.saved_tensors
        if grad_loss is None:
            return None, None, None, None, None, None
        if torch.is_grad_enabled():  # to be differentiated once more
            # new views, so that grad_loss computed from them does not lead back to what is differentiated here
            inputs = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in (colors, opacities)]
            loss = smooth_l1(inputs[0], inputs[1], background, targets, ctx.beta, n_rays)[0]
            again = torch.autograd.grad(loss, inputs, grad_loss, create_graph=True)
            return *again, None, None, None, None
        return grads[0] * grad_loss, grads[1] * grad_loss, None, None, None, None


def _register() -> None:
    """Fake kernel and autograd of ``torch.ops.hashgrid.pixel_loss``."""

    @torch.library.register_fake("hashgrid::pixel_loss")
    def _(colors, opacities, background, targets, n_rays, beta):
        means = colors.new_empty(2, dtype=torch.float64)
        return colors.new_empty(()), means, torch.empty_like(colors), torch.empty_like(opacities)

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*output[2:])
        ctx.mark_non_differentiable(*output[1:])

    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> Any:
        grad_colors, grad_opacities = ctx.saved_tensors
        return grad_colors * grad_loss, grad_opacities * grad_loss, None, None, None, None

    torch.library.register_autograd("hashgrid::pixel_loss", backward, setup_context=setup_context)

    register_vmap("pixel_loss")


if _extension.module is not None:
    _register()
