"""Samples of a window along rays that are not opaque yet, on the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.ops._tensors import maths_dtype


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

    Asking a field window after window, from front to back, leaves out what lies behind surfaces. Not differentiable.

    Args:
        rays_o: [R, 3], origins, in the dtype of ``sigmas``.
        rays_d: [R, 3], directions.
        sigmas: [S], densities, known in front of ``begin``, fp32 or fp64 (half precision is read as fp32).
        t_starts: [S], distances in units of the length of the ray's direction.
        t_ends: [S].
        packed_info: [R, 2] int64, first sample and number of samples of each ray; rays lie back to back, in order.
        begin: first sample of the window, counted from the first of each ray.
        end: where the window ends; rays with fewer samples end earlier.
        early_stop_eps: a sample of less transmittance is hidden.

    Returns:
        index [K] int64 of the samples, in order; [K, 3], the middles of these in space.

    Raises:
        RuntimeError: a shape, a dtype or the window does not fit, or the rays do not lie back to back.
    """
    dtype = maths_dtype(sigmas)
    arguments = (x.detach().to(dtype).contiguous() for x in (rays_o, rays_d, sigmas, t_starts, t_ends))
    return _extension.ops().window_samples(*arguments, packed_info.contiguous(), begin, end, early_stop_eps)


def _register() -> None:
    @torch.library.register_fake("hashgrid::window_samples")
    def _(rays_o, rays_d, sigmas, t_starts, t_ends, packed_info, begin, end, early_stop_eps):
        n_kept = torch.library.get_ctx().new_dynamic_size()
        return packed_info.new_empty(n_kept), rays_o.new_empty(n_kept, 3)


if _extension.module is not None:
    _register()
