"""Rays into the field of Instant-NGP, and the ops that rendering them is made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hashgrid import ops
from hashgrid.levels import make_level_table
from hashgrid.ops import _ngp

LEVELS = make_level_table(3, n_levels=4, log2_hashmap_size=9, base_resolution=4, max_resolution=30)
RESOLUTION = (16, 16, 16)
FIELD = ("table", "levels", "density_weights", "color_weights", "half_table", "compute_dtype")
MARCH = ("step_size", "cone_angle", "near", "far", "max_samples_per_ray")


def rays_into_field(n: int, n_cascades: int = 1, density: float = 2.0, **options: Any) -> dict[str, Any]:
    """``n`` rays from around a box, most of them into it; a third of the cells are occupied."""
    origins = torch.randn(n, 3)
    origins *= 2.5 / origins.norm(dim=1, keepdim=True)
    targets = 1.6 * torch.rand(n, 3) - 0.8
    weights = [torch.randn(32, LEVELS.n_levels * 2) / 3, torch.randn(16, 32) / 6]
    weights[1][0] *= density
    n_bytes = n_cascades * 16**3 // 8
    return {
        "rays_o": origins,
        "rays_d": torch.nn.functional.normalize(targets - origins, dim=1),
        "ray_features": torch.randn(n, 6),
        "aabb": torch.tensor([-0.5, -0.5, -0.5, 0.5, 0.5, 0.5]),
        "bits": torch.randint(256, (n_bytes,), dtype=torch.uint8) & torch.randint(256, (n_bytes,), dtype=torch.uint8),
        "resolution": RESOLUTION,
        "n_cascades": n_cascades,
        "field_aabb": torch.tensor([-0.6, -0.5, -0.7, 0.5, 0.6, 0.6]) * 2 ** (n_cascades - 1),
        "table": torch.randn(LEVELS.n_entries, 2),
        "levels": LEVELS,
        "density_weights": weights,
        "color_weights": [torch.randn(32, 22) / 4, torch.randn(3, 32) / 4],
        "step_size": 0.04,
    } | options


def rendered_in_parts(arguments: dict[str, Any], library: Any = ops) -> tuple[Tensor, Tensor, Tensor, int]:
    """March, field at every sample, compositing; and how many samples can be seen."""
    grid = (arguments[name] for name in ("rays_o", "rays_d", "aabb", "bits", "resolution", "n_cascades"))
    march = {name: arguments[name] for name in MARCH if name in arguments}
    t_starts, t_ends, rays, packed_info = library.march_rays(*grid, **march)
    low, high = arguments["field_aabb"].split(3)
    unit_o, unit_d = (arguments["rays_o"] - low) * (1 / (high - low)), arguments["rays_d"] * (1 / (high - low))
    ngp = _ngp if library is ops else library
    positions = ngp.sample_positions(unit_o, unit_d, rays, t_starts, t_ends)
    field = {name: arguments[name] for name in FIELD if name in arguments}
    sigmas, colors = ngp.radiance_field(positions, arguments["ray_features"], rays, **field)
    eps = arguments.get("early_stop_eps", 1e-4)
    rendered = library.composite(sigmas, colors, t_starts, t_ends, packed_info, eps)
    return *rendered[:3], len(ngp.visible_samples(sigmas, t_starts, t_ends, packed_info, eps)[0])


def check_rendering(arguments: dict[str, Any], library: Any = ops, rtol: float = 1e-5) -> tuple[int, int]:
    """Returns how many samples were evaluated, and how many can be seen."""
    *ours, n_evaluated = _ngp.render_rays(**arguments)
    *expected, n_visible = rendered_in_parts(arguments, library)
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=rtol)
    return int(n_evaluated), n_visible
