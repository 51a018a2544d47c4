"""Samples that compositing will count, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid.ops._tensors import maths_dtype
from hashgrid.reference.composite import check_samples, exclusive_sum, place_samples


@torch.no_grad()
def visible_samples(
    sigmas: Tensor, t_starts: Tensor, t_ends: Tensor, packed_info: Tensor, early_stop_eps: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """The samples in front of the first one whose transmittance is below ``early_stop_eps``, ray by ray.

    They are those ``composite`` counts: compositing them alone gives the same colours and gradients.

    Args:
        sigmas: [S], densities, non-negative (half precision is read as fp32).
        t_starts: [S], distances along the ray.
        t_ends: [S].
        packed_info: [R, 2] int64, first sample and number of samples of each ray; rays lie back to back, in order.
        early_stop_eps: smallest transmittance at which a sample counts.

    Returns:
        index [K] int64, the samples kept, in order; packed_info [R, 2] int64 of these.

    Raises:
        ValueError: a shape does not fit, or the counts add up to more than S.
    """
    check_samples(sigmas, t_starts, t_ends, packed_info)
    dtype = maths_dtype(sigmas)
    sigmas, t_starts, t_ends = sigmas.to(dtype), t_starts.to(dtype), t_ends.to(dtype)
    n_rays, n_samples = packed_info.shape[0], sigmas.shape[0]
    ray, rank = place_samples(packed_info, n_samples)
    transmittance = (-exclusive_sum(sigmas * (t_ends - t_starts), rank)).exp()
    hidden_before = exclusive_sum((~(transmittance >= early_stop_eps)).long(), rank)
    index = ((transmittance >= early_stop_eps) & (hidden_before == 0) & (ray < n_rays)).nonzero().squeeze(-1)
    kept = ray[index].bincount(minlength=n_rays)
    return index, torch.stack([kept.cumsum(0) - kept, kept], dim=-1)
