"""Smooth L1 loss of composited pixels (Girshick 2015)."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid.precision import maths_dtype


def pixel_loss(
    colors: Tensor,
    opacities: Tensor,
    background: Tensor,
    targets: Tensor,
    beta: float = 0.1,
    n_rays: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`hashgrid.ops.pixel_loss`; differentiable any number of times."""
    dtype = maths_dtype(colors)
    total, channels = colors.shape
    counts = torch.arange(total, device=colors.device) < (total if n_rays is None else n_rays.clamp(0, total))
    # a choice, not a product: values of rays that do not count may be anything
    colors, opacities, background, targets = (
        torch.where(counts if x.dim() == 1 else counts[:, None], x.to(dtype), 0.0)
        for x in (colors, opacities, background, targets)
    )
    difference = colors + (1 - opacities)[:, None] * background - targets
    weight = 1 / (channels * counts.sum().clamp(min=1).double())
    zero = torch.zeros_like(difference)
    loss = (torch.nn.functional.smooth_l1_loss(difference, zero, reduction="sum", beta=beta) * weight).to(dtype)
    means = torch.stack((loss.detach().double(), difference.detach().double().square().sum() * weight))
    return loss, means
