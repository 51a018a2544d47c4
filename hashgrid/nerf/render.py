"""Rays through the field: what training and evaluation share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hashgrid.modules import OccupancyGrid, RaySamples, composite
from hashgrid.nerf.cameras import Cameras
from hashgrid.nerf.dataset import Scene
from hashgrid.nerf.model import NerfModel


@dataclass(frozen=True)
class Marching:
    """How rays are cut into samples; lengths in scene units."""

    step_size: float
    cone_angle: float
    near: float
    early_stop_eps: float

    @classmethod
    def of(cls, scene: Scene, steps_per_diagonal: int, early_stop_eps: float) -> Marching:
        extent = float((scene.aabb[3:] - scene.aabb[:3]).max())
        return cls(extent * 3**0.5 / steps_per_diagonal, scene.cone_angle, scene.near, early_stop_eps)


@dataclass
class Rendered:
    """Per ray: colour [R, 3], opacity [R], depth [R] (absolute t, 0 where nothing was hit); samples that counted."""

    colors: Tensor
    opacities: Tensor
    depths: Tensor
    n_samples: int
    n_marched: int


def render_rays(
    model: NerfModel,
    occupancy: OccupancyGrid,
    rays_o: Tensor,
    rays_d: Tensor,
    marching: Marching,
    background: Tensor,
    jitter: tuple[int, int] | None = None,
) -> Rendered:
    """Colours of rays; differentiable in the model's parameters when gradients are enabled.

    Args:
        rays_o, rays_d: [R, 3], directions of unit length.
        background: [3] or [R, 3] colour behind the scene.
        jitter: (seed, step) of the random offset of the first sample; None for none.
    """
    seed, step = jitter if jitter is not None else (None, 0)
    samples = occupancy.march(
        rays_o,
        rays_d,
        step_size=marching.step_size,
        cone_angle=marching.cone_angle,
        near=marching.near,
        seed=seed,
        step=step,
    )
    n_marched = samples.n_samples
    # Behind a surface nothing is seen and no gradient flows: values of all samples first, without gradient, then the
    # colour MLP and the backward pass, two thirds of a step, on those that count.
    if torch.is_grad_enabled():
        with torch.no_grad():
            unit = model.unit(samples.positions(rays_o, rays_d))
            encoded = model.grid(unit)
            samples, index = samples.visible(model.geometry(encoded)[0], marching.early_stop_eps)
            known = encoded.index_select(0, index)
        sigmas, geometry = model.geometry(model.grid(unit.index_select(0, index), known=known))
    else:
        sigmas, geometry = evaluate_front_to_back(model, samples, rays_o, rays_d, marching.early_stop_eps)
        samples, index = samples.visible(sigmas, marching.early_stop_eps)
        sigmas, geometry = sigmas.index_select(0, index), geometry.index_select(0, index)
    features, opacities, depths = shade(model, samples, sigmas, geometry, rays_d, marching, background)
    return Rendered(features, opacities, depths, samples.n_samples, n_marched)


def shade(
    model: NerfModel,
    samples: RaySamples,
    sigmas: Tensor,
    geometry: Tensor,
    rays_d: Tensor,
    marching: Marching,
    background: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Colour [R, 3], opacity [R] and depth [R] of rays from the densities [S] and features [S, G] of their samples."""
    directions = model.directions(rays_d).index_select(0, samples.ray_indices)
    colors = model.color(geometry, directions)
    return composite(sigmas, colors, samples, early_stop_eps=marching.early_stop_eps, background=background)[:3]


@torch.no_grad()
def evaluate_front_to_back(
    model: NerfModel,
    samples: RaySamples,
    rays_o: Tensor,
    rays_d: Tensor,
    early_stop_eps: float,
    first_window: int = 32,
) -> tuple[Tensor, Tensor]:
    """Densities [S] and geometry features [S, G] of the samples that may be seen; zeros behind surfaces.

    Rays advance together, window by window, each twice as long as the one before; those that have become opaque stop.
    """
    n_samples, counts = samples.n_samples, samples.packed_info[:, 1]
    sigmas = rays_o.new_zeros(n_samples)
    geometry = rays_o.new_zeros(n_samples, model.density_mlp.n_output_dims)
    thickness = torch.zeros(samples.n_rays, dtype=torch.float64, device=rays_o.device)
    opaque = -math.log(early_stop_eps) + 1e-6  # a rounding later than compositing stops
    begin, length = 0, first_window
    rays = counts.nonzero().squeeze(-1)
    while rays.shape[0] > 0:
        window, index = samples.window(rays, begin, begin + length)
        densities, features = model.geometry(model.grid(model.unit(window.positions(rays_o, rays_d))))
        sigmas[index] = densities
        geometry[index] = features
        thickness.index_add_(0, window.ray_indices, (densities * (window.t_ends - window.t_starts)).double())
        begin, length = begin + length, 2 * length
        alive = (counts[rays] > begin) & ~(thickness[rays] > opaque)
        rays = rays[alive]
    return sigmas, geometry


@torch.no_grad()
def render_view(
    model: NerfModel,
    occupancy: OccupancyGrid,
    cameras: Cameras,
    view: int,
    marching: Marching,
    background: Tensor,
    chunk: int | None = None,
    on_chunk: Callable[[], None] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Colour [H, W, 3], opacity [H, W] and depth [H, W] of one camera, on the CPU.

    Args:
        cameras: on the model's device.
        chunk: rays at a time; None for as many as suit the device.
    """
    device = model.aabb.device
    background = background.to(device)
    chunk = chunk or (1 << 13 if device.type == "cpu" else 1 << 17)
    width, height = cameras.sizes[view].tolist()
    colors, opacities, depths = [], [], []
    for start in range(0, width * height, chunk):
        pixel = torch.arange(start, min(start + chunk, width * height), device=device)
        rays_o, rays_d = cameras.rays(torch.full_like(pixel, view), pixel % width, pixel // width)
        out = render_rays(model, occupancy, rays_o, rays_d, marching, background)
        colors.append(out.colors)
        opacities.append(out.opacities)
        depths.append(out.depths)
        if on_chunk is not None:
            on_chunk()
    return (
        torch.cat(colors).clamp_(0, 1).view(height, width, 3).cpu(),
        torch.cat(opacities).view(height, width).cpu(),
        torch.cat(depths).view(height, width).cpu(),
    )
