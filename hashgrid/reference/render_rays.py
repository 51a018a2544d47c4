"""Rays through the radiance field of Instant-NGP (Müller et al. 2022, section 5.4), in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hashgrid.levels import LevelTable
from hashgrid.reference.composite import composite
from hashgrid.reference.march_rays import march_rays
from hashgrid.reference.radiance_field import radiance_field
from hashgrid.reference.sample_positions import sample_positions


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
    """See :func:`hashgrid.ops._ngp.render_rays`; every sample is evaluated."""
    t_starts, t_ends, rays, packed_info = march_rays(
        rays_o,
        rays_d,
        aabb,
        bits,
        resolution,
        n_cascades,
        step_size=step_size,
        cone_angle=cone_angle,
        near=near,
        far=far,
        max_samples_per_ray=max_samples_per_ray,
    )
    low, inverse_extent = field_aabb[:3], 1.0 / (field_aabb[3:] - field_aabb[:3])
    positions = sample_positions((rays_o - low) * inverse_extent, rays_d * inverse_extent, rays, t_starts, t_ends)
    sigmas, colors = radiance_field(
        positions,
        ray_features,
        rays,
        table,
        levels,
        density_weights,
        color_weights,
        interpolation,
        bounds,
        half_table,
        output_activation,
        compute_dtype,
    )
    rendered, opacities, depths, *_ = composite(sigmas, colors, t_starts, t_ends, packed_info, early_stop_eps)
    return rendered, opacities, depths, torch.tensor([len(positions)], device=positions.device)
