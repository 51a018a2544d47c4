"""nerfacc 0.3's rendering in a few lines of PyTorch, in any precision: what instant-nsr-pl is compared with.

Where samples lie is not differentiated, and is found by hashgrid's layer in float32 here, too.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hashgrid.compat import nerfacc_0_3


def render_weight_from_alpha(alphas: Tensor, *, ray_indices: Tensor, n_rays: int) -> Tensor:
    """By the rays' samples in the rows of a matrix, [S, 1]."""
    counts = torch.bincount(ray_indices, minlength=n_rays)
    column = torch.arange(len(ray_indices)) - (counts.cumsum(0) - counts)[ray_indices]
    empty = alphas.new_ones(n_rays, (int(counts.max()) if len(ray_indices) else 0) + 1)
    passed = empty.index_put((ray_indices, column + 1), 1 - alphas[:, 0]).cumprod(1)
    return passed[ray_indices, column][:, None] * alphas


def render_weight_from_density(
    t_starts: Tensor, t_ends: Tensor, sigmas: Tensor, *, ray_indices: Tensor, n_rays: int
) -> Tensor:
    alphas = -torch.expm1(-sigmas * (t_ends - t_starts))
    return render_weight_from_alpha(alphas, ray_indices=ray_indices, n_rays=n_rays)


def accumulate_along_rays(weights: Tensor, ray_indices: Tensor, values: Tensor | None, n_rays: int) -> Tensor:
    weighted = weights if values is None else weights * values
    return weighted.new_zeros(n_rays, weighted.shape[1]).index_add(0, ray_indices, weighted)


def ray_marching(rays_o: Tensor, rays_d: Tensor, *, sigma_fn: Any = None, **options: Any) -> tuple[Tensor, ...]:
    precise = torch.get_default_dtype()

    def density(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor) -> Tensor:
        return sigma_fn(t_starts.to(precise), t_ends.to(precise), ray_indices).to(torch.float32)

    single = (x.to(torch.float32) for x in (rays_o, rays_d))
    options = {name: x.to(torch.float32) if isinstance(x, Tensor) else x for name, x in options.items()}
    found = nerfacc_0_3.ray_marching(*single, sigma_fn=None if sigma_fn is None else density, **options)
    return found[0], found[1].to(precise), found[2].to(precise)


class OccupancyGrid(nerfacc_0_3.OccupancyGrid):
    """Keeps its values in float32."""

    def _apply(self, fn: Any, recurse: bool = True) -> OccupancyGrid:
        return super()._apply(lambda x: fn(x).to(x.dtype), recurse)

    def every_n_step(self, step: int, occ_eval_fn: Any, **options: Any) -> None:
        super().every_n_step(step, lambda x: occ_eval_fn(x.to(torch.get_default_dtype())), **options)


def install() -> None:
    """Puts this in nerfacc's place."""
    module = ModuleType("nerfacc")
    for name in ("ContractionType", "ray_aabb_intersect"):
        setattr(module, name, getattr(nerfacc_0_3, name))
    for ours in (
        OccupancyGrid, accumulate_along_rays, ray_marching, render_weight_from_alpha, render_weight_from_density,
    ):  # fmt: skip
        setattr(module, ours.__name__, ours)
    sys.modules["nerfacc"] = sys.modules["nerfacc.intersection"] = module
