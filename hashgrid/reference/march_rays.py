"""Ray marching through a bit-packed occupancy grid with cascades, in plain PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hashgrid.ops._tensors import maths_dtype
from hashgrid.ops.march_rays import check_fixed_size
from hashgrid.ops.ray_aabb import as_limits
from hashgrid.reference.counter_uniform import counter_uniform
from hashgrid.reference.ray_aabb import check_rays, ray_aabb

CELL_MARGIN = 1 / 1024  # of a cell's side


def march_rays(
    rays_o: Tensor,
    rays_d: Tensor,
    aabb: Tensor,
    bits: Tensor,
    resolution: tuple[int, int, int],
    n_cascades: int = 1,
    *,
    step_size: float,
    cone_angle: float = 0.0,
    near: float | Tensor | None = 0.0,
    far: float | Tensor | None = math.inf,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    max_samples_per_ray: int = 1024,
    n_samples: int | None = None,
    n_rays: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Samples of each ray where the grid is occupied.

    A ray advances by ``step(t) = clamp(t * cone_angle, step_size, max_step)``, ``max_step`` being the diagonal of the
    largest cell (at least ``step_size``), from its entry into the outermost box. The cell at the middle of a step
    decides: occupied, the step becomes a sample; empty, the ray moves on by whole steps until the middle has left the
    cell. With ``cone_angle == 0`` positions are ``t_begin + k * step_size`` with integer k: rounding does not build up.

    Args:
        rays_o: [R, 3], origins (half precision is read as fp32).
        rays_d: [R, 3], directions; distances are in units of their length.
        aabb: [6], box of cascade 0, (x_min, y_min, z_min, x_max, y_max, z_max); cascade c is 2^c times as large.
        bits: [ceil(C * X * Y * Z / 8)] uint8; cell ``((c * X + x) * Y + y) * Z + z`` is bit ``cell & 7`` of byte
            ``cell >> 3``.
        resolution: cells per axis (X, Y, Z).
        n_cascades: number of cascades C.
        step_size: smallest step.
        cone_angle: growth of the step with the distance.
        near: no sample before this distance: a number or one per ray, [R]; None for 0.
        far: no sample whose middle is behind this distance: a number or one per ray, [R]; None for no limit.
        seed: shifts the samples of each ray by a fraction of its first step; None for no shift.
        step: training step, varies the shift.
        max_samples_per_ray: further samples of a ray are dropped.
        n_samples: samples S of the result: the rays, in order, whose samples fit, then samples of length zero that
            belong to no ray and repeat the others; without rays it is empty nevertheless. None for all there are.
        n_rays: int64 [1], number of rays in use, those behind have no samples; only with ``n_samples``.

    Returns:
        t_starts [S], t_ends [S], ray_indices [S] int64, packed_info [R, 2] int64 (first sample, count); sorted by ray,
        in the order of the distance within a ray. With ``n_samples`` also totals [2] int64: the samples that all rays
        in use have, and the number of rays, from the first, whose samples are in the result.

    Raises:
        ValueError: a shape or a step does not fit.
    """
    check_fixed_size(n_samples, n_rays)
    check_rays(rays_o, rays_d, aabb)
    rays_o, rays_d = (x.detach().to(maths_dtype(rays_o)) for x in (rays_o, rays_d))
    grid = _Grid(aabb.to(rays_o), bits, tuple(resolution), n_cascades)
    if not (step_size > 0 and math.isfinite(step_size)):
        raise ValueError(f"`step_size` must be positive and finite, got {step_size}")
    diagonal = grid.cell_sizes[-1].double().square()
    max_step = (diagonal[0] + diagonal[1] + diagonal[2]).sqrt().to(rays_o).clamp(min=step_size)

    def step_at(t: Tensor) -> Tensor:
        return (t * cone_angle).clamp(min=step_size).minimum(max_step)

    near, far, limits = as_limits(near, far, rays_o)
    t_begin, t_stop = ray_aabb(rays_o, rays_d, grid.boxes[-1].flatten(), near, far)
    if limits is not None:
        t_begin, t_stop = t_begin.maximum(limits[:, 0]), t_stop.minimum(limits[:, 1])
        t_stop = torch.where(t_begin <= t_stop, t_stop, math.inf)  # false for NaN
    if seed is not None:
        index = torch.arange(rays_o.shape[0], device=rays_o.device)
        t_begin = t_begin + counter_uniform(seed, step, index).to(t_begin) * step_at(t_begin)

    # rays on the way; one without an end (a zero direction) gives no samples
    ray = (t_stop.isfinite()).nonzero().squeeze(-1)  # [A]
    k = torch.zeros_like(ray)  # steps taken, used where all are equal
    t = t_begin[ray]
    t_empty = torch.full_like(t, -math.inf)  # known to be empty up to here, used where steps grow
    n_emitted = torch.zeros_like(ray)
    samples = [(t[:0], t[:0], ray[:0])]
    while True:
        dt = step_at(t)
        middle = t + dt / 2
        # a step too small to change t would never end
        going = (middle < t_stop[ray]) & (n_emitted < max_samples_per_ray) & (t + dt > t)
        ray, k, t, dt, middle, t_empty, n_emitted = (v[going] for v in (ray, k, t, dt, middle, t_empty, n_emitted))
        if ray.numel() == 0:
            break

        origin, direction = rays_o[ray], rays_d[ray]
        occupied, t_exit = grid.look_up(origin, direction, middle, dt)
        tested = middle >= t_empty
        emit = tested & occupied
        samples.append((t[emit], (t + dt)[emit], ray[emit]))
        n_emitted = n_emitted + emit

        if cone_angle == 0:
            skip = ((t_exit.minimum(t_stop[ray]) - middle) / dt).floor().clamp(min=0).long() + 1
            k = k + torch.where(emit, 1, skip)
            t = t_begin[ray] + k.to(t) * step_size
        else:
            t_empty = torch.where(tested & ~occupied, t_exit, t_empty)
            t = t + dt

    t_starts, t_ends, ray_indices = (torch.cat(parts) for parts in zip(*samples, strict=True))
    ray_indices, order = ray_indices.sort(stable=True)
    counts = ray_indices.bincount(minlength=rays_o.shape[0])
    t_starts, t_ends = t_starts[order], t_ends[order]
    if n_samples is not None:
        return _cut_and_fill(t_starts, t_ends, ray_indices, counts, n_samples, n_rays)
    return t_starts, t_ends, ray_indices, torch.stack([counts.cumsum(0) - counts, counts], dim=-1)


