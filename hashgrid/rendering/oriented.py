"""Points where pixels end, with normals and colours, and the surface through them (Kazhdan and Hoppe 2013)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hashgrid.geometry.cameras import Cameras, lit_pixels
from hashgrid.rendering.fusion import OPAQUE, Shown
from hashgrid.util.optional import optional_import

STEEP = 4.0  # times as far apart as neighbouring pixels on a surface that faces the camera: across an edge


class Cloud(NamedTuple):
    """Points of surfaces that were seen."""

    points: np.ndarray  # [N, 3] float64, in the coordinates of the cameras
    normals: np.ndarray  # [N, 3] of unit length, towards the camera
    colors: np.ndarray  # [N, 3] in 0..1

    def select(self, index: np.ndarray) -> Cloud:
        """Those of an index [K] or a mask [N]."""
        return Cloud(*(x[index] for x in self))


def seen_points(show: Callable[[int], Shown], cameras: Cameras, box: Tensor | None = None) -> Cloud:
    """Where the pixels of views end. A normal is that of the plane through the ends of the neighbouring pixels; pixels
    at an edge, whose neighbours end elsewhere, are left out: they end between what is before and behind it.

    Args:
        show: renders a view; depths are accumulated along rays of unit length, as compositing gives them.
        cameras: the views.
        box: [6], the lower corner first, outside of which points are left out; None for none.
    """
    found = []
    cameras = cameras.to(torch.device("cpu"))
    for view in range(len(cameras)):
        color, opacity, depth = (x.double().cpu() for x in show(view))
        rays = cameras.view_rays(view)
        shape = (*opacity.shape, 3)
        depth = torch.where(opacity > OPAQUE, depth / opacity.clamp_min(1e-6), torch.nan)
        lit = lit_pixels(cameras, view)
        depth = depth if lit is None else torch.where(lit, depth, torch.nan)  # nothing is around a fisheye's circle
        directions = rays.directions.double().view(shape)
        ends = rays.origins.double().view(shape) + depth[..., None] * directions
        across, down = (_difference(ends, axis) for axis in (1, 0))
        pixel = torch.minimum(_difference(directions, 1).norm(dim=-1), _difference(directions, 0).norm(dim=-1)) * depth
        normals = torch.nn.functional.normalize(torch.linalg.cross(across, down), dim=-1)
        normals *= -(normals * directions).sum(-1, keepdim=True).sign()
        kept = torch.maximum(across.norm(dim=-1), down.norm(dim=-1)) < STEEP * pixel  # not where one is no number
        if box is not None:
            low, high = box.double().cpu().split(3)
            kept &= ((ends >= low) & (ends <= high)).all(-1)
        found.append([x[kept].numpy() for x in (ends, normals, color)])
    return Cloud(*(np.concatenate(x) if x else np.zeros((0, 3)) for x in zip(*found, strict=True)))


def _difference(values: Tensor, axis: int) -> Tensor:
    """Half of what lies between the two neighbours of a pixel along an axis of [H, W, C]; no number at the border."""
    rows = values.movedim(axis, 0)
    middle = 0.5 * (rows[2:] - rows[:-2])
    border = torch.full_like(rows[:1], torch.nan)
    return torch.cat((border, middle, border))[: len(rows)].movedim(0, axis)


def poisson_surface(
    cloud: Cloud, box: Tensor, resolution: int = 192, near: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    """The surface whose inside has the points' normals as its gradient, by MeshLab's screened Poisson reconstruction.
    It is closed at first; what lies farther than ``near`` cells from every point was made up, and is cut off.

    Args:
        cloud: the points.
        box: [6], the lower corner first; nothing outside of it is returned.
        resolution: cells along the longest side, rounded up to a power of two.
        near: in cells.

    Returns:
        Vertices [V, 3] float64, and faces [F, 3] int64; empty without points.

    Raises:
        ValueError: the resolution is below 2.
        ImportError: pymeshlab is not installed.
    """
    if resolution < 2:
        raise ValueError(f"`resolution` must be at least 2, got {resolution}")
    meshlab = optional_import("pymeshlab")
    empty = np.zeros((0, 3)), np.zeros((0, 3), np.int64)
    if not len(cloud.points):
        return empty
    low, high = (x.numpy() for x in box.double().cpu().split(3))
    side = float((high - low).max())
    meshes = meshlab.MeshSet(verbose=False)
    # MeshLab computes in single precision here and there: around the origin nothing is lost
    meshes.add_mesh(meshlab.Mesh(vertex_matrix=(cloud.points - low) / side, v_normals_matrix=cloud.normals))
    depth = int(np.ceil(np.log2(resolution)))
    meshes.generate_surface_reconstruction_screened_poisson(depth=depth, threads=torch.get_num_threads())
    mesh = meshes.current_mesh()
    vertices = low + side * mesh.vertex_matrix()
    known = optional_import("scipy.spatial").cKDTree(cloud.points).query(vertices, workers=torch.get_num_threads())[0]
    kept = (known <= near * side / resolution) & ((vertices >= low) & (vertices <= high)).all(axis=1)
    faces = mesh.face_matrix().astype(np.int64)
    faces = faces[kept[faces].all(axis=1)]
    used, faces = np.unique(faces, return_inverse=True)
    return (vertices[used], faces.reshape(-1, 3)) if len(used) else empty
