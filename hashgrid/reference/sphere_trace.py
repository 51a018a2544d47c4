"""Rays to the zero level set of a distance field (sphere tracing, Hart 1996) in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hashgrid.ops.sphere_trace import (
    HIT,
    INSIDE_MOVED,
    MARCHING,
    MISS,
    OUTSIDE_MOVED,
    Field,
    SphereTrace,
    ask,
    begin_trace,
    end_trace,
    prepare_trace,
)

MAX_OVER_SLOPE = 16.0  # by how many distances the last step may extrapolate: rays 3.6 degrees off the surface


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
    for _ in range(max_steps):
        rays = (status < HIT).nonzero().squeeze(-1)  # [A]
        if len(rays) == 0:
            break
        d = ask(field, rays_o[rays] + rays_d[rays] * state[rays, :1])
        n_evaluations[rays] += 1
        state[rays], status[rays] = _step(state[rays], status[rays], d, speed[rays], t_max[rays], epsilon, step_scale)
    return end_trace(state, status, n_evaluations)


def _step(
    state: Tensor, status: Tensor, d: Tensor, speed: Tensor, t_max: Tensor, epsilon: float, step_scale: float
) -> tuple[Tensor, Tensor]:
    """State [A, 5] and status [A] after the field was found to be ``d`` [A] at t."""
    t, t_outside, d_outside, t_inside, d_inside = state.unbind(-1)
    first, marching = d_outside == 0, status == MARCHING
    crossed = ((d < 0) != (d_outside < 0)) & ~first

    # Within epsilon: on to where the line through the last two distances has its zero.
    shift = (t - t_outside) * (d / (d_outside - d))
    trusted = marching & ~first & (shift.abs() * speed <= MAX_OVER_SLOPE * d.abs())
    t_close = torch.minimum(torch.where(trusted, t + shift, t), t_max)

    # Marching: beyond t_max the field need not be asked, unless it is steeper than 2.
    step = d.abs() * step_scale / speed
    t_step = torch.minimum(t + step, t_max)
    beyond = ~((t + step * 0.5 <= t_max) & (t_step < math.inf))

    # Between two signs: false position, where an end that stays twice counts less (Pegasus, Dowell & Jarratt 1972).
    d_outside = torch.where(crossed & (status == INSIDE_MOVED), d_outside * (d_inside / (d_inside + d)), d_outside)
    d_inside = torch.where(~crossed & (status == OUTSIDE_MOVED), d_inside * (d_outside / (d_outside + d)), d_inside)
    t_outside, d_outside = torch.where(crossed, t_outside, t), torch.where(crossed, d_outside, d)
    t_inside, d_inside = torch.where(crossed, t, t_inside), torch.where(crossed, d, d_inside)
    width = t_inside - t_outside
    t_root = t_outside + width * (d_outside / (d_outside - d_inside))
    t_root = torch.where((t_root > t_outside) & (t_root < t_inside), t_root, t_outside + width * 0.5)
    closed = ~((t_root > t_outside) & (t_root < t_inside))

    one_sign = marching & ~crossed
    moved = torch.where(one_sign, MARCHING, torch.where(crossed, INSIDE_MOVED, OUTSIDE_MOVED))
    ended = torch.where(one_sign, t_step == t, closed)
    t_next = torch.where(one_sign, t_step, torch.where(closed, t_outside, t_root))
    close = d.abs() <= epsilon
    status = torch.where(close | ended, HIT, moved)
    status = torch.where(~d.isfinite() | (one_sign & ~close & beyond), MISS, status)
    state = torch.stack((torch.where(close, t_close, t_next), t_outside, d_outside, t_inside, d_inside), dim=-1)
    return state, status.to(torch.uint8)
