"""Searching along rays, and samples drawn where a cumulative density rises."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hashgrid.compat.nerfacc import data_specs
from hashgrid.compat.nerfacc._checks import check_indices, check_packed, check_same_shape, wrong
from hashgrid.compat.nerfacc.data_specs import RayIntervals


@torch.no_grad()
def searchsorted(
    sorted_sequence: RayIntervals | data_specs.RaySamples, values: RayIntervals | data_specs.RaySamples
) -> tuple[Tensor, Tensor]:
    """Returns the neighbours of each value in the sequence of its ray, int64 of the shape of ``values.vals``:
    ``sequence[left] <= value < sequence[right]``. A value from the last one on has the last two, one before the first
    has the first twice.

    Args:
        sorted_sequence: rising along each ray.
        values: of the same rays.

    Returns:
        Positions ``left`` and ``right`` within the ray where ``values`` have shape [R, n], in the flat sequence where
        they have [S].

    Raises:
        ValueError: flat values have no rays, or the numbers of rays differ.

    Example:
        >>> sequence = RayIntervals(torch.tensor([[0.0, 1.0, 2.0]]))
        >>> left, right = searchsorted(sequence, data_specs.RaySamples(torch.tensor([[-1.0, 0.5, 1.0, 3.0]])))
        >>> left.tolist(), right.tolist()
        ([[0, 0, 1, 1]], [[0, 1, 2, 2]])
    """
    sequence, x = sorted_sequence.vals, values.vals
    if sequence.dim() > 1 and x.dim() > 1:
        if sequence.shape[:-1] != x.shape[:-1]:
            wrong("values", f"have shape {[*sequence.shape[:-1], 'n']}", list(x.shape))
        right = torch.searchsorted(sequence[..., :-1].contiguous(), x.contiguous(), right=True)
        return (right - 1).clamp_min(0), right
    first, last = _bounds(sorted_sequence)
    ray = _rays(values)
    if len(ray) and int(ray.max()) >= len(first):
        wrong("values", f"be of the {len(first)} rays of `sorted_sequence`", f"ray {int(ray.max())}")
    first, last = first[ray], last[ray]
    right = _first_above(sequence.flatten(), first, last, x.flatten())
    left = torch.maximum((right - 1).minimum(last), first)
    if x.dim() > 1:  # positions in a ray
        left, right = left - first, right - first
    return left.view_as(x), right.view_as(x)


@torch.no_grad()
def importance_sampling(
    intervals: RayIntervals, cdfs: Tensor, n_intervals_per_ray: Tensor | int, stratified: bool = False
) -> tuple[RayIntervals, data_specs.RaySamples]:
    """Returns new intervals, each with the same share of a cumulative density, and their middles. No gradient passes.

    A ray's n samples lie where the density has risen by ``(i + 1/2) / n`` of all it does, or with ``stratified`` by
    ``(i + u) / n`` with one random number u per ray. Edges lie between samples, those at the ends as far from the
    sample as the next one, but within the old intervals; a single interval is all of these.

    Args:
        intervals: edges [R, m], or [E] with ``packed_info``; every ray has one or more.
        cdfs: of the shape of the edges, rising along rays.
        n_intervals_per_ray: n, or [R] for a number of each ray.
        stratified: whether samples are moved at random.

    Returns:
        Edges [R, n + 1] and samples [R, n], or with n as a tensor flat ones, with ``packed_info``, ``ray_indices``,
        and, of edges, ``is_left`` and ``is_right``.

    Raises:
        ValueError: a shape does not fit, or a ray has no edge.

    Example:
        >>> edges, cdfs = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.0, 0.8, 1.0]])
        >>> intervals, samples = importance_sampling(RayIntervals(edges), cdfs, 2)
        >>> samples.vals
        tensor([[0.3125, 0.9375]])
        >>> intervals.vals
        tensor([[0.0000, 0.6250, 1.2500]])
    """
    edges = intervals.vals
    check_same_shape("cdfs", cdfs, "intervals.vals", edges)
    if isinstance(n_intervals_per_ray, Tensor):
        return _sample_each(intervals, cdfs, n_intervals_per_ray, stratified)
    n = n_intervals_per_ray
    if n < 1:
        wrong("n_intervals_per_ray", "be positive", n)
    if edges.dim() == 1:
        counts = torch.full((_n_rays(intervals),), n, device=edges.device)
        made, samples = _sample_each(intervals, cdfs, counts, stratified)
        return RayIntervals(made.vals.view(-1, n + 1)), data_specs.RaySamples(samples.vals.view(-1, n))
    if edges.shape[-1] < 1:
        wrong("intervals.vals", "have an edge of every ray", list(edges.shape))
    steps = torch.arange(n, device=edges.device) + _shift(cdfs[..., :1], stratified)  # [..., n] or [n]
    u = cdfs[..., :1] + steps * ((cdfs[..., -1:] - cdfs[..., :1]) / n)
    middles = _inverted(edges, cdfs, u)
    return RayIntervals(_edges_of(middles, edges[..., :1], edges[..., -1:])), data_specs.RaySamples(middles)


def _sample_each(
    intervals: RayIntervals, cdfs: Tensor, counts: Tensor, stratified: bool
) -> tuple[RayIntervals, data_specs.RaySamples]:
    """Samples of as many intervals of each ray as ``counts`` [R] says, flat."""
    first, last = _bounds(intervals)
    check_indices("n_intervals_per_ray", counts, len(first))
    counts = counts.long()
    if len(first) and not bool(((last >= first) | (counts == 0)).all()):
        wrong("intervals", "have an edge of every ray", "a ray without")
    edges, cdfs = intervals.vals.flatten(), cdfs.flatten()
    starts = counts.cumsum(0) - counts
    ray = _repeated(counts)
    rank = torch.arange(len(ray), device=ray.device) - starts[ray]
    low, high = first[ray], last[ray]
    shift = _shift(cdfs.new_empty(len(first)), stratified)
    u = cdfs[low] + (rank + (shift[ray] if isinstance(shift, Tensor) else shift)) * (
        (cdfs[high] - cdfs[low]) / counts[ray]
    )
    above = _first_above(cdfs, low, high, u)
    below = torch.maximum((above - 1).minimum(high), low)
    middles = _between(edges[below], edges[above], cdfs[below], cdfs[above], u)
    samples = data_specs.RaySamples(middles, torch.stack((starts, counts), dim=1), ray)

    # a ray of n samples has n + 1 edges, one of none has none
    n_edges = counts + (counts > 0)
    edge_starts = n_edges.cumsum(0) - n_edges
    edge_ray = _repeated(n_edges)
    edge_rank = torch.arange(len(edge_ray), device=ray.device) - edge_starts[edge_ray]
    is_left, is_right = edge_rank < counts[edge_ray], edge_rank > 0
    behind = starts[edge_ray] + edge_rank  # sample on the right of an edge
    inside = is_left & is_right
    vals = middles.new_empty(len(edge_ray))
    vals[inside] = (middles[behind[inside] - 1] + middles[behind[inside]]) / 2
    for end, is_end, step in ((first, ~is_right, 1), (last, ~is_left, -1)):
        old = edges[end[edge_ray[is_end]]]
        sample = behind[is_end] - int(step < 0)
        alone = counts[edge_ray[is_end]] == 1
        neighbour = torch.where(alone, sample, sample + step)
        reach = middles[sample] - (middles[neighbour] - middles[sample]) / 2
        vals[is_end] = torch.where(alone, old, torch.maximum(reach, old) if step > 0 else torch.minimum(reach, old))
    return RayIntervals(vals, torch.stack((edge_starts, n_edges), dim=1), edge_ray, is_left, is_right), samples


def _sample_from_weighted(
    bins: Tensor,
    weights: Tensor,
    num_samples: int,
    stratified: bool = False,
    vmin: float | Tensor = -math.inf,
    vmax: float | Tensor = math.inf,
) -> tuple[Tensor, Tensor]:
    """Returns edges [..., S + 1] and middles [..., S] of intervals with one share each of the ``weights`` [..., B] of
    intervals between ``bins`` [..., B + 1]; edges are within ``vmin`` and ``vmax``. Gradients pass."""
    if bins.shape[-1] != weights.shape[-1] + 1:
        wrong("bins", f"have shape {[*weights.shape[:-1], weights.shape[-1] + 1]}", list(bins.shape))
    share = torch.nn.functional.normalize(weights, p=1, dim=-1)[..., :-1].cumsum(dim=-1)
    cdfs = torch.cat((torch.zeros_like(bins[..., :1]), share, torch.ones_like(bins[..., :1])), dim=-1)
    eps = torch.finfo(weights.dtype).eps
    u = torch.arange(num_samples, device=bins.device, dtype=bins.dtype) / num_samples
    if stratified:
        # one number for all samples of a ray; what is drawn stays below 1
        u = u + torch.rand_like(bins[..., :1]) * (1 / num_samples - 2 * eps)
    else:
        u = (u + 0.5 / num_samples).expand(*bins.shape[:-1], num_samples)
    middles = _inverted(bins, cdfs, u)
    return _edges_of(middles, vmin, vmax), middles


# ---- shared ----------------------------------------------------------------------------------------------------------


def _shift(of_rays: Tensor, stratified: bool) -> Tensor | float:
    """Where in its share a sample lies, in [0, 1): a number for each ray, or the middle."""
    return torch.rand_like(of_rays) if stratified else 0.5


def _inverted(edges: Tensor, cdfs: Tensor, u: Tensor) -> Tensor:
    """Where ``cdfs`` [..., m], linear between ``edges`` [..., m], have the values ``u`` [..., n]."""
    above = torch.searchsorted(cdfs[..., :-1].detach().contiguous(), u.detach().contiguous(), right=True)
    below = (above - 1).clamp_min(0)
    low, high, cdf_low, cdf_high = (x.gather(-1, at) for x in (edges, cdfs) for at in (below, above))
    return _between(low, high, cdf_low, cdf_high, u)


def _between(low: Tensor, high: Tensor, cdf_low: Tensor, cdf_high: Tensor, u: Tensor) -> Tensor:
    rise = cdf_high - cdf_low
    flat = rise < 1e-10
    at = low + (u - cdf_low) * ((high - low) / torch.where(flat, torch.ones_like(rise), rise))
    return torch.where(flat, (low + high) / 2, at)


def _edges_of(middles: Tensor, least: float | Tensor, most: float | Tensor) -> Tensor:
    """Edges [..., n + 1] between samples [..., n] in order, within ``least`` and ``most``."""
    if middles.shape[-1] == 1:
        ends = [torch.as_tensor(end, dtype=middles.dtype, device=middles.device) for end in (least, most)]
        return torch.cat([end.expand_as(middles) for end in ends], dim=-1)
    halves = middles.diff(dim=-1) / 2
    first = (middles[..., :1] - halves[..., :1]).clamp_min(least)
    last = (middles[..., -1:] + halves[..., -1:]).clamp_max(most)
    return torch.cat((first, middles[..., :-1] + halves, last), dim=-1)


def _repeated(counts: Tensor) -> Tensor:
    """The number of each row [sum of counts], as often as ``counts`` [R] says."""
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)


def _n_rays(x: RayIntervals | data_specs.RaySamples) -> int:
    if x.vals.dim() > 1:
        return x.vals.shape[:-1].numel()
    if x.packed_info is None:
        wrong("packed_info", "be given with flat `vals`", "None", "pack_info(ray_indices, n_rays) makes it")
    check_packed(x.packed_info)
    return len(x.packed_info)


def _bounds(x: RayIntervals | data_specs.RaySamples) -> tuple[Tensor, Tensor]:
    """First and last value [R] of each ray in the flat ones; of an empty ray the last is the one before its first."""
    n_rays = _n_rays(x)
    if x.vals.dim() > 1:
        length = x.vals.shape[-1]
        first = torch.arange(n_rays, device=x.vals.device) * length
        return first, first + (length - 1)
    assert x.packed_info is not None
    first, counts = x.packed_info.long().unbind(dim=1)
    return first, first + counts - 1


def _rays(x: RayIntervals | data_specs.RaySamples) -> Tensor:
    """Ray of each value, flat."""
    if x.vals.dim() > 1:
        return torch.arange(_n_rays(x), device=x.vals.device).repeat_interleave(x.vals.shape[-1])
    if x.ray_indices is not None:
        check_indices("ray_indices", x.ray_indices, len(x.vals))
        return x.ray_indices
    _n_rays(x)
    assert x.packed_info is not None
    ray = _repeated(x.packed_info[:, 1])
    if len(ray) != len(x.vals):
        wrong("packed_info", f"have counts of {len(x.vals)} `vals` together", len(ray))
    return ray


def _first_above(sequence: Tensor, first: Tensor, last: Tensor, x: Tensor) -> Tensor:
    """Positions of the first number of ``sequence[first:last]`` above each ``x``, or ``last``; all vectors but the
    sequence have one length. At least ``first``, also where ``last`` is before."""
    low, high = first, torch.maximum(first, last)
    for _ in range(int((high - low).max()).bit_length() if len(low) else 0):
        middle = (low + high) // 2
        # `~(a > b)` and not `a <= b`: a NaN is beyond everything
        right = (low < high) & ~(sequence[middle.clamp_max(max(len(sequence) - 1, 0))] > x)
        low, high = torch.where(right, middle + 1, low), torch.where(right, high, middle)
    return low
