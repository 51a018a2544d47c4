"""nerfacc's rendering in a few lines of PyTorch, in any precision: what third-party models are compared with.

Where samples lie is not differentiated, and is found by hashgrid's layer in float32 here, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import hashgrid.compat


def weights_of(t_starts: Tensor, t_ends: Tensor, sigmas: Tensor, ray_indices: Tensor, n_rays: int) -> Tensor:
    """What each sample absorbs of what gets there, by the rays' samples in the rows of a matrix."""
    counts = torch.bincount(ray_indices, minlength=n_rays)
    column = torch.arange(len(ray_indices)) - (counts.cumsum(0) - counts)[ray_indices]
    empty = sigmas.new_zeros(n_rays, int(counts.max()) if len(ray_indices) else 0)
    thickness = empty.index_put((ray_indices, column), sigmas * (t_ends - t_starts))
    before = thickness.cumsum(1) - thickness
    return (torch.exp(-before) * -torch.expm1(-thickness))[ray_indices, column]


def render_weight_from_density(
    t_starts: Tensor, t_ends: Tensor, sigmas: Tensor, *, ray_indices: Tensor, n_rays: int
) -> tuple[Tensor, None, None]:
    return weights_of(t_starts, t_ends, sigmas, ray_indices, n_rays), None, None


def accumulate_along_rays(weights: Tensor, values: Tensor | None, ray_indices: Tensor, n_rays: int) -> Tensor:
    weighted = weights[:, None] if values is None else weights[:, None] * values
    return weighted.new_zeros(n_rays, weighted.shape[1]).index_add(0, ray_indices, weighted)


def rendering(
    t_starts: Tensor,
    t_ends: Tensor,
    ray_indices: Tensor,
    n_rays: int,
    rgb_sigma_fn: Callable[..., tuple[Tensor, Tensor]],
    render_bkgd: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    colors, sigmas = rgb_sigma_fn(t_starts, t_ends, ray_indices)
    weights = weights_of(t_starts, t_ends, sigmas, ray_indices, n_rays)
    middles = (t_starts + t_ends)[:, None] / 2
    shown, opacities, depths = (
        accumulate_along_rays(weights, values, ray_indices, n_rays) for values in (colors, None, middles)
    )
    if render_bkgd is not None:
        shown = shown + render_bkgd * (1 - opacities)
    return shown, opacities, depths / opacities.clamp_min(torch.finfo(torch.float32).eps), {"weights": weights}


def install() -> None:
    """Puts this in nerfacc's place, with hashgrid's estimator in float32."""
    layer: Any = hashgrid.compat.install("nerfacc")

    class Estimator(layer.OccGridEstimator):
        def sampling(self, rays_o: Tensor, rays_d: Tensor, sigma_fn: Callable[..., Tensor], **options: Any) -> Any:
            precise = torch.get_default_dtype()
            single = [x.to(torch.float32) for x in (rays_o, rays_d)]
            found = super().sampling(*single, lambda *at: sigma_fn(*at).to(torch.float32), **options)
            return found[0], found[1].to(precise), found[2].to(precise)

    rays = ModuleType("nerfacc.volrend")
    for function in (render_weight_from_density, accumulate_along_rays, rendering):
        setattr(rays, function.__name__, function)
    rays.accumulate_along_rays_ = None  # type: ignore[attr-defined]
    places = ModuleType("nerfacc.estimators.occ_grid")
    top = ModuleType("nerfacc")
    places.OccGridEstimator = top.OccGridEstimator = Estimator  # type: ignore[attr-defined]
    sys.modules.update({module.__name__: module for module in (rays, places, top)})
