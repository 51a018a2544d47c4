"""Triangle meshes as files: PLY and GLB, far from the origin, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hashgrid.util.files import atomic_write_bytes
from hashgrid.util.optional import optional_import


def write_mesh(path: str | Path, vertices: np.ndarray, faces: np.ndarray, normals: np.ndarray | None = None) -> None:
    """Writes vertices [V, 3], faces [F, 3] and normals [V, 3] in the format that the path's ending names.

    Raises:
        ValueError: the ending names another format than PLY or GLB.
        ImportError: trimesh (for GLB) is not installed.
    """
    write = {".ply": write_ply, ".glb": write_glb}.get(Path(path).suffix.lower())
    if write is None:
        raise ValueError(f"meshes are written as ply or glb, got `{path}`")
    write(path, vertices, faces, normals)


def write_glb(path: str | Path, vertices: np.ndarray, faces: np.ndarray, normals: np.ndarray | None = None) -> None:
    """Writes binary glTF, replacing an earlier file only once the new one is complete. Its vertices are always float32;
    where that would move them (see :func:`fits_float32`) they are relative to their centre, which is the translation
    of the node. The axes stay those of the input: y is not made to be up."""
    trimesh = optional_import("trimesh")
    scene = trimesh.Scene()
    centre = np.zeros(3) if fits_float32(vertices) else (vertices.min(0) + vertices.max(0)) / 2
    if len(faces):
        scene.add_geometry(trimesh.Trimesh(vertices - centre, faces, vertex_normals=normals, process=False))

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


def write_ply(path: str | Path, vertices: np.ndarray, faces: np.ndarray, normals: np.ndarray | None = None) -> None:
    """Writes binary PLY, replacing an earlier file only once the new one is complete. Vertices are float32, or float64
    where float32 would move them (see :func:`fits_float32`)."""
    fields, columns = dict.fromkeys("xyz", "<f4" if fits_float32(vertices) else "<f8"), vertices
    if normals is not None:
        fields |= dict.fromkeys(("nx", "ny", "nz"), "<f4")
        columns = np.concatenate([vertices, normals], axis=1)
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    header += [f"property {'float' if code == '<f4' else 'double'} {name}" for name, code in fields.items()]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    points: Any = np.zeros(len(vertices), list(fields.items()))
    for name, column in zip(fields, columns.T, strict=True):
        points[name] = column
    rows: Any = np.zeros(len(faces), dtype=[("n", "u1"), ("v", "<i4", 3)])
    rows["n"], rows["v"] = 3, faces
    body = points.tobytes() + rows.tobytes()
    atomic_write_bytes(path, "\n".join(header).encode() + body)
