"""A shape for those who have none."""

from __future__ import annotations

import numpy as np


def torus_knot(n_along: int = 768, n_around: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """A ribbed tube along a trefoil, a knot on a torus of radii 2 and 0.9 about the y axis, closed: vertices
    [n_along * n_around, 3] and faces [2 * n_along * n_around, 3], of so many vertices along the knot and around the
    tube."""
    p, q, tube = 2, 3, 0.42  # turns about the axis of the torus and about its core, mean radius
    t = np.arange(n_along) * (2 * np.pi / n_along)

    def knot(t: np.ndarray) -> np.ndarray:
        radius = 2 + 0.9 * np.cos(q * t)
        return np.stack([radius * np.cos(p * t), 0.9 * np.sin(q * t), radius * np.sin(p * t)], axis=-1)

    def unit(v: np.ndarray) -> np.ndarray:
        return v / np.linalg.norm(v, axis=-1, keepdims=True)

    centre, tangent = knot(t), unit(knot(t + 1e-4) - knot(t - 1e-4))
    core = np.stack([2 * np.cos(p * t), np.zeros_like(t), 2 * np.sin(p * t)], axis=-1)
    out = centre - core
    out = unit(out - (out * tangent).sum(-1, keepdims=True) * tangent)  # away from the core of the torus
    side = np.cross(tangent, out)
    angle = np.arange(n_around) * (2 * np.pi / n_around)
    ribs = 1 + 0.10 * np.cos(5 * angle[None, :] + 8 * q * t[:, None])
    around = np.cos(angle)[None, :, None] * out[:, None] + np.sin(angle)[None, :, None] * side[:, None]
    vertices = centre[:, None] + tube * ribs[..., None] * around

    i, j = np.meshgrid(np.arange(n_along), np.arange(n_around), indexing="ij")
    a, b = i * n_around + j, ((i + 1) % n_along) * n_around + j
    j = (j + 1) % n_around
    c, d = ((i + 1) % n_along) * n_around + j, i * n_around + j
    faces = np.stack([a, c, b, a, d, c], axis=-1).reshape(-1, 3)
    return vertices.reshape(-1, 3), faces
