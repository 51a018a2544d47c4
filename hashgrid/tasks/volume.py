"""``hashgrid volume``: density as a function of position."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.mesh_files import write_ply
from hashgrid.data.volumes import Volume, generated_volume, read_volume
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
    Config = VolumeConfig
    summary = "Fits density as a function of position to a volume, and writes it, slices and an iso-surface."
    source_help = "volume: .npy, .nii, .nii.gz or a .tif stack; a generated one if none"
    packages = ("PIL", "imageio.v3", "skimage", "scipy")
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
            placed = learned[0] @ self.volume.affine[:3, :3].T + self.volume.affine[:3, 3]
            write_ply(report.out / "surface.ply", placed, learned[1])
            figures["mesh"] = str(report.out / "surface.ply")
        if learned is not None and exact is not None:
            figures |= {"iso": iso, "f_score": f_score(learned, exact, 1.0)}
        atomic_write_image(report.out / "slices.png", slices(truth, values, low, high))
        found = f", F-score {figures['f_score']:.4f} at one voxel" if "f_score" in figures else ""
        report.say(f"{self.describe()}, PSNR {figures['psnr']:.2f} dB{found}")
        return figures


def surface(values: Tensor, iso: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Vertices [V, 3] in voxels (k, j, i) and faces [F, 3] of the surface at ``iso``; None if there is none."""
    array = values.squeeze(-1).numpy()
    if min(array.shape) < 2 or not array.min() < iso < array.max():
        return None
    vertices, faces, _, _ = optional_import("skimage.measure").marching_cubes(array.astype(np.float32), iso)
    return vertices.astype(np.float64), faces.astype(np.int64)


def f_score(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray], distance: float) -> float:
    """Harmonic mean of the shares of points of each surface (vertices, faces) that are within ``distance`` of the
    other; 30 000 points of each, uniformly drawn."""
    tree = optional_import("scipy.spatial").cKDTree
    points = [_points_on(*mesh, 30_000) for mesh in (a, b)]
    shares = [
        float((tree(other).query(own, distance_upper_bound=4 * distance)[0] < distance).mean())
        for own, other in (points, points[::-1])
    ]
    return 2 * shares[0] * shares[1] / max(sum(shares), 1e-12)


def _points_on(vertices: np.ndarray, faces: np.ndarray, n: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    corners = vertices[faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    chosen = corners[generator.choice(len(faces), n, p=area / area.sum())]
    u, v = np.sqrt(generator.random(n))[:, None], generator.random(n)[:, None]
    return (1 - u) * chosen[:, 0] + u * (1 - v) * chosen[:, 1] + u * v * chosen[:, 2]


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
