"""How `traverse_grids` is done: by the kernel `march_rays` where its grids and steps are such, else in plain PyTorch.

A ray begins at its near plane and advances by steps. The cell in which the middle of a step lies decides whether the
step is a sample; the length of a step is ``clamp(cone_angle * t, step_size)`` of where it begins, and the same for all
steps on the way out of an empty cell.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hashgrid.ops.march_rays import march_rays
from hashgrid.ops.ray_aabb import ray_aabb

_PACK = 0x0102040810204080  # a multiple of eight bytes of 0 or 1 that has those bits in its highest byte
_BLOCK = 8  # steps within an occupied cell that are made together
_PLANES = 1 << 22  # sides of cells that rays cross, at a time
_SLIVER = 1e-6  # of the distance: a way through a cell as short as this is rounding at its corner
_LONGEST_STEP = 1e10
_UNLIMITED = 1 << 30


class Crossings(NamedTuple):
    """Where rays enter and leave grids, sorted by distance.

    Attributes:
        t_sorted: [R, 2m].
        t_indices: [R, 2m] int64, the grid that is entered, or left where m is added to it.
        hits: [R, m] bool, whether the grid is hit; distances of the others do not count.
    """

    t_sorted: Tensor
    t_indices: Tensor
    hits: Tensor

    @classmethod
    def of(cls, rays_o: Tensor, rays_d: Tensor, aabbs: Tensor) -> Crossings:
        """Those of rays [R, 3] with boxes [m, 6]."""
        t_mins, t_maxs, hits = cross_boxes(rays_o, rays_d, aabbs)
        return cls(*torch.cat((t_mins, t_maxs), dim=-1).sort(-1), hits)

    def first_and_last(self) -> tuple[Tensor, Tensor]:
        """Where rays [R] enter the first grid and leave the last; inf and -inf if there is none."""
        hit = self.hits.gather(1, self.t_indices % self.hits.shape[1])
        return torch.where(hit, self.t_sorted, math.inf).amin(1), torch.where(hit, self.t_sorted, -math.inf).amax(1)


def cross_boxes(rays_o: Tensor, rays_d: Tensor, aabbs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distances [R, m] at which rays enter boxes [m, 6] and leave them, and whether they are hit [R, m] bool. Those
    behind a ray are not; both distances are inf then."""
    found = [ray_aabb(rays_o, rays_d, aabb, -math.inf, math.inf) for aabb in aabbs]  # there are few of them
    t_mins, t_maxs = (torch.stack(column, dim=1) for column in zip(*found, strict=True))
    hits = (t_mins < math.inf) & (t_maxs > 0)
    return torch.where(hits, t_mins, math.inf), torch.where(hits, t_maxs, math.inf), hits


class Found(NamedTuple):
    """Samples of rays in order, and where the rays got to.

    Attributes:
        starts, ends: [S].
        ray_indices: [S] int64.
        packed_info: [R, 2] int64, first sample and number of them.
        reached: [R], end of the last sample of a ray that has as many as it may, else the first step's begin behind the
            grids, or behind the far plane.
        tolerance: a gap between samples up to this is rounding, a number or [S - 1].
    """

    starts: Tensor
    ends: Tensor
    ray_indices: Tensor
    packed_info: Tensor
    reached: Tensor
    tolerance: float | Tensor

    def joined(self) -> Tensor:
        """Whether samples [S] begin where the one before on the ray ends."""
        rays, joined = self.ray_indices, torch.zeros_like(self.ray_indices, dtype=torch.bool)
        joined[1:] = (rays[1:] == rays[:-1]) & (self.starts[1:] - self.ends[:-1] <= self.tolerance)
        return joined


