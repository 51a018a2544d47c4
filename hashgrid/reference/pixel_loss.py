"""Smooth L1 loss of composited pixels (Girshick 2015)."""

from __future__ import annotations

from torch import Tensor

from hashgrid.maths import smooth_l1
from hashgrid.ops._tensors import maths_dtype


def pixel_loss(
    colors: Tensor,
    opacities: Tensor,
    background: Tensor,
    targets: Tensor,
    beta: float = 0.1,
    n_rays: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`hashgrid.ops._ngp.pixel_loss`; differentiable any number of times."""
    dtype = maths_dtype(colors)
    colors, opacities, background, targets = (x.to(dtype) for x in (colors, opacities, background, targets))
    return smooth_l1(colors, opacities, background, targets, beta, n_rays)
