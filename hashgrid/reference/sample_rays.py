"""Rays through random pixels of a set of images."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid.maths import draw_pixels, locate_pixels, pixel_colors, pixel_draws
from hashgrid.reference.counter_uniform import counter_uniform


def sample_rays(
    seed: int | Tensor,
    step: int | Tensor,
    n_rays: int,
    data: Tensor,
    offsets: Tensor,
    sizes: Tensor,
    c2w: Tensor,
    intrinsics: Tensor,
    plane_points: Tensor | None = None,
    plane_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`hashgrid.ops._ngp.sample_rays`; the same bits."""
    row, noise = draw_pixels(counter_uniform(seed, step, pixel_draws(n_rays, data.device)), len(data))
    view, pixel_x, pixel_y = locate_pixels(row, offsets, sizes)
    if plane_points is not None and plane_rows is not None:
        first, width = plane_rows.index_select(0, view).unbind(-1)
        x, y = plane_points.index_select(0, first + pixel_y * width + pixel_x).unbind(-1)
    else:
        focal, centre = intrinsics.index_select(0, view).split(2, dim=-1)
        x, y = ((torch.stack((pixel_x, pixel_y), dim=-1) + 0.5 - centre) / focal).unbind(-1)
    pose = c2w.index_select(0, view)
    scale = 1 / (x * x + y * y + 1).double().sqrt().float()  # torch's root of fp32 is off by a bit at times
    rays_d = (pose[:, :, 0] * x[:, None] - pose[:, :, 1] * y[:, None] - pose[:, :, 2]) * scale[:, None]
    return pose[:, :, 3].contiguous(), rays_d, pixel_colors(data, row), noise
