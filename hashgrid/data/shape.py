"""What a distance field is fitted to, or compared with: a mesh, oriented points, or both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from hashgrid.data.generated import torus_knot
from hashgrid.data.mesh import Mesh, load_mesh
from hashgrid.data.mesh_files import write_ply
from hashgrid.data.points import PointCloud, load_points
from hashgrid.geometry.boxes import Placement
from hashgrid.util.optional import optional_import

Data = TypeVar("Data", bound=Mesh | PointCloud)
GENERATED = Path("outputs") / "torus_knot.ply"


@dataclass
class Shape:
    """A shape in the unit cube."""

    path: Path  # of the file
    name: str  # of the file
    placement: Placement  # of the cube in the coordinates of the file
    mesh: Mesh | None = None  # the surface, where it is known
    cloud: PointCloud | None = None  # points of it, where these are given

    @classmethod
    def of(cls, data: Mesh | PointCloud) -> Shape:
        """A mesh or points that did not come from a file."""
        mesh, cloud = (data, None) if isinstance(data, Mesh) else (None, data)
        return cls(Path(data.name), data.name, data.placement, mesh, cloud)

    def notes(self) -> dict[str, Any]:
        """What a checkpoint says of it, as JSON."""
        kind, placement = "mesh" if self.cloud is None else "points", vars(self.placement)
        return {"input": str(self.path.resolve()), "name": self.name, "kind": kind, "placement": placement}

    @property
    def what(self) -> str:
        return "points" if self.mesh is None else "mesh"

    def describe(self) -> str:
        """One line for a person."""
        if self.cloud is not None:
            return f"{self.name}: {len(self.cloud.points)} points"
        if self.mesh is None:
            return f"{self.name}: a field alone, without what it was fitted to"
        closed = "watertight" if self.mesh.watertight else "open"
        return f"{self.name}: {len(self.mesh.vertices)} vertices, {len(self.mesh.faces)} faces, {closed}"

    def distance(self) -> Callable[[Tensor], Tensor] | None:
        """Unsigned distances [N] of points [N, 3] in the cube to the truth: the mesh or, without one, the points."""
        if self.mesh is not None:
            nearest = self.mesh.nearest
            return lambda x: torch.from_numpy(nearest(x.double().numpy())[0])
        if self.cloud is not None:
            tree = optional_import("scipy.spatial").cKDTree(self.cloud.points)
            return lambda x: torch.from_numpy(tree.query(x.double().numpy(), workers=-1)[0])
        return None


def load_shape(
    path: Path | None = None,
    points: Path | None = None,
    truth: Path | None = None,
    margin: float = 0.1,
    placement: Placement | None = None,
) -> Shape:
    """A mesh, or points; a generated mesh without either.

    Args:
        path: mesh.
        points: oriented points, instead of a mesh.
        truth: mesh to compare with, in the coordinates of the other file.
        margin: between the shape and the sides of the cube.
        placement: of the cube, where it is not the shape's own.

    Raises:
        MeshError: a file cannot be used.
        ValueError: both a mesh and points are given.
    """
    if path is not None and points is not None:
        raise ValueError(f"`SOURCE` and `points` exclude each other, got {path} and {points}; use `truth` to compare")
    data: Mesh | PointCloud
    if points is not None:
        path, data = points, load_points(points, margin)
    else:
        if path is None:
            path = GENERATED
            write_ply(path, *torus_knot())
            print(f"no SOURCE given: fitting a generated shape, {path}", flush=True)
        data = load_mesh(path, margin)
    if placement is not None:
        data = placed(data, placement)
    shape = dataclasses.replace(Shape.of(data), path=path)
    if truth is not None:
        shape.mesh = placed(load_mesh(truth, margin), shape.placement)
    return shape


def recall_shape(
    notes: dict[str, Any], path: Path | None, points: Path | None, truth: Path | None, margin: float
) -> Shape:
    """The shape that :meth:`Shape.notes` are of, from the files given or, without one, from its own, where that still
    is; a shape without a surface if not. The cube is where it was."""
    known, placement = Path(notes["input"]), noted_placement(notes)
    if path is None and points is None and known.is_file() and notes["kind"] == "mesh":
        path = known
    if path is not None or (points is not None and points.is_file()):
        return load_shape(path, points, truth, margin, placement)
    print(f"{known} is not there: nothing to compare with; give SOURCE or --truth", flush=True)
    mesh = None if truth is None else placed(load_mesh(truth), placement)
    return Shape(known, notes["name"], placement, mesh)


def noted_placement(notes: dict[str, Any]) -> Placement:
    """The placement in :meth:`Shape.notes`."""
    return Placement(tuple(notes["placement"]["origin"]), notes["placement"]["unit"])


def placed(data: Data, placement: Placement) -> Data:
    """The mesh or points in another placement of the cube."""
    name = "vertices" if isinstance(data, Mesh) else "points"
    moved = placement.from_file(data.placement.to_file(torch.from_numpy(getattr(data, name)))).numpy()
    changes: dict[str, Any] = {name: moved, "placement": placement}
    return dataclasses.replace(data, **changes)
