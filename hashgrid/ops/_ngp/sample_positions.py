"""Middles of samples in space, on the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.maths import middles
from hashgrid.ops._tensors import at_least_fp32, maths_dtype
from hashgrid.util.autograd import is_recorded


def sample_positions(rays_o: Tensor, rays_d: Tensor, ray_indices: Tensor, t_starts: Tensor, t_ends: Tensor) -> Tensor:
    """Where the middles of samples lie: ``o + d (t_start + t_end) / 2``.

    One pass, if no gradient is recorded; differentiable through PyTorch's ops otherwise.

    Args:
        rays_o: [R, 3], origins, fp32 or fp64 (half precision is read as fp32).
        rays_d: [R, 3], directions.
        ray_indices: [S] int64, the ray of each sample.
        t_starts: [S], distances in units of the length of the ray's direction.
        t_ends: [S].

    Returns:
        [S, 3], in the dtype of ``rays_o``, fp32 at least; NaN where a ray does not exist.

    Raises:
        RuntimeError: a shape or a dtype does not fit.
    """
    if is_recorded(rays_o, rays_d, t_starts, t_ends):
        return middles(at_least_fp32(rays_o), at_least_fp32(rays_d), ray_indices, t_starts, t_ends)
    dtype = maths_dtype(rays_o)
    rays_o, rays_d, t_starts, t_ends = (x.detach().to(dtype).contiguous() for x in (rays_o, rays_d, t_starts, t_ends))
    return _extension.ops().sample_positions(rays_o, rays_d, ray_indices.contiguous(), t_starts, t_ends)


def _register() -> None:
    @torch.library.register_fake("hashgrid::sample_positions")
    def _(rays_o, rays_d, ray_indices, t_starts, t_ends):
        return rays_o.new_empty(t_starts.shape[0], 3)


if _extension.module is not None:
    _register()
