"""nerfacc's traversal of occupancy grids, on CPU and CUDA tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hashgrid.compat.nerfacc import data_specs
from hashgrid.compat.nerfacc._checks import check_device, check_shape
from hashgrid.compat.nerfacc._traverse import Crossings, Found, cross_boxes, find_samples, to_packed
from hashgrid.compat.nerfacc.data_specs import RayIntervals
from hashgrid.ops._tensors import maths_dtype


@torch.no_grad()
def ray_aabb_intersect(
    rays_o: Tensor,
    rays_d: Tensor,
    aabbs: Tensor,
    near_plane: float = -math.inf,
    far_plane: float = math.inf,
    miss_value: float = math.inf,
) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays enter and leave boxes, in units of the length of their directions. Not differentiable.

    A box behind a ray is not hit; of one around its origin the entry is negative. The planes limit the distances, not
    which boxes are hit.

    Args:
        rays_o: [R, 3], origins.
        rays_d: [R, 3], directions.
        aabbs: [m, 6], (x_min, y_min, z_min, x_max, y_max, z_max) each.
        near_plane: lower limit of the entries.
        far_plane: upper limit of the exits.
        miss_value: both distances where a box is not hit.

    Returns:
        t_mins [R, m], t_maxs [R, m] and hits [R, m] bool.

    Raises:
        ValueError: a shape does not fit, or tensors are on different devices.

    Example:
        >>> import torch
        >>> from hashgrid.compat import nerfacc
        >>> box = torch.tensor([[0.0, 0, 0, 1, 1, 1]])
        >>> nerfacc.ray_aabb_intersect(torch.tensor([[-2.0, 0.5, 0.5]]), torch.tensor([[1.0, 0, 0]]), box)
        (tensor([[2.]]), tensor([[3.]]), tensor([[True]]))
    """
    _check_rays(rays_o, rays_d)
    check_shape("aabbs", aabbs, "m", 6)
    check_device(rays_o.device, aabbs=aabbs)
    if len(aabbs) == 0:
        empty = rays_o.new_empty((len(rays_o), 0), dtype=maths_dtype(rays_o))
        return empty, empty.clone(), empty.bool()
    t_mins, t_maxs, hits = cross_boxes(rays_o, rays_d, aabbs)
    # each by one plane only, as by nerfacc's kernel: an entry may be behind its exit
    t_mins, t_maxs = t_mins.clamp(min=near_plane), t_maxs.clamp(max=far_plane)
    return torch.where(hits, t_mins, miss_value), torch.where(hits, t_maxs, miss_value), hits


_ray_aabb_intersect = ray_aabb_intersect  # there the one is a kernel, the other PyTorch


