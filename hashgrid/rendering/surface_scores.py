"""How close a surface that was made from photos comes to the true one, where photos show it and everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hashgrid.data.mesh import Mesh
from hashgrid.geometry.cameras import Cameras

F_SHARE = 0.01  # of the longest side of the truth: the distance within which points count for the F-score
N_POINTS = 20_000  # of each surface
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
