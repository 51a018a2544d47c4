"""Projections of a volume: those of the phantom, and a user's own from a NumPy file and a geometry in JSON."""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.phantom import SHEPP_LOGAN, Phantom
from hashgrid.geometry.beams import Beams
from hashgrid.geometry.rays import Rays
from hashgrid.ops._backend import backend_ops
from hashgrid.util.config import Config

CHUNK = 1 << 18  # rays that are looked at together
BOX = (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)  # of the volume


@dataclass(frozen=True)
class PhantomConfig(Config):
    """How the phantom is scanned that is there without SOURCE."""

    views: int = 20  # projections
    size: int = 64  # voxels per side, as large as pixels of the detector
    dims: Literal[2, 3] = 3  # of the volume; a scan of one's own says it by its shape
    beam: Literal["parallel", "cone"] = "parallel"

    def check(self) -> None:
        super().check()
        if self.views < 1 or self.size < 4:
            raise ValueError(f"`views` must be at least 1 and `size` at least 4, got {self.views} and {self.size}")


@dataclass(frozen=True)
class Projections:
    """Line integrals of attenuation.

    Attributes:
        values: [angles, rows, columns] fp32, without a unit: attenuation per length times length.
        beams: where they were measured.
        n_dims: of the volume, 2 or 3.
        truth: [n, ...] (z, y, x), attenuation per unit of length of voxels where it is known.
    """

    values: Tensor
    beams: Beams
    n_dims: int
    truth: Tensor | None = None

    def rays(self, index: Tensor) -> Rays:
        """The rays of pixels [R] int64 of the flat values, in the unit cube that holds the volume."""
        return self.beams.rays(index, *self.values.shape[1:])

    @property
    def side(self) -> int:
        """Voxels along the side of the truth, or else as large as pixels are at the axis, no more than columns."""
        if self.truth is not None:
            return len(self.truth)
        beams = self.beams
        shrunk = beams.source / (beams.source + beams.detector) if beams.beam == "cone" else 1.0
        return max(1, min(self.values.shape[-1], round(beams.volume / (beams.pixel[1] * shrunk))))

    @cached_property
    def hits(self) -> Tensor:
        """The pixels [H] int64 of the flat values whose rays meet the volume.

        Raises:
            ValueError: none does.
        """
        found = []
        for index in torch.arange(self.values.numel()).split(CHUNK):
            rays = self.rays(index)
            leave = backend_ops("reference").ray_aabb(rays.origins, rays.directions, torch.tensor(BOX))[1]
            found.append(index[leave.isfinite()])
        if not sum(map(len, found)):
            raise ValueError(
                f"no ray of the geometry meets the volume of side {self.beams.volume:g}; check `pixel`, `offset`,"
                " `source` and `detector`, which are in the unit of `volume`"
            )
        return torch.cat(found)


def scan_phantom(
    n_views: int,
    n: int,
    n_dims: int = 3,
    beam: Literal["parallel", "cone"] = "parallel",
    rows: tuple[tuple[float, ...], ...] = SHEPP_LOGAN,
) -> Projections:
    """Scans a phantom of side 2 with exact integrals through the middles of pixels, parallel beams over 180 degrees and
    cones over 360.

    Args:
        n_views: projections, at equal distances.
        n: voxels per side of the truth. Pixels are as large as voxels, of cones as their shadows from the axis; the
            detector covers the volume as it turns.
        n_dims: 2 or 3.
        beam: the source of a cone is two sides of the volume from the axis, the detector one.
        rows: ellipsoids of the :class:`Phantom`.
    """
    phantom, turn = Phantom(rows, n_dims), 180.0 if beam == "parallel" else 360.0
    angles = tuple(turn * i / n_views for i in range(n_views))
    pixel, n_columns, n_rows = 2 / n, 2 * math.ceil(n * math.sqrt(0.5)) + 1, n
    beams = Beams(angles=angles, volume=2.0, pixel=(pixel, pixel))
    if beam == "cone":  # things are 1.5 times as large on the detector at the axis, and larger in front of it
        beams = beams.replace(beam="cone", pixel=(1.5 * pixel, 1.5 * pixel), source=4.0, detector=2.0)
        n_columns = n_rows = 2 * math.ceil(0.78 * n) + 1
    empty = Projections(torch.zeros(n_views, n_rows if n_dims == 3 else 1, n_columns), beams, n_dims)
    values = []
    for index in torch.arange(empty.values.numel()).split(CHUNK):
        rays = empty.rays(index)
        values.append(beams.volume * phantom.line_integrals(rays.origins, rays.directions))
    return Projections(torch.cat(values).float().view_as(empty.values), beams, n_dims, phantom.volume(n))


