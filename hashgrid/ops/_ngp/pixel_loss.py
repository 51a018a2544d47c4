"""Smooth L1 loss of composited pixels on the native kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.maths import smooth_l1
from hashgrid.ops._autograd import Gradients, differentiable
from hashgrid.ops._tensors import maths_dtype
from hashgrid.ops._vmap import register_vmap


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
    loss, means, _, _ = _pixel_loss(*arguments, n_rays, beta)
    return loss, means


def _gradients(
    needs: Sequence[bool], tensors: Sequence[Any], options: Sequence[Any], grad_loss: Tensor, *_: None
) -> Gradients:
    """Returns the first derivative, which the forward pass has made; a second one is composed of PyTorch's ops."""
    colors, opacities, background, targets, n_rays, *grads = tensors
    if torch.is_grad_enabled():  # to be differentiated once more
        # new views, so that grad_loss computed from them does not lead back to what is differentiated here
        inputs = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in (colors, opacities)]
        loss = smooth_l1(inputs[0], inputs[1], background, targets, options[0], n_rays)[0]
        return *torch.autograd.grad(loss, inputs, grad_loss, create_graph=True), None, None, None
    return grads[0] * grad_loss, grads[1] * grad_loss, None, None, None


_pixel_loss = differentiable("pixel_loss", _gradients, n_kept=2)


def _register() -> None:
    """Registers the fake kernel of ``torch.ops.hashgrid.pixel_loss``, and vmap over it."""

    @torch.library.register_fake("hashgrid::pixel_loss")
    def _(colors, opacities, background, targets, n_rays, beta):
        means = colors.new_empty(2, dtype=torch.float64)
        return colors.new_empty(()), means, torch.empty_like(colors), torch.empty_like(opacities)

    register_vmap("pixel_loss")


if _extension.module is not None:
    _register()