@torch.no_grad()
def traverse_grids(
    rays_o: Tensor,
    rays_d: Tensor,
    binaries: Tensor,
    aabbs: Tensor,
    near_planes: Tensor | None = None,
    far_planes: Tensor | None = None,
    step_size: float = 1e-3,
    cone_angle: float = 0.0,
    traverse_steps_limit: int | None = None,
    over_allocate: bool = False,
    rays_mask: Tensor | None = None,
    t_sorted: Tensor | None = None,
    t_indices: Tensor | None = None,
    hits: Tensor | None = None,
) -> tuple[RayIntervals, data_specs.RaySamples, Tensor]:
    """Samples of rays in occupied cells. Not differentiable.

    A ray advances from its near plane by steps ``max(step_size, cone_angle * t)``; steps whose middle is in an occupied
    cell are samples. They are not cut at the sides of cells, boxes and planes. With ``step_size`` 0 or less, samples
    are the ways through occupied cells instead.

    Where grids overlap, the one that was entered last is valid. One kernel does it if each box is twice as large as the
    one before and has a multiple of four cells along each axis, or there is but one box, if ``cone_angle`` is 0, and if
    ``step_size`` is less than the smallest side of a cell; else it is done in plain PyTorch, many times slower.

    Args:
        rays_o: [R, 3], origins.
        rays_d: [R, 3], directions of unit length.
        binaries: [m, X, Y, Z] bool, occupied cells.
        aabbs: [m, 6], the box of each grid.
        near_planes: [R], where rays begin; None for 0.
        far_planes: [R], where they end: no middle of a sample is behind; None for no limit.
        step_size: smallest step.
        cone_angle: growth of steps with the distance.
        traverse_steps_limit: samples of a ray, the others are dropped; None, or 0 or less, for no limit.
        over_allocate: whether each ray has room for as many samples as it may have; elements without a sample are 0 in
            all tensors. ``packed_info`` is without them.
        rays_mask: [R] bool, False for rays that are to have no samples.
        t_sorted: [R, 2m], the distances of `ray_aabb_intersect` sorted; with ``t_indices`` and ``hits``, or not at all.
        t_indices: [R, 2m] int64, what sorted them.
        hits: [R, m] bool.

    Returns:
        Edges of the samples, the samples, and [R]: the end of the last sample of a ray that has as many as it may, else
        the begin of the first step behind everything.

    Raises:
        ValueError: a shape, a dtype or a device does not fit, ``over_allocate`` is without a limit, or of ``t_sorted``,
            ``t_indices`` and ``hits`` some are missing.

    Example:
        >>> import torch
        >>> from hashgrid.compat import nerfacc
        >>> rays_o, rays_d = torch.tensor([[-1.0, 0.5, 0.5]]), torch.tensor([[1.0, 0.0, 0.0]])
        >>> binaries, aabbs = torch.ones(1, 4, 4, 4, dtype=torch.bool), torch.tensor([[0.0, 0, 0, 1, 1, 1]])
        >>> intervals, samples, _ = nerfacc.traverse_grids(rays_o, rays_d, binaries, aabbs, step_size=0.125)
        >>> samples.vals
        tensor([1.0625, 1.1875, 1.3125, 1.4375, 1.5625, 1.6875, 1.8125, 1.9375])
        >>> intervals.vals[intervals.is_left]
        tensor([1.0000, 1.1250, 1.2500, 1.3750, 1.5000, 1.6250, 1.7500, 1.8750])
    """
    limit = max(traverse_steps_limit or 0, 0)
    if over_allocate and not limit:
        raise ValueError(
            f"`traverse_steps_limit` must be positive with `over_allocate`, got {traverse_steps_limit};"
            " set it to the samples that a ray has room for"
        )
    crossings = _given_crossings(t_sorted, t_indices, hits)
    found = sample_grids(
        rays_o, rays_d, binaries, aabbs, near_planes, far_planes, step_size, cone_angle, limit, rays_mask,
        crossings,
    )  # fmt: skip
    samples = data_specs.RaySamples(
        (found.starts + found.ends) * 0.5,
        found.packed_info,
        found.ray_indices,
        torch.ones_like(found.ray_indices, dtype=torch.bool),
    )
    intervals = _to_intervals(found)
    if over_allocate:
        # a masked ray has no room at all
        room = limit * (torch.ones_like(rays_o[:, 0]) if rays_mask is None else rays_mask).long()
        _spread(samples, room, ("vals", "ray_indices", "is_valid"))
        _spread(intervals, 2 * room, ("vals", "ray_indices", "is_left", "is_right"))
    return intervals, samples, found.reached


def sample_grids(
    rays_o: Tensor,
    rays_d: Tensor,
    binaries: Tensor,
    aabbs: Tensor,
    near_planes: Tensor | None,
    far_planes: Tensor | None,
    step_size: float,
    cone_angle: float,
    limit: int = 0,
    rays_mask: Tensor | None = None,
    crossings: Crossings | None = None,
) -> Found:
    """What `traverse_grids` finds, as begins and ends of samples. Its arguments are checked here."""
    _check_rays(rays_o, rays_d)
    n_rays, m = len(rays_o), len(aabbs)
    check_shape("aabbs", aabbs, "m", 6)
    check_shape("binaries", binaries, m, "X", "Y", "Z")
    if m == 0 or binaries.numel() == 0:
        raise ValueError(f"`binaries` must have cells, got the shape {list(binaries.shape)}")
    if binaries.dtype != torch.bool:
        raise ValueError(f"`binaries` must be bool, got {binaries.dtype}; compare values with a threshold")
    if not (0 <= cone_angle < math.inf and math.isfinite(step_size)):
        raise ValueError(
            f"`cone_angle` must be 0 or more and `step_size` finite, got {cone_angle} and {step_size};"
            " a step of 0 is for the ways through cells"
        )
    dtype = maths_dtype(rays_o)
    rays_o, rays_d, aabbs = (x.detach().to(dtype) for x in (rays_o, rays_d, aabbs))
    near = _per_ray("near_planes", near_planes, rays_o, 0.0)
    far = _per_ray("far_planes", far_planes, rays_o, math.inf)
    check_device(rays_o.device, binaries=binaries, aabbs=aabbs, near_planes=near, far_planes=far)
    if crossings is not None:
        t_sorted, t_indices, hits = crossings
        check_shape("t_sorted", t_sorted, n_rays, 2 * m)
        check_shape("t_indices", t_indices, n_rays, 2 * m)
        check_shape("hits", hits, n_rays, m)
        check_device(rays_o.device, t_sorted=t_sorted, t_indices=t_indices, hits=hits)
        crossings = Crossings(t_sorted.to(dtype), t_indices.long(), hits.bool())
    if rays_mask is not None:
        check_shape("rays_mask", rays_mask, n_rays)
        check_device(rays_o.device, rays_mask=rays_mask)
        rays_mask = rays_mask.bool()
    return find_samples(rays_o, rays_d, binaries, aabbs, near, far, step_size, cone_angle, limit, rays_mask, crossings)


