"""Rays through the radiance field of Instant-NGP (Müller et al. 2022, section 5.4), as one kernel if there is one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.levels import LevelTable
from hashgrid.ops._ngp.radiance_field import has_field_kernel, radiance_field
from hashgrid.ops._ngp.window_samples import window_samples
from hashgrid.ops._tensors import product_dtype
from hashgrid.ops.composite import composite
from hashgrid.ops.hash_encode import encoding_options
from hashgrid.ops.march_rays import march_rays
from hashgrid.ops.ray_aabb import prepare_rays
from hashgrid.util.choices import ACTIVATIONS, FACTORS

N_CHUNK = 1 << 17  # rays at a time, where samples go through memory
FIRST_WINDOW, GROWTH = 8, 4  # samples of a ray evaluated together there, and factor from one window to the next


@torch.no_grad()
def render_rays(
    rays_o: Tensor,
    rays_d: Tensor,
    ray_features: Tensor,
    aabb: Tensor,
    bits: Tensor,
    resolution: tuple[int, int, int],
    n_cascades: int,
    field_aabb: Tensor,
    table: Tensor,
    levels: LevelTable,
    density_weights: Sequence[Tensor],
    color_weights: Sequence[Tensor],
    interpolation: str = "linear",
    bounds: str = "clamp",
    half_table: Tensor | None = None,
    output_activation: str = "sigmoid",
    compute_dtype: torch.dtype | None = None,
    *,
    step_size: float,
    cone_angle: float = 0.0,
    near: float = 0.0,
    far: float = math.inf,
    max_samples_per_ray: int = 1024,
    early_stop_eps: float = 1e-4,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns what rays see of a radiance field: `march_rays`, `radiance_field` and `composite` in one. Not
    differentiable.

    On a GPU it is one kernel for the fields that `radiance_field` has one for, with three colours: no sample goes
    through memory, samples behind surfaces are not evaluated, and nothing is read back by the host. Everywhere else it
    is made of those ops, 2^17 rays at a time, with samples in windows (`window_samples`).

    Args:
        rays_o, rays_d: [R, 3], origins and directions; distances are in units of the length of a direction.
        ray_features: [R, E], such as spherical harmonics of the directions.
        aabb, bits, resolution, n_cascades: the grid of occupied cells, see `march_rays`.
        field_aabb: [6], the box that is the field's unit cube, (x_min, y_min, z_min, x_max, y_max, z_max).
        table, levels, density_weights, color_weights, interpolation, bounds, half_table, output_activation,
            compute_dtype: the field, see `radiance_field`.
        step_size, cone_angle, near, far, max_samples_per_ray: see `march_rays`.
        early_stop_eps: a sample of less transmittance is hidden.

    Returns:
        Colours [R, C] without background, opacities [R], depths [R] as those of `composite`, in the dtype of the rays,
        at least fp32; and int64 [1], the number of samples that were evaluated: those that count in the kernel, more
        elsewhere.

    Raises:
        ValueError: an option is unknown, or a shape does not fit.
        RuntimeError: a dtype or size the kernels do not take.
    """
    density_weights, color_weights = list(density_weights), list(color_weights)
    rays_o, rays_d, aabb = prepare_rays(rays_o, rays_d, aabb)
    field_aabb = field_aabb.detach().to(rays_o).contiguous()
    if field_aabb.shape != (6,):
        raise ValueError(f"`field_aabb` must have shape [6], got {list(field_aabb.shape)}")
    if ray_features.dim() != 2 or ray_features.shape[0] != rays_o.shape[0]:
        raise ValueError(f"`ray_features` must have shape [{rays_o.shape[0]}, E], got {list(ray_features.shape)}")
    grid = (aabb, bits.contiguous(), resolution, n_cascades)
    if has_field_kernel(
        "render_rays", rays_o, ray_features, table, levels,
        density_weights, color_weights, half_table, output_activation, compute_dtype,
    ):  # fmt: skip
        return _extension.ops().render_rays(
            rays_o, rays_d, ray_features.contiguous(), *grid[:2], list(resolution), n_cascades, field_aabb,
            (table if half_table is None else half_table).contiguous(),
            *encoding_options(levels, interpolation, bounds),
            [weight.contiguous() for weight in density_weights], [weight.contiguous() for weight in color_weights],
            ACTIVATIONS.index(output_activation), FACTORS.index(product_dtype(compute_dtype, density_weights[0])),
            step_size, cone_angle, near, far, max_samples_per_ray, early_stop_eps,
        )  # fmt: skip

    march = {
        "step_size": step_size,
        "cone_angle": cone_angle,
        "near": near,
        "far": far,
        "max_samples_per_ray": max_samples_per_ray,
    }
    field = {
        "table": table,
        "levels": levels,
        "density_weights": density_weights,
        "color_weights": color_weights,
        "interpolation": interpolation,
        "bounds": bounds,
        "half_table": half_table,
        "output_activation": output_activation,
        "compute_dtype": compute_dtype,
    }
    low, inverse_extent = field_aabb[:3], 1.0 / (field_aabb[3:] - field_aabb[:3])
    all_rays = (rays_o, rays_d, (rays_o - low) * inverse_extent, rays_d * inverse_extent, ray_features)
    parts = [
        _render_through_memory([x[first : first + N_CHUNK] for x in all_rays], grid, march, field, early_stop_eps)
        for first in range(0, max(rays_o.shape[0], 1), N_CHUNK)
    ]
    colors, opacities, depths, n_evaluated = zip(*parts, strict=True)
    total = torch.tensor([sum(n_evaluated)], device=rays_o.device)
    return torch.cat(colors), torch.cat(opacities), torch.cat(depths), total


def _render_through_memory(
    rays: Sequence[Tensor],
    grid: tuple[Any, ...],
    march: dict[str, Any],
    field: dict[str, Any],
    early_stop_eps: float,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Returns the same by `march_rays`, `window_samples`, `radiance_field` and `composite`. ``rays`` are origins and
    directions, these two in the field's unit cube, and features."""
    rays_o, rays_d, unit_o, unit_d, ray_features = rays
    t_starts, t_ends, ray_indices, packed_info = march_rays(rays_o, rays_d, *grid, **march)
    # Hidden samples stay zero: compositing does not look at them.
    sigmas = t_starts.new_zeros(t_starts.shape[0])
    colors = t_starts.new_zeros(t_starts.shape[0], field["color_weights"][-1].shape[0])
    begin, length, n_evaluated = 0, FIRST_WINDOW, 0
    while True:
        index, positions = window_samples(
            unit_o, unit_d, sigmas, t_starts, t_ends, packed_info, begin, begin + length, early_stop_eps
        )
        if index.shape[0] == 0 and begin > 0:
            break
        density, color = radiance_field(positions, ray_features, ray_indices.index_select(0, index), **field)
        sigmas.index_copy_(0, index, density.to(sigmas.dtype))
        colors.index_copy_(0, index, color.to(sigmas.dtype))
        n_evaluated += index.shape[0]
        begin, length = begin + length, GROWTH * length
    rendered, opacities, depths, *_ = composite(sigmas, colors, t_starts, t_ends, packed_info, early_stop_eps)
    return rendered, opacities, depths, n_evaluated


def _register() -> None:
    @torch.library.register_fake("hashgrid::render_rays")
    def _(rays_o, *options):
        n, color_weights = rays_o.shape[0], options[-8]
        colors = rays_o.new_empty(n, color_weights[-1].shape[0])
        return colors, rays_o.new_empty(n), rays_o.new_empty(n), rays_o.new_empty(1).long()


if _extension.module is not None:
    _register()
