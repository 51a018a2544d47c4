"""Points with signed distances."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.errors import MeshError
from hashgrid.data.mesh import Mesh
from hashgrid.util.config import Config
from hashgrid.util.files import atomic_path

CHUNK = 1 << 14  # samples made together, from one seed


@dataclass(frozen=True)
class DistanceRecipe(Config):
    """Which points of a mesh's cube are samples. Lengths are in units of the cube."""

    pool: int = 1 << 20  # samples computed before training
    surface: float = 0.5  # of the samples, on the surface
    near: float = 0.375  # near it; the rest is uniform in the cube
    near_scale: float = 1 / 256  # of the logistic distribution of the distance along each axis
    refresh_share: float = 0.1  # of a CPU core, for new samples while training is limited by time
    cache: str | None = None  # folder that keeps the first samples for the next run


def make_chunk(mesh: Mesh, recipe: DistanceRecipe, n: int, index: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Chunk ``index`` of the endless sequence of samples: points [n, 3] and their signed distances [n], float32.

    On the surface, near it, and anywhere in the cube. Near the surface points are moved along each axis by a logistic
    distribution (Müller et al. 2022, section 5.2).
    """
    generator = np.random.default_rng([seed, index])
    n_surface, n_near = round(n * recipe.surface), round(n * recipe.near)
    on_surface = mesh.sample_surface(n_surface + n_near, generator)[0]
    near = on_surface[n_surface:] + generator.logistic(0.0, recipe.near_scale, (n_near, 3))
    uniform = generator.random((n - n_surface - n_near, 3))
    off = np.concatenate([near.clip(0.0, 1.0), uniform])
    distances = np.concatenate([np.zeros(n_surface), mesh.signed_distance(off)])
    return np.concatenate([on_surface[:n_surface], off]).astype(np.float32), distances.astype(np.float32)


def make_pool(mesh: Mesh, recipe: DistanceRecipe, seed: int = 0, seconds: float = math.inf) -> tuple[Tensor, Tensor]:
    """The first ``recipe.pool`` samples of the sequence: points [pool, 3] and signed distances [pool].

    With ``recipe.cache`` they are read from a file in that folder where it has them, and else written to it. Without,
    only as many chunks are made as ``seconds`` suffice for, one at least.

    Raises:
        MeshError: the file is broken.
    """
    path = None
    if recipe.cache is not None:
        made_of = {name: value for name, value in asdict(recipe).items() if name not in ("refresh_share", "cache")}
        text = json.dumps({"seed": seed, **made_of}, sort_keys=True)
        key = hashlib.sha256(mesh.vertices.tobytes() + mesh.faces.tobytes() + text.encode()).hexdigest()
        path = Path(recipe.cache) / f"{Path(mesh.name).stem}-{key[:16]}.npz"
        if path.exists():
            try:
                with np.load(path, allow_pickle=False) as file:
                    return torch.from_numpy(file["points"]), torch.from_numpy(file["distances"])
            except Exception as error:  # of zip, of NumPy, of its header, each its own
                why = " ".join(str(error).split())
                raise MeshError(f"the samples in `{path}` are broken, remove it: {why}") from error
    begin, chunks = time.perf_counter(), []
    for index, start in enumerate(range(0, recipe.pool, CHUNK)):
        if index == 0 or path is not None or time.perf_counter() - begin < seconds:
            chunks.append(make_chunk(mesh, recipe, min(CHUNK, recipe.pool - start), index, seed))
    points, distances = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    if path is not None:
        with atomic_path(path) as temporary:
            np.savez(temporary, points=points, distances=distances)
    return torch.from_numpy(points), torch.from_numpy(distances)
