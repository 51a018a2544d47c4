"""Oriented points: loading them, normals where there are none, and fitting a field without any distances."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.errors import MeshError, MeshWarning
from hashgrid.data.formats import ply
from hashgrid.data.formats.text import check_content, plain
from hashgrid.data.mesh import Placement, check_finite, read_file
from hashgrid.data.normals import estimate_normals
from hashgrid.fields.distance import Field
from hashgrid.sdf.config import SdfConfig
from hashgrid.sdf.trainer import Progress
from hashgrid.train import losses
from hashgrid.util.choices import check_option
from hashgrid.util.optional import optional_import

POINT_LOSSES = ("siren", "igr")
FORMATS = (".ply", ".xyz", ".txt", ".npz")
POINT_KEYS = ("points", "xyz", "vertices", "positions")
NORMAL_KEYS = ("normals", "normal", "n")


@dataclass(frozen=True)
class PointCloud:
    """Points of a surface in the unit cube, and where they came from.

    Attributes:
        points: [N, 3] float64, in [margin, 1 - margin]^3 with the longest side filling it.
        normals: [N, 3] float64, outwards, of unit length.
        placement: of the cube in the input.
        name: of the file.
    """

    points: np.ndarray
    normals: np.ndarray
    placement: Placement
    name: str


def load_points(path: str | Path, margin: float = 0.1) -> PointCloud:
    """Reads points with or without normals and moves them into the unit cube, ``margin`` away from its sides.

    PLY has properties ``x y z [nx ny nz]``; text (XYZ) has these columns; NPZ has arrays ``points`` [N, 3] and
    ``normals`` [N, 3]. Points that agree are merged, missing normals estimated; so are those that are rather colours.

    Raises:
        MeshError: the file is missing or empty, or it holds no points, points or normals that are no numbers, normals
            of length zero, points without extent, or the wrong columns.
        ImportError: scipy (for missing normals) is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise MeshError(f"`POINTS` must be one of {', '.join(FORMATS)}, got `{path}`")
    read = {".ply": _read_ply, ".npz": _read_npz}.get(path.suffix.lower(), _read_text)
    points, normals = read_file(path, "POINTS", "points", read)
    return make_points(points, normals, margin, path.name)


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
            warnings.warn(
                f"the normals of `{name}` are left out: like colours, they are nowhere negative and not of length 1",
                MeshWarning,
                stacklevel=2,
            )
            normals = None
    if normals is not None:
        normals = _unit(normals, len(points), name)
    _, first = np.unique(points, axis=0, return_index=True)
    if len(first) < len(points):
        warnings.warn(f"{len(points) - len(first)} duplicates in `{name}` are left out", MeshWarning, stacklevel=2)
        first.sort()
        points, normals = points[first], None if normals is None else normals[first]
    placement = Placement.around(points, margin, name)
    points = placement.to_cube(points)
    if normals is None:
        warnings.warn(
            f"`{name}` has no normals: they are estimated from neighbouring points", MeshWarning, stacklevel=2
        )
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
    normals = normals / np.maximum(
        np.abs(normals).max(-1, keepdims=True), 1e-300
    )  # squares neither over- nor underflow
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    n_zero = int((length < 0.5).sum())
    if n_zero:
        raise MeshError(
            f"the normals of `{name}` must not be zero, {n_zero} of {n_points} are; leave all of them out to have them"
            " estimated"
        )
    return normals / length


def _are_colours(normals: np.ndarray) -> bool:
    """Whether rows [N, 3] are no normals but colours. Normals of a closed surface have every sign, those of
    a part of one, seen from one side, at least the length 1."""
    if (normals < 0).any() or not np.isfinite(normals).all():
        return False
    length = np.linalg.norm(normals, axis=-1)
    return bool((np.abs(length - 1)[length > 0] > 0.01).any())