def load_projections(path: Path, geometry: Path | None = None, truth: Path | None = None) -> Projections:
    """Reads a scan: an array [angles, columns] or [angles, rows, columns] of line integrals, already logarithms.

    Args:
        path: a ``.npy`` file, or an ``.npz`` file with an array ``projections``, or with one array.
        geometry: JSON of :class:`Beams`; None for the file of the same name that ends in ``.json``.
        truth: a ``.npy`` file of the volume [n, n, n] (z, y, x) or [n, n] to compare with, in attenuation per unit of
            length.

    Raises:
        ValueError: a file is missing, is something else, does not fit the other, or holds NaN; or no ray meets the
            volume.
    """
    values = read_array(path, "projections")
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise ValueError(
            f"`{path}` must have shape [angles, columns] or [angles, rows, columns], none of them 0, got"
            f" {list(values.shape)}"
        )
    beams = read_beams(path.with_suffix(".json") if geometry is None else geometry)
    if len(beams.angles) != len(values):
        raise ValueError(f"`angles` must be one per projection of `{path}`, {len(values)}, got {len(beams.angles)}")
    n_dims = values.ndim
    volume = None if truth is None else read_array(truth, "volume")
    if volume is not None and (volume.ndim != n_dims or len(set(volume.shape)) != 1 or not volume.size):
        raise ValueError(f"`{truth}` must be a {'cube' if n_dims == 3 else 'square'}, got shape {list(volume.shape)}")
    scan = Projections(
        torch.from_numpy(values).view(len(values), -1, values.shape[-1]),
        beams,
        n_dims,
        None if volume is None else torch.from_numpy(volume),
    )
    if not bool(scan.values.flatten()[scan.hits].any()):
        raise ValueError(f"`{path}` must see something, got zeros in all {len(scan.hits)} pixels that meet the volume")
    return scan


def read_beams(path: Path) -> Beams:
    """Reads a geometry: a JSON object with the fields of :class:`Beams`.

    Raises:
        ValueError: there is no such file, or it is something else.
    """
    if not path.is_file():
        raise ValueError(f"no geometry at `{path}`: a JSON object with `beam`, `angles`, `volume`, `pixel`, ...")
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"`{path}` must be a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"`{path}` must hold an object, got {type(content).__name__}")
    beams = Beams.from_dict(content, f"`{path}`")
    try:
        beams.check()
    except ValueError as error:
        raise ValueError(f"`{path}`: {error}") from error
    return beams


def read_array(path: Path, name: str) -> np.ndarray:
    """Reads finite numbers as fp32 from a ``.npy`` file, or from the array ``name`` or the only one of an ``.npz``.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise ValueError(f"`{path}` does not exist")
    try:
        with open(path, "rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.lib.npyio.NpzFile):
                names = content.files
                if name not in names and len(names) != 1:
                    raise ValueError(f"`{path}` must have an array `{name}`, got {', '.join(names) or 'none'}")
                content = content[name if name in names else names[0]]
    except (EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"`{path}` must be a NumPy file: {error}") from error
    except ValueError as error:
        raise error if str(error).startswith("`") else ValueError(f"`{path}` must be a NumPy file: {error}") from error
    if content.dtype.kind not in "fiu":
        raise ValueError(f"`{path}` must hold real numbers, got {content.dtype}")
    values = np.ascontiguousarray(content, dtype=np.float32)
    if n_bad := int((~np.isfinite(values)).sum()):
        raise ValueError(f"`{path}` must hold finite numbers, got {n_bad} that are NaN or infinite; mend or crop them")
    return values