def _given_crossings(t_sorted: Tensor | None, t_indices: Tensor | None, hits: Tensor | None) -> Crossings | None:
    if t_sorted is None and t_indices is None and hits is None:
        return None
    if t_sorted is None or t_indices is None or hits is None:
        raise ValueError("`t_sorted`, `t_indices` and `hits` must be given together; leave all out to have them found")
    return Crossings(t_sorted, t_indices, hits)


def _check_rays(rays_o: Tensor, rays_d: Tensor) -> None:
    check_shape("rays_o", rays_o, "R", 3)
    check_shape("rays_d", rays_d, len(rays_o), 3)
    check_device(rays_o.device, rays_d=rays_d)


def _per_ray(name: str, planes: Tensor | None, rays_o: Tensor, default: float) -> Tensor:
    if planes is None:
        return torch.full_like(rays_o[:, 0], default)
    check_shape(name, planes, len(rays_o))
    return planes.detach().to(rays_o.dtype)


def _to_intervals(found: Found) -> RayIntervals:
    """Edges of samples [S]; one that begins where the one before ends shares its edge."""
    rays, fresh = found.ray_indices, ~found.joined()
    n_fresh = fresh.cumsum(0)  # begins that have an edge of their own, up to each sample
    right = torch.arange(len(rays), device=rays.device) + n_fresh  # where the end of each sample goes
    left = right[fresh] - 1
    n_edges = len(rays) + len(left)
    vals, of_ray = found.ends.new_empty(n_edges), rays.new_empty(n_edges)  # each is written once
    vals[right], vals[left] = found.ends, found.starts[fresh]
    of_ray[right], of_ray[left] = rays, rays[fresh]
    is_left, is_right = (torch.zeros(n_edges, dtype=torch.bool, device=rays.device) for _ in range(2))
    is_left[right - 1] = True  # the edge before each end, shared or not
    is_right[right] = True
    return RayIntervals(vals, to_packed(of_ray, len(found.packed_info)), of_ray, is_left, is_right)


def _spread(spec: RayIntervals | data_specs.RaySamples, room: Tensor, names: tuple[str, ...]) -> None:
    """Moves elements of rays to where each ray has ``room`` [R] for them, zeros in between."""
    assert spec.packed_info is not None and spec.ray_indices is not None
    first, rays = room.cumsum(0) - room, spec.ray_indices  # [R], [S]
    where = torch.arange(len(rays), device=rays.device) + (first - spec.packed_info[:, 0])[rays]
    for name in names:
        values = getattr(spec, name)
        setattr(spec, name, values.new_zeros(int(room.sum())).index_copy_(0, where, values))


def _enlarge_aabb(aabb: Tensor, factor: float) -> Tensor:
    """A box [6] with the middle of ``aabb`` and sides ``factor`` times as long."""
    low, high = aabb[:3], aabb[3:]
    middle, half = (low + high) / 2, (high - low) / 2 * factor
    return torch.cat((middle - half, middle + half))


def _query(x: Tensor, data: Tensor, base_aabb: Tensor) -> tuple[Tensor, Tensor]:
    """Values of ``data`` [m, X, Y, Z] at points [N, 3], of the smallest grid around each, 0 outside of all; and whether
    points are inside [N] bool. Grids are each twice as large as the one before, the first has the box ``base_aabb``."""
    low, high = base_aabb[:3], base_aabb[3:]
    place = (x - low) / (high - low) - 0.5  # from the middle, in sides of the first box
    # 2^exponent is more than the distance, and the half side of grid k is 2^(k - 1)
    exponent = torch.frexp(place.abs().amax(-1).clamp(min=0.1)).exponent.long()
    level = (exponent + 1).clamp(min=0)
    inside = level < len(data)
    # of points outside of all the level that there would be: numbers of cells are in range
    sizes = torch.tensor(data.shape[1:], device=x.device)
    cell = ((place / 2.0 ** level[:, None] + 0.5) * sizes).long().minimum(sizes - 1)
    level = level.clamp(max=len(data) - 1)
    return data[level, cell[:, 0], cell[:, 1], cell[:, 2]] * inside, inside
