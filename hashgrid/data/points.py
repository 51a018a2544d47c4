"""Oriented points: loading them, normals where there are none, and what a field without distances is fitted at."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hashgrid.data.errors import MeshError, warn_of_mesh
from hashgrid.data.formats import ply
from hashgrid.data.formats.text import plain
from hashgrid.data.mesh import check_finite, into_cube, read_file
from hashgrid.data.normals import estimate_normals
from hashgrid.geometry.boxes import Placement

POINT_KEYS = ("points", "xyz", "vertices", "positions")
NORMAL_KEYS = ("normals", "normal", "n")


@dataclass(frozen=True)
class PointCloud:
    """Points of a surface in the unit cube, and where they came from."""

    points: np.ndarray  # [N, 3] float64, in [margin, 1 - margin]^3 with the longest side filling it
    normals: np.ndarray  # [N, 3] float64, outwards, of unit length
    placement: Placement  # of the cube in the coordinates of the input
    name: str  # of the file


def load_points(path: str | Path, margin: float = 0.1) -> PointCloud:
    """Reads points with or without normals and moves them into the unit cube, ``margin`` away from its sides.

    PLY has properties ``x y z [nx ny nz]``; text (XYZ) has these columns; NPZ has arrays ``points`` [N, 3] and
    ``normals`` [N, 3]. Points that agree are merged, missing normals estimated; so are those that are rather colours.

    Raises:
        MeshError: the file is missing or empty, or it holds no points, points or normals that are no numbers, normals
            of length zero, points without extent, or the wrong columns.
        ImportError: scipy (for missing normals) is not installed.
    """
    readers = {".ply": _read_ply, ".xyz": _read_text, ".txt": _read_text, ".npz": _read_npz}
    points, normals = read_file(Path(path), "POINTS", readers)
    return make_points(points, normals, margin, Path(path).name)


def make_points(
    points: np.ndarray, normals: np.ndarray | None = None, margin: float = 0.1, name: str = "points"
) -> PointCloud:
    """A cloud from points [N, 3] and normals [N, 3] of any length, in any coordinates; see :func:`load_points`."""
    points = _columns(points, "points", name)
    if len(points) == 0:
        raise MeshError(f"`{name}` must hold points, it has none")
    check_finite(points, "points", name)
    if normals is not None:
        normals = _columns(normals, "normals", name)
        if _are_colours(normals):
            warn_of_mesh(
                f"the normals of `{name}` are left out: like colours, they are nowhere negative and not of length 1"
            )
            normals = None
    if normals is not None:
        normals = _unit(normals, len(points), name)
    _, first = np.unique(points, axis=0, return_index=True)
    if len(first) < len(points):
        warn_of_mesh(f"{len(points) - len(first)} duplicates in `{name}` are left out")
        first.sort()
        points, normals = points[first], None if normals is None else normals[first]
    points, placement = into_cube(points, margin, name)
    if normals is None:
        warn_of_mesh(f"`{name}` has no normals: they are estimated from neighbouring points")
        normals = estimate_normals(points, name=name)
    return PointCloud(points, normals, placement, name)


def _columns(values: Any, what: str, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 2 or values.shape[1] != 3 or values.dtype.kind not in "fiu":
        shape = f"{list(values.shape)} of {values.dtype}"
        raise MeshError(f"the {what} of `{name}` must be numbers of shape [N, 3], got {shape}")
    return values.astype(np.float64)


def _unit(normals: np.ndarray, n_points: int, name: str) -> np.ndarray:
    if len(normals) != n_points:
        raise MeshError(f"`{name}` must have one normal per point, got {len(normals)} for {n_points} points")
    check_finite(normals, "normals", name)
    # squares neither over- nor underflow
    normals = normals / np.maximum(np.abs(normals).max(-1, keepdims=True), 1e-300)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    if n_zero := int((length < 0.5).sum()):
        remedy = "leave all of them out to have them estimated"
        raise MeshError(f"the normals of `{name}` must not be zero, {n_zero} of {n_points} are; {remedy}")
    return normals / length


def _are_colours(normals: np.ndarray) -> bool:
    """Whether rows [N, 3] are no normals but colours. Normals of a closed surface have every sign, those of
    a part of one, seen from one side, at least the length 1."""
    if (normals < 0).any() or not np.isfinite(normals).all():
        return False
    length = np.linalg.norm(normals, axis=-1)
    return bool((np.abs(length - 1)[length > 0] > 0.01).any())


def _read_ply(data: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    elements = ply.read_elements(data)
    points = ply.columns(elements, ("x", "y", "z"))
    has_normals = {"nx", "ny", "nz"} <= set(elements["vertex"].values)
    return points, ply.columns(elements, ("nx", "ny", "nz")) if has_normals else None


def _read_text(data: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no data: said below
        try:
            text = io.StringIO(plain(data).decode("latin-1"))  # comments may have any encoding
            rows = np.loadtxt(text, dtype=np.float64, comments=["#", "//"], ndmin=2)
        except ValueError as error:
            raise MeshError(" ".join(str(error).split())) from error
    if rows.size == 0:
        raise MeshError("it must hold points, it has none")
    if rows.shape[1] not in (3, 6):
        raise MeshError(f"it must have columns x y z or x y z nx ny nz, got {rows.shape[1]}")
    return rows[:, :3], rows[:, 3:] if rows.shape[1] == 6 else None


def _read_npz(data: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = dict(file)
    except Exception as error:  # of zip, of NumPy, of its header, each its own
        raise MeshError(f"it must be an archive of NumPy: {' '.join(str(error).split())}") from error
    points = next((arrays[key] for key in POINT_KEYS if key in arrays), None)
    normals = next((arrays[key] for key in NORMAL_KEYS if key in arrays), None)
    if points is None:
        found = list(arrays) or "none"
        raise MeshError(f"it must have an array `points` [N, 3] (and `normals` [N, 3]), it has {found}")
    return points, normals
