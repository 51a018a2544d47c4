"""Volume compositing of packed samples (Max 1995; distortion: Barron et al. 2022, eq. 15) in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hashgrid.ops._tensors import maths_dtype
from hashgrid.util.choices import exactly_one


def composite(
    sigmas: Tensor | None,
    features: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    packed_info: Tensor,
    early_stop_eps: float = 1e-4,
    *,
    alphas: Tensor | None = None,
    return_transmittances: bool = False,
) -> tuple[Tensor, ...]:
    """Composites the samples of every ray, front to back.

    With ``dt = t_end - t_start``: ``alpha_i = 1 - exp(-sigma_i dt_i)`` where densities are given,
    ``T_i = prod_{j<i} (1 - alpha_j)`` and ``w_i = T_i alpha_i``. A sample counts iff ``T_i >= early_stop_eps``; the
    others have weight, transmittance and gradient exactly zero. Twice differentiable to ``sigmas`` or ``alphas`` and
    ``features`` through all outputs, not to ``t_starts`` and ``t_ends``.

    Args:
        sigmas: [S], densities, non-negative (half precision is read as fp32); None with ``alphas``.
        features: [S, C].
        t_starts: [S], distances along the ray.
        t_ends: [S].
        packed_info: [R, 2] int64, first sample and number of samples of each ray; rays lie back to back, in order.
            Samples behind those of the last ray belong to none: their weights and gradients are zero.
        early_stop_eps: smallest transmittance at which a sample counts.
        alphas: [S], in [0, 1], instead of ``sigmas``.
        return_transmittances: whether ``T`` is returned as well.

    Returns:
        features [R, C] ``sum w_i c_i``, opacities [R] ``sum w_i``, depths [R] ``sum w_i m_i`` with the midpoints ``m``,
        weights [S], distortion [R] ``1/3 sum w_i^2 dt_i + 2 sum_i w_i sum_{j<i} w_j (m_i - m_j)``, and
        transmittances [S] with ``return_transmittances``.

    Raises:
        ValueError: not exactly one of ``sigmas`` and ``alphas`` is given, a shape does not fit, or the counts add up to
            more than S.
    """
    name, density = exactly_one(sigmas=sigmas, alphas=alphas)
    _check_arguments(name, density, features, t_starts, t_ends, packed_info)
    n_rays, n_samples = packed_info.shape[0], density.shape[0]
    ray, rank = place_samples(packed_info, n_samples)
    dtype = maths_dtype(density)
    density, t_starts, t_ends = density.to(dtype), t_starts.detach().to(dtype), t_ends.detach().to(dtype)
    dt, midpoints = t_ends - t_starts, (t_starts + t_ends) / 2

    if name == "alphas":
        alphas, transmittances = density, exclusive_product(1 - density, rank)
    else:
        thickness = density * dt
        alphas, transmittances = -torch.expm1(-thickness), (-exclusive_sum(thickness, rank)).exp()
    counted = (transmittances >= early_stop_eps) & (ray < n_rays)
    transmittances = torch.where(counted, transmittances, 0)
    weights = torch.where(counted, transmittances * alphas, 0)

    # sum_{j<i} w_j (m_i - m_j) = sum_{k<i} (w_0 + ... + w_k) (m_{k+1} - m_k): no difference of two large sums
    gaps = torch.where(rank[1:] > 0, midpoints.diff(), 0)
    spread = exclusive_sum(inclusive_sum(weights, rank) * F.pad(gaps, (0, 1)), rank)

    def per_ray(values: Tensor) -> Tensor:
        return values.new_zeros(n_rays + 1, *values.shape[1:]).index_add(0, ray, values)[:n_rays]

    outputs = (
        per_ray(weights.unsqueeze(-1) * features),
        per_ray(weights),
        per_ray(weights * midpoints),
        weights,
        per_ray(weights.square() * dt / 3 + 2 * weights * spread),
    )
    return (*outputs, transmittances) if return_transmittances else outputs


def place_samples(packed_info: Tensor, n_samples: int) -> tuple[Tensor, Tensor]:
    """Ray of each sample [S] and its position within it [S]. Samples of no ray are those of a ray R behind the last."""
    starts, counts = packed_info.unbind(-1)
    n_placed = int(counts.sum())
    starts, counts = F.pad(starts, (0, 1), value=n_placed), F.pad(counts, (0, 1), value=n_samples - n_placed)
    ray = torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=n_samples)
    return ray, torch.arange(n_samples, device=counts.device) - starts[ray]


def inclusive_sum(values: Tensor, rank: Tensor) -> Tensor:
    """``sum_{j<=i} values_j`` within each ray [S]; ``rank`` [S] counts the samples of a ray from 0.

    Log-step scan (Hillis & Steele 1986): no sum ever crosses a ray, as those of one long cumsum would.
    """
    step, longest = 1, int(rank.max()) if rank.numel() else 0
    while step <= longest:
        values = values + torch.where(rank >= step, _shift(values, step), 0)
        step *= 2
    return values


def exclusive_sum(values: Tensor, rank: Tensor) -> Tensor:
    """``sum_{j<i} values_j`` within each ray [S]."""
    return inclusive_sum(torch.where(rank >= 1, _shift(values, 1), 0), rank)


def exclusive_product(values: Tensor, rank: Tensor) -> Tensor:
    """Returns ``prod_{j<i} values_j`` within each ray [S], scanned as :func:`inclusive_sum` is; a factor may be 0."""
    values = torch.where(rank >= 1, _shift(values, 1), 1)
    step, longest = 1, int(rank.max()) if rank.numel() else 0
    while step <= longest:
        values = values * torch.where(rank >= step, _shift(values, step), 1)
        step *= 2
    return values


def _shift(values: Tensor, step: int) -> Tensor:
    """``values[i - step]`` at i, zeros in front."""
    return F.pad(values, (step, 0))[: values.shape[0]]


def _check_arguments(
    name: str, density: Tensor, features: Tensor, t_starts: Tensor, t_ends: Tensor, packed_info: Tensor
) -> None:
    if density.dim() == 1 and (features.dim() != 2 or features.shape[0] != density.shape[0]):
        raise ValueError(f"`features` must have shape [{density.shape[0]}, C], got {list(features.shape)}")
    check_samples(density, t_starts, t_ends, packed_info, name)


def check_samples(sigmas: Tensor, t_starts: Tensor, t_ends: Tensor, packed_info: Tensor, name: str = "sigmas") -> None:
    """Raises ValueError unless the shapes are [S], [S], [S] and [R, 2], with counts that add up to at most S."""
    if sigmas.dim() != 1:
        raise ValueError(f"`{name}` must have shape [S], got {list(sigmas.shape)}")
    n_samples = sigmas.shape[0]
    for name, t in (("t_starts", t_starts), ("t_ends", t_ends)):
        if t.shape != sigmas.shape:
            raise ValueError(f"`{name}` must have shape [{n_samples}], got {list(t.shape)}")
    if packed_info.dim() != 2 or packed_info.shape[1] != 2:
        raise ValueError(f"`packed_info` must have shape [R, 2], got {list(packed_info.shape)}")
    if (total := int(packed_info[:, 1].sum())) > n_samples:
        raise ValueError(f"`packed_info` must count up to {n_samples} samples, those of `t_starts`, got {total}")
