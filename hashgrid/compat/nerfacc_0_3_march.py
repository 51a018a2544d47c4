"""nerfacc 0.3's steps along rays.

Steps of one length through a box are done by the kernel `march_rays`. Where neither the box nor what is in it decides
how long a step is - without a grid, or with one of contracted space - the edges of all steps are known beforehand. In a
box with steps that grow, those through empty cells do not: rays are followed step by step, all together.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hashgrid import ops
from hashgrid.compat.nerfacc._checks import check_shape
from hashgrid.compat.nerfacc._traverse import find_samples
from hashgrid.compat.nerfacc_0_3_grid import ContractionType, Grid, query_grid
from hashgrid.compat.nerfacc_0_3_render import asked, render_visibility
from hashgrid.ops._tensors import maths_dtype

_NOWHERE = 1e10  # where rays enter and leave boxes that they miss, and end without a limit
_STEPS = 1 << 18  # that are looked up together
_MOST_STEPS = 1 << 31  # of all rays
_LONGEST_STEP = 1e10

Found = tuple[Tensor, Tensor, Tensor]

# of samples: begins [S, 1], ends [S, 1] and rays [S]
SampleFn = Callable[[Tensor, Tensor, Tensor], Tensor]


@torch.no_grad()
def ray_aabb_intersect(rays_o: Tensor, rays_d: Tensor, aabb: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave a box, in units of the length of their directions. Not differentiable.

    Args:
        rays_o: [R, 3], origins.
        rays_d: [R, 3], directions.
        aabb: [6], (x_min, y_min, z_min, x_max, y_max, z_max).

    Returns:
        t_min [R], 0 or more, and t_max [R], less than 0 for a box behind the ray; both 1e10 where it is missed.

    Raises:
        ValueError: a shape does not fit.
    """
    check_shape("rays_o", rays_o, "R", 3)
    check_shape("rays_d", rays_d, len(rays_o), 3)
    check_shape("aabb", aabb, 6)
    t_min, t_max = ops.ray_aabb(rays_o, rays_d, aabb, -torch.inf, torch.inf)
    missed = t_min == torch.inf
    return t_min.clamp(min=0).masked_fill(missed, _NOWHERE), t_max.masked_fill(missed, _NOWHERE)


