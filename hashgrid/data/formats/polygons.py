"""Polygons and strips as triangles."""

from __future__ import annotations

import numpy as np


def triangulate(vertices: np.ndarray, sizes: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Triangles [F, 3] that cover polygons, each turned as its polygon.

    A fan around the first corner where it covers the polygon, around another one where that does, and ears cut off one
    by one where no corner sees all others. Polygons of fewer than three corners have no area and are left out.

    Args:
        vertices: [V, 3].
        sizes: corners of each polygon [P].
        corners: indices [sum(sizes)] of all polygons' corners in ``vertices``.
    """
    if (sizes == 3).all():
        return corners.reshape(-1, 3)
    n_faces = (sizes - 2).clip(min=0)
    faces = np.empty((n_faces.sum(), 3), np.int64)
    corner, face = np.cumsum(sizes) - sizes, np.cumsum(n_faces) - n_faces  # the first ones of each polygon
    for size in np.unique(sizes[sizes >= 3]):
        chosen = np.flatnonzero(sizes == size)[:, None]
        polygons = corners[corner[chosen] + np.arange(size)]
        faces[face[chosen] + np.arange(size - 2)] = fans(polygons) if size == 3 else _cover(vertices, polygons)
    return faces


def strip(corners: np.ndarray) -> np.ndarray:
    """Triangles [N - 2, 3] of a strip [N], every other one turned around."""
    faces = np.stack([corners[:-2], corners[1:-1], corners[2:]], axis=-1)
    faces[1::2] = faces[1::2, ::-1]
    return faces


def fans(polygons: np.ndarray) -> np.ndarray:
    """Triangles [P, K - 2, 3] around the first corners of polygons [P, K]."""
    k = polygons.shape[1]
    middle = np.broadcast_to(polygons[:, :1], (len(polygons), k - 2))
    return np.stack([middle, polygons[:, 1:-1], polygons[:, 2:]], axis=-1)


@np.errstate(over="ignore", invalid="ignore")
def _cover(vertices: np.ndarray, polygons: np.ndarray) -> np.ndarray:
    """Triangles [P, K - 2, 3] of polygons [P, K] of any shape."""
    faces = fans(polygons)
    left = np.flatnonzero(((polygons >= 0) & (polygons < len(vertices))).all(1))  # others are refused later, as are ...
    left = left[np.isfinite(vertices[polygons[left]]).all((1, 2))]  # ... vertices that are no numbers
    for shift in range(polygons.shape[1]):
        turned = fans(np.roll(polygons[left], -shift, axis=1))
        a, b, c = np.moveaxis(vertices[turned], 2, 0)
        normals = np.cross(b - a, c - a)
        total = normals.sum(1, keepdims=True)
        fits = ((normals * total).sum(-1) >= -1e-12 * (total * total).sum(-1)).all(1)
        faces[left[fits]] = turned[fits]
        left = left[~fits]
        if len(left) == 0:
            break
    for i in left:
        ears = _ears(vertices[polygons[i]])
        if ears is not None:
            faces[i] = polygons[i][ears]
    return faces


def _ears(points: np.ndarray) -> np.ndarray | None:
    """Triangles [K - 2, 3] of a polygon [K, 3], indices of its corners; None where it crosses itself."""
    after = np.roll(points, -1, axis=0)
    normal = np.cross(points - points[0], after - points[0]).sum(0)
    axis = int(np.abs(normal).argmax())
    flat = np.delete(points, axis, axis=1) * (np.array([1.0, 1.0 if normal[axis] * (-1) ** axis > 0 else -1.0]))
    ring, faces = np.arange(len(points)), []
    while len(ring) > 3:
        b = flat[ring]
        a, c = np.roll(b, 1, axis=0), np.roll(b, -1, axis=0)
        area = _area(a, b, c)
        sides = [_area(p[:, None], q[:, None], b[None]) for p, q in ((a, b), (b, c), (c, a))]
        inside = (sides[0] >= 0) & (sides[1] >= 0) & (sides[2] >= 0)
        for corner in (a, b, c):  # of the ear itself, or of a hole that is bridged to it
            inside &= (corner[:, None] != b[None]).any(-1)
        ear = np.flatnonzero((area > 0) & ~inside.any(1))
        if len(ear) == 0:
            ear = np.flatnonzero(area == 0)  # nothing but a point on a straight line is left to remove
            if len(ear) == 0:
                return None
        i = int(ear[0])
        faces.append([ring[i - 1], ring[i], ring[(i + 1) % len(ring)]])
        ring = np.delete(ring, i)
    return np.array([*faces, ring])


def _area(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Twice the area of triangles in the plane, positive where they turn left."""
    u, v = b - a, c - a
    return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]
