"""torch-ngp's `raymarching` in plain PyTorch, its sums along rays by hashgrid's kernels.

Bits of occupancy are in the order of Morton codes; cascade c covers [-2^c, 2^c]^3, or [-bound, bound]^3 if that is
less. Rays and samples are in the order of the input, which on torch-ngp's GPU is left to chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hashgrid.ops._backend import backend_ops
from hashgrid.ops._tensors import maths_dtype

_BLOCK = 32  # steps of a ray that are looked at together
_CHUNK = 2**13  # rays that are


@torch.no_grad()
def near_far_from_aabb(rays_o: Tensor, rays_d: Tensor, aabb: Tensor, min_near: float = 0.2) -> tuple[Tensor, Tensor]:
    """Distances [N] at which rays [N, 3] enter a box [6] and leave it, the former at least ``min_near``; where they
    miss it, both are the largest number."""
    rays_o, rays_d = _rays(rays_o, rays_d)
    box = aabb.to(rays_o).view(2, 3)
    inverse = 1 / rays_d
    first, last = (box[0] - rays_o) * inverse, (box[1] - rays_o) * inverse
    swapped = first > last
    first, last = torch.where(swapped, last, first), torch.where(swapped, first, last)
    near, far = first[:, 0], last[:, 0]
    missed = torch.zeros_like(near, dtype=torch.bool)
    for axis in (1, 2):  # comparisons with NaN, of rays within a side, are false
        near_axis, far_axis = first[:, axis], last[:, axis]
        missed |= (near > far_axis) | (near_axis > far)
        near, far = torch.where(near_axis > near, near_axis, near), torch.where(far_axis < far, far_axis, far)
    near = torch.where(near < min_near, torch.full_like(near, min_near), near)
    nowhere = torch.full_like(near, torch.finfo(near.dtype).max)
    return torch.where(missed, nowhere, near), torch.where(missed, nowhere, far)


def sph_from_ray(rays_o: Tensor, rays_d: Tensor, radius: float) -> Tensor:
    """Where rays [N, 3] from inside leave a sphere around the origin: the angle from the y axis and the one around it,
    [N, 2] in [-1, 1]."""
    rays_o, rays_d = _rays(rays_o, rays_d)
    a, b = (rays_d * rays_d).sum(dim=1), (rays_o * rays_d).sum(dim=1)
    c = (rays_o * rays_o).sum(dim=1) - radius * radius
    x, y, z = (rays_o + ((-b + (b * b - a * c).sqrt()) / a)[:, None] * rays_d).unbind(dim=1)
    theta, phi = torch.atan2((x * x + z * z).sqrt(), y), torch.atan2(z, x)
    return torch.stack((2 * theta / math.pi - 1, phi / math.pi), dim=1)


@torch.no_grad()
def morton3D(coords: Tensor) -> Tensor:
    """Morton codes [N] int32 of cells [N, 3] in [0, 1024): bits of x, y and z by turns, x lowest."""
    x, y, z = _spread(coords.long()).unbind(dim=-1)
    return (x | y << 1 | z << 2).int()


@torch.no_grad()
def morton3D_invert(indices: Tensor) -> Tensor:
    """Cells [N, 3] int32 of Morton codes [N]."""
    return _gather_bits(torch.stack([indices.long() >> axis for axis in range(3)], dim=-1)).int()


@torch.no_grad()
def packbits(grid: Tensor, thresh: float, bitfield: Tensor | None = None) -> Tensor:
    """Which values of ``grid`` [C, H^3] are above ``thresh``, eight to a byte, lowest bit first: [C * H^3 / 8] uint8,
    written to ``bitfield`` if there is one."""
    above = (grid.reshape(-1, 8) > thresh).to(torch.uint8)
    powers = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=grid.device)
    packed = (above * powers).sum(dim=1, dtype=torch.uint8)
    return packed if bitfield is None else bitfield.copy_(packed.view_as(bitfield))


# ---- samples ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Grid:
    """Bits of occupancy, and the steps that belong to them."""

    bits: Tensor
    n_cascades: int
    side: int  # cells along each
    bound: float
    dt_gamma: float
    dt_min: float
    dt_max: float

    @classmethod
    def of(cls, bits: Tensor, n_cascades: int, side: int, bound: float, dt_gamma: float, max_steps: int) -> _Grid:
        diagonal = 2 * math.sqrt(3)
        largest = diagonal * 2 ** (n_cascades - 1) / side
        return cls(bits.reshape(-1), n_cascades, side, bound, dt_gamma, diagonal / max_steps, largest)

    def step(self, t: Tensor) -> Tensor:
        """Length of the step at distances ``t``."""
        return (t * self.dt_gamma).clamp(min=self.dt_min).clamp(max=self.dt_max)

    def look(self, t: Tensor, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Whether the cells at distances ``t`` [K] are occupied, and where rays leave them."""
        x = self.position(t, origin, direction)
        largest = torch.maximum(x.abs().amax(dim=-1), self.step(t) * (0.5 * self.side))
        level = torch.frexp(largest).exponent.clamp(0, self.n_cascades - 1)
        half = torch.ldexp(torch.ones_like(t), level).clamp(max=self.bound)[:, None]
        cell = (0.5 * (x / half + 1) * self.side).clamp(0, self.side - 1).int().long()
        code = _spread(cell)
        index = level.long() * self.side**3 + (code[:, 0] | code[:, 1] << 1 | code[:, 2] << 2)
        occupied = (self.bits[index >> 3] >> (index & 7).to(torch.uint8) & 1).bool()
        ahead = torch.copysign(torch.full_like(direction, 0.5), direction)
        border = ((cell + 0.5 + ahead) * (2 / self.side) - 1) * half
        return occupied, t + ((border - x) / direction).amin(dim=-1).clamp(min=0)

    def position(self, t: Tensor, origin: Tensor, direction: Tensor) -> Tensor:
        """Positions [K, 3] at distances ``t`` [K], within the bound."""
        return (origin + t[:, None] * direction).clamp(-self.bound, self.bound)


