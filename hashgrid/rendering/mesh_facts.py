"""What there is to say of a mesh, and its parts."""

from __future__ import annotations

from typing import Any

import numpy as np

from hashgrid.data.mesh import is_watertight, signed_volume
from hashgrid.rendering.extract import n_components
from hashgrid.util.optional import optional_import


def mesh_facts(vertices: np.ndarray, faces: np.ndarray) -> dict[str, Any]:
    """Numbers of vertices [V, 3] and faces [F, 3], whether these are closed, parts, area, volume (None of what is not
    closed), and corners of the box.

    Example:
        >>> facts = mesh_facts(np.eye(3), np.array([[0, 1, 2]]))
        >>> facts["faces"], facts["watertight"], round(facts["area"], 3)
        (1, False, 0.866)
    """
    a, b, c = vertices[faces].transpose(1, 0, 2)
    closed = is_watertight(faces)
    return {
        "vertices": len(vertices), "faces": len(faces), "watertight": closed, "components": n_components(faces),
        "area": float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2),
        "volume": signed_volume(vertices, faces) if closed else None,
        "low": vertices.min(0).tolist(), "high": vertices.max(0).tolist(),
    }  # fmt: skip


def largest_parts(vertices: np.ndarray, faces: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ``n`` connected parts with most faces: vertices, faces, and which of the vertices [V, 3] they were."""
    label = optional_import("igl").vertex_components(np.ascontiguousarray(faces))
    kept = np.argsort(-np.bincount(label[faces[:, 0]]), kind="stable")[:n]
    return only_faces(vertices, faces, np.isin(label[faces[:, 0]], kept))


def without_specks(vertices: np.ndarray, faces: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The connected parts that have at least that share of the area of the largest: as of :func:`largest_parts`."""
    if not len(faces):
        return vertices, faces, np.arange(len(vertices))
    label = optional_import("igl").vertex_components(np.ascontiguousarray(faces))[faces[:, 0]]
    a, b, c = vertices[faces].transpose(1, 0, 2)
    area = np.bincount(label, np.linalg.norm(np.cross(b - a, c - a), axis=1))
    return only_faces(vertices, faces, (area >= share * area.max())[label])


def only_faces(vertices: np.ndarray, faces: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The faces that are ``kept`` [F] bool: as of :func:`largest_parts`."""
    used, faces = np.unique(faces[kept], return_inverse=True)
    return vertices[used], faces.reshape(-1, 3), used


def simplified(vertices: np.ndarray, faces: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The mesh with about ``n`` faces, where it has more: edges that matter least for the shape are collapsed first
    (Garland and Heckbert 1997, by MeshLab). No vertex leaves the box of the mesh.

    Raises:
        ImportError: pymeshlab is not installed.
    """
    if len(faces) <= n:
        return vertices, faces
    meshlab, low, side = optional_import("pymeshlab"), vertices.min(0), float(np.ptp(vertices, axis=0).max())
    meshes = meshlab.MeshSet(verbose=False)
    meshes.add_mesh(meshlab.Mesh(vertex_matrix=(vertices - low) / side, face_matrix=faces))
    meshes.meshing_decimation_quadric_edge_collapse(targetfacenum=n, preserveboundary=True, preservenormal=True)
    mesh = meshes.current_mesh()
    return np.clip(low + side * mesh.vertex_matrix(), low, vertices.max(0)), mesh.face_matrix().astype(np.int64)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Normals [V, 3] of unit length: means of those of the faces around a vertex, by area."""
    a, b, c = vertices[faces].transpose(1, 0, 2)
    crosses, total = np.cross(b - a, c - a), np.zeros_like(vertices)
    for corner in faces.T:
        for axis in range(3):
            total[:, axis] += np.bincount(corner, crosses[:, axis], len(vertices))
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-300)
