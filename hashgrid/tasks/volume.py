"""``hashgrid volume``: density as a function of position."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.mesh import Mesh, is_watertight
from hashgrid.data.mesh_files import write_ply
from hashgrid.data.volumes import Volume, generated_volume, read_volume
from hashgrid.geometry.boxes import Placement
from hashgrid.rendering.measure import f_score
from hashgrid.tasks.signal import SignalConfig, SignalTask
from hashgrid.train.task import Report
from hashgrid.util.files import atomic_write_image
from hashgrid.util.optional import optional_import
from hashgrid.util.pictures import GAP, colorize


@dataclass(frozen=True)
class VolumeConfig(SignalConfig):
    """Defaults of fitting volumes."""

    iso: float | None = None  # value of the surface, in the units of the volume; the middle of its range if none


class VolumeTask(SignalTask):
    """Fits a field to a volume.

    Args:
        config: the recipe.
        volume: what to fit.
        path: its file, if it has one.
    """

    name = "volume"
    preview = "slices.png"
    Config = VolumeConfig
    summary = "Fits density as a function of position to a volume, and writes it, slices and an iso-surface."
    source_help = "volume: .npy, .nii, .nii.gz or a .tif stack; a generated one if none"
    packages = ("PIL", "imageio.v3", "skimage", "igl")
    config: VolumeConfig

    def __init__(self, config: VolumeConfig, volume: Volume, path: Path | None = None) -> None:
        self.volume, self.path = volume, path
        super().__init__(config, volume.signal)

    @classmethod
    def make(cls, config: VolumeConfig, source: Path | None, notes: dict[str, Any]) -> VolumeTask:
        source = Path(notes["volume"]) if source is None and notes.get("volume") else source
        return cls(config, generated_volume() if source is None else read_volume(source), source)

    def describe(self) -> str:
        return self.volume.describe()

    def notes(self) -> dict[str, Any]:
        return {"volume": None if self.path is None else str(self.path.resolve())}

    def evaluate(self, report: Report) -> dict[str, Any]:
        values, truth = self.signal.sampled(self.model), self.signal.values.cpu()
        path = report.out / f"reconstruction.{self.volume.extension}"
        self.volume.write(path, values)
        figures = {"volume": str(self.path or "generated"), **self.quality(values)}
        low, high = self.signal.low, self.signal.high
        iso = self.config.iso if self.config.iso is not None else 0.5 * (low + high)
        learned, exact = surface(values, iso), surface(truth, iso)
        if learned is not None:
            placed = learned.vertices @ self.volume.affine[:3, :3].T + self.volume.affine[:3, 3]
            write_ply(report.out / "surface.ply", placed, learned.faces)
            figures["mesh"] = str(report.out / "surface.ply")
        if learned is not None and exact is not None:
            figures |= {"iso": iso, "f_score": f_score(learned, exact, 1.0)}
        atomic_write_image(report.out / "slices.png", slices(truth, values, low, high))
        found = f", F-score {figures['f_score']:.4f} at one voxel" if "f_score" in figures else ""
        report.say(f"{self.describe()}, PSNR {figures['psnr']:.2f} dB{found}")
        return figures


def surface(values: Tensor, iso: float) -> Mesh | None:
    """The surface at ``iso``, in voxels (k, j, i); None if there is none."""
    array = values.squeeze(-1).numpy()
    if min(array.shape) < 2 or not array.min() < iso < array.max():
        return None
    vertices, faces, _, _ = optional_import("skimage.measure").marching_cubes(array.astype(np.float32), iso)
    faces = faces.astype(np.int64)
    return Mesh(vertices.astype(np.float64), faces, Placement(), is_watertight(faces), "surface")


def slices(truth: Tensor, values: Tensor, low: float, high: float) -> Tensor:
    """The middle slices along each axis: the volume above, what was learned below it, the error at the bottom."""
    columns = []
    for axis in range(3):
        index = truth.shape[axis] // 2
        pair = [(v.select(axis, index).squeeze(-1).float() - low) / (high - low) for v in (truth, values)]
        rows = [colorize(pair[0]), colorize(pair[1]), colorize((pair[1] - pair[0]).abs(), 0, 0.1)]
        columns.append(torch.cat([part for row in rows for part in (row, torch.ones(GAP, row.shape[1], 3))]))
    height = max(column.shape[0] for column in columns)
    padded = [torch.nn.functional.pad(c, (0, 0, 0, GAP, 0, height - len(c)), value=1.0) for c in columns]
    return torch.cat(padded, dim=1)
