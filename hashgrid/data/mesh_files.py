"""Triangle meshes as files: PLY, OBJ and GLB, far from the origin, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hashgrid.util.files import atomic_write_bytes
from hashgrid.util.optional import optional_import


def write_mesh(
    path: str | Path,
    vertices: np.ndarray,
    faces: np.ndarray,
    normals: np.ndarray | None = None,
    colors: np.ndarray | None = None,
) -> None:
    """Writes vertices [V, 3], faces [F, 3], normals [V, 3] and colours [V, 3] in 0..1 in the format that the path's
    ending names.

    Raises:
        ValueError: the ending names another format than PLY, OBJ or GLB.
        ImportError: trimesh (for GLB) is not installed.
    """
    write = {".ply": write_ply, ".obj": write_obj, ".glb": write_glb}.get(Path(path).suffix.lower())
    if write is None:
        raise ValueError(f"meshes are written as ply, obj or glb, got `{path}`")
    write(path, vertices, faces, normals, colors)


def _bytes(colors: np.ndarray) -> np.ndarray:
    """Colours in 0..1 as 0..255, uint8."""
    return (np.clip(colors, 0, 1) * 255 + 0.5).astype(np.uint8)


def write_obj(
    path: str | Path,
    vertices: np.ndarray,
    faces: np.ndarray,
    normals: np.ndarray | None = None,
    colors: np.ndarray | None = None,
) -> None:
    """Writes text OBJ, replacing an earlier file only once the new one is complete. Colours follow the coordinates of
    a vertex, as most programs read them."""
    columns = vertices if colors is None else np.concatenate((vertices, np.clip(colors, 0, 1)), axis=1)
    form = ".9g" if fits_float32(vertices) else ".17g"
    lines = ["v " + " ".join(format(x, form) for x in row) for row in columns.tolist()]
    lines += [] if normals is None else ["vn " + " ".join(f"{x:.6g}" for x in row) for row in normals]
    corner = (lambda i: str(i)) if normals is None else (lambda i: f"{i}//{i}")
    lines += ["f " + " ".join(corner(i + 1) for i in face) for face in faces.tolist()]
    atomic_write_bytes(path, ("\n".join(lines) + "\n").encode())


def write_glb(
    path: str | Path,
    vertices: np.ndarray,
    faces: np.ndarray,
    normals: np.ndarray | None = None,
    colors: np.ndarray | None = None,
) -> None:
    """Writes binary glTF, replacing an earlier file only once the new one is complete. Its vertices are always float32;
    where that would move them (see :func:`fits_float32`) they are relative to their centre, which is the translation
    of the node. The axes stay those of the input: y is not made to be up."""
    trimesh = optional_import("trimesh")
    scene = trimesh.Scene()
    centre = np.zeros(3) if fits_float32(vertices) else (vertices.min(0) + vertices.max(0)) / 2
    if len(faces):
        shown = None if colors is None else _bytes(colors)
        options = {"vertex_normals": normals, "vertex_colors": shown, "process": False}
        scene.add_geometry(trimesh.Trimesh(vertices - centre, faces, **options))

    def translate(tree: dict[str, Any]) -> None:
        for node in tree.get("nodes", []):
            node["translation"] = centre.tolist()

    gltf = optional_import("trimesh.exchange.gltf")
    atomic_write_bytes(path, gltf.export_glb(scene, include_normals=True, tree_postprocessor=translate))


def fits_float32(vertices: np.ndarray) -> bool:
    """Whether rounding vertices [V, 3] to float32 moves them by at most 1e-6 of their extent: survey coordinates do
    not fit."""
    extent = float(np.ptp(vertices, axis=0).max()) if len(vertices) else 0.0
    return bool(np.abs(vertices - vertices.astype(np.float32)).max(initial=0.0) <= 1e-6 * extent)


def write_ply(
    path: str | Path,
    vertices: np.ndarray,
    faces: np.ndarray,
    normals: np.ndarray | None = None,
    colors: np.ndarray | None = None,
) -> None:
    """Writes binary PLY, replacing an earlier file only once the new one is complete. Vertices are float32, or float64
    where float32 would move them (see :func:`fits_float32`)."""
    fields, columns = dict.fromkeys("xyz", "<f4" if fits_float32(vertices) else "<f8"), vertices
    if normals is not None:
        fields |= dict.fromkeys(("nx", "ny", "nz"), "<f4")
        columns = np.concatenate([columns, normals], axis=1)
    if colors is not None:
        fields |= dict.fromkeys(("red", "green", "blue"), "u1")
        columns = np.concatenate([columns, _bytes(colors)], axis=1)
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    types = {"<f4": "float", "<f8": "double", "u1": "uchar"}
    header += [f"property {types[code]} {name}" for name, code in fields.items()]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    points: Any = np.zeros(len(vertices), list(fields.items()))
    for name, column in zip(fields, columns.T, strict=True):
        points[name] = column
    rows: Any = np.zeros(len(faces), dtype=[("n", "u1"), ("v", "<i4", 3)])
    rows["n"], rows["v"] = 3, faces
    body = points.tobytes() + rows.tobytes()
    atomic_write_bytes(path, "\n".join(header).encode() + body)
