"""Colours of a surface in a file: of its vertices, its faces or its texture, to be asked for anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hashgrid.util.optional import optional_import

Colors = Callable[[np.ndarray], np.ndarray]  # sRGB [N, 3] in 0..1 of points [N, 3] in the coordinates of the file


def read_colors(path: str | Path) -> Colors | None:
    """What gives the colour of the nearest point of the surface, or of the points, in a file; None where it has none.

    Vertex and face colours, textures (OBJ with MTL, GLB) and plain materials count; of several parts that of the
    nearest.

    Raises:
        ImportError: trimesh, or libigl, is not installed.

    Example:
        >>> import tempfile
        >>> from hashgrid.data.mesh_files import write_ply
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_ply(f"{folder}/a.ply", np.eye(3), np.array([[0, 1, 2]]), colors=np.eye(3))
        ...     color = read_colors(f"{folder}/a.ply")
        >>> color(np.array([[2.0, 0, 0]])).tolist()
        [[1.0, 0.0, 0.0]]
    """
    trimesh, path = optional_import("trimesh"), Path(path)
    if path.suffix.lower() not in (".obj", ".ply", ".off", ".glb"):
        return None
    linear = path.suffix.lower() == ".glb"  # colours of vertices, as glTF has them
    scene = trimesh.load_scene(path, process=False)
    places = (scene.graph[node] for node in scene.graph.nodes_geometry)  # `scene.dump` loses colours beside a material
    found = (_part(scene.geometry[name], np.asarray(matrix), linear) for matrix, name in places)
    parts = [part for part in found if part is not None]
    if not any(colored for *_, colored in parts):
        return None

    def colors(points: np.ndarray) -> np.ndarray:
        best, result = np.full(len(points), np.inf), np.zeros((len(points), 3))
        for distance, color, _ in parts:
            far, place = distance(points)
            nearer = far < best
            best[nearer], result[nearer] = far[nearer], color(place)[nearer]
        return result

    return colors


def srgb_to_linear(colors: np.ndarray) -> np.ndarray:
    """Intensities of light of sRGB values in 0..1 (IEC 61966-2-1)."""
    return np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(light: np.ndarray) -> np.ndarray:
    """The other way around."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * np.maximum(light, 0) ** (1 / 2.4) - 0.055)


def _part(
    geometry: Any, matrix: np.ndarray, linear: bool
) -> tuple[Callable[[np.ndarray], Any], Callable[[Any], np.ndarray], bool] | None:
    """What gives distances of points and where they are nearest, and the colours there; and whether it has any."""
    vertices = np.asarray(getattr(geometry, "vertices", np.zeros((0, 3))), np.float64)
    vertices = np.ascontiguousarray(vertices @ matrix[:3, :3].T + matrix[:3, 3])
    if not len(getattr(geometry, "faces", ())):
        if not len(vertices) or not len(getattr(geometry, "colors", ())):
            return None
        cloud = optional_import("scipy.spatial").cKDTree(vertices)
        shades = np.asarray(geometry.colors)[:, :3] / 255.0
        return cloud.query, lambda index: shades[index], True
    faces, visual = np.ascontiguousarray(geometry.faces, np.int64), geometry.visual
    igl = optional_import("igl")
    tree = igl.AABB()
    tree.init(vertices, faces)

    def nearest(points: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        squared, face, place = tree.squared_distance(vertices, faces, np.ascontiguousarray(points, np.float64))
        return np.sqrt(squared), (face, _weights(place, vertices[faces[face]]))

    def color(at: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        face, weights = at
        if visual.kind == "face":
            return np.asarray(visual.face_colors)[face, :3] / 255.0
        picture = _picture(visual)
        if picture is not None:
            return _look_up(picture, np.einsum("nk,nkc->nc", weights, np.asarray(visual.uv)[faces[face], :2]))
        shades = _vertex_colors(visual)
        if shades is not None:
            mixed = np.einsum("nk,nkc->nc", weights, shades[faces[face]])
            return linear_to_srgb(mixed) if linear else mixed
        return np.broadcast_to(np.asarray(_plain(visual))[:3] / 255.0, (len(face), 3))

    return nearest, color, visual.kind is not None and (visual.kind != "texture" or _says_something(visual))


def _vertex_colors(visual: Any) -> np.ndarray | None:
    """Colours [V, 3] in 0..1; None without."""
    colors = visual.vertex_colors if visual.kind == "vertex" else getattr(visual, "vertex_attributes", {}).get("color")
    if colors is None:
        return None
    colors = np.asarray(colors)[:, :3]
    return colors / float(np.iinfo(colors.dtype).max) if colors.dtype.kind == "u" else colors.astype(np.float64)


def _weights(place: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Barycentric coordinates [N, 3] of places [N, 3] in triangles [N, 3, 3]."""
    u, v, w = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0], place - corners[:, 0]
    uu, uv, vv, uw, vw = ((a * b).sum(-1) for a, b in ((u, u), (u, v), (v, v), (u, w), (v, w)))
    area = np.maximum(uu * vv - uv * uv, 1e-300)
    b, c = (vv * uw - uv * vw) / area, (uu * vw - uv * uw) / area
    return np.clip(np.stack((1 - b - c, b, c), axis=1), 0, 1)


def _picture(visual: Any) -> np.ndarray | None:
    """The texture [H, W, 3]; None without, or where nothing says where it goes."""
    if visual.kind != "texture" or visual.uv is None:
        return None
    material = visual.material
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    return None if image is None else np.asarray(image.convert("RGB"))


def _plain(visual: Any) -> Any:
    """The one colour [4] of a material, 0..255."""
    color = getattr(visual, "material", None) and visual.material.main_color
    return [128, 128, 128, 255] if color is None else color


def _says_something(visual: Any) -> bool:
    """Whether a material is more than what is made up for a mesh that has none."""
    if _picture(visual) is not None or _vertex_colors(visual) is not None:
        return True
    return len({*np.asarray(_plain(visual))[:3].tolist()}) > 1  # neither grey nor white


def _look_up(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Bilinear colours [N, 3] in 0..1 of an image [H, W, 3] that repeats, at uv [N, 2], v up."""
    height, width = image.shape[:2]
    x, y = uv[:, 0] * width - 0.5, (1 - uv[:, 1]) * height - 0.5
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    total = np.zeros((len(uv), 3))
    for dx in (0, 1):
        for dy in (0, 1):
            share = (1 - np.abs(x - left - dx)) * (1 - np.abs(y - top - dy))
            total += share[:, None] * image[(top + dy) % height, (left + dx) % width]
    return total / 255.0
