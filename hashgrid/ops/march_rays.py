"""Ray marching through a bit-packed occupancy grid with cascades on the native kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.ops.counter_uniform import as_counter
from hashgrid.ops.ray_aabb import as_limits, prepare_rays


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
    """Samples of each ray where the grid is occupied. Not differentiable.

    A ray advances by ``step(t) = clamp(t * cone_angle, step_size, max_step)``, ``max_step`` being the diagonal of the
    largest cell (at least ``step_size``), from its entry into the outermost box. The cell at the middle of a step
    decides: occupied, the step becomes a sample; empty, the ray moves on by whole steps until the middle has left the
    cell. With ``cone_angle == 0`` positions are ``t_begin + k * step_size`` with integer k: rounding does not build up.
    The result has the same bits for any number of threads and any instruction set.

    With ``n_samples`` the size of the result is known beforehand, and on CUDA the host reads nothing back: a CUDA graph
    can capture the call, with seed, step and number of rays in tensors. Rays are taken in order as long as their
    samples fit; the others have none. Samples left over belong to no ray: they repeat the others with length zero, and
    `composite` gives them weight and gradient zero.

    Args:
        rays_o: [R, 3], origins, fp32 or fp64 (half precision is read as fp32).
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
        seed: shifts the samples of each ray by a fraction of its first step; None for no shift. This and ``step`` may
            be int64 tensors with one element.
        step: training step, varies the shift.
        max_samples_per_ray: further samples of a ray are dropped.
        n_samples: samples S of the result (without rays it is empty nevertheless); None for all there are.
        n_rays: int64 [1], number of rays in use, those behind have no samples; only with ``n_samples``.

    Returns:
        t_starts [S], t_ends [S], ray_indices [S] int64, packed_info [R, 2] int64 (first sample, count); sorted by ray,
        in the order of the distance within a ray. A ray with NaN coordinates or limits has no samples. With
        ``n_samples`` also totals [2] int64: the samples that all rays in use have, and the number of rays, from the
        first, whose samples are in the result.

    Raises:
        ValueError: ``near`` or ``far`` is neither one number nor one per ray, or ``n_rays`` comes without
            ``n_samples``.
        RuntimeError: a shape, a dtype or a step does not fit.
    """
    check_fixed_size(n_samples, n_rays)
    rays_o, rays_d, aabb = prepare_rays(rays_o, rays_d, aabb)
    counter = None if seed is None else as_counter(seed, step, rays_o.device)
    near, far, limits = as_limits(near, far, rays_o)
    result = _extension.ops().march_rays(
        rays_o, rays_d, aabb, bits.contiguous(), list(resolution), n_cascades, step_size, cone_angle, near, far,
        limits, counter, n_rays, max_samples_per_ray, n_samples,
    )  # fmt: skip
    return result[:4] if n_samples is None else result


def check_fixed_size(n_samples: int | None, n_rays: Tensor | None) -> None:
    """Checks that ``n_rays`` comes with the size of the result."""
    if n_rays is not None and n_samples is None:
        raise ValueError("`n_rays` must come with `n_samples`, the size of the result, got it alone")


def _register() -> None:
    @torch.library.register_fake("hashgrid::march_rays")
    def _(rays_o, *options):
        fixed = options[-1] is not None
        n_samples = options[-1] if fixed else torch.library.get_ctx().new_dynamic_size()
        if fixed and rays_o.shape[0] == 0:
            n_samples = 0
        return (
            rays_o.new_empty(n_samples),
            rays_o.new_empty(n_samples),
            rays_o.new_empty(n_samples, dtype=torch.int64),
            rays_o.new_empty(rays_o.shape[0], 2, dtype=torch.int64),
            rays_o.new_empty(2 if fixed else 0, dtype=torch.int64),
        )


if _extension.module is not None:
    _register()
