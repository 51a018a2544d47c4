"""What keeps the weights of a ray together."""

from __future__ import annotations

from torch import Tensor

from hashgrid.compat.nerfacc._checks import check_indices, check_same_shape
from hashgrid.compat.nerfacc._rows import Rows, runs
from hashgrid.compat.nerfacc.scan import exclusive_sum
from hashgrid.compat.nerfacc.volrend import accumulate_along_rays


def distortion(
    weights: Tensor, t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor | None = None, n_rays: int | None = None
) -> Tensor:
    """Returns how far the weights of each ray lie apart, [R, 1]: ``sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 dt_i``
    with the middles m (Barron et al. 2022, eq. 15). Samples of a ray are in order.

    Args:
        weights: [S], or [R, n] without ``ray_indices``.
        t_starts: distances at which samples begin, likewise.
        t_ends: distances at which they end, likewise.
        ray_indices: [S] int64, ray of each sample, rising.
        n_rays: R beside ``ray_indices``; None is one more than the last ray.

    Raises:
        ValueError: a shape does not fit.

    Example:
        >>> import torch
        >>> t = torch.tensor([0.0, 1.0])
        >>> distortion(torch.tensor([0.5, 0.5]), t, t + 1, torch.tensor([0, 0]), 1)
        tensor([[0.6667]])
    """
    for name, x in (("t_starts", t_starts), ("t_ends", t_ends)):
        check_same_shape(name, x, "weights", weights)
    middles = (t_starts + t_ends) / 2
    # from a ray's first middle on, which changes no difference: far from the origin large sums would be subtracted
    if ray_indices is None:
        middles = middles - middles[..., :1].detach()
        before, placed = exclusive_sum(weights), exclusive_sum(weights * middles)
    else:
        check_indices("ray_indices", ray_indices)
        check_same_shape("ray_indices", ray_indices, "weights", weights)
        packed_info = runs(ray_indices)
        middles = middles - middles.detach()[packed_info[:, 0]].repeat_interleave(packed_info[:, 1])
        rows = Rows(packed_info, len(weights))
        before, placed = (rows.scan(x, "sum", exclusive=True) for x in (weights, weights * middles))
    between = 2 * weights * (middles * before - placed)
    within = weights.square() * (t_ends - t_starts) / 3
    return accumulate_along_rays(between + within, None, ray_indices, n_rays)