def _samples(grid: _Grid, rays_o: Tensor, rays_d: Tensor, start: Tensor, far: Tensor, most: int) -> tuple[Tensor, ...]:
    """Up to ``most`` samples of each ray: their rays [S], distances [S] and those of the step's end [S], in order."""
    parts = [
        _samples_of(grid, rays_o, rays_d, start, far, most, begin, min(begin + _CHUNK, len(start)))
        for begin in range(0, len(start), _CHUNK)
    ]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True)) if parts else (start.long(), start, start)


def _samples_of(
    grid: _Grid, rays_o: Tensor, rays_d: Tensor, start: Tensor, far: Tensor, most: int, begin: int, end: int
) -> tuple[Tensor, ...]:
    ray = torch.arange(begin, end, device=start.device)
    t, count = start[begin:end], torch.zeros_like(ray)
    skip_to = torch.full_like(t, -math.inf)  # no look before this distance
    found: list[tuple[Tensor, ...]] = []
    while True:
        going = (t < far[ray]) & (count < most)
        ray, t, count, skip_to = ray[going], t[going], count[going], skip_to[going]
        if len(ray) == 0:
            break
        limit, steps = far[ray], [t]
        for _ in range(_BLOCK):
            steps.append(steps[-1] + grid.step(steps[-1]))
        edges = torch.stack(steps)  # [_BLOCK + 1, R]
        inside = edges[:-1] < limit
        row, column = inside.nonzero(as_tuple=True)
        occupied, leaves = torch.zeros_like(inside), torch.full_like(edges[:-1], -math.inf)
        at = ray[column]
        occupied[row, column], leaves[row, column] = grid.look(edges[row, column], rays_o[at], rays_d[at])
        taken = torch.empty_like(inside)
        for k in range(_BLOCK):
            looks = edges[k] >= skip_to
            taken[k] = looks & occupied[k]
            skip_to = torch.where(looks & ~occupied[k], leaves[k], skip_to)
        rank = taken.long().cumsum(dim=0) + count
        taken &= rank <= most
        row, column = taken.nonzero(as_tuple=True)
        found.append((ray[column], edges[row, column], edges[row + 1, column]))
        t, count = edges[-1], rank[-1]
    if not found:
        return ray, start[:0], start[:0]
    rays, begins, ends = (torch.cat(column) for column in zip(*found, strict=True))
    order = torch.argsort(rays, stable=True)  # blocks came in the order of the distance
    return rays[order], begins[order], ends[order]


