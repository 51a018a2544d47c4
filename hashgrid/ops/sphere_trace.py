"""Rays to the zero level set of a distance field (sphere tracing, Hart 1996) on the native kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.ops._tensors import at_least_fp32, maths_dtype

Field = Callable[[Tensor], Tensor]

# Status of a ray, as TraceStatus in csrc/core/sphere_trace.h: between two points of one sign, or of two signs of which
# the one outside or inside was found last; those below HIT are live.
MARCHING, OUTSIDE_MOVED, INSIDE_MOVED, HIT, MISS = range(5)

# Steps between two compactions. On a GPU each waits for the host; rays that have ended since the last one are asked
# for in vain. Not measured there yet.
_STEPS_PER_COMPACTION = {"cpu": 1, "cuda": 4}


class SphereTrace(NamedTuple):
    """Where rays meet a surface. Points of it are ``rays_o + t[:, None] * rays_d``, where ``hit``."""

    t: Tensor  # [R], in units of the length of the direction; inf where there is no hit
    hit: Tensor  # [R] bool
    n_evaluations: Tensor  # [R] int32, points of the ray at which the field was asked


@torch.no_grad()
def sphere_trace(
    field: Field,
    rays_o: Tensor,
    rays_d: Tensor,
    t_min: Tensor,
    t_max: Tensor,
    max_steps: int = 256,
    epsilon: float = 2e-4,
    step_scale: float = 1.0,
) -> SphereTrace:
    """The first point of each ray, from ``t_min`` on, at which the field is zero. Not differentiable.

    A ray steps on by the distance to the surface (Hart 1996), from outside or, where the field is negative at
    ``t_min``, from inside: as with a mesh, the surface is met from either side. It ends

    - as a hit within ``epsilon`` of the surface, or nearer to it than t is rounded. Its t is where the line through
      the last two distances has its zero: closer than ``epsilon``, without another evaluation;
    - as a hit where the field has changed its sign between two steps, as one that is no exact distance may let it:
      the root between them is found by false position, to ``epsilon`` or to the rounding of t;
    - as a miss where less than half a step is left to ``t_max``, after ``max_steps`` without a change of sign, or at a
      distance that is NaN or infinite. A last step that leads beyond ``t_max`` ends there.

    Rays with ``t_min > t_max``, such as those that miss the box of ``ray_aabb``, without direction, or with NaN or
    infinite coordinates are misses for which the field is not asked.

    Args:
        field: distances [A] of points [A, 3], negative inside; called without gradient, for the live rays only. One
            steeper than 1 may step through thin parts: choose ``step_scale`` as one over its Lipschitz constant.
        rays_o: [R, 3], origins, fp32 or fp64 (half precision is read as fp32).
        rays_d: [R, 3], directions of any length: a distance d is a step of ``d / |rays_d|`` in t.
        t_min, t_max: [R], where rays begin and end. Rays that leave a surface begin some ``epsilon`` from it.
        max_steps: points per ray at which the field is asked, at most.
        epsilon: distance that counts as none, in units of the field.
        step_scale: factor of all steps.

    Raises:
        ValueError: a shape, a dtype or a value does not fit.
    """
    rays_o, rays_d, t_min, t_max = prepare_trace(rays_o, rays_d, t_min, t_max, max_steps, epsilon, step_scale)
    state, status, n_evaluations, speed = begin_trace(rays_o, rays_d, t_min, t_max)
    step = _extension.ops().sphere_trace
    rays = (status < HIT).nonzero().squeeze(-1)  # [A], in rising order
    positions = rays_o[rays] + rays_d[rays] * t_min[rays, None]  # [A, 3]
    interval = _STEPS_PER_COMPACTION.get(rays_o.device.type, 1)
    for done in range(1, max_steps + 1):
        if len(rays) == 0:
            break
        distances = ask(field, positions).contiguous()
        positions = step(
            distances, rays, rays_o, rays_d, speed, t_max, state, status, n_evaluations, epsilon, step_scale
        )
        if done % interval == 0:
            live = (status[rays] < HIT).nonzero().squeeze(-1)
            rays, positions = rays[live], positions[live]
    return end_trace(state, status, n_evaluations)


def prepare_trace(
    rays_o: Tensor,
    rays_d: Tensor,
    t_min: Tensor,
    t_max: Tensor,
    max_steps: int,
    epsilon: float,
    step_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns rays and limits checked, detached, contiguous and in the dtype of ``rays_o``, at least fp32."""
    if rays_o.dim() != 2 or rays_o.shape[1] != 3:
        raise ValueError(f"`rays_o` must have shape [R, 3], got {list(rays_o.shape)}")
    if rays_d.shape != rays_o.shape:
        raise ValueError(f"`rays_d` must have the shape of `rays_o`, {list(rays_o.shape)}, got {list(rays_d.shape)}")
    for name, limit in (("t_min", t_min), ("t_max", t_max)):
        if limit.shape != rays_o.shape[:1]:
            raise ValueError(f"`{name}` must have shape [{len(rays_o)}], one per ray, got {list(limit.shape)}")
    for name, x in (("rays_o", rays_o), ("rays_d", rays_d), ("t_min", t_min), ("t_max", t_max)):
        if not x.is_floating_point():
            raise ValueError(f"`{name}` must be of a floating-point dtype, got {x.dtype}")
        if x.device != rays_o.device:
            raise ValueError(f"`{name}` must be on {rays_o.device} like `rays_o`, got {x.device}")
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps}")
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"`epsilon` must be a distance, 0 or more, got {epsilon}")
    if not 0 < step_scale < math.inf:
        raise ValueError(f"`step_scale` must be positive, got {step_scale}")
    dtype = maths_dtype(rays_o)
    rays_o, rays_d, t_min, t_max = (x.detach().to(dtype).contiguous() for x in (rays_o, rays_d, t_min, t_max))
    return rays_o, rays_d, t_min, t_max


