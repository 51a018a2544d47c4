"""Samples that compositing will count, on the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.ops._tensors import maths_dtype


def visible_samples(
    sigmas: Tensor, t_starts: Tensor, t_ends: Tensor, packed_info: Tensor, early_stop_eps: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """The samples in front of the first one whose transmittance is below ``early_stop_eps``, ray by ray.

    They are those ``composite`` counts: compositing them alone gives the same colours and gradients. Not
    differentiable.

    Args:
        sigmas: [S], densities, non-negative, fp32 or fp64 (half precision is read as fp32).
        t_starts: [S], distances along the ray.
        t_ends: [S].
        packed_info: [R, 2] int64, first sample and number of samples of each ray; rays lie back to back, in order.
        early_stop_eps: smallest transmittance at which a sample counts.

    Returns:
        index [K] int64, the samples kept, in order; packed_info [R, 2] int64 of these.

    Raises:
        RuntimeError: a shape or a dtype does not fit, or the rays do not lie back to back.
    """
    dtype = maths_dtype(sigmas)
    sigmas, t_starts, t_ends = (x.detach().to(dtype).contiguous() for x in (sigmas, t_starts, t_ends))
    return _extension.ops().visible_samples(sigmas, t_starts, t_ends, packed_info.contiguous(), early_stop_eps)


def _register() -> None:
    @torch.library.register_fake("hashgrid::visible_samples")
    def _(sigmas, t_starts, t_ends, packed_info, early_stop_eps):
        n_kept = torch.library.get_ctx().new_dynamic_size()
        return packed_info.new_empty(n_kept), torch.empty_like(packed_info)


if _extension.module is not None:
    _register()
