"""Composited pixels, and the gradients of their loss."""

from __future__ import annotations

import torch
from torch import Tensor


def pixels(n: int, channels: int = 3) -> list[Tensor]:
    """colors, opacities, background, targets."""
    return [torch.rand(n, channels), torch.rand(n), torch.rand(n, channels), torch.rand(n, channels)]


def loss_and_gradients(function, tensors: list[Tensor], dtype: torch.dtype, **options) -> list[Tensor]:
    """Loss, means, and gradients to colours and opacities of three times the loss."""
    colors, opacities, *rest = (x.to(dtype) for x in tensors)
    colors.requires_grad_(), opacities.requires_grad_()
    out = function(colors, opacities, *rest, **options)
    loss, means = out if isinstance(out, tuple) else (out, torch.zeros(2))
    return [loss.detach(), means, *torch.autograd.grad(3 * loss, (colors, opacities))]
