"""Intersection of rays with an axis-aligned box (slab method, Kay & Kajiya 1986) on the native kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.ops._tensors import maths_dtype


def ray_aabb(
    rays_o: Tensor, rays_d: Tensor, aabb: Tensor, near: float = 0.0, far: float = math.inf
) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave a box, in units of the length of their direction. Not differentiable.

    An axis along which the direction is zero does not constrain a ray that starts within its slab; outside it the ray
    misses.

    Args:
        rays_o: [R, 3], origins, fp32 or fp64 (half precision is read as fp32).
        rays_d: [R, 3], directions of any length.
        aabb: [6], (x_min, y_min, z_min, x_max, y_max, z_max).
        near: lower limit of the entry.
        far: upper limit of the exit.

    Returns:
        t_min [R] and t_max [R], both inf where the ray misses the box or has NaN coordinates.

    Raises:
        RuntimeError: a shape or a dtype does not fit.
    """
    rays_o, rays_d, aabb = prepare_rays(rays_o, rays_d, aabb)
    return _extension.ops().ray_aabb(rays_o, rays_d, aabb, near, far)


def prepare_rays(rays_o: Tensor, rays_d: Tensor, aabb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the three tensors detached, contiguous and in the dtype of ``rays_o``, at least fp32."""
    dtype = maths_dtype(rays_o)
    rays_o, rays_d, aabb = (x.detach().to(dtype).contiguous() for x in (rays_o, rays_d, aabb))
    return rays_o, rays_d, aabb.to(rays_o.device)


def as_limits(
    near: float | Tensor | None, far: float | Tensor | None, rays_o: Tensor
) -> tuple[float, float, Tensor | None]:
    """Returns ``near`` and ``far`` of all rays as numbers, and a tensor [R, 2] of each ray's where one of them is a
    tensor.

    Raises:
        ValueError: a tensor has another shape, or a number is NaN.
    """
    near, far = 0.0 if near is None else near, math.inf if far is None else far
    n_rays = rays_o.shape[0]
    for name, limit in (("near", near), ("far", far)):
        if isinstance(limit, Tensor):
            if limit.shape not in ((), (n_rays,)):
                raise ValueError(
                    f"`{name}` must be a number or have shape [{n_rays}], one per ray, got {list(limit.shape)}"
                )
        elif math.isnan(limit):
            raise ValueError(f"`{name}` must be a distance, got nan")
    if not isinstance(near, Tensor) and not isinstance(far, Tensor):
        return float(near), float(far), None
    # numbers are written on the device: a CUDA graph may record this
    columns = [
        limit.detach().to(rays_o).expand(n_rays) if isinstance(limit, Tensor) else rays_o.new_full((n_rays,), limit)
        for limit in (near, far)
    ]
    return -math.inf, math.inf, torch.stack(columns, dim=-1)


def _register() -> None:
    @torch.library.register_fake("hashgrid::ray_aabb")
    def _(rays_o, rays_d, aabb, near, far):
        return rays_o.new_empty(rays_o.shape[0]), rays_o.new_empty(rays_o.shape[0])


if _extension.module is not None:
    _register()