def find_samples(
    rays_o: Tensor,
    rays_d: Tensor,
    binaries: Tensor,
    aabbs: Tensor,
    near: Tensor,
    far: Tensor,
    step: float,
    cone: float,
    limit: int,
    mask: Tensor | None,
    crossings: Crossings | None,
) -> Found:
    """Samples of rays [R, 3] between ``near`` and ``far`` [R] in the occupied cells of ``binaries`` [m, X, Y, Z], at
    most ``limit`` of each; for ``step`` 0 or less their ways through cells. Rays not in ``mask`` [R] have none.

    All tensors are of one floating dtype and on one device, and of shapes that fit.
    """
    step = torch.tensor(step, dtype=rays_o.dtype).item()  # as nerfacc's kernel reads it
    if step > 0 and cone == 0 and _is_nest(aabbs, binaries.shape[1:], rays_d, step):
        # the last box is around the others
        crossings = Crossings.of(rays_o, rays_d, aabbs[-1:]) if crossings is None else crossings
        first, last = crossings.first_and_last()
        first = first if mask is None else torch.where(mask, first, math.inf)
        return _march(rays_o, rays_d, binaries, aabbs[0], near, far, step, limit, first, last)
    # fp64: where steps are added up, and sides of cells are the result, rounding would decide
    rays_o, rays_d, aabbs, wide_near, far = (x.double() for x in (rays_o, rays_d, aabbs, near, far))
    crossings = Crossings.of(rays_o, rays_d, aabbs) if crossings is None else crossings
    hits = crossings.hits if mask is None else crossings.hits & mask[:, None]
    crossings = Crossings(crossings.t_sorted.double(), crossings.t_indices, hits)
    spans = _Spans(rays_o, rays_d, aabbs, wide_near, far, binaries, crossings)
    found = _step(spans, step, cone, limit) if step > 0 else _cross_cells(spans, limit)
    starts, ends, reached = (x.to(near.dtype) for x in (found.starts, found.ends, found.reached))
    return found._replace(starts=starts, ends=ends, reached=reached)


def to_packed(ray_indices: Tensor, n_rays: int) -> Tensor:
    """First element and number of elements of each ray, [n_rays, 2], of sorted rays [S]."""
    counts = ray_indices.bincount(minlength=n_rays)
    return torch.stack((counts.cumsum(0) - counts, counts), dim=-1)


# ---- the kernel ------------------------------------------------------------------------------------------------------


def _is_nest(aabbs: Tensor, resolution: torch.Size, rays_d: Tensor, step: float) -> bool:
    """Whether `march_rays` goes through the same cells: each of the boxes [m, 6] is twice as large as the one before,
    no cell is on both sides of another box's border, steps are shorter than cells, and half a step in front of all is
    within the next larger box."""
    if len(aabbs) > 1 and any(size % 4 for size in resolution):  # a box is the middle half of the next one's cells
        return False
    boxes = aabbs.double().cpu()  # what follows decides on the host
    low, high = boxes[:, :3], boxes[:, 3:]
    side = high[0] - low[0]
    growth = 2.0 ** torch.arange(len(boxes), dtype=torch.float64)[:, None]  # [m, 1]
    middle, half = (low[0] + high[0]) / 2, side / 2 * growth  # [3], [m, 3]
    error = torch.maximum((low - (middle - half)).abs(), (high - (middle + half)).abs())
    cell = side / torch.tensor(resolution)
    # boxes were made in fp32; a step of a whole cell may be a longer one by rounding, and the kernel would then look
    # into a coarser grid
    if not (bool((side > 0).all()) and bool((error <= 1e-6 * half).all()) and step < (1 - 1e-6) * float(cell.min())):
        return False
    # directions need not be of unit length
    longest = rays_d.abs().amax(0) if len(rays_d) else rays_d.new_zeros(3)
    return not bool((longest.double().cpu() * step > half[-1]).any())


def _march(
    rays_o: Tensor,
    rays_d: Tensor,
    binaries: Tensor,
    aabb: Tensor,
    near: Tensor,
    far: Tensor,
    step: float,
    limit: int,
    first: Tensor,
    last: Tensor,
) -> Found:
    if any(size % 4 for size in binaries.shape[1:]):  # only one box, see _is_nest
        binaries, aabb = _fill_up(binaries, aabb)
    m, *resolution = binaries.shape
    begin, end = first.maximum(near), last.minimum(far)
    inside = begin < end  # also False for NaN
    # The kernel's steps begin where a ray enters its largest box. That is an empty one around all, so that the first
    # whole step from the near plane whose middle is in the grids is where it does begin.
    t_begin = _step_at(near, begin, step)
    t_stop = torch.where(inside, end, -math.inf)
    t_starts, t_ends, rays, packed_info = march_rays(
        rays_o, rays_d, aabb, _bits(binaries), (resolution[0], resolution[1], resolution[2]), m + 1,
        step_size=step, near=t_begin, far=t_stop, max_samples_per_ray=limit or _UNLIMITED,
    )  # fmt: skip
    reached = _reached(torch.where(inside, _step_at(near, end, step), near), t_ends, packed_info, limit)
    return Found(t_starts, t_ends, rays, packed_info, reached, 0.25 * step)


def _fill_up(binaries: Tensor, aabb: Tensor) -> tuple[Tensor, Tensor]:
    """A grid [1, X, Y, Z] and its box [6] with empty cells behind, up to multiples of four."""
    sizes = torch.tensor(binaries.shape[1:], device=aabb.device)
    more = -sizes % 4
    x, y, z = more.tolist()
    low, high = aabb[:3], aabb[3:]
    return nn.functional.pad(binaries, (0, z, 0, y, 0, x)), torch.cat((low, high + (high - low) / sizes * more))


