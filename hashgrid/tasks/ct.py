"""``hashgrid ct``: attenuation in a volume from few projections of it (sparse-view tomography)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hashgrid.data.backprojection import FILTERS, filtered_back_projection
from hashgrid.data.draws import draw_rows
from hashgrid.data.projections import BOX, PhantomConfig, Projections, load_projections, scan_phantom
from hashgrid.data.signals import Signal
from hashgrid.fields import SIGNAL_FIELDS
from hashgrid.fields.base import SignalField
from hashgrid.fields.coordinate import CoordinateConfig
from hashgrid.nn.hash_grid import keep_gradients
from hashgrid.ops._backend import backend_ops
from hashgrid.optim import Adam
from hashgrid.rendering.samplers import Jitter, StratifiedSampler
from hashgrid.rendering.slices import write_slices
from hashgrid.train.config import RunConfig
from hashgrid.train.losses import variation_along_rays
from hashgrid.train.schedule import Schedule
from hashgrid.train.task import Progress, Report, Step, Task
from hashgrid.util.config import Config
from hashgrid.util.files import atomic_path

SAMPLES = 1 << 18  # that are evaluated together


@dataclass(frozen=True)
class CtConfig(RunConfig):
    """A grid as fine as the voxels, attenuation that is not negative, and a price on its changes along rays."""

    fields = SIGNAL_FIELDS
    default_seconds = 60.0

    field: Config = CoordinateConfig(n_levels=4, n_features_per_level=4, base_resolution=8)
    phantom: PhantomConfig = PhantomConfig()
    geometry: Path | None = None  # JSON that says how SOURCE was measured; SOURCE with .json if none
    truth: Path | None = None  # .npy of the volume that SOURCE is of, to compare with
    resolution: int = 0  # voxels per side of the volume that is written; 0: those of the truth, or as large as pixels
    batch: int = 3 << 14  # samples along rays, per step
    samples_per_ray: int = 0  # 0 for three to two voxels along the side of the volume
    variation_weight: float = 3e-3  # of the mean change between neighbouring samples of a ray
    learning_rate: float = 1e-2  # after the first steps
    final_learning_rate: float = 1e-3  # at the end of a run

    def check(self) -> None:
        super().check()
        if self.batch < 1:
            raise ValueError(f"`batch` must be at least 1, got {self.batch}")
        if (smallest := min(self.samples_per_ray, self.resolution)) < 0:
            raise ValueError(f"`samples_per_ray` and `resolution` must be at least 0, got {smallest}")


class Ct(Task):
    """Fits a field of attenuation to integrals along rays through it.

    Args:
        config: the recipe.
        scan: the integrals; those of rays beside the volume are not looked at.
        source: its file, if it has one.
    """

    name = "ct"
    metric = "psnr"
    preview = "slices.png"
    Config = CtConfig
    summary = "Finds attenuation in a volume from few X-ray projections; without SOURCE those of a phantom."
    source_help = "integrals [angles, rows, columns] or [angles, columns]: NPY or NPZ, and a geometry beside it"
    packages = ("skimage", "scipy", "PIL", "imageio.v3")
    config: CtConfig
    model: SignalField

    def __init__(self, config: CtConfig, scan: Projections, source: Path | None = None) -> None:
        self.scan, self.source, kind = scan, source, SIGNAL_FIELDS[config.field.name]
        self.side = config.resolution or scan.side
        # cells as fine as voxels: for a signal that is known at twice as many places
        super().__init__(config.replace(field=kind.configured(config.field, (2 * self.side,) * scan.n_dims)))
        config = self.config
        self.model = kind(config.field, scan.n_dims, 1, config.backend).to(config.device)
        self.schedule = Schedule(config.learning_rate, config.final_learning_rate, decay_start=0.2)
        self.sampler = StratifiedSampler(config.samples_per_ray or 3 * self.side // 2, backend=config.backend)
        self.n_rays = max(1, config.batch // self.sampler.n_samples)  # per step
        self.aabb, self.hits = torch.tensor(BOX, device=config.device), scan.hits.to(config.device)
        self.unit = float(scan.values.abs().max())  # of integrals, and of attenuation per side of the volume
        truth = scan.truth if scan.truth is not None and len(scan.truth) == self.side else None
        self.truth = None if truth is None else Signal(truth[..., None], float(truth.min()), float(truth.max()))
        self.targets = scan.values.flatten().to(config.device)[self.hits] / self.unit

    def begin(self) -> None:
        keep_gradients(self.model)

    @classmethod
    def folder(cls, source: Path | None, config: Any) -> str:
        return "phantom" if source is None else source.stem

    @classmethod
    def make(cls, config: CtConfig, source: Path | None, notes: dict[str, Any]) -> Ct:
        source = Path(notes["source"]) if source is None and notes.get("source") else source
        if source is None:
            phantom = config.phantom
            return cls(config, scan_phantom(phantom.views, phantom.size, phantom.dims, phantom.beam))
        files = {name: path.resolve() for name in ("geometry", "truth") if (path := getattr(config, name))}
        config = config.replace(**files)  # a run may go on from another folder
        return cls(config, load_projections(source, config.geometry, config.truth), source)

    def describe(self) -> str:
        n_views, n_rows, n_columns = self.scan.values.shape
        name = "phantom" if self.source is None else self.source.name
        return f"{name}: {n_views} projections of {n_columns}x{n_rows} pixels, {self.scan.beams.beam} beams"

    def notes(self) -> dict[str, Any]:
        return {"source": None if self.source is None else str(self.source.resolve())}

    def attenuation(self, x: Tensor) -> Tensor:
        """Attenuation [..., 1] at points [..., 2 or 3] of the unit cube, in this task's unit."""
        return nn.functional.softplus(self.model(x), beta=10)

    def project(self, index: Tensor, jitter: Jitter) -> tuple[Tensor, Tensor]:
        """Integrals [R] along rays ``index`` [R] of those that hit, and the attenuation at their samples [R, n]."""
        rays = self.scan.rays(self.hits[index])
        samples = self.sampler.pack(self.sampler.edges(rays, self.aabb, jitter))
        points = samples.positions(rays.origins, rays.directions)[:, : self.scan.n_dims]
        values = self.attenuation(points)
        intervals = samples.t_starts, samples.t_ends, samples.packed_info
        integrals = backend_ops(self.config.backend).line_integrals(values, *intervals)
        return integrals[:, 0], values.view(len(index), -1)

    def loss(self, progress: Progress) -> Step:
        config, step = self.config, progress.step
        index = draw_rows(config.seed, step, self.n_rays, len(self.hits), self.device, backend=config.backend)
        integrals, values = self.project(index, (config.seed, step))
        error = nn.functional.mse_loss(integrals, self.targets[index])
        loss = error + config.variation_weight * variation_along_rays(values)
        return Step(loss, {"squared_error": error.detach()}, {"samples": values.numel(), "rays": self.n_rays})

    @torch.no_grad()
    def residual(self) -> float:
        """Relative L2 difference of all integrals, with samples in the middles of intervals."""
        parts = torch.arange(len(self.hits), device=self.device).split(max(1, SAMPLES // self.sampler.n_samples))
        ours = torch.cat([self.project(index, None)[0] for index in parts])
        return float((ours - self.targets).norm() / self.targets.norm())

    def voxels(self, x: Tensor) -> Tensor:
        """Attenuation per unit of length of voxels around their middles [N, 2 or 3] of the unit cube [N, 1]: means of 3
        points along each axis."""
        third = torch.tensor([-1.0, 0.0, 1.0], device=x.device) / (3 * self.side)
        parts = [self.attenuation(x + offset) for offset in torch.cartesian_prod(*[third] * x.shape[1])]
        return torch.stack(parts).mean(0) * (self.unit / self.scan.beams.volume)

    def volume(self) -> Tensor:
        """Attenuation per unit of length of all voxels [n, ...] (z, y, x), on the CPU."""
        shape = (*(self.side,) * self.scan.n_dims, 1)
        return Signal(torch.zeros(shape, device=self.device)).sampled(self.voxels).squeeze(-1)

    @torch.no_grad()
    def score(self, optimizer: Adam) -> float:
        if self.truth is None:
            return math.nan
        index = self.truth.draw(1 << 11, 0, 0)
        values = self.voxels(self.truth.places(index).to(self.device)).cpu()
        error = (values - self.truth.low) / (self.truth.high - self.truth.low) - self.truth.at(index)
        return -10 * math.log10(max(float(error.square().mean()), 1e-12))

    def evaluate(self, report: Report) -> dict[str, Any]:
        volume, truth, residual = self.volume(), self.truth, self.residual()
        with atomic_path(report.out / "volume.npy") as path:
            np.save(path, volume.numpy())
        volumes = {"field": volume}
        figures: dict[str, Any] = {"residual": residual, "resolution": self.side}
        said = f"{self.describe()}, residual {100 * residual:.2f} %"
        if truth is not None:
            figures["psnr"] = truth.psnr(volume[..., None])
            said += f", PSNR {figures['psnr']:.2f} dB"
        if self.scan.beams.beam == "parallel":
            choices = FILTERS if truth is not None else ("hann",)
            results = {name: filtered_back_projection(self.scan, self.side, name).clamp_min(0) for name in choices}
            quality = {} if truth is None else {name: truth.psnr(x[..., None]) for name, x in results.items()}
            best = max(choices, key=lambda name: quality.get(name, 0.0))
            volumes["filtered back projection"] = results[best]
            figures["fbp"] = {"filter": best, "psnr": quality.get(best)}
            said += f", of filtered back projection {quality[best]:.2f} dB" if quality else ""
        write_slices(report.out / "slices.png", volumes, None if truth is None else truth.values.squeeze(-1))
        report.say(said)
        return figures
