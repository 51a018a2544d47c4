"""Integrals along rays as sums over packed samples, without attenuation (X-ray transform), in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from hashgrid.ops._tensors import at_least_fp32
from hashgrid.reference.composite import check_samples, place_samples


def line_integrals(values: Tensor, t_starts: Tensor, t_ends: Tensor, packed_info: Tensor) -> Tensor:
    """Sums values times the lengths of their intervals along each ray: ``sum_i values_i (t_ends_i - t_starts_i)``.

    Args:
        values: [S, C] (half precision is read as fp32).
        t_starts: [S], distances along the ray.
        t_ends: [S].
        packed_info: [R, 2] int64, first sample and number of samples of each ray; rays lie back to back, in order.
            Samples behind those of the last ray belong to none: their gradients are zero.

    Returns:
        [R, C], zero for a ray without samples.

    Raises:
        ValueError: a shape does not fit, or the counts add up to more than S.
    """
    if values.dim() != 2:
        raise ValueError(f"`values` must have shape [S, C], got {list(values.shape)}")
    values = at_least_fp32(values)
    check_samples(values[:, 0] if values.shape[1] else values.new_empty(len(values)), t_starts, t_ends, packed_info)
    n_rays, n_samples = packed_info.shape[0], values.shape[0]
    ray, _ = place_samples(packed_info, n_samples)
    terms = values * (t_ends.to(values.dtype) - t_starts.to(values.dtype)).unsqueeze(-1)
    return values.new_zeros(n_rays + 1, values.shape[1]).index_add(0, ray, terms)[:n_rays]
