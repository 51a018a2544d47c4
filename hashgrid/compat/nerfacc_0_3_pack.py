"""Which samples belong to which ray, as nerfacc 0.3 has it, and functions of all samples of a ray."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid.compat.nerfacc import pack
from hashgrid.compat.nerfacc._checks import check_shape
from hashgrid.compat.nerfacc.scan import exclusive_sum

_LEAST_WEIGHT = 1e-5  # of a ray; what is missing is spread over its samples


def pack_info(ray_indices: Tensor, n_rays: int | None = None) -> Tensor:
    """First sample and number of samples of each ray, [R, 2] int32, of rising ``ray_indices`` [S].

    Raises:
        ValueError: ``ray_indices`` is no vector of integers, or names a ray that is not there.
    """
    return pack.pack_info(ray_indices, n_rays).int()


@torch.no_grad()
def unpack_info(packed_info: Tensor, n_samples: int | None = None) -> Tensor:
    """The ray of each sample, [n_samples] int64, of ``packed_info`` [R, 2]; 0 of samples that belong to none.

    Raises:
        ValueError: the shape does not fit.
    """
    ray, _, row = _rows(packed_info)
    indices = ray.new_zeros(len(ray) if n_samples is None else n_samples)
    indices[row] = ray
    return indices


def pack_data(data: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Those rows of ``data`` [R, n, D] for which ``mask`` [R, n] is True, [S, D], and their packed_info [R, 2] int32.

    Raises:
        ValueError: a shape or a dtype does not fit.
    """
    check_shape("data", data, "R", "n", "D")
    check_shape("mask", mask, *data.shape[:2])
    if mask.dtype != torch.bool:
        raise ValueError(f"`mask` must be bool, got {mask.dtype}")
    return data[mask], _packed(mask.sum(dim=-1)).int()


def unpack_data(packed_info: Tensor, data: Tensor, n_samples: int | None = None) -> Tensor:
    """Rows of ``data`` [S, D] by ray, [R, n_samples, D], zeros behind; differentiable to them.

    Args:
        packed_info: [R, 2], first row and number of rows of each ray.
        data: [S, D].
        n_samples: rows of a ray, further ones are dropped; None for as many as the longest ray has.

    Raises:
        ValueError: a shape does not fit.
    """
    check_shape("data", data, "S", "D")
    ray, k, row = _rows(packed_info)
    if n_samples is None:
        n_samples = int(packed_info[:, 1].max()) if len(packed_info) else 0
    ray, k, row = (x[k < n_samples] for x in (ray, k, row))
    return data.new_zeros(len(packed_info), n_samples, data.shape[1]).index_put((ray, k), data[row])


def _rows(packed_info: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each sample of packed rays [R, 2]: its ray, its number on the ray, and its row in tensors of samples."""
    check_shape("packed_info", packed_info, "R", 2)
    first, counts = packed_info.long().unbind(-1)
    ray = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    k = torch.arange(len(ray), device=ray.device) - (counts.cumsum(0) - counts)[ray]
    return ray, k, first[ray] + k


def _packed(counts: Tensor) -> Tensor:
    """First sample and number of samples, [R, 2], of rays that have ``counts`` [R]."""
    return torch.stack((counts.cumsum(0) - counts, counts), dim=-1)


@torch.no_grad()
def ray_resampling(
    packed_info: Tensor, t_starts: Tensor, t_ends: Tensor, weights: Tensor, n_samples: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples with as much weight each, but for half as much before the first and behind the last. Not differentiable.

    Args:
        packed_info: [R, 2], first sample and number of samples of each ray.
        t_starts: [S, 1].
        t_ends: [S, 1].
        weights: [S], 0 or more.
        n_samples: of a ray; one that has none gets none.

    Returns:
        packed_info [R, 2] int32, t_starts and t_ends of the new samples, [M, 1] each.

    Raises:
        ValueError: a shape does not fit.
    """
    ray, _, row = _rows(packed_info)
    check_shape("weights", weights, len(t_starts))
    begin, end, mass = t_starts[row, 0].double(), t_ends[row, 0].double(), weights[row].double()
    counts = packed_info[:, 1].long()
    sums = mass.new_zeros(len(counts)).index_add(0, ray, mass)
    lacking = (_LEAST_WEIGHT - sums).clamp(min=0)
    share = (mass + (lacking / counts)[ray]) / (sums + lacking)[ray]
    total = share.cumsum(0)
    first = counts.cumsum(0) - counts
    before = (total - share)[first.clamp(max=max(len(row) - 1, 0))] if len(row) else sums
    reached = (total - before[ray]).clamp(max=1)  # of the ray's weight, up to the end of a sample

    used = (counts > 0).nonzero().squeeze(-1)
    u = (torch.arange(n_samples + 1, device=ray.device, dtype=torch.float64) + 0.5) / (n_samples + 1)
    # one search in all rays: what is reached on a ray lies between its number and the next
    index = torch.searchsorted(ray + reached, used[:, None] + u, right=True)
    index = index.clamp(first[used][:, None], (first + counts - 1)[used][:, None])  # [used, n_samples + 1]
    within = (u - (reached - share)[index]) / share[index]
    edges = (begin[index] + (end - begin)[index] * within.clamp(0, 1)).to(t_starts.dtype)
    resampled = torch.where(counts > 0, n_samples, 0)
    return _packed(resampled).int(), edges[:, :-1].reshape(-1, 1), edges[:, 1:].reshape(-1, 1)


def loss_distortion(packed_info: Tensor, weights: Tensor, t_starts: Tensor, t_ends: Tensor) -> Tensor:
    """Distortion [R] of rays, by Barron et al. 2022, eq. 15; differentiable to all but ``packed_info``.

    Args:
        packed_info: [R, 2], first sample and number of samples of each ray.
        weights: [S].
        t_starts: [S, 1], in order along each ray.
        t_ends: [S, 1].

    Raises:
        ValueError: a shape does not fit.
    """
    ray, _, row = _rows(packed_info)
    check_shape("weights", weights, len(t_starts))
    packed_info = _packed(packed_info[:, 1].long())
    w, begin, end = weights[row], t_starts[row, 0], t_ends[row, 0]
    middle = (begin + end) / 2
    # over pairs of samples, the first of which is in front
    pairs = w * (middle * exclusive_sum(w, packed_info) - exclusive_sum(w * middle, packed_info))
    terms = w * w * (end - begin) / 3 + 2 * pairs
    return terms.new_zeros(len(packed_info)).index_add(0, ray, terms)
