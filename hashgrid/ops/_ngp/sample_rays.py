"""Rays through random pixels of a set of images, on the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.ops.counter_uniform import as_counter


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
    """A training batch: rays through the middles of random pixels, their colours, and random colours to put behind.

    Pixels are drawn uniformly over all images, with replacement. Everything is a function of seed, step and the number
    of the ray: the same bits on every device, and a longer batch begins with a shorter one. Not differentiable.

    Args:
        seed, step: as of `counter_uniform`.
        n_rays: size of the batch.
        data: [P, 3] or [P, 4] uint8, pixels of N images, one after the other and row by row.
        offsets: [N + 1] int64, first pixel of each image, and P.
        sizes: [N, 2] int64, width and height of each image in pixels.
        c2w: [N, 3, 4] fp32, camera to world: x right, y up, looking along -z.
        intrinsics: [N, 4] fp32, ``fx, fy, cx, cy`` in pixels; the middle of the first pixel is at (0.5, 0.5).
        plane_points: [Q, 2] fp32, for lenses that distort: where rays meet the plane at distance 1, x right, y down;
            the intrinsics are not read then.
        plane_rows: [N, 2] int64, first of these points and points per row of pixels, for each image.

    Returns:
        Origins [R, 3] and unit directions [R, 3]; RGBA [R, 4] in [0, 1], straight alpha, 1 where the images have none;
        uniform numbers [R, 3] in [0, 1).

    Raises:
        RuntimeError: a shape or a dtype does not fit, there is no pixel to draw, or (on the CPU) the sizes do not add
            up to the offsets.
    """
    tensors = (data, offsets, sizes, c2w, intrinsics, plane_points, plane_rows)
    return _extension.ops().sample_rays(
        as_counter(seed, step, data.device), n_rays, *(x if x is None else x.contiguous() for x in tensors)
    )


def _register() -> None:
    @torch.library.register_fake("hashgrid::sample_rays")
    def _(counter, n_rays, data, offsets, sizes, c2w, *rest):
        return tuple(c2w.new_empty(n_rays, columns) for columns in (3, 3, 4, 3))


if _extension.module is not None:
    _register()
