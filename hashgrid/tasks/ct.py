"""``hashgrid ct``: attenuation in a volume from few projections of it (sparse-view tomography)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hashgrid.data.backprojection import FILTERS, filtered_back_projection
from hashgrid.data.draws import draw_rows
from hashgrid.data.projections import BOX, Projections, load_projections, scan_phantom
from hashgrid.fields.coordinate import CoordinateConfig, CoordinateField
from hashgrid.ops._backend import backend_ops
from hashgrid.rendering.samplers import Jitter, StratifiedSampler
from hashgrid.train.config import RunConfig
from hashgrid.train.losses import variation_along_rays
from hashgrid.train.schedule import Schedule
from hashgrid.train.task import Progress, Report, Step, Task
from hashgrid.util.config import Config
from hashgrid.util.files import atomic_write_array
from hashgrid.util.metrics import volume_psnr
from hashgrid.util.pictures import write_slices

CHUNK = 1 << 18  # points of the volume that are asked together


@dataclass(frozen=True)
class PhantomConfig(Config):
    """How the built-in phantom is scanned."""

    views: int = 20  # projections
    size: int = 64  # voxels per side, and pixels of the detector
    dims: Literal[2, 3] = 3  # of the volume; a scan of one's own says it by its shape
    beam: Literal["parallel", "cone"] = "parallel"

    def check(self) -> None:
        super().check()
        if self.views < 1 or self.size < 4:
            raise ValueError(f"`views` must be at least 1 and `size` at least 4, got {self.views} and {self.size}")


@dataclass(frozen=True)
class CtConfig(RunConfig):
    """A grid as fine as the volume, non-negative attenuation, and a small price on how much it changes along rays."""

    fields = {"mlp": CoordinateField}
    default_seconds = 60.0

    field: CoordinateConfig = CoordinateConfig(
        n_levels=4, n_features_per_level=4, log2_hashmap_size=18, base_resolution=8, max_resolution=64
    )
    phantom: PhantomConfig = PhantomConfig()
    geometry: Path | None = None  # JSON that says how SOURCE was scanned; SOURCE with .json
    truth: Path | None = None  # .npy of the volume to compare with
    resolution: int = 0  # voxels per side of the volume that is written; 0 for those of the truth or the detector
    rays: int = 512  # per step
    samples_per_ray: int = 64
    variation_weight: float = 1e-3  # of the mean change between neighbouring samples of a ray
    learning_rate: float = 1e-2  # after the first steps
    final_learning_rate: float = 1e-3  # at the end of a run

    def check(self) -> None:
        super().check()
        for name in ("rays", "samples_per_ray"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")


class Ct(Task):
    """Fits a field of attenuation to line integrals through it.

    Args:
        config: the recipe.
        scan: the line integrals; those of rays beside the volume are not looked at.
    """

    name = "ct"
    Config = CtConfig
    summary = "Finds attenuation in a volume from few X-ray projections; without SOURCE in the phantom of Shepp and Logan."
    source_help = "line integrals [angles, rows, columns] or [angles, columns]: NPY or NPZ"
    packages = ("skimage", "scipy", "PIL", "imageio.v3")
    config: CtConfig

    def __init__(self, config: CtConfig, scan: Projections, source: Path | None = None) -> None:
        super().__init__(config)
        self.scan, self.source, config = scan, source, self.config
        self.model = CoordinateField(config.field, scan.n_dims, 1, config.backend).to(config.device)
        self.schedule = Schedule(config.learning_rate, config.final_learning_rate, decay_start=0.2)
        self.sampler = StratifiedSampler(config.samples_per_ray, backend=config.backend)
        self.aabb, self.hits = torch.tensor(BOX, device=config.device), scan.hits.to(config.device)
        # rays, integrals and fields in the unit in which the largest integral is 1 per side of the volume
        self.unit = float(scan.values.abs().max())
        self.targets = scan.values.flatten().to(config.device)[self.hits] / self.unit

    @classmethod
    def folder(cls, source: Path | None, config: Any) -> str:
        return "phantom" if source is None else source.stem

    @classmethod
    def make(cls, config: CtConfig, source: Path | None, notes: dict[str, Any]) -> Ct:
        source = Path(notes["source"]) if source is None and notes.get("source") else source
        if source is None:
            phantom = config.phantom
            return cls(config, scan_phantom(phantom.views, phantom.size, phantom.dims, phantom.beam))
        return cls(config, load_projections(source, config.geometry, config.truth), source)

    def describe(self) -> str:
        n_views, n_rows, n_columns = self.scan.values.shape
        name = "phantom" if self.source is None else self.source.name
        return f"{name}: {n_views} projections of {n_rows}x{n_columns}, {self.scan.beams.beam} beams"

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
        values = self.attenuation(points.contiguous())
        integrals = backend_ops(self.config.backend).line_integrals(
            values, samples.t_starts, samples.t_ends, samples.packed_info
        )
        return integrals[:, 0], values.view(len(index), -1)

    def loss(self, progress: Progress) -> Step:
        config, step = self.config, progress.step
        index = draw_rows(config.seed, step, config.rays, len(self.hits), self.device, backend=config.backend)
        integrals, values = self.project(index, (config.seed, step))
        mse = nn.functional.mse_loss(integrals, self.targets[index])
        loss = mse + config.variation_weight * variation_along_rays(values)
        return Step(loss, {"mse": mse.detach()}, {"samples": values.numel(), "rays": config.rays})

    @torch.no_grad()
    def volume(self, n: int) -> Tensor:
        """Attenuation per unit of length at the middles of voxels [n, ...] (z, y, x), on the CPU."""
        n_dims, scale = self.scan.n_dims, self.unit / self.scan.beams.volume
        axis = (torch.arange(n, device=self.device) + 0.5) / n
        volume = torch.empty(n**n_dims)
        for index in torch.arange(n**n_dims, device=self.device).split(CHUNK):
            x = torch.stack([axis[index // n**d % n] for d in range(n_dims)], dim=-1)
            volume[index.cpu()] = (scale * self.attenuation(x))[:, 0].cpu()
        return volume.view((n,) * n_dims)

    @torch.no_grad()
    def residual(self) -> float:
        """Relative L2 difference of projections, at the middles of intervals, over all rays."""
        parts = torch.arange(len(self.hits), device=self.device).split(CHUNK // self.config.samples_per_ray)
        ours = torch.cat([self.project(index, None)[0] for index in parts])
        return float((ours - self.targets).norm() / self.targets.norm())

    def evaluate(self, report: Report) -> dict[str, Any]:
        scan, truth = self.scan, self.scan.truth
        n = self.config.resolution or (scan.values.shape[-1] if truth is None else len(truth))
        volume = self.volume(n)
        atomic_write_array(report.out / "volume.npy", volume)
        figures: dict[str, Any] = {"residual": self.residual(), "resolution": n}
        panels = {"ours": volume}
        truth = truth if truth is not None and len(truth) == n else None
        if scan.beams.beam == "parallel":
            results = {name: filtered_back_projection(scan, n, name).clamp_min(0) for name in FILTERS}
            best = "hann" if truth is None else max(FILTERS, key=lambda name: volume_psnr(results[name], truth))
            panels["filtered back projection"] = results[best]
            figures["fbp"] = {"filter": best, "psnr": None if truth is None else volume_psnr(results[best], truth)}
        if truth is not None:
            figures["psnr"] = volume_psnr(volume, truth)
        write_slices(report.out / "slices.png", panels, truth)
        said = "" if truth is None else f", PSNR {figures['psnr']:.2f} dB"
        said += f" (filtered back projection {figures['fbp']['psnr']:.2f})" if figures.get("fbp", {}).get("psnr") else ""
        report.say(f"{self.describe()}: residual {figures['residual']:.2e}{said}")
        return figures