def _step_at(near: Tensor, t: Tensor, step: float) -> Tensor:
    """Begin [R] of the first whole step from ``near`` [R] that has its middle at ``t`` [R] or behind."""
    start = near.double()  # thousands of steps away, fp32 would be off by a good part of one
    n_steps = ((t.double() - start) / step - 0.5).ceil().clamp(min=0)
    return (start + n_steps * step).to(near.dtype)


def _bits(binaries: Tensor) -> Tensor:
    """Cells [m, X, Y, Z] bool, and as many again of an empty box, one bit each, lowest first."""
    flags = binaries.reshape(-1).view(torch.uint8)  # a byte of 0 or 1 each
    n_bytes = ((len(binaries) + 1) * binaries[0].numel() + 7) // 8
    if len(flags) % 8 or flags.storage_offset() % 8:  # they are read by eights
        flags = torch.cat((flags, flags.new_zeros(-len(flags) % 8)))
    packed = (flags.view(torch.int64) * _PACK >> 56).to(torch.uint8)
    return torch.cat((packed, packed.new_zeros(n_bytes - len(packed))))


# ---- any boxes and steps ---------------------------------------------------------------------------------------------


class _Spans:
    """Parts of rays that one grid is valid for: from one crossing to the next, n = 2m - 1 a ray.

    Attributes:
        begin, end: [R, n]; 0 where the part is none.
        level: [R, n], the grid.
        ahead: [R, n], the farthest end of this part and those before; -inf before the first.
    """

    def __init__(
        self,
        rays_o: Tensor,
        rays_d: Tensor,
        aabbs: Tensor,
        near: Tensor,
        far: Tensor,
        binaries: Tensor,
        crossings: Crossings,
    ) -> None:
        self.rays_o, self.rays_d, self.binaries, self.near = rays_o, rays_d, binaries, near
        self.sizes = torch.tensor(binaries.shape[1:], device=rays_o.device)
        self.low = aabbs[:, :3]
        self.side = (aabbs[:, 3:] - self.low) / self.sizes  # of a cell, [m, 3]
        m = len(binaries)
        t, index, hits = crossings
        enters, grid = index < m, index % m  # [R, 2m]
        # behind where a grid is left, the one that is left next is valid; nothing is if another one is entered next
        self.level = torch.where(enters[:, :-1], grid[:, :-1], grid[:, 1:])
        known = hits.gather(1, grid[:, :-1]) & hits.gather(1, self.level) & (enters[:, :-1] | ~enters[:, 1:])
        begin, end = t[:, :-1].maximum(near[:, None]), t[:, 1:].minimum(far[:, None])
        known &= begin < end
        self.begin, self.end = torch.where(known, begin, 0), torch.where(known, end, 0)
        # parts in front of a distance are those whose end is not ahead of it: parts are in order
        self.ahead = torch.where(known, end, -math.inf).cummax(1).values

    def look_up(self, ray: Tensor, level: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Whether the cells at distances ``t`` [A] are occupied [A], and where rays leave them [A]."""
        origin, direction, low, side = self.rays_o[ray], self.rays_d[ray], self.low[level], self.side[level]
        place = (origin + direction * t[:, None] - low) / side  # in cells, [A, 3]
        # on the side between two cells a ray is in the one that it enters
        cell = torch.where(direction < 0, place.ceil() - 1, place.floor()).long().clamp(min=0).minimum(self.sizes - 1)
        wall = low + (cell + (direction > 0)) * side  # the three sides that a ray may leave by
        leaves = torch.where(direction == 0, math.inf, (wall - origin) / direction).amin(-1)
        return self.binaries[level, cell[:, 0], cell[:, 1], cell[:, 2]], leaves


def _step(spans: _Spans, step: float, cone: float, limit: int) -> Found:
    """Steps through cells, all rays together: those out of an empty cell, or up to `_BLOCK` within an occupied one."""

    def length_at(t: Tensor) -> Tensor:
        return (t * cone).clamp(step, _LONGEST_STEP)

    n_rays, n_spans = spans.ahead.shape
    ray = torch.arange(n_rays, device=spans.near.device)  # those on the way, [A]
    t, reached, n_found = spans.near, spans.near.clone(), torch.zeros_like(ray)
    found = [(t[:0], t[:0], ray[:0])]
    while len(ray):
        length = length_at(t)
        middle = t + length / 2
        part = (spans.ahead[ray] <= middle[:, None]).sum(1)
        going = (part < n_spans) & (t + length > t)  # a step too short to change t would never end
        if limit:
            going &= n_found < limit
        reached[ray[~going]] = t[~going]
        ray, t, length, middle, part, n_found = (x[going] for x in (ray, t, length, middle, part, n_found))
        begin, end, level = (x[ray, part] for x in (spans.begin, spans.end, spans.level))
        occupied, leaves = spans.look_up(ray, level, middle)
        occupied &= middle >= begin
        goal = torch.where(middle < begin, begin, leaves.minimum(end))
        # steps do not grow on the way out of an empty cell, nor on the way to a grid
        n_steps = ((goal - middle) / length).ceil().clamp(min=1)

        # one iteration is hardly longer for several steps than for one
        edges = [t[occupied]]
        for _ in range(_BLOCK):
            edges.append(edges[-1] + length_at(edges[-1]))
        edge = torch.stack(edges)  # [_BLOCK + 1, A]
        taken = (edge[:-1] + edge[1:]) / 2 < goal[occupied]
        taken[0] = True  # its middle is here, whatever the rounding of the goal
        if limit:
            taken &= torch.arange(_BLOCK, device=t.device)[:, None] < limit - n_found[occupied]
        row, column = taken.nonzero(as_tuple=True)  # row by row: in the order of the distance
        found.append((edge[row, column], edge[row + 1, column], ray[occupied][column]))
        n_taken = taken.sum(0)
        n_found[occupied] += n_taken
        t = t + n_steps * length
        t[occupied] = edge.gather(0, n_taken[None])[0]
    starts, ends, rays = (torch.cat(parts) for parts in zip(*found, strict=True))
    rays, order = rays.sort(stable=True)  # distances of a ray are in order already
    starts, ends = starts[order], ends[order]
    return Found(starts, ends, rays, to_packed(rays, n_rays), reached, 0.25 * step)


def _cross_cells(spans: _Spans, limit: int) -> Found:
    """The way of each ray through each occupied cell, cut at the sides of cells."""
    n_rays, n_spans = spans.ahead.shape
    near = spans.near
    planes = torch.arange(int(spans.sizes.max()) + 1, device=near.device)
    found = [(near[:0], near[:0], spans.level.new_empty(0))]
    for ray in torch.arange(n_rays, device=near.device).split(max(1, _PLANES // (3 * len(planes) * n_spans))):
        level, begin, end = spans.level[ray], spans.begin[ray][..., None], spans.end[ray][..., None]
        place = spans.low[level][..., None] + spans.side[level][..., None] * planes.minimum(spans.sizes[:, None])
        cuts = (place - spans.rays_o[ray][:, None, :, None]) / spans.rays_d[ray][:, None, :, None]  # [A, n, 3, planes]
        # infinite where a ray goes along sides, NaN on one of them: neither cuts
        cuts = torch.where(cuts.isfinite(), cuts, 0).flatten(2).maximum(begin).minimum(end)
        cuts = torch.cat((begin, cuts, end), dim=-1).sort(-1).values
        starts, ends = cuts[..., :-1], cuts[..., 1:]  # [A, n, cuts + 1]
        which, part, _ = place_of = (ends - starts > _SLIVER * ends.abs()).nonzero(as_tuple=True)
        starts, ends, which = starts[place_of], ends[place_of], ray[which]
        occupied, _ = spans.look_up(which, spans.level[which, part], (starts + ends) / 2)
        found.append((starts[occupied], ends[occupied], which[occupied]))
    starts, ends, rays = (torch.cat(parts) for parts in zip(*found, strict=True))
    packed_info = to_packed(rays, n_rays)
    reached = _reached(near.maximum(spans.ahead[:, -1]), ends, packed_info, limit)
    if limit:
        kept = torch.arange(len(rays), device=rays.device) - packed_info[rays, 0] < limit
        starts, ends, rays = starts[kept], ends[kept], rays[kept]
        packed_info = to_packed(rays, n_rays)
    return Found(starts, ends, rays, packed_info, reached, 3 * _SLIVER * ends.abs()[1:])


def _reached(behind: Tensor, ends: Tensor, packed_info: Tensor, limit: int) -> Tensor:
    """Where rays [R] got to: the end of sample number ``limit`` if there is one, else ``behind`` everything [R]."""
    begins, counts = packed_info.unbind(-1)
    some = counts > 0
    last = ends[(begins + counts.clamp(max=limit or _UNLIMITED) - 1)[some]]
    reached = behind.clone()
    # not in front of a sample because of rounding: from there on it would be found again
    reached[some] = torch.where((counts[some] >= limit) & (limit > 0), last, last.maximum(behind[some]))
    return reached
