"""Cells of an occupancy grid and a field that has values there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hashgrid.levels import make_level_table
from hashgrid.ops import _ngp

LEVELS = make_level_table(3, n_levels=4, log2_hashmap_size=9, base_resolution=4, max_resolution=30)
RESOLUTION = (8, 9, 10)


def cells_of_field(n: int, n_cascades: int = 2, n_out: int = 16, **options: Any) -> dict[str, Any]:
    """Of ``n`` cells."""
    n_cells = n_cascades * 8 * 9 * 10
    return {
        "cells": torch.randperm(n_cells)[:n] if n <= n_cells else torch.randint(n_cells, (n,)),
        "aabb": torch.tensor([-1.0, -0.5, -0.7, 0.5, 0.6, 1.1]),
        "resolution": RESOLUTION,
        "n_cascades": n_cascades,
        "seed": 3,
        "step": 17,
        "field_aabb": torch.tensor([-2.0, -1.5, -1.7, 1.5, 1.6, 2.1]),
        "table": torch.randn(LEVELS.n_entries, 2),
        "levels": LEVELS,
        "weights": [torch.randn(32, LEVELS.n_levels * 2) / 3, torch.randn(n_out, 32) / 6],
        "step_size": 0.03,
    } | options


def values_in_parts(a: dict[str, Any]) -> Tensor:
    points = _ngp.occupancy_points(a["cells"], a["aabb"], RESOLUTION, a["n_cascades"], a["seed"], a["step"])
    low, high = a["field_aabb"].split(3)
    options = {name: a[name] for name in ("half_table", "compute_dtype") if name in a}
    geometry = _ngp.hash_encode_mlp((points - low) * (1 / (high - low)), a["table"], LEVELS, a["weights"], **options)
    return geometry[:, 0].exp() * (a["step_size"] * 2.0 ** (a["cells"] // (8 * 9 * 10)))