@torch.no_grad()
def ray_marching(
    rays_o: Tensor,
    rays_d: Tensor,
    t_min: Tensor | None = None,
    t_max: Tensor | None = None,
    scene_aabb: Tensor | None = None,
    grid: Grid | None = None,
    sigma_fn: SampleFn | None = None,
    alpha_fn: SampleFn | None = None,
    early_stop_eps: float = 1e-4,
    alpha_thre: float = 0.0,
    near_plane: float | Tensor | None = None,
    far_plane: float | Tensor | None = None,
    render_step_size: float = 1e-3,
    stratified: bool = False,
    cone_angle: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples of rays: steps whose middle is in an occupied cell. Not differentiable.

    A ray begins at ``t_min``, steps are ``max(cone_angle * t, render_step_size)`` long, and the last one has its middle
    before ``t_max``. In a box with a ``cone_angle``, middles of steps that are no samples are ``render_step_size``
    apart, so that a sample behind empty cells may reach back before their end.

    Args:
        rays_o: [R, 3], origins.
        rays_d: [R, 3], directions of unit length.
        t_min: [R], where rays begin; without both this and ``t_max``, where they enter ``scene_aabb``, or 0.
        t_max: [R], where they end; else where they leave ``scene_aabb``, or 1e10.
        scene_aabb: [6].
        grid: of the cells; None for everything.
        sigma_fn: densities [S, 1] of samples, to drop those that `render_visibility` says are not visible.
        alpha_fn: opacities [S, 1] instead.
        early_stop_eps: least transmittance of a sample, with one of them.
        alpha_thre: least opacity.
        near_plane: least ``t_min``, a number or [R].
        far_plane: largest ``t_max``, a number or [R].
        render_step_size: least length of a step.
        stratified: whether to begin each ray up to ``render_step_size`` farther away, by chance.
        cone_angle: growth of steps with the distance.

    Returns:
        ray_indices [S] int64, t_starts [S, 1] and t_ends [S, 1].

    Raises:
        ValueError: a shape does not fit, both functions are given, a step is not positive, or rays without an end have
            more than 2^31 steps.
    """
    check_shape("rays_o", rays_o, "R", 3)
    check_shape("rays_d", rays_d, len(rays_o), 3)
    if sigma_fn is not None and alpha_fn is not None:
        raise ValueError("only one of `sigma_fn` and `alpha_fn` may be given")
    if not (0 < render_step_size < torch.inf and 0 <= cone_angle < torch.inf):
        raise ValueError(
            f"`render_step_size` must be positive and `cone_angle` 0 or more, got {render_step_size} and {cone_angle}"
        )
    rays_o, rays_d = (x.detach().to(maths_dtype(rays_o)) for x in (rays_o, rays_d))
    if t_min is None or t_max is None:
        if scene_aabb is not None:
            t_min, t_max = ray_aabb_intersect(rays_o, rays_d, scene_aabb)
        else:
            t_min, t_max = torch.zeros_like(rays_o[:, 0]), torch.full_like(rays_o[:, 0], _NOWHERE)
    check_shape("t_min", t_min, len(rays_o))
    check_shape("t_max", t_max, len(rays_o))
    t_min, t_max = t_min.to(rays_o), t_max.to(rays_o)
    t_min = t_min if near_plane is None else torch.clamp(t_min, min=near_plane)  # type: ignore[arg-type]
    t_max = t_max if far_plane is None else torch.clamp(t_max, max=far_plane)  # type: ignore[arg-type]
    if stratified:
        t_min = t_min + torch.rand_like(t_min) * render_step_size
    ray_indices, starts, ends = _march(rays_o, rays_d, t_min, t_max, grid, render_step_size, cone_angle)
    t_starts, t_ends = starts[:, None], ends[:, None]
    if sigma_fn is None and alpha_fn is None:
        return ray_indices, t_starts, t_ends
    if sigma_fn is not None:
        sigmas = asked("sigma_fn", sigma_fn(t_starts, t_ends, ray_indices), t_starts)
        alphas = -torch.expm1(-sigmas * (t_ends - t_starts))
    elif alpha_fn is not None:
        alphas = asked("alpha_fn", alpha_fn(t_starts, t_ends, ray_indices), t_starts)
    visible = render_visibility(alphas, ray_indices=ray_indices, early_stop_eps=early_stop_eps, alpha_thre=alpha_thre)
    return ray_indices[visible], t_starts[visible], t_ends[visible]


def _march(
    rays_o: Tensor, rays_d: Tensor, t_min: Tensor, t_max: Tensor, grid: Grid | None, step: float, cone: float
) -> Found:
    """Steps of rays [R, 3] whose middle is in an occupied cell, between ``t_min`` and ``t_max`` [R].

    Returns:
        ray_indices [S] int64, t_starts [S] and t_ends [S], sorted by ray.

    Raises:
        ValueError: there are more than 2^31 steps, as of rays without an end.
    """
    step, cone = torch.tensor((step, cone), dtype=rays_o.dtype).tolist()  # as a kernel reads them
    if grid is not None and grid.contraction_type is ContractionType.AABB:
        roi = grid.roi_aabb.to(rays_o)
        if cone == 0:
            arguments = grid.binary[None], roi[None], t_min, t_max
            found = find_samples(rays_o, rays_d, *arguments, step, 0.0, 0, None, None)
            return found.ray_indices, found.starts, found.ends
        return _grow_in_box(rays_o, rays_d, t_min, t_max, roi, grid.binary, step, cone)
    return _take_known(rays_o, rays_d, t_min, t_max, grid, step, cone)


def _take_known(
    rays_o: Tensor, rays_d: Tensor, t_min: Tensor, t_max: Tensor, grid: Grid | None, step: float, cone: float
) -> Found:
    """Steps that depend on where rays begin alone: those in front of the first edge behind ``step / cone`` are ``step``
    long, and each edge behind is ``1 + cone`` times the one before. All edges are fp64."""
    begin, end = t_min.double(), t_max.double()
    n = ((end - begin) / step - 0.5).ceil()  # [R], steps whose middle is before the end
    n_equal = grows_at = begin
    if cone > 0:
        n_equal = ((step / cone - begin) / step).ceil().clamp(min=0)
        grows_at = begin + n_equal * step
        n_grown = ((end / (grows_at * (1 + cone / 2))).log() / math.log1p(cone)).ceil().clamp(min=0)
        n = torch.where(n > n_equal, n_equal + n_grown, n)
    n = torch.where(begin < end, n, 0).clamp(min=0)  # also of NaN
    n_equal = torch.where(n > 0, n_equal, 0)
    if float(n.sum()) > _MOST_STEPS:
        raise ValueError(
            f"rays have {float(n.sum()):.2g} steps; give `scene_aabb`, `t_max` or `far_plane`, where they end"
        )
    most = int(n.max()) if len(n) else 0
    growth = (1 + cone) ** torch.arange(most + 1, device=n.device, dtype=torch.float64)
    ray = torch.arange(len(n), device=n.device)
    found = [(ray[:0], begin[:0], begin[:0])]
    for rays in ray.split(max(1, _STEPS // most)) if most else ():
        k = torch.arange(int(n[rays].max()) + 1, device=n.device, dtype=torch.float64)
        edges = begin[rays, None] + k * step  # [A, K + 1]
        if cone > 0:
            more = (k - n_equal[rays, None]).clamp(min=0).long()
            edges = torch.where(more > 0, grows_at[rays, None] * growth[more], edges)
        taken = k[:-1] < n[rays, None]  # [A, K]
        if grid is not None:
            middle = ((edges[:, :-1] + edges[:, 1:]) / 2).to(rays_o.dtype)
            points = rays_o[rays, None] + rays_d[rays, None] * middle[..., None]  # [A, K, 3]
            values = query_grid(points.view(-1, 3), grid.roi_aabb, grid.binary, grid.contraction_type)
            taken &= values.view_as(taken)
        row, column = taken.nonzero(as_tuple=True)
        found.append((rays[row], edges[row, column], edges[row, column + 1]))
    ray_indices, t_starts, t_ends = (torch.cat(parts) for parts in zip(*found, strict=True))
    return ray_indices, t_starts.to(t_min.dtype), t_ends.to(t_min.dtype)


def _grow_in_box(
    rays_o: Tensor, rays_d: Tensor, t_min: Tensor, t_max: Tensor, roi: Tensor, binary: Tensor, step: float, cone: float
) -> Found:
    """Growing steps in the cells of a box. Middles of steps in empty cells, and outside, are ``step`` apart; the first
    middle that is in an occupied cell has the length that is due there to both sides of it."""
    dtype = t_min.dtype
    rays_o, rays_d, low, high = (x.double() for x in (rays_o, rays_d, roi[:3], roi[3:]))
    enters, leaves = ops.ray_aabb(rays_o, rays_d, torch.cat((low, high)), -math.inf, math.inf)
    end = leaves.minimum(t_max.double())
    sizes = torch.tensor(binary.shape, device=low.device)
    side = (high - low) / sizes  # of a cell, [3]

    def length_at(t: Tensor) -> Tensor:
        return (t * cone).clamp(step, _LONGEST_STEP)

    t_min = t_min.double()
    middle = t_min + length_at(t_min) / 2
    length = length_at(t_min)
    # straight to the box: outside, middles are as far apart as in empty cells
    away = middle < enters
    middle = torch.where(away, middle + ((enters - middle) / step).ceil() * step, middle)
    length = torch.where(away, length_at(middle), length)
    ray = torch.arange(len(rays_o), device=low.device)
    found = [(ray[:0], middle[:0], middle[:0])]
    while len(ray):
        going = (middle < end) & (middle + step > middle)  # a step too short to change it would never end
        ray, middle, length, end = ray[going], middle[going], length[going], end[going]
        place = (rays_o[ray] + rays_d[ray] * middle[:, None] - low) / side
        cell = place.floor().long().clamp(min=0).minimum(sizes - 1)
        occupied = binary[cell[:, 0], cell[:, 1], cell[:, 2]]
        t_end = middle + length / 2
        found.append((ray[occupied], (middle - length / 2)[occupied], t_end[occupied]))

        # past the nearest side of an empty cell by whole steps
        wall = low + (cell + (rays_d[ray] > 0)) * side
        goal = torch.where(rays_d[ray] == 0, math.inf, (wall - rays_o[ray]) / rays_d[ray]).amin(-1).minimum(end)
        skipped = middle + ((goal - middle) / step).ceil().clamp(min=1) * step
        length = length_at(torch.where(occupied, t_end, skipped))
        middle = torch.where(occupied, t_end + length / 2, skipped)
    ray, t_starts, t_ends = (torch.cat(column) for column in zip(*found, strict=True))
    ray, order = ray.sort(stable=True)
    return ray, t_starts[order].to(dtype), t_ends[order].to(dtype)
