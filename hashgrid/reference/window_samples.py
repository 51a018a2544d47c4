"""Samples of a window along rays that are not opaque yet, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid.ops._tensors import maths_dtype
from hashgrid.reference.composite import check_samples, exclusive_sum, place_samples


@torch.no_grad()
def window_samples(
    rays_o: Tensor,
    rays_d: Tensor,
    sigmas: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    packed_info: Tensor,
    begin: int,
    end: int,
    early_stop_eps: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """Samples number ``begin`` to ``end`` of the rays on which sample ``begin`` is visible, and their positions.

    Args:
        rays_o: [R, 3], origins.
        rays_d: [R, 3], directions.
        sigmas: [S], densities, known in front of ``begin`` (half precision is read as fp32).
        t_starts: [S], distances in units of the length of the ray's direction.
        t_ends: [S].
        packed_info: [R, 2] int64, first sample and number of samples of each ray; rays lie back to back, in order.
        begin: first sample of the window, counted from the first of each ray.
        end: where the window ends; rays with fewer samples end earlier.
        early_stop_eps: a sample of less transmittance is hidden.

    Returns:
        index [K] int64 of the samples, in order; [K, 3], the middles of these in space.

    Raises:
        ValueError: a shape or the window does not fit, or the counts add up to more than S.
    """
    check_samples(sigmas, t_starts, t_ends, packed_info)
    n_rays, n_samples = packed_info.shape[0], sigmas.shape[0]
    for name, x in (("rays_o", rays_o), ("rays_d", rays_d)):
        if x.shape != (n_rays, 3):
            raise ValueError(f"`{name}` must have shape [{n_rays}, 3], got {list(x.shape)}")
    if not 0 <= begin <= end:
        raise ValueError(f"`begin` and `end` must satisfy 0 <= begin <= end, got {begin} and {end}")
    dtype = maths_dtype(sigmas)
    rays_o, rays_d, sigmas, t_starts, t_ends = (x.to(dtype) for x in (rays_o, rays_d, sigmas, t_starts, t_ends))
    ray, rank = place_samples(packed_info, n_samples)
    transmittance = (-exclusive_sum(sigmas * (t_ends - t_starts), rank)).exp()
    is_open = torch.zeros(n_rays + 1, dtype=torch.bool, device=sigmas.device)
    is_open[ray[(rank == begin) & (transmittance >= early_stop_eps)]] = True
    is_open[n_rays:] = False  # samples behind the last ray
    index = (is_open[ray] & (rank >= begin) & (rank < end)).nonzero().squeeze(-1)
    rays = ray[index]
    middle = (t_starts[index] + t_ends[index]) * 0.5
    return index, rays_o[rays] + rays_d[rays] * middle.unsqueeze(-1)
