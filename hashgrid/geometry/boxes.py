"""Boxes to reconstruct: what cameras look at, and what their masks enclose. All in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hashgrid.geometry.cameras import Cameras, nearest_point_to_axes

CAPTURE_CASCADES = 4  # of a capture that does not say how far it reaches
MAX_CASCADES = 8


@dataclass(frozen=True)
class Placement:
    """Where coordinates x lie in those of a file: ``origin + unit * x``."""

    origin: tuple[float, ...] = (0.0, 0.0, 0.0)
    unit: float = 1.0

    def to_file(self, x: Tensor) -> Tensor:
        """Points [..., 3] in the file's coordinates, float64."""
        return torch.tensor(self.origin, dtype=torch.float64) + self.unit * x.double()

    def from_file(self, x: Tensor) -> Tensor:
        """Points [..., 3] of the file in these coordinates, float64."""
        return (x.double() - torch.tensor(self.origin, dtype=torch.float64)) / self.unit

    def poses_from_file(self, c2w: Tensor) -> Tensor:
        """Poses [N, 3, 4] of the file in these coordinates, float64."""
        return torch.cat((c2w[..., :3].double(), self.from_file(c2w[..., 3]).unsqueeze(-1)), dim=-1)


class Box(NamedTuple):
    """What a scene takes of space; see the fields of the same names of :class:`hashgrid.data.scene.Scene`."""

    aabb: Tensor  # [6] float64, of cascade 0
    n_cascades: int = 1
    bounded: bool = True
    near: float = 0.0
    points: Tensor | None = None  # sparse ones [P, 3] float64, where it was chosen by some


def cube(centre: Tensor, half: float) -> Tensor:
    """The box [6] around ``centre`` [3] that reaches ``half`` to each side."""
    return torch.cat((centre - half, centre + half)).double()


def capture_box(cameras: Cameras, outer: float | None = None) -> Box:
    """The box of a capture: cascade 0 is a cube around the point the cameras look at, with the cameras around its
    border; cascades reach to about ``outer`` from there."""
    origins, centre = cameras.origins.double(), nearest_point_to_axes(cameras)
    half = float((origins - centre).abs().amax(dim=-1).median()) or 1.0  # Chebyshev distance of the cameras
    if float((origins - origins.mean(0)).abs().max()) <= 1e-9 * float(origins.abs().max()):
        half = 1.0  # from one place, up to rounding noise, every scale looks the same
    n_cascades = CAPTURE_CASCADES if outer is None else max(1, 1 + round(math.log2(outer / half)))
    # Nothing is in focus closer than this, and what would be put there is fog in front of one lens.
    return Box(cube(centre, half), min(n_cascades, MAX_CASCADES), False, 0.05 * half)


def hull_box(
    cameras: Cameras, opaque: Callable[[int], Tensor], resolution: int = 48, max_views: int = 64
) -> Tensor | None:
    """Cube around the visual hull of masks [6]; None where nothing is left.

    A cell of a coarse grid goes when the footprint of its bounding sphere is transparent in some view that sees all of
    it, or when fewer than half of the views have it in frame. Later rounds carve the box that the one before has found.

    Args:
        cameras: poses in any coordinates.
        opaque: the pixels [H, W] bool of a view that are not transparent, or of which nothing is known.
        resolution: cells per side.
        max_views: views that are looked at, at most.
    """
    centre = nearest_point_to_axes(cameras)
    half = 0.95 * (float((cameras.origins - centre).norm(dim=-1).max()) or 1.0)
    chosen = torch.linspace(0, len(cameras) - 1, min(len(cameras), max_views)).round().long().unique().tolist()
    # Summed-area tables of the opaque pixels [H + 1, W + 1]: any footprint is four look-ups.
    masks = (opaque(view).int() for view in chosen)
    tables = [torch.nn.functional.pad(mask.cumsum(0).cumsum(1), (1, 0, 1, 0)) for mask in masks]
    axis = (torch.arange(resolution).double() + 0.5) / resolution * 2 - 1
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    for _ in range(3):
        points = centre + half * grid
        radius = half / resolution * math.sqrt(3)  # of a cell's bounding sphere
        n_seen = torch.zeros(len(points), dtype=torch.int32)
        for view, table in zip(chosen, tables, strict=True):
            pixel, depth = cameras.project(points, view)
            size = cameras.sizes[view]
            inside = (depth > 2 * radius) & (pixel >= 0).all(-1) & (pixel < size).all(-1)
            footprint = float(cameras.intrinsics[view, :2].max()) * radius / (depth - radius).clamp_min(radius)
            low = (pixel - footprint[:, None]).clamp_min(0).minimum(size).long()
            high = (pixel + footprint[:, None] + 1).clamp_min(0).minimum(size).long()
            n_opaque = (
                table[high[:, 1], high[:, 0]] - table[low[:, 1], high[:, 0]]
                - table[high[:, 1], low[:, 0]] + table[low[:, 1], low[:, 0]]
            )  # fmt: skip
            n_seen += inside
            keep = ~inside | (n_opaque > 0)
            points, n_seen = points[keep], n_seen[keep]
        points = points[2 * n_seen >= len(chosen)]
        if not len(points):
            return None
        low, high = points.amin(0) - radius, points.amax(0) + radius
        centre, half = 0.5 * (low + high), 0.5 * float((high - low).max())
    return cube(centre, half)
