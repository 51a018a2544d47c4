"""How close a surface that was made from photos comes to the true one, where photos show it and everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hashgrid.data.mesh import Mesh
from hashgrid.geometry.cameras import Cameras
from hashgrid.util.optional import optional_import

F_SHARE = 0.01  # of the longest side of the truth: the distance within which points count for the F-score
N_POINTS = 20_000  # of each surface
PART_FACES = 512  # of a connected part that are looked for, at most
THINNED = 1 << 14  # points whose neighbours are looked for at a time
OFF = 1e-3  # of the longest side of a mesh: how far before its own surface a point looks for what hides it


def seen(mesh: Mesh, points: np.ndarray, cameras: Cameras) -> np.ndarray:
    """Which points [n, 3] of a mesh some camera sees [n] bool: they are in its picture, and no face lies between."""
    found = np.zeros(len(points), bool)
    off = OFF * float((mesh.vertices.max(0) - mesh.vertices.min(0)).max())
    for view in range(len(cameras)):
        index = np.flatnonzero(~found)
        pixel, depth = cameras.project(torch.from_numpy(points[index]), view)
        inside = (depth > 0) & (pixel >= 0).all(-1) & (pixel < cameras.sizes[view]).all(-1)
        index = index[inside.numpy()]
        towards = cameras.origins[view].double().numpy() - points[index]
        towards /= np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), 1e-12)
        found[index[~mesh.hit(points[index] + off * towards, towards)]] = True
    return found


def seen_faces(mesh: Mesh, cameras: Cameras, unseen: str) -> np.ndarray:
    """Which faces [F] bool of a mesh are left: with "drop_parts" those of connected parts of which a camera sees
    something, closed if they were; with "drop_faces" those whose middles a camera sees."""
    middles = mesh.vertices[mesh.faces].mean(1)
    if unseen == "drop_faces":
        return seen(mesh, middles, cameras)
    label = optional_import("igl").vertex_components(np.ascontiguousarray(mesh.faces))[mesh.faces[:, 0]]
    order = np.random.default_rng(0).permutation(len(label))
    order = order[np.argsort(label[order], kind="stable")]  # by parts, in any order within
    begins = np.searchsorted(label[order], label[order])
    some = order[np.arange(len(order)) - begins < PART_FACES]
    return np.isin(label, label[some[seen(mesh, middles[some], cameras)]])  # type: ignore[no-any-return]


def compare_surfaces(ours: Mesh, truth: Mesh, cameras: Cameras, n: int | None = None) -> dict[str, Any]:
    """Figures of a surface, in the coordinates that both meshes and the cameras are in.

    Args:
        ours, truth: with faces.
        cameras: of the photos. What none of them sees of a surface, with its own faces before it, does not count.
        n: points of each surface; None for :data:`N_POINTS`.

    Returns:
        ``chamfer``, the mean of ``accuracy`` and ``completeness``: mean distances from our surface to the true one and
        back; ``precision`` and ``recall``, the shares of these points nearer than ``f_distance``, and their harmonic
        mean ``f_score`` (Knapitsch et al. 2017, section 3); ``normal_error_degrees``, the mean angle between the
        normals of these points and those of the nearest ones; ``seen``, the shares that count of both surfaces;
        ``whole``, the same of all points. None where nothing counts.
    """
    limit = F_SHARE * float((truth.vertices.max(0) - truth.vertices.min(0)).max())
    sides = []
    for source, target in ((ours, truth), (truth, ours)):
        points, face = source.sample_surface(n or N_POINTS, np.random.default_rng(2))
        distance, nearest = target.nearest(points)
        cosine = (source.face_normals[face] * target.face_normals[nearest]).sum(-1)
        sides.append((distance, np.degrees(np.arccos(cosine.clip(-1, 1))), seen(source, points, cameras)))
    shares = [float(mask.mean()) for _, _, mask in sides]
    whole = _figures([(distance, angle) for distance, angle, _ in sides], limit)
    return {
        **_figures([(distance[mask], angle[mask]) for distance, angle, mask in sides], limit),
        "f_distance": limit,
        "seen": shares,
        "whole": whole,
    }


def _figures(sides: list[tuple[np.ndarray, np.ndarray]], limit: float) -> dict[str, float | None]:
    """Of distances and angles from our surface to the true one, and back."""
    names = ("chamfer", "accuracy", "completeness", "precision", "recall", "f_score", "normal_error_degrees")
    if not all(len(distance) for distance, _ in sides):
        return dict.fromkeys(names)
    means = [float(distance.mean()) for distance, _ in sides]
    near = [float((distance < limit).mean()) for distance, _ in sides]
    f_score, angle = 2 * near[0] * near[1] / max(sum(near), 1e-12), np.mean([angle.mean() for _, angle in sides])
    return dict(zip(names, (float(np.mean(means)), *means, *near, f_score, float(angle)), strict=True))


def describe(figures: dict[str, Any]) -> str:
    """Figures of :func:`compare_surfaces` in one line."""
    if figures["chamfer"] is None:
        return "no photo shows the surface"
    text = f"Chamfer {figures['chamfer']:.2e}, F-score {figures['f_score']:.3f} at {figures['f_distance']:.3g}"
    return f"{text}, normals off by {figures['normal_error_degrees']:.1f} degrees"


@dataclass(frozen=True)
class Observed:
    """What a scan has looked at, as DTU's ``ObsMask`` files say: voxels with something or nothing in them, and a plane
    that the object stands on."""

    mask: np.ndarray  # [X, Y, Z] bool
    low: np.ndarray  # [3], the middle of the first voxel
    voxel: float  # side of a voxel
    plane: np.ndarray  # [4]: what of the truth counts has a positive product of (x, y, z, 1) with it

    def holds(self, points: np.ndarray) -> np.ndarray:
        """Which points [n, 3] lie in voxels that were looked at [n] bool."""
        index = np.rint((points - self.low) / self.voxel).astype(np.int64)
        inside = ((index >= 0) & (index < self.mask.shape)).all(-1)
        found = np.zeros(len(points), bool)
        found[inside] = self.mask[tuple(index[inside].T)]
        return found


def dtu_scores(
    mesh: Mesh, truth: np.ndarray, observed: Observed, spacing: float = 0.2, most: float = 20.0
) -> dict[str, float]:
    """Figures of the protocol of the DTU data set (Jensen et al. 2014; Aanæs et al. 2016), in the unit of its scans,
    millimetres.

    Points of the mesh, none nearer than ``spacing`` to another, count where the scan has looked; points of the scan
    [m, 3] where they are above the plane. Distances beyond ``most`` are left out of both means, whatever lies there.
    Nothing is cleaned by masks of the photos before, as published rows without masks are: say so beside them.

    Returns:
        ``accuracy``, mean distance from the mesh to the scan, ``completeness``, that back, ``overall``, their mean; NaN
        where nothing counts.
    """
    area = float(mesh.areas.sum())
    n = int(max(1, 4 * area / spacing**2))  # so many that thinning leaves no gaps
    points, _ = mesh.sample_surface(n, np.random.default_rng(3))
    points = thinned(points, spacing)
    ours = points[observed.holds(points)]
    above = truth[truth @ observed.plane[:3] + observed.plane[3] > 0]
    trees = optional_import("scipy.spatial").cKDTree
    means = []
    for source, target in ((ours, truth), (above, points)):
        distance = trees(target).query(source)[0] if len(source) and len(target) else np.zeros(0)
        near = distance[distance < most]
        means.append(float(near.mean()) if len(near) else float("nan"))
    return {"accuracy": means[0], "completeness": means[1], "overall": float(np.mean(means))}


def thinned(points: np.ndarray, spacing: float) -> np.ndarray:
    """Points [n, 3] in random order without those nearer than ``spacing`` to one that is kept [k, 3]."""
    points = points[np.random.default_rng(4).permutation(len(points))]
    tree, kept = optional_import("scipy.spatial").cKDTree(points), np.ones(len(points), bool)
    for begin in range(0, len(points), THINNED):
        near = tree.query_ball_point(points[begin : begin + THINNED], spacing)
        for i, others in enumerate(near, begin):
            if kept[i]:
                kept[others] = False
                kept[i] = True
    return points[kept]
