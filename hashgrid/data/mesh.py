"""Triangle meshes: loading, the unit cube, samples on the surface, signed distances."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.errors import MeshError, warn_of_mesh
from hashgrid.data.formats import READERS
from hashgrid.data.formats.text import check_content
from hashgrid.data.orient import orient
from hashgrid.geometry.boxes import Placement
from hashgrid.util.optional import optional_import

T = TypeVar("T")


@dataclass(frozen=True)
class Mesh:
    """Triangles in the unit cube, and where they came from."""

    vertices: np.ndarray  # [V, 3] float64, in [margin, 1 - margin]^3 with the longest side filling it
    faces: np.ndarray  # [F, 3] int64
    placement: Placement  # of the cube in the coordinates of the input
    watertight: bool  # every edge has two faces, which look the same way
    name: str  # of the file
    doubt: str = ""  # why the sign of the distance is a guess; empty where it is not

    @cached_property
    def bounds(self) -> Tensor:
        """Corners of the box of the mesh in the cube [2, 3], fp32."""
        return torch.from_numpy(np.stack([self.vertices.min(0), self.vertices.max(0)])).float()

    @cached_property
    def _double_areas(self) -> np.ndarray:
        return np.linalg.norm(_crosses(self.vertices, self.faces), axis=-1)

    @property
    def areas(self) -> np.ndarray:
        """Of the faces [F]."""
        return self._double_areas / 2

    @cached_property
    def face_normals(self) -> np.ndarray:
        """[F, 3] float64 of unit length."""
        return _crosses(self.vertices, self.faces) / np.maximum(self._double_areas[:, None], 1e-300)

    def sample_surface(self, n: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """``n`` points uniform on the surface [n, 3] float64, and the faces they lie on [n]."""
        cumulative = np.cumsum(self._double_areas)
        face = np.searchsorted(cumulative, generator.random(n) * cumulative[-1]).clip(max=len(self.faces) - 1)
        u, v = generator.random((2, n, 1))
        flip = u + v > 1
        u, v = np.where(flip, 1 - u, u), np.where(flip, 1 - v, v)
        a, b, c = self.vertices[self.faces[face]].transpose(1, 0, 2)
        return a + u * (b - a) + v * (c - a), face

    def signed_distance(self, points: np.ndarray) -> np.ndarray:
        """Distances [n] float64 of points [n, 3], negative inside. The sign is that of the winding number (Barill et
        al. 2018), which open meshes have too."""
        if len(points) == 0:
            return np.zeros(0)
        # igl.signed_distance multiplies by 1 - 2 w with the approximate winding number w, which is not +-1
        distance = self.nearest(points)[0]
        return np.where(self.inside(points), -distance, distance)

    def nearest(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distances [n] float64 of points [n, 3] from the surface, and the faces nearest to them [n]."""
        points = np.ascontiguousarray(points, np.float64)
        squared, face, _ = self._tree.squared_distance(self.vertices, self.faces, points)
        return np.sqrt(squared), face

    def hit(self, points: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Whether rays from points [n, 3] in directions [n, 3] meet the surface [n] bool."""
        return self.first_hit(points, directions)[0] >= 0

    def first_hit(self, points: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The faces that rays from points [n, 3] in directions [n, 3] meet first, -1 for none, and where [n], in
        lengths of the directions."""
        rays = (np.ascontiguousarray(x, np.float64) for x in (points, directions))
        face, t, _ = self._tree.intersect_ray_first(self.vertices, self.faces, *rays)
        return face, t

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Whether points [n, 3] lie inside [n] bool."""
        return self._winding_tree.winding_number(np.ascontiguousarray(points, np.float64)) > 0.5

    def encloses_something(self) -> bool:
        """Whether there is a place inside: anything has one right behind its surface."""
        if self.watertight:
            return signed_volume(self.vertices, self.faces) > 1e-9
        points, face = self.sample_surface(1024, np.random.default_rng(0))
        return bool(self.inside(points - 1e-3 * self.face_normals[face]).any())

    @cached_property
    def _tree(self) -> Any:
        tree = optional_import("igl").AABB()
        tree.init(self.vertices, self.faces)
        return tree

    @cached_property
    def _winding_tree(self) -> Any:
        tree = optional_import("igl").FastWindingNumberBVH()
        tree.init(self.vertices, self.faces)
        return tree


def load_mesh(path: str | Path, margin: float = 0.1) -> Mesh:
    """Reads OBJ, PLY, STL, OFF or GLB and moves it into the unit cube, ``margin`` away from its sides.

    Vertices that agree are merged, faces without area dropped, polygons cut into triangles.

    Raises:
        MeshError: the file is missing, empty, cut off or something else, or the mesh has no faces, vertices that are no
            numbers, or no extent.
    """
    vertices, faces = read_file(Path(path), "MESH", READERS)
    if len(faces) == 0:
        raise MeshError(f"`{path}` has no faces; for points with normals use `--points`")
    return make_mesh(vertices, faces, margin, Path(path).name)


def read_file(path: Path, what: str, readers: Mapping[str, Callable[[bytes], T]]) -> T:
    """What the one of ``readers`` for the path's ending makes of the file's bytes.

    Raises:
        MeshError: of the reader, with the file's name in front; or there is none, or no file, or nothing in it.
    """
    read = readers.get(path.suffix.lower())
    if read is None:
        raise MeshError(f"`{what}` must be one of {', '.join(readers)}, got `{path}`")
    if not path.is_file():
        raise MeshError(f"`{what}` must be a file, `{path}` does not exist")
    data = path.read_bytes()
    if not data:
        raise MeshError(f"`{what}` must be a file with content, `{path}` is empty")
    try:
        if path.suffix.lower() != ".npz":  # which is an archive
            check_content(data)
        return read(data)
    except MeshError as error:
        raise MeshError(f"`{path}` cannot be read: {error}") from error


def check_finite(values: np.ndarray, what: str, name: str) -> None:
    """Raises MeshError where rows of values [N, ...] are no numbers."""
    n_bad = int((~np.isfinite(values)).reshape(len(values), -1).any(-1).sum())
    if n_bad:
        raise MeshError(f"the {what} of `{name}` must be finite, {n_bad} of {len(values)} are not")


def into_cube(points: np.ndarray, margin: float, name: str) -> tuple[np.ndarray, Placement]:
    """Points [N, 3] with their box in the middle of the unit cube, its longest side ``margin`` away from the sides, and
    where the cube lies in the coordinates that they had.

    Raises:
        MeshError: the points all lie at one place.
    """
    low, high = points.min(0), points.max(0)
    side = float((high - low).max())
    if not side > 0:
        raise MeshError(f"`{name}` must have an extent, all of its points lie at {low.tolist()}")
    scale = side / (1 - 2 * margin)
    placement = Placement(tuple(((low + high) / 2 - scale / 2).tolist()), scale)
    return placement.from_file(torch.from_numpy(points)).numpy(), placement


def make_mesh(vertices: np.ndarray, faces: np.ndarray, margin: float = 0.1, name: str = "mesh") -> Mesh:
    """A mesh from vertices [V, 3] and faces [F, 3] in any coordinates; see :func:`load_mesh`.

    Faces that look the wrong way are turned around (see :func:`hashgrid.data.orient.orient`), with a warning.
    """
    check_finite(vertices, "vertices", name)
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise MeshError(
            f"the faces of `{name}` must refer to its {len(vertices)} vertices, got {faces.min()}..{faces.max()}"
        )
    used, faces = np.unique(faces, return_inverse=True)
    faces = faces.reshape(-1, 3)
    vertices, placement = into_cube(vertices[used], margin, name)
    # merged at a millionth of the size: formats without shared vertices (STL) repeat them
    _, first, index = np.unique(np.round(vertices * 1e6), axis=0, return_index=True, return_inverse=True)
    vertices, faces = vertices[first], index.reshape(-1)[faces]
    faces = np.ascontiguousarray(faces[(faces != faces[:, [1, 2, 0]]).all(1)])
    if len(faces) == 0:
        raise MeshError(f"`{name}` must have faces with an area, it has none")
    oriented = orient(vertices, faces)
    faces = np.ascontiguousarray(oriented.faces)
    if oriented.changes:
        warn_of_mesh(f"`{name}`: {'; '.join(oriented.changes)}")
    mesh = Mesh(vertices, faces, placement, is_watertight(faces), name, oriented.doubt)
    if not mesh.doubt and not mesh.encloses_something():
        mesh = replace(mesh, doubt="its faces enclose nothing")
    if mesh.doubt:
        warn_of_mesh(f"what is inside of `{name}` is a guess, and the IoU is not measured: {mesh.doubt}")
    elif not mesh.watertight:
        warn_of_mesh(
            f"`{name}` is not watertight: what is inside is decided by the winding number, and the field closes gaps"
        )
    return mesh


def _crosses(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Normals [F, 3] of the faces [F, 3], as long as twice their areas."""
    a, b, c = vertices[faces].transpose(1, 0, 2)
    return np.cross(b - a, c - a)


def signed_volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Volume enclosed by the faces [F, 3] over vertices [V, 3]; negative where they look inwards."""
    a, b, c = (vertices - vertices.mean(0))[faces].transpose(1, 0, 2)
    return float((a * np.cross(b, c)).sum() / 6)


def is_watertight(faces: np.ndarray) -> bool:
    """Whether every directed edge of the faces [F, 3] has its opposite, exactly as often."""
    start, end = _edges(faces)
    forward, backward = np.sort(start << 32 | end), np.sort(end << 32 | start)
    return bool((forward == backward).all())


def euler_characteristic(faces: np.ndarray) -> int:
    """V - E + F of the faces [F, 3]."""
    start, end = _edges(faces)
    edges = np.minimum(start, end) << 32 | np.maximum(start, end)
    return len(np.unique(faces)) - len(np.unique(edges)) + len(faces)


def _edges(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and second vertex of every directed edge [3 F] of the faces [F, 3], int64 below 2^31."""
    faces = faces.astype(np.int64, copy=False)
    return faces.reshape(-1), faces[:, [1, 2, 0]].reshape(-1)
