"""Rays to the zero level set of a distance field (sphere tracing, Hart 1996) on the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.reference.sphere_trace import HIT, Field, SphereTrace, ask, begin_trace, end_trace, prepare_trace

__all__ = ["SphereTrace", "sphere_trace"]

# Steps between two compactions. On a GPU each waits for the host; rays that have ended since the last one are asked
# for in vain. Not measured there yet.
_STEPS_PER_COMPACTION = {"cpu": 1, "cuda": 4}


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


def _register() -> None:
    @torch.library.register_fake("hashgrid::sphere_trace")
    def _(distances, rays, rays_o, rays_d, speed, t_max, state, status, n_evaluations, epsilon, step_scale):
        return rays_o.new_empty(rays.shape[0], 3)


if _extension.module is not None:
    _register()