def _cut_and_fill(
    t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor, counts: Tensor, n_samples: int, n_rays: Tensor | None
) -> tuple[Tensor, ...]:
    """The samples of the first rays that fit into ``n_samples``, filled up; ``counts`` [R] per ray."""
    total = len(counts)
    n_in_use = total if n_rays is None else min(max(int(n_rays), 0), total)
    counts = counts.clone()
    counts[n_in_use:] = 0
    fits = counts.cumsum(0) <= n_samples
    totals = torch.stack([counts.sum(), torch.where(fits.all(), n_in_use, fits.sum())])
    counts *= fits
    kept = torch.arange(int(counts.sum()), device=counts.device)
    # what is left over takes the kept samples in turn, or the origins of the rays where there are none
    n_left = n_samples - len(kept) if total > 0 else 0
    left = torch.arange(len(kept), len(kept) + n_left, device=counts.device)
    if len(kept) > 0:
        t_left, ray_left = t_starts[left % len(kept)], ray_indices[left % len(kept)]
    else:
        t_left, ray_left = t_starts.new_zeros(n_left), left % max(total, 1)
    return (
        torch.cat([t_starts[kept], t_left]),
        torch.cat([t_ends[kept], t_left]),
        torch.cat([ray_indices[kept], ray_left]),
        torch.stack([counts.cumsum(0) - counts, counts], dim=-1),
        totals,
    )


@dataclass
class _Grid:
    """Occupancy bits in nested boxes around the centre of ``aabb`` [6]."""

    aabb: Tensor
    bits: Tensor
    resolution: tuple[int, ...]
    n_cascades: int

    def __post_init__(self) -> None:
        n_cells = self.n_cascades * math.prod(self.resolution)
        if len(self.resolution) != 3 or n_cells < 1:
            raise ValueError(f"`resolution` must be three positive numbers, got {self.resolution}")
        if self.bits.dtype != torch.uint8 or self.bits.shape != ((n_cells + 7) // 8,):
            raise ValueError(
                f"`bits` must be uint8 of shape [{(n_cells + 7) // 8}] for {self.n_cascades} cascades of"
                f" {self.resolution} cells, got {self.bits.dtype} {list(self.bits.shape)}"
            )
        low, high = self.aabb.view(2, 3)
        growth = 2.0 ** torch.arange(self.n_cascades, device=low.device, dtype=low.dtype).unsqueeze(-1)  # [C, 1]
        centre, half = (low + high) / 2, (high - low) / 2 * growth  # [3], [C, 3]
        self.cells = torch.tensor(self.resolution, device=low.device)  # [3]
        self.boxes = torch.stack([centre - half, centre + half], dim=1)  # [C, 2, 3]
        self.cell_sizes = 2 * half / self.cells  # [C, 3]

    def look_up(self, origin: Tensor, direction: Tensor, t: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
        """Returns whether the cells at distance ``t`` [A] are occupied [A], and up to which distance the rays are in
        them [A].

        The cascade is the smallest one that contains the point and has no cell side below ``dt`` [A].
        """
        point = origin + direction * t.unsqueeze(-1)  # [A, 3]
        cascade = torch.zeros_like(t, dtype=torch.int64)
        for box, cell_size in zip(self.boxes[:-1], self.cell_sizes[:-1], strict=True):
            outside = ((point < box[0]) | (point > box[1])).any(-1)
            cascade += outside | (dt > cell_size.min())

        low, cell_size = self.boxes[cascade, 0], self.cell_sizes[cascade]  # [A, 3]
        cell = ((point - low) / cell_size).floor().long().clamp(min=0).minimum(self.cells - 1)
        index = cascade
        for axis in range(3):
            index = index * self.resolution[axis] + cell[:, axis]
        occupied = (self.bits[index >> 3] >> (index & 7).to(torch.uint8)) & 1

        # a little early, by more than rounding: a middle in front of there is in the cell for certain
        upper = cell.to(t) + torch.where(direction > 0, 1 - CELL_MARGIN, CELL_MARGIN).to(t)
        far_side = low + upper * cell_size
        t_side = torch.where(direction == 0, math.inf, (far_side - origin) / torch.where(direction == 0, 1, direction))
        return occupied.bool(), t_side.amin(-1)
