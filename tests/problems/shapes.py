"""Shapes of a few hundred triangles, and tasks that train small fields on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hashgrid.data.mesh import Mesh, make_mesh
from hashgrid.data.shape_set import ShapeSet
from hashgrid.rendering.extract import to_mesh
from hashgrid.tasks.shape import ShapeConfig, ShapeTask

SIZES: dict[str, dict[str, Any]] = {
    "deepsdf": {"n_latent": 4, "n_neurons": 32, "n_hidden_layers": 4, "dropout": 0.1},
    "udf": {"n_latent": 4, "n_neurons": 32, "n_hidden_layers": 4},
    "occupancy": {"n_latent": 4, "n_neurons": 16, "n_blocks": 2},
    "occupancy_points": {"n_latent": 4, "n_neurons": 16, "n_blocks": 2},
    "conv_occupancy": {
        "plane_resolution": 8,
        "volume_resolution": 8,
        "n_features": 8,
        "n_neurons": 8,
        "unet_depth": 2,
        "features": "both",
        "n_blocks": 2,
    },
    "local_grid": {"n_vertices": 3, "n_latent": 4, "n_neurons": 16, "n_hidden_layers": 2},
}


def ellipsoid(*half: float, cells: int = 16) -> Mesh:
    """Closed, with these halves of its axes, in the cube."""
    vertices, faces = to_mesh(lambda x: 0.4 * ((x - 0.5) / torch.tensor(half)).norm(dim=-1) - 0.4, cells)
    return make_mesh(vertices.double().numpy(), faces.numpy(), name=f"ellipsoid_{half[0]}")


def octahedron() -> tuple[np.ndarray, np.ndarray]:
    """Vertices [6, 3] and faces [8, 3]."""
    vertices = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], float)
    faces = [[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]]
    return vertices, np.array(faces)


def small_shapes(field: str, **changes: Any) -> ShapeTask:
    """A task of some seconds on three octahedra, ready to train."""
    vertices, faces = octahedron()
    meshes = [make_mesh(vertices * [1, size, 1], faces) for size in (0.4, 0.7, 1.0)]
    sizes = {"batch": 256, "shape_batch": 2, "pool": 3000, "least_pool": 1000, "n_points": 64, "cloud_pool": 256}
    config = ShapeTask.defaults(field, torch.device("cpu"), set())
    assert isinstance(config, ShapeConfig)
    config = config.replace(**{"device": "cpu", **sizes, **SIZES[field], **changes})
    task = ShapeTask(config, ShapeSet(meshes, [], "octahedra"))
    task.begin()
    return task
