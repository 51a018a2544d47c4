"""Many shapes: a folder of meshes, or a family that the package makes; and what a scanner sees of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.errors import MeshError, some, warn_of_mesh
from hashgrid.data.families import family_mesh
from hashgrid.data.formats import READERS
from hashgrid.data.mesh import Mesh, load_mesh
from hashgrid.util.config import Config


@dataclass(frozen=True)
class ShapeSetConfig(Config):
    """Which shapes there are."""

    family: Literal["mixed", "bottles", "tables", "drilled", "superquadrics"] = "mixed"  # without SOURCE
    n_shapes: int = 64  # of the family
    n_unseen: int | None = None  # kept back, to be completed; if none, 8 of a family, none of a folder
    margin: float = 0.1  # between a shape and the sides of its cube

    def check(self) -> None:
        super().check()
        if self.n_shapes < 1 or (self.n_unseen or 0) < 0:
            got = f"{self.n_shapes} and {self.n_unseen}"
            raise ValueError(f"`n_shapes` must be at least 1 and `n_unseen` not negative, got {got}")
        if not 0 <= self.margin < 0.5:
            raise ValueError(f"`margin` must be in [0, 0.5), got {self.margin}")


@dataclass
class ShapeSet:
    """Meshes in the unit cube, each in one of its own."""

    meshes: list[Mesh]  # to be trained on
    unseen: list[Mesh]  # kept back
    name: str
    source: Path | None = None

    def describe(self) -> str:
        """One line for a person."""
        kept = f", {len(self.unseen)} kept back" if self.unseen else ""
        return f"{self.name}: {len(self.meshes)} shape{'s' if len(self.meshes) != 1 else ''}{kept}"

    def notes(self) -> dict[str, Any]:
        """What a checkpoint says of it, as JSON."""
        return {"source": None if self.source is None else str(self.source.resolve())}


def load_shapes(source: Path | None, config: ShapeSetConfig, seed: int = 0, closed: bool = True) -> ShapeSet:
    """The mesh of a file, those in a folder and its folders, or a family without either.

    Args:
        source: file or folder.
        config: which shapes.
        seed: of a family.
        closed: whether an inside is wanted: open meshes of a folder are then left out, with a warning.

    Raises:
        MeshError: a file cannot be used, a folder holds no mesh that can, or the only mesh is open.
    """
    if source is None:
        if config.n_unseen and config.n_shapes < 2:
            raise ValueError(f"`n_shapes` must be at least 2 where some are kept back, got {config.n_shapes}")
        n_unseen = 8 * (closed and config.n_shapes > 1) if config.n_unseen is None else config.n_unseen
        shapes = [family_mesh(config.family, index, seed) for index in range(config.n_shapes + n_unseen)]
        return ShapeSet(shapes[: config.n_shapes], shapes[config.n_shapes :], config.family)
    if not source.is_dir():
        mesh = load_mesh(source, config.margin)
        if closed and _why_open(mesh):
            raise MeshError(f"`{source}` must be closed, {_why_open(mesh)}; fit an open surface with `--field udf`")
        return ShapeSet([mesh], [], source.stem, source)
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in READERS)
    if not paths:
        raise MeshError(f"`SOURCE` must hold meshes ({', '.join(READERS)}), there is none in `{source}`")
    meshes = [load_mesh(path, config.margin) for path in paths]
    if closed:
        left_out = [mesh.name for mesh in meshes if _why_open(mesh)]
        meshes = [mesh for mesh in meshes if not _why_open(mesh)]
        if not meshes:
            raise MeshError(f"`SOURCE` must hold a closed mesh, all of `{source}` are open; use `--field udf`")
        if left_out:
            warn_of_mesh(f"left out, not closed: {some(left_out)}; `--field udf` takes open surfaces")
    n_unseen = config.n_unseen or 0
    n_seen = len(meshes) - n_unseen
    if n_unseen and n_seen < 2:
        raise ValueError(f"`n_unseen` must leave two of the {len(meshes)} meshes in `{source}`, got {n_unseen}")
    return ShapeSet(meshes[:n_seen], meshes[n_seen:], source.resolve().name, source)


def _why_open(mesh: Mesh) -> str:
    return mesh.doubt or ("" if mesh.watertight else "it has edges with one face")


def surface_clouds(
    meshes: Sequence[Mesh], n: int, seed: int = 0, halves: bool = False, noise: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Points [S, n, 3] and outward normals [S, n, 3] of surfaces.

    Args:
        meshes: S of them.
        n: points of each.
        seed: of what is random.
        halves: only of the half of each shape that lies on one side of a random plane through the middle of its box.
        noise: standard deviation that is added along each axis.
    """
    clouds, normals = [], []
    for index, mesh in enumerate(meshes):
        random = np.random.default_rng([seed, index])
        direction = random.normal(size=3)
        direction /= np.linalg.norm(direction)
        points, face = mesh.sample_surface(32 * n if halves else n, random)
        if halves:
            side = (points - mesh.bounds.double().mean(0).numpy()) @ direction
            seen = np.flatnonzero(side > 0)
            seen = np.resize(seen if len(seen) else np.argsort(-side)[:n], n)
            points, face = points[seen], face[seen]
        clouds.append(points + noise * random.normal(size=points.shape))
        normals.append(mesh.face_normals[face])
    return tuple(torch.from_numpy(np.stack(x)).float() for x in (clouds, normals))  # type: ignore[return-value]


def around(points: Tensor, normals: Tensor, n: int, reach: float = 0.01, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points [S, n, 3] near oriented points [S, P, 3], and their distances [S, n]: what a scan says of a shape. They
    lie along the normals, normally distributed with ``reach``."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(points.shape[1], (len(points), n), generator=generator).to(points.device)
    distance = reach * torch.randn(index.shape, generator=generator).to(points.device)
    index = index[..., None].expand(-1, -1, 3)
    return points.gather(1, index) + distance[..., None] * normals.gather(1, index), distance
