"""Rays through the field: what training and evaluation share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from hashgrid.data.scene import Scene
from hashgrid.fields.ngp import NerfModel
from hashgrid.geometry.cameras import Cameras
from hashgrid.nn import OccupancyGrid, RaySamples, composite
from hashgrid.ops.gather_rows import gather_rows
from hashgrid.ops.render_rays import FIRST_WINDOW, GROWTH


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
    """Per ray: colour [R, 3], opacity [R], depth [R] (absolute t, 0 where nothing was hit); samples that counted, and
    samples whose density was evaluated."""

    colors: Tensor
    opacities: Tensor
    depths: Tensor
    n_samples: int
    n_evaluated: int


@dataclass
class VisibleFeatures:
    """Samples that can be seen, and the number of samples that were evaluated to find them. To go on from: densities
    [K] and what the colour network takes [K, G + E]; or places in the unit cube [K, 3] and the grid features [K, L * F]
    there."""

    samples: RaySamples
    values: tuple[Tensor, ...]
    n_evaluated: int


def render_rays(
    model: NerfModel,
    occupancy: OccupancyGrid,
    rays_o: Tensor,
    rays_d: Tensor,
    marching: Marching,
    background: Tensor | None,
    jitter: tuple[int, int] | None = None,
) -> Rendered:
    """Colours of rays; differentiable in the model's parameters when gradients are enabled.

    Args:
        rays_o, rays_d: [R, 3], directions of unit length.
        background: [3] or [R, 3] colour behind the scene; None for nothing.
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
    # Behind a surface nothing is seen and no gradient flows: densities first, without gradient, then the colour MLP and
    # the backward pass, two thirds of a step, on the samples that count.
    train = torch.is_grad_enabled()
    seen = visible_features(model, samples, rays_o, rays_d, marching.early_stop_eps, to_train=train)
    samples = seen.samples
    if train:
        unit, encoded = seen.values
        encoded = model.grid(unit, known=encoded)
        sigmas, colors = model.radiance(encoded, model.directions(rays_d), samples.ray_indices)
    else:
        sigmas, inputs = seen.values
        colors = model.color_mlp(inputs)
    features, opacities, depths = composite_samples(sigmas, colors, samples, marching, background)
    return Rendered(features, opacities, depths, samples.n_samples, seen.n_evaluated)


def composite_samples(
    sigmas: Tensor, colors: Tensor, samples: RaySamples, marching: Marching, background: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Colour [R, 3], opacity [R] and depth [R] of rays from densities [S] and colours [S, 3] of their samples."""
    colors, opacities, depths, *_ = composite(sigmas, colors, samples, marching.early_stop_eps, background)
    return colors, opacities, depths


@torch.no_grad()
def visible_features(
    model: NerfModel,
    samples: RaySamples,
    rays_o: Tensor,
    rays_d: Tensor,
    early_stop_eps: float,
    first_window: int = FIRST_WINDOW,
    growth: int = GROWTH,
    to_train: bool = False,
) -> VisibleFeatures:
    """The samples that can be seen, and what the field says of them: densities and the colour network's inputs;
    ``to_train``, places and grid features.

    Rays advance together, window by window, each ``growth`` times as long as the one before; those that have become
    opaque stop, so that little of what lies behind surfaces is evaluated: of 133 000 samples of a training step on a
    chair 50 000, of which 28 000 are seen.
    """
    unit_o, unit_d = model.unit(rays_o), model.unit_direction(rays_d)
    sigmas = rays_o.new_zeros(samples.n_samples)
    row_of = torch.empty(samples.n_samples, dtype=torch.int64, device=sigmas.device)
    begin, length, n_evaluated = 0, first_window, 0
    windows: list[tuple[Tensor, ...]] = []
    while True:
        index, unit = samples.window(unit_o, unit_d, sigmas, begin, begin + length, early_stop_eps)
        if index.shape[0] == 0 and windows:
            break
        if to_train:
            encoded = model.grid(unit)
            densities = model.geometry(encoded)[0]
            windows.append((unit, encoded))
        else:
            densities, geometry = model.geometry_at(unit)
            windows.append((geometry,))
        sigmas.scatter_(0, index, densities)
        n_so_far = n_evaluated + index.shape[0]
        row_of.scatter_(0, index, torch.arange(n_evaluated, n_so_far, device=index.device))
        n_evaluated = n_so_far
        begin, length = begin + length, growth * length
    samples, seen = samples.visible(sigmas, early_stop_eps)
    rows = row_of.index_select(0, seen)
    columns = list(zip(*windows, strict=True))
    if to_train:
        return VisibleFeatures(samples, tuple(gather_rows(column, rows) for column in columns), n_evaluated)
    inputs = gather_rows(columns[0], rows, beside=model.directions(rays_d), beside_rows=samples.ray_indices)
    return VisibleFeatures(samples, (sigmas.index_select(0, seen), inputs), n_evaluated)


@torch.no_grad()
def render_pixels(
    model: NerfModel,
    occupancy: OccupancyGrid,
    rays_o: Tensor,
    rays_d: Tensor,
    marching: Marching,
    background: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Colour [R, 3], opacity [R] and depth [R] of rays [R, 3] before ``background`` [3] or [R, 3]. On a GPU they come
    from one kernel, and the host waits for nothing; on the CPU, where products are what costs, colours are computed for
    visible samples only."""
    if not _in_one_kernel(model):
        out = render_rays(model, occupancy, rays_o, rays_d, marching, background)
        return out.colors, out.opacities, out.depths
    colors, opacities, depths, _ = model.render(occupancy, rays_o, rays_d, **asdict(marching))
    return colors + (1 - opacities).unsqueeze(-1) * background, opacities, depths


def _in_one_kernel(model: NerfModel) -> bool:
    return model.aabb.is_cuda and model.grid.backend == "native"


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
    """Colour [H, W, 3], opacity [H, W] and depth [H, W] of one camera, on the CPU."""
    view_on_device = render_view_on_device(
        model, occupancy, cameras, view, marching, background.to(model.aabb.device), chunk, on_chunk
    )
    colors, opacities, depths = (x.cpu() for x in view_on_device)
    return colors, opacities, depths


@torch.no_grad()
def render_view_on_device(
    model: NerfModel,
    occupancy: OccupancyGrid,
    cameras: Cameras,
    view: int,
    marching: Marching,
    background: Tensor,
    chunk: int | None = None,
    on_chunk: Callable[[], None] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Colour [H, W, 3], opacity [H, W] and depth [H, W] of one camera.

    Args:
        cameras: on the model's device, as ``background``.
        chunk: rays at a time; None for as many as suit the device.
    """
    device = model.aabb.device
    chunk = chunk or (1 << 12 if device.type == "cpu" else 1 << 20 if _in_one_kernel(model) else 1 << 17)
    width, height = cameras.size(view)
    colors, opacities, depths = [], [], []
    for start in range(0, width * height, chunk):
        pixel = torch.arange(start, min(start + chunk, width * height), device=device)
        rays_o, rays_d = cameras.rays(torch.full_like(pixel, view), pixel % width, pixel // width)
        color, opacity, depth = render_pixels(model, occupancy, rays_o, rays_d, marching, background)
        colors.append(color)
        opacities.append(opacity)
        depths.append(depth)
        if on_chunk is not None:
            on_chunk()
    return (
        torch.cat(colors).clamp_(0, 1).view(height, width, 3),
        torch.cat(opacities).view(height, width),
        torch.cat(depths).view(height, width),
    )
