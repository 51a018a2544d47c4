"""A texture for a mesh: its faces laid out in a square, and colours of the places that texels stand for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hashgrid.data.mesh_files import Texture
from hashgrid.util.optional import optional_import

GUTTER = 4  # texels between charts, which filtering may read
CHUNK = 1 << 20  # pairs of a texel and a face looked at together


def unwrap(vertices: np.ndarray, faces: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lays the faces of a mesh out in the unit square, without overlap (Lévy et al. 2002, as xatlas does it).

    Args:
        vertices: [V, 3].
        faces: [F, 3].
        size: texels along a side, which decides how far charts keep from one another.

    Returns:
        The vertex [W] that each vertex of the layout is, faces [F, 3] of the layout, and its places uv [W, 2], v up.

    Raises:
        ImportError: xatlas is not installed.
    """
    xatlas = optional_import("xatlas")
    low = vertices.min(axis=0)  # single precision is enough around the origin
    atlas = xatlas.Atlas()
    atlas.add_mesh(((vertices - low) / np.ptp(vertices, axis=0).max()).astype(np.float32), faces.astype(np.uint32))
    chart, pack = xatlas.ChartOptions(), xatlas.PackOptions()
    chart.max_iterations = 1
    pack.resolution, pack.padding, pack.bilinear = size, GUTTER, True
    atlas.generate(chart, pack)
    vertex, layout, uv = atlas[0]
    return vertex.astype(np.int64), layout.astype(np.int64), uv.astype(np.float64)


def texels_of(uv: np.ndarray, faces: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which texels of a square of ``size`` lie in a face, by their middles.

    Returns:
        Rows from the top times ``size`` plus columns [T] of the texels, their faces [T], and barycentric coordinates
        [T, 3] in them.
    """
    corners = uv[faces] * size  # [F, 3, 2], in texels, v up
    low = np.floor(corners.min(axis=1) - 0.5).astype(np.int64).clip(0, size)
    high = np.ceil(corners.max(axis=1) + 0.5).astype(np.int64).clip(0, size)
    width, height = (high - low).T
    counts = width * height
    ends, found = np.cumsum(counts), []
    start = 0
    while start < len(faces):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + CHUNK)))
        part = np.arange(start, stop)
        face = np.repeat(part, counts[part])
        number = np.arange(len(face)) - np.repeat(ends[part] - counts[part] - before, counts[part])
        place = low[face] + np.stack((number % width[face], number // width[face]), axis=1)
        a, b, c = corners[face].transpose(1, 0, 2)
        p = place + 0.5
        with np.errstate(divide="ignore", invalid="ignore"):  # faces without area hold no texel
            weights = np.stack((_cross(b - p, c - p), _cross(c - p, a - p), _cross(a - p, b - p)), axis=1)
            weights /= _cross(b - a, c - a)[:, None]
        inside = (weights >= -1e-9).all(axis=1)
        row = size - 1 - place[inside, 1]
        found.append((row * size + place[inside, 0], face[inside], weights[inside]))
        start = stop
    texel, face, weights = (np.concatenate(x) for x in zip(*found, strict=True))
    texel, first = np.unique(texel, return_index=True)  # texels of an edge belong to both of its faces
    return texel, face[first], weights[first]


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def bake(
    vertices: np.ndarray,
    faces: np.ndarray,
    normals: np.ndarray,
    color: Callable[[np.ndarray, np.ndarray], np.ndarray],
    size: int,
) -> Texture:
    """A texture of a mesh.

    Args:
        vertices: [V, 3].
        faces: [F, 3].
        normals: of the vertices [V, 3].
        color: colours [N, 3] in 0..1 of points [N, 3] with normals [N, 3] of unit length.
        size: texels along a side.

    Raises:
        ValueError: the size is not positive.
        ImportError: xatlas or scipy is not installed.

    Example:
        >>> vertices, faces = np.eye(3), np.array([[0, 1, 2]])
        >>> texture = bake(vertices, faces, vertices, lambda points, normals: points, 64)  # doctest: +SKIP
        >>> texture.image.shape  # doctest: +SKIP
        (64, 64, 3)
    """
    if size < 1:
        raise ValueError(f"`size` must be at least 1, got {size}")
    vertex, layout, uv = unwrap(vertices, faces, size)
    texel, face, weights = texels_of(uv, layout, size)
    points, directions = (np.einsum("tk,tkc->tc", weights, values[faces[face]]) for values in (vertices, normals))
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
    image, unknown = np.zeros((size * size, 3), np.uint8), np.ones(size * size, bool)
    image[texel] = (np.clip(color(points, directions), 0, 1) * 255 + 0.5).astype(np.uint8)
    unknown[texel] = False
    # every other texel repeats the nearest that is known: filtering at the border of a chart reads those
    distances = optional_import("scipy.ndimage").distance_transform_edt
    rows, columns = distances(unknown.reshape(size, size), return_distances=False, return_indices=True)
    return Texture(uv, layout, vertex, image.reshape(size, size, 3)[rows, columns])
