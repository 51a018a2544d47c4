"""The box to reconstruct: what the file says, or what its numbers and masks show. All in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hashgrid.data.errors import SceneError
from hashgrid.geometry.cameras import nearest_point_to_axes

if TYPE_CHECKING:
    from hashgrid.data.scene import Views

BLENDER_HALF = 1.5  # half side of the box of NeRF-synthetic scenes
NGP_SCALE, NGP_OFFSET = 0.33, 0.5  # instant-ngp's defaults: ngp = file * scale + offset
CAPTURE_AABB_SCALE = 16.0  # a capture whose file names no `aabb_scale`


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


def choose_box(meta: dict[str, Any], views: Views, file: Path) -> tuple[Tensor, int, bool, float]:
    """``aabb`` (float64), ``n_cascades, bounded, near`` of a scene with ``views`` in the file's coordinates.

    - `aabb` in the file is taken at its word.
    - A scene that is NeRF-synthetic by its numbers (nothing but angles; cameras outside of +-1.5 that look at it and
      see as much as that there) has its box of +-1.5.
    - Images with a transparent background bound the object themselves: the box of its visual hull.
    - Anything else is a capture: cascade 0 is a cube around the point the cameras look at, with the cameras around its
      border; cascades reach as far as instant-ngp's box of `aabb_scale`.
    """
    aabb_scale, scale = _positive(meta, "aabb_scale", file), _positive(meta, "scale", file) or NGP_SCALE
    if meta.get("aabb") is not None:
        try:
            aabb = torch.tensor(meta["aabb"], dtype=torch.float64).reshape(-1)
        except (TypeError, ValueError):
            aabb = torch.empty(0)
        if aabb.shape != (6,) or not bool(aabb.isfinite().all()) or not bool((aabb[3:] > aabb[:3]).all()):
            raise SceneError(f"{file}: `aabb` must be two corners, the lower one first, got {meta['aabb']!r}")
        return aabb, 1, True, 0.0

    # Seen from the middle of the cameras, in units of how far apart they are: fp32 has the digits there.
    origins = views.origins.double()
    spread = float((origins - origins.mean(0)).abs().max())
    if spread < 1e-9 * float(origins.abs().max().clamp_min(1e-3)):
        spread = 0.0  # rounding noise: they stand at one place
    local = Placement(tuple(origins.mean(0).tolist()), spread or 1.0)
    seen = replace(views, c2w=local.poses_from_file(views.c2w).float())
    centre = nearest_point_to_axes(seen).float()
    if aabb_scale is None and _is_blender(meta, views, local.to_file(centre)):
        return _cube(torch.zeros(3), BLENDER_HALF), 1, True, 0.0
    if views.has_alpha:
        hull = _hull_box(seen, centre, 0.95 * (float((seen.origins - centre).norm(dim=-1).max()) or 1.0))
        if hull is not None:
            return torch.cat([local.to_file(corner) for corner in hull.split(3)]), 1, True, 0.0
        # the masks contradict each other: instant-ngp's box
        return _cube((0.5 - _offset(meta, file)) / scale, 0.5 * (aabb_scale or 1.0) / scale), 1, True, 0.0
    # Chebyshev distance of the cameras. From one place every scale looks the same.
    half = spread and local.unit * float((seen.origins - centre).abs().amax(dim=-1).median())
    half = half or 1.0
    outer = 0.5 * (aabb_scale or CAPTURE_AABB_SCALE) / scale
    n_cascades = max(1, 1 + round(math.log2(outer / half))) if aabb_scale else 4
    # Nothing is in focus closer than this, and what would be put there is fog in front of one lens.
    return _cube(local.to_file(centre), half), min(n_cascades, 8), False, 0.05 * half


def _is_blender(meta: dict[str, Any], views: Views, centre: Tensor) -> bool:
    """Whether the numbers are those of a NeRF-synthetic scene; its dialect says nothing about the box.

    Its cameras are 4 away from the origin and see 1.45 to each side of it. ``centre`` [3] is where they look.
    """
    if "camera_angle_x" not in meta or any("fl_x" in holder for holder in (meta, *meta["frames"])):
        return False
    origins = views.origins.double()
    if not bool((origins.abs().amax(dim=-1) > BLENDER_HALF).all()) or float(centre.abs().max()) > 0.5 * BLENDER_HALF:
        return False
    visible = origins.norm(dim=-1).median() * (0.5 * views.sizes[:, 0] / views.intrinsics[:, 0]).median()
    return 0.5 * BLENDER_HALF <= float(visible) <= 2.0 * BLENDER_HALF


def _positive(meta: dict[str, Any], key: str, file: Path) -> float | None:
    if meta.get(key) is None:
        return None
    try:
        value = float(meta[key])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value) or value <= 0:
        raise SceneError(f"{file}: `{key}` must be a positive number, got {meta[key]!r}")
    return value


def _offset(meta: dict[str, Any], file: Path) -> Tensor:
    try:
        offset = torch.tensor(meta.get("offset", NGP_OFFSET), dtype=torch.float64).expand(3)
    except (TypeError, ValueError, RuntimeError):
        raise SceneError(f"{file}: `offset` must be one number or three, got {meta['offset']!r}") from None
    return offset


def _cube(centre: Tensor, half: float) -> Tensor:
    return torch.cat((centre - half, centre + half)).double()


def _hull_box(views: Views, centre: Tensor, half: float, resolution: int = 48, max_views: int = 64) -> Tensor | None:
    """Cube around the visual hull of the alpha masks [6]; None where nothing is left.

    A cell of a coarse grid goes when the footprint of its bounding sphere is transparent in some view that sees all of
    it, or when fewer than half of the views have it in frame. Later rounds carve the box that the one before has found.
    """
    chosen = torch.linspace(0, len(views) - 1, min(len(views), max_views)).round().long().unique().tolist()
    # Summed-area tables of the opaque pixels [H + 1, W + 1]: any footprint is four look-ups.
    masks = (_may_be_opaque(views, view).int() for view in chosen)
    tables = [torch.nn.functional.pad(mask.cumsum(0).cumsum(1), (1, 0, 1, 0)) for mask in masks]
    axis = (torch.arange(resolution) + 0.5) / resolution * 2 - 1
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    for _ in range(3):
        points = centre + half * grid
        radius = half / resolution * math.sqrt(3)  # of a cell's bounding sphere
        n_seen = torch.zeros(len(points), dtype=torch.int32)
        for view, table in zip(chosen, tables, strict=True):
            pixel, depth = views.project(points, view)
            size = views.sizes[view]
            inside = (depth > 2 * radius) & (pixel >= 0).all(-1) & (pixel < size).all(-1)
            footprint = (float(views.intrinsics[view, :2].max()) * radius / (depth - radius).clamp_min(radius))[:, None]
            low = (pixel - footprint).clamp_min(0).minimum(size).long()
            high = (pixel + footprint + 1).clamp_min(0).minimum(size).long()
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
    return _cube(centre, half)


def _may_be_opaque(views: Views, view: int) -> Tensor:
    """Pixels that are not transparent, or of which nothing is known [H, W] bool."""
    opaque, mask = views.image(view)[..., 3] > 0, views.mask(view)
    return opaque if mask is None else opaque | ~mask
