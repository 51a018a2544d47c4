"""Families of closed shapes that the package makes: each shape is a function of (family, seed, index)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.mesh import Mesh, make_mesh
from hashgrid.rendering.extract import Distance, to_mesh

CELLS = 64  # per side of the lattice that a shape's mesh is made on


def bottle(random: np.random.Generator) -> Distance:
    """A bottle of revolution: a rounded body, a shoulder, a neck with a lip."""
    radius, neck = random.uniform(0.12, 0.26), random.uniform(0.05, 0.11)
    body, height = random.uniform(0.25, 0.55), random.uniform(0.65, 0.8)  # of the body, and of all of it
    lip, shoulder = random.uniform(0.0, 0.035), random.uniform(0.02, 0.12)
    low = 0.5 - height / 2

    def field(x: Tensor) -> Tensor:
        p = torch.stack((torch.hypot(x[:, 0] - 0.5, x[:, 2] - 0.5), x[:, 1]), dim=-1)  # from the axis, and up it
        parts = _box(p, (0.0, low + body / 2), (radius, body / 2), 0.04)
        parts = _smooth_union(parts, _box(p, (0.0, low + height / 2), (neck, height / 2), 0.01), shoulder)
        return _smooth_union(parts, _box(p, (0.0, low + height - 0.03), (neck + lip, 0.03), 0.01), 0.01)

    return field


def table(random: np.random.Generator) -> Distance:
    """A table: a top, a leg at each corner, and perhaps a shelf between them."""
    half = np.array([random.uniform(0.2, 0.38), random.uniform(0.015, 0.04), random.uniform(0.2, 0.38)])
    height, leg = random.uniform(0.3, 0.7), random.uniform(0.02, 0.05)
    inset, shelf = random.uniform(0.0, 0.06), random.uniform(0.2, 0.6) if random.random() < 0.5 else None
    top, foot = 0.5 + height / 2, 0.5 - height / 2

    def field(x: Tensor) -> Tensor:
        p = torch.stack(((x[:, 0] - 0.5).abs(), x[:, 1], (x[:, 2] - 0.5).abs()), dim=-1)  # all quarters are alike
        place = (half[0] - leg - inset, (top + foot) / 2, half[2] - leg - inset)
        legs = _box(p, place, (leg, height / 2, leg), 0.005)
        parts = torch.minimum(legs, _box(p, (0.0, top - half[1], 0.0), tuple(half), 0.01))
        if shelf is None:
            return parts
        size = (half[0] - leg - inset, 0.018, half[2] - leg - inset)
        return torch.minimum(parts, _box(p, (0.0, foot + shelf * height, 0.0), size, 0.005))

    return field


def drilled(random: np.random.Generator) -> Distance:
    """A rounded box with a round hole along one of its axes."""
    half, axis = random.uniform(0.2, 0.4, 3), int(random.integers(3))
    across = [i for i in range(3) if i != axis]
    hole = random.uniform(0.35, 0.7) * min(half[across])
    rounding = random.uniform(0.02, 0.1)

    def field(x: Tensor) -> Tensor:
        p = x - 0.5
        drill = hole - torch.hypot(p[:, across[0]], p[:, across[1]])
        return torch.maximum(_box(p, (0.0, 0.0, 0.0), tuple(half), rounding), drill)

    return field


def superquadric(random: np.random.Generator) -> Distance:
    """A superquadric (Barr 1981) between pillow, box, cylinder and double cone."""
    half = torch.from_numpy(random.uniform(0.2, 0.4, 3)).float()
    north, east = random.uniform(0.3, 1.6, 2)  # exponents along meridians and around

    def field(x: Tensor) -> Tensor:
        p = ((x - 0.5) / half).abs().clamp(min=1e-4)
        around = (p[:, 0] ** (2 / east) + p[:, 2] ** (2 / east)) ** (east / north)
        level = (around + p[:, 1] ** (2 / north)) ** (north / 2)  # 1 on the surface, grows along rays
        return (1 - 1 / level.clamp(min=1e-3)) * (x - 0.5).norm(dim=-1)

    return field


FAMILIES: dict[str, Callable[[np.random.Generator], Distance]] = {
    "bottles": bottle,
    "tables": table,
    "drilled": drilled,
    "superquadrics": superquadric,
}


def family_mesh(family: str, index: int, seed: int = 0, resolution: int = CELLS) -> Mesh:
    """Shape number ``index`` of a family of closed shapes, in the unit cube.

    Args:
        family: ``"bottles"``, ``"tables"``, ``"drilled"`` boxes, ``"superquadrics"``, or ``"mixed"`` for these in turn.
        index: from 0.
        seed: of the family's members.
        resolution: cells per side of the lattice that the mesh is made on.

    Raises:
        ValueError: there is no such family.
    """
    names = list(FAMILIES)
    if family not in (*names, "mixed"):
        raise ValueError(f"`family` must be one of {', '.join(names)} or mixed, got {family!r}")
    kind = names[index % len(names)] if family == "mixed" else family
    random = np.random.default_rng([seed, index, zlib.crc32(kind.encode())])
    vertices, faces = to_mesh(FAMILIES[kind](random), resolution)
    return make_mesh(vertices.double().numpy(), faces.numpy(), name=f"{kind}_{index:03d}")


def _box(x: Tensor, centre: tuple[float, ...], half: tuple[float, ...], rounding: float) -> Tensor:
    """Distances [N] of points [N, D] to a box with rounded edges; ``half`` of its sides."""
    rounding = min(rounding, 0.9 * min(half))
    over = (x - torch.tensor(centre)).abs() - (torch.tensor(half, dtype=x.dtype) - rounding)
    return over.clamp(min=0).norm(dim=-1) + over.amax(-1).clamp(max=0) - rounding


def _smooth_union(a: Tensor, b: Tensor, reach: float) -> Tensor:
    """The union of two shapes of distances [N], rounded where they meet nearer than ``reach``."""
    if math.isclose(reach, 0):
        return torch.minimum(a, b)
    h = (reach - (a - b).abs()).clamp(min=0) / reach
    return torch.minimum(a, b) - h * h * reach / 4