def _ranks(rays: Tensor, n_rays: int) -> tuple[Tensor, Tensor]:
    """Samples of each ray [N], and the number of each sample within its ray [S], for sorted rays [S]."""
    counts = torch.bincount(rays, minlength=n_rays)
    return counts, torch.arange(len(rays), device=rays.device) - (counts.cumsum(0) - counts)[rays]


class _Samples(NamedTuple):
    """Rays of samples, distances at which their steps begin and end, and their numbers within the ray, [S] each."""

    rays: Tensor
    begins: Tensor
    ends: Tensor
    ranks: Tensor

    def rows(
        self, grid: _Grid, rays_o: Tensor, rays_d: Tensor, start: Tensor, where: Tensor, size: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Positions, directions [size, 3] and deltas [size, 2] in rows ``where`` [S], the others zero. Deltas are the
        lengths of steps, and what lies between their ends and the ends before."""
        directions = rays_d[self.rays]
        positions = grid.position(self.begins, rays_o[self.rays], directions)
        before = torch.where(self.ranks == 0, start[self.rays], self.ends.roll(1))
        deltas = torch.stack((grid.step(self.begins), self.ends - before), dim=1)
        xyzs, dirs, lengths = (
            x.new_zeros(size, x.shape[1]).index_copy_(0, where, x) for x in (positions, directions, deltas)
        )
        return xyzs, dirs, lengths


@torch.no_grad()
def march_rays_train(
    rays_o: Tensor,
    rays_d: Tensor,
    bound: float,
    density_bitfield: Tensor,
    C: int,
    H: int,
    nears: Tensor,
    fars: Tensor,
    step_counter: Tensor | None = None,
    mean_count: int = -1,
    perturb: bool = False,
    align: int = -1,
    force_all_rays: bool = False,
    dt_gamma: float = 0,
    max_steps: int = 1024,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Samples of rays where space is occupied.

    Args:
        rays_o: [N, 3].
        rays_d: [N, 3].
        bound: half the side of the scene's cube.
        density_bitfield: [C * H^3 / 8] uint8, in Morton order.
        C: cascades.
        H: cells along each, a power of two.
        nears: [N], where rays begin.
        fars: [N], where they end.
        step_counter: [2] int32; samples and rays are added to it.
        mean_count: samples of the result where that is positive; rays whose samples do not fit have none.
        perturb: whether rays begin by a part of a step later.
        align: samples of the result are filled up to a multiple; -1 for none.
        force_all_rays: whether ``mean_count`` is ignored.
        dt_gamma: growth of steps with the distance.
        max_steps: of a ray; the smallest step is 2 sqrt(3) over this.

    Returns:
        positions [M, 3], directions [M, 3], deltas [M, 2], and rays [N, 3] int32: number, first sample, samples.
    """
    rays_o, rays_d = _rays(rays_o, rays_d)
    grid, n_rays = _Grid.of(density_bitfield, C, H, bound, dt_gamma, max_steps), len(rays_o)
    nears, fars = nears.to(rays_o.dtype), fars.to(rays_o.dtype)
    start = nears + grid.step(nears) * torch.rand_like(nears) if perturb else nears
    of_rays, begins, ends = _samples(grid, rays_o, rays_d, start, fars, max_steps)
    counts, ranks = _ranks(of_rays, n_rays)
    first = 0 if step_counter is None else int(step_counter[0])
    if step_counter is not None:
        step_counter += torch.tensor([len(of_rays), n_rays], dtype=step_counter.dtype, device=step_counter.device)
    offsets = counts.cumsum(0) - counts + first
    size = first + len(of_rays)
    fixed = not force_all_rays and mean_count > 0
    size = mean_count if fixed else size
    size += align - size % align if align > 0 else 0
    where = offsets[of_rays] + ranks
    fits = ((offsets + counts) <= size)[of_rays] if fixed else torch.ones_like(of_rays, dtype=torch.bool)
    kept = _Samples(*(x[fits] for x in (of_rays, begins, ends, ranks)))
    xyzs, dirs, deltas = kept.rows(grid, rays_o, rays_d, start, where[fits], size)
    numbers = torch.arange(n_rays, device=rays_o.device)
    return xyzs, dirs, deltas, torch.stack((numbers, offsets, counts), dim=1).int()


@torch.no_grad()
def march_rays(
    n_alive: int, n_step: int, rays_alive: Tensor, rays_t: Tensor, rays_o: Tensor, rays_d: Tensor, bound: float,
    density_bitfield: Tensor, C: int, H: int, near: Tensor, far: Tensor, align: int = -1, perturb: bool = False,
    dt_gamma: float = 0, max_steps: int = 1024,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The next ``n_step`` samples of the first ``n_alive`` rays of ``rays_alive``, from distances ``rays_t`` [N] on;
    zeros where a ray has fewer. Arguments and results are those of `march_rays_train`, with ``n_step`` rows a ray."""
    rays_o, rays_d = _rays(rays_o, rays_d)
    grid = _Grid.of(density_bitfield, C, H, bound, dt_gamma, max_steps)
    alive = rays_alive[:n_alive].long()
    rays_o, rays_d = rays_o[alive], rays_d[alive]
    t = rays_t[alive].to(rays_o.dtype)
    start = t + grid.step(t) * torch.rand_like(t) if perturb else t
    of_rays, begins, ends = _samples(grid, rays_o, rays_d, start, far[alive].to(t.dtype), n_step)
    _, ranks = _ranks(of_rays, n_alive)
    size = n_alive * n_step
    size += align - size % align if align > 0 else 0
    where = of_rays * n_step + ranks
    return _Samples(of_rays, begins, ends, ranks).rows(grid, rays_o, rays_d, start, where, size)


# ---- sums along rays -------------------------------------------------------------------------------------------------


def composite_rays_train(
    sigmas: Tensor, rgbs: Tensor, deltas: Tensor, rays: Tensor, T_thresh: float = 1e-4
) -> tuple[Tensor, Tensor, Tensor]:
    """Opacity [N], depth [N] and colour [N, 3] of rays, differentiable to ``sigmas`` and ``rgbs`` through all three.

    A sample counts if the transmittance before it is at least ``T_thresh``. Depths are measured from the rays' first
    samples on, to the ends of steps.

    Args:
        sigmas: [M], densities.
        rgbs: [M, 3] or of other widths.
        deltas: [M, 2], of `march_rays_train`.
        rays: [N, 3] int32: number, first sample, samples; those that reach beyond M have zeros.
        T_thresh: smallest transmittance at which a sample counts.
    """
    dtype = maths_dtype(sigmas)
    numbers, first, counts = rays.long().unbind(dim=1)
    counts = torch.where(first + counts > len(sigmas), torch.zeros_like(counts), counts)
    begins = counts.cumsum(0) - counts
    n = int(counts.sum())
    of_rays = torch.repeat_interleave(torch.arange(len(rays), device=rays.device), counts, output_size=n)
    chosen = torch.arange(n, device=rays.device) + (first - begins)[of_rays]
    deltas = deltas.to(dtype)[chosen]
    ends = deltas[:, 1].double().cumsum(0)
    ends = (ends - (ends - deltas[:, 1])[begins.clamp(max=max(n - 1, 0))][of_rays] if n else ends).to(dtype)
    features = torch.cat((rgbs.to(dtype)[chosen], ends[:, None]), dim=1)
    packed = torch.stack((begins, counts), dim=1)
    steps = deltas[:, 0].contiguous()
    sums, opacities, *_ = backend_ops("native").composite(
        sigmas.to(dtype)[chosen], features, torch.zeros_like(steps), steps, packed, T_thresh
    )
    sums, opacities = (x.new_zeros(x.shape).index_copy(0, numbers, x) for x in (sums, opacities))
    return opacities, sums[:, -1], sums[:, :-1]


@torch.no_grad()
def composite_rays(
    n_alive: int,
    n_step: int,
    rays_alive: Tensor,
    rays_t: Tensor,
    sigmas: Tensor,
    rgbs: Tensor,
    deltas: Tensor,
    weights_sum: Tensor,
    depth: Tensor,
    image: Tensor,
    T_thresh: float = 1e-2,
) -> tuple[()]:
    """Adds the samples of `march_rays` to the sums of their rays: ``weights_sum`` [N], ``depth`` [N], ``image`` [N, 3].

    Rays that end get -1 in ``rays_alive``, the others their new distance in ``rays_t``. A ray ends behind the sample
    that has a transmittance before it below ``T_thresh``, or where there are no more samples.
    """
    rays = rays_alive[:n_alive].long()
    n = n_alive * n_step
    alphas = -torch.expm1(-sigmas[:n].reshape(n_alive, n_step) * deltas[:n, 0].view(n_alive, n_step))
    lengths, colors = deltas[:n].view(n_alive, n_step, 2), rgbs[:n].reshape(n_alive, n_step, -1)
    t, opacity, far, color = rays_t[rays], weights_sum[rays], depth[rays], image[rays]
    going = torch.ones_like(rays, dtype=torch.bool)
    for k in range(n_step):
        going = going & (lengths[:, k, 0] != 0)
        transmittance = 1 - opacity
        weight = torch.where(going, alphas[:, k] * transmittance, torch.zeros_like(opacity))
        t = torch.where(going, t + lengths[:, k, 1], t)
        opacity, far = opacity + weight, far + weight * t
        color = color + weight[:, None] * torch.where(going[:, None], colors[:, k], torch.zeros_like(color))
        going = going & (transmittance >= T_thresh)
    weights_sum[rays], depth[rays], image[rays] = opacity, far, color
    rays_t[rays] = torch.where(going, t, rays_t[rays])
    rays_alive[:n_alive] = torch.where(going, rays_alive[:n_alive], torch.full_like(rays_alive[:n_alive], -1))
    return ()


# ---- numbers of cells ------------------------------------------------------------------------------------------------


def _rays(rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor]:
    dtype = maths_dtype(rays_o)
    return rays_o.to(dtype).reshape(-1, 3), rays_d.to(dtype).reshape(-1, 3)


def _spread(x: Tensor) -> Tensor:
    """Ten bits with two zeros before each."""
    for factor, mask in ((0x10001, 0xFF0000FF), (0x101, 0x0F00F00F), (0x11, 0xC30C30C3), (0x5, 0x49249249)):
        x = x * factor & mask
    return x


def _gather_bits(x: Tensor) -> Tensor:
    """Every third bit, one beside the other."""
    x = x & 0x49249249
    for shift, mask in ((2, 0xC30C30C3), (4, 0x0F00F00F), (8, 0xFF0000FF), (16, 0x0000FFFF)):
        x = (x | x >> shift) & mask
    return x