def _read_ply(data: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    check_content(data)
    elements = ply.read_elements(data)
    points = ply.columns(elements, ("x", "y", "z"))
    has_normals = {"nx", "ny", "nz"} <= set(elements["vertex"].values)
    return points, ply.columns(elements, ("nx", "ny", "nz")) if has_normals else None


def _read_text(data: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    check_content(data)
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


class PointSamples:
    """A field that vanishes at the points, has their normals, and grows by one per unit of length everywhere: implicit
    geometric regularisation (IGR, Gropp et al. 2020), or the losses of SIREN (Sitzmann et al. 2020).

    Those losses allow more surfaces than the one through the points, and a hash grid, in which distant places have no
    parameters in common, comes up with them. So points off the surface also have to be on the side that the winding
    number of the oriented points says.

    Args:
        cloud: what to fit.
        config: the recipe; ``config.point_loss`` is ``"igr"`` or ``"siren"``.
        device: where the field lives.
    """

    def __init__(self, cloud: PointCloud, config: SdfConfig, device: torch.device) -> None:
        check_option("point_loss", config.point_loss, POINT_LOSSES)
        self.config = config
        self.loss_name = config.point_loss.upper()
        self.device = device
        self.points = torch.from_numpy(cloud.points).float()
        self.normals = torch.from_numpy(cloud.normals).float()
        off = self._make_off(cloud)
        self.off = torch.from_numpy(off).float()
        self.signs = torch.from_numpy(signs(cloud, off)).float()
        self._generator = torch.Generator()

    def loss(self, field: Field, progress: Progress, level_weights: Tensor | None) -> tuple[Tensor, int]:
        config = self.config
        n = config.point_batch
        x, normals, signs = self._draw(progress.step)
        if config.gradient_step > 0:
            distance, gradient = field.differences(x, config.gradient_step, level_weights)
        else:
            distance, gradient = field.gradient(x, level_weights)
        on, off = gradient[:n], gradient[n:]
        if config.point_loss == "igr":
            normal, growth = losses.normal_difference(on, normals), losses.eikonal(off)
        else:
            normal, growth = losses.normal_cosine(on, normals), losses.eikonal_l1(gradient)
        loss = config.surface_weight * losses.on_surface(distance[:n])
        loss = loss + config.normal_weight * normal + config.eikonal_weight * growth
        uniform = distance[-config.uniform_batch :]
        loss = loss + config.off_surface_weight * losses.off_surface(uniform, config.off_surface_sharpness)
        return loss + config.sign_weight * losses.wrong_side(distance[n:], signs), len(x)

    def _make_off(self, cloud: PointCloud) -> np.ndarray:
        """Points off the surface [near_pool + uniform_pool, 3]: near it, normally distributed around the points, and
        anywhere in the cube."""
        config, generator = self.config, np.random.default_rng(self.config.seed)
        index = generator.integers(len(cloud.points), size=config.near_pool)
        reach = spread(cloud.points, config.point_neighbors)[index, None]
        near = cloud.points[index] + reach * generator.normal(size=(config.near_pool, 3))
        return np.concatenate([near.clip(0, 1), generator.random((config.uniform_pool, 3))])

    def _draw(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Points of one step, on the surface, near it and uniform in the cube, the normals of the first and the signs
        of the others."""
        config = self.config
        generator = self._generator.manual_seed((config.seed * 2654435761 + step) % (1 << 32))  # it reads 32 bits
        on = torch.randint(len(self.points), (config.point_batch,), generator=generator)
        near = torch.randint(config.near_pool, (config.point_batch,), generator=generator)
        uniform = torch.randint(config.near_pool, len(self.off), (config.uniform_batch,), generator=generator)
        off = torch.cat([near, uniform])
        x = torch.cat([self.points[on], self.off[off]])
        return x.to(self.device), self.normals[on].to(self.device), self.signs[off].to(self.device)

    def close(self) -> None:
        pass


def spread(points: np.ndarray, k: int) -> np.ndarray:
    """Distance [N] of each of the points [N, 3] to its ``k``-th neighbour: how far around it Gropp et al. (2020,
    section 5) draw more."""
    tree = optional_import("scipy.spatial", "sdf").cKDTree(points)
    return tree.query(points, k=[min(k, len(points) - 1) + 1], workers=-1)[0][:, 0]


def signs(cloud: PointCloud, x: np.ndarray) -> np.ndarray:
    """Sides [Q] of points [Q, 3] by the winding number of the oriented points (Barill et al. 2018): -1 inside, 1
    outside, 0 where it does not say. A point stands for an eighth of the disc that reaches to its 8th neighbour."""
    igl = optional_import("igl", "sdf")
    areas = np.pi * spread(cloud.points, 8) ** 2 / 8
    winding = igl.fast_winding_number(cloud.points, cloud.normals, areas, x)
    return (winding < 0.25) * 1.0 - (winding > 0.75)
