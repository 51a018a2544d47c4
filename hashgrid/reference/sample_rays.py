"""Rays through random pixels of a set of images."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid.reference.random import counter_uniform

FIRST_DRAW, DRAWS_PER_RAY = 2**31, 5  # indices of random numbers; march_rays takes those of the rays themselves


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
    """See :func:`hashgrid.ops.sample_rays`; the same bits."""
    row, noise = draw_pixels(seed, step, n_rays, len(data), data.device)
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


def draw_pixels(
    seed: int | Tensor, step: int | Tensor, n_rays: int, n_pixels: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Pixels [R] of ``n_pixels``, with replacement, and three uniform numbers for each [R, 3]."""
    index = FIRST_DRAW + torch.arange(DRAWS_PER_RAY * n_rays, device=device)
    u = counter_uniform(seed, step, index).view(n_rays, DRAWS_PER_RAY)
    # 24 bits are too few for the pixels of a large scene
    place = u[:, 3].double() + u[:, 4].double() * 2.0**-24
    return (place * n_pixels).long().clamp(max=n_pixels - 1), u[:, :3].contiguous()


def locate_pixels(row: Tensor, offsets: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """View, column and row in its image of pixels [R], all [R] int64; ``offsets`` and ``sizes`` as of `sample_rays`."""
    view = torch.searchsorted(offsets, row, right=True) - 1
    in_view = row - offsets.index_select(0, view)
    width = sizes[:, 0].index_select(0, view)
    pixel_y = torch.div(in_view, width, rounding_mode="floor")
    return view, in_view - pixel_y * width, pixel_y


def pixel_colors(data: Tensor, row: Tensor) -> Tensor:
    """RGBA [R, 4] in [0, 1] of rows [R] of ``data`` [P, 3] or [P, 4] uint8; alpha is 1 where it has none."""
    values = data.index_select(0, row).float().mul_(1 / 255)
    return values if data.shape[1] == 4 else torch.nn.functional.pad(values, (0, 1), value=1.0)