def begin_trace(rays_o: Tensor, rays_d: Tensor, t_min: Tensor, t_max: Tensor) -> tuple[Tensor, ...]:
    """Returns state [R, 5], status [R], number of evaluations [R] and length of the directions [R].

    The state: t; t and distance of the last point on the side the ray comes from, called outside, zero before the
    first; the same of the last point on the other side.
    """
    x, y, z = rays_d.unbind(-1)
    speed = (x * x + y * y + z * z).sqrt()
    finite = (rays_o + rays_d * t_min[:, None]).isfinite().all(-1) & (speed > 0) & (speed < math.inf)
    status = torch.where(finite & (t_min <= t_max), MARCHING, MISS).to(torch.uint8)
    state = torch.zeros(len(t_min), 5, dtype=t_min.dtype, device=t_min.device)
    state[:, 0] = t_min
    return state, status, torch.zeros_like(status, dtype=torch.int32), speed


def ask(field: Field, positions: Tensor) -> Tensor:
    """Returns the distances [A] that ``field`` gives ``positions`` [A, 3], in their dtype."""
    distances: Any = field(positions)
    if not isinstance(distances, Tensor):
        raise ValueError(f"`field` must return a tensor of distances, got {type(distances).__name__}")
    if distances.shape != positions.shape[:1]:
        raise ValueError(
            f"`field` must return distances [A] of points [A, 3], got {list(distances.shape)} of "
            f"{list(positions.shape)}; drop a channel by `.squeeze(-1)`"
        )
    distances = at_least_fp32(distances.detach())
    if distances.dtype != positions.dtype or distances.device != positions.device:
        raise ValueError(
            f"`field` must return distances of the points' dtype, {positions.dtype} on {positions.device}, got "
            f"{distances.dtype} on {distances.device}; convert the field or the rays"
        )
    return distances


def end_trace(state: Tensor, status: Tensor, n_evaluations: Tensor) -> SphereTrace:
    """Returns what became of the rays. A ray whose root is known to lie between two points is a hit, however far apart
    they are."""
    hit = (status == HIT) | (status == OUTSIDE_MOVED) | (status == INSIDE_MOVED)
    return SphereTrace(torch.where(hit, state[:, 0], math.inf), hit, n_evaluations)


def _register() -> None:
    @torch.library.register_fake("hashgrid::sphere_trace")
    def _(distances, rays, rays_o, rays_d, speed, t_max, state, status, n_evaluations, epsilon, step_scale):
        return rays_o.new_empty(rays.shape[0], 3)


if _extension.module is not None:
    _register()
