"""``hashgrid nerf``: a radiance field from posed photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.profiler import record_function

from hashgrid.data.loaders.transforms import scene_name
from hashgrid.data.procedural import procedural_folder
from hashgrid.data.scene import Scene, SceneOptions, load_scene
from hashgrid.fields import RADIANCE_FIELDS
from hashgrid.fields.base import RadianceField
from hashgrid.geometry.rays import Rays
from hashgrid.optim import Adam
from hashgrid.rendering import scores
from hashgrid.rendering.capture_scores import score_capture
from hashgrid.rendering.choices import decided, field_of, make_sampler, needed, placed
from hashgrid.rendering.labels import SemanticConfig, add_labels
from hashgrid.rendering.objective import objective
from hashgrid.rendering.refinement import CaptureConfig, add_capture
from hashgrid.rendering.samplers import Rendered, SamplerConfig, rays_for
from hashgrid.rendering.volume import render, write_flight
from hashgrid.tasks.nerf_graph import FixedStep
from hashgrid.train import ranks
from hashgrid.train.config import RunConfig
from hashgrid.train.losses import DepthLosses
from hashgrid.train.profile import DATA
from hashgrid.train.report import plot_test
from hashgrid.train.schedule import Schedule
from hashgrid.train.task import Progress, Report, Step, Stepper, Task
from hashgrid.util.config import Config
from hashgrid.util.optional import optional_import
from hashgrid.util.pictures import background_color


@dataclass(frozen=True)
class NerfConfig(RunConfig):
    """Instant-NGP's recipe (Müller et al. 2022) with batch, schedule and update rates for a few CPU cores; a GPU has
    its own."""

    fields = RADIANCE_FIELDS
    default_seconds = 240.0

    field: Config = RADIANCE_FIELDS["ngp"].Config()
    init: Path | None = None  # checkpoint of `hashgrid generalize` to start from
    scene: SceneOptions = SceneOptions()
    sampling: SamplerConfig = SamplerConfig()
    scoring: scores.Scoring = scores.Scoring()
    capture: CaptureConfig = CaptureConfig()
    labelling: SemanticConfig = SemanticConfig()
    background: str = "auto"  # of test images: white, black, grey, #rrggbb or R,G,B; auto: what opaque images had
    video: bool = True  # write a turntable
    target_samples: int = 1 << 15  # samples that count, per step; the number of rays follows
    max_rays: int = 1 << 14  # per step
    fixed_size: bool = False  # steps of exactly `target_samples`, from which nothing is read back: for GPUs
    cuda_graph: bool = True  # record steps of fixed size on a GPU, and replay them
    learning_rate: float = 2e-2  # after the first steps
    final_learning_rate: float = 3e-4  # at the end of a run
    decay_start: float = 0.3  # progress at which the exponential decay begins
    huber_delta: float = 0.1  # error from which the loss grows linearly
    distortion_weight: float = 0.0  # of the distortion of weights along rays (Barron et al. 2022)
    opacity_entropy_weight: float = 0.0  # of rays that are neither seen through nor ended
    depths: DepthLosses = DepthLosses()

    @classmethod
    def for_device(cls, device: torch.device) -> NerfConfig:
        """Defaults for ``device``: on a GPU Instant-NGP's batch, step length and update rates, in half precision."""
        if device.type == "cpu":
            return cls(device="cpu")
        gpu = {"log2_hashmap_size": 19, "max_resolution": 2048, "table_dtype": "float16", "compute_dtype": "float16"}
        steps = {"target_samples": 1 << 18, "max_rays": 1 << 16, "steps_per_diagonal": 1024, "fixed_size": True}
        rates = {"learning_rate": 1e-2, "decay_start": 0.5, "occupancy_uniform": 1 / 4, "occupancy_occupied": 1 / 4}
        return cls(device=str(device)).replace(**gpu, **steps, **rates)

    def check(self) -> None:
        super().check()
        if self.background != "auto":
            background_color(self.background)
        for name in ("distortion_weight", "opacity_entropy_weight"):
            if self.fixed_size and getattr(self, name):
                raise ValueError(f"`{name}` must be 0 with `fixed_size`; choose `--no-fixed-size`")


class Nerf(Task):
    """Trains a radiance field on a scene's training views.

    Args:
        config: the recipe.
        scene: the data, in any coordinates.
    """

    name = "nerf"
    metric, preview, splits = "test.psnr_mean", "comparisons/*.png", True
    Config = NerfConfig
    summary = "Trains a radiance field on posed photographs and renders the test views; of a procedural scene if none."
    source_help = "folder of posed photos: transforms.json, COLMAP, LLFF and more, see --format"
    packages: ClassVar[Sequence[str]] = ("imageio.v3", "matplotlib")
    config: NerfConfig
    model: RadianceField

    def __init__(self, config: NerfConfig, scene: Scene) -> None:
        super().__init__(decided(config, scene))
        scene, config = placed(self.config, scene), self.config
        self.model = field_of(config, scene)
        self.scene = scene = add_capture(config.capture, self.model, scene, config.learning_rate, config.seed)
        self.views = add_labels(config.labelling, self.model, scene, config.seed, config.backend)
        self.needs = needed(config, self.model, scene)
        self.sampler = make_sampler(config.sampling, self.model, scene, config.seed, config.backend)
        self.schedule = Schedule(config.learning_rate, config.final_learning_rate, config.decay_start)
        self.n_rays = torch.tensor([min(1024, config.max_rays)])

    @classmethod
    def defaults(cls, field: str | None, device: torch.device, given: set[str]) -> RunConfig:
        config = super().defaults(field, device, given)
        return config if field in (None, "ngp") and ranks.wanted() == 1 else config.replace(fixed_size=False)

    @classmethod
    def folder(cls, source: Path | None, config: NerfConfig) -> str:
        return "procedural_scene" if source is None else scene_name(source)

    @classmethod
    def make(cls, config: NerfConfig, source: Path | None, notes: dict[str, Any]) -> Nerf:
        if config.video:
            optional_import("imageio_ffmpeg")
        source = source or (Path(notes["scene"]) if "scene" in notes else procedural_folder())
        # a run that goes on has learned since, and its start may be gone
        return cls(config.replace(init=None) if notes else config, load_scene(source, config.scene))

    def describe(self) -> str:
        return self.scene.describe()

    def stepper(self, optimizer: Adam) -> Stepper:
        return FixedStep(self, optimizer) if self.config.fixed_size else super().stepper(optimizer)

    def state(self) -> dict[str, Tensor]:
        return {"n_rays": self.n_rays, **self.sampler.state_dict()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.n_rays = state["n_rays"].clone()
        self.sampler.load_state_dict({name: value for name, value in state.items() if name != "n_rays"})
        self.model.fade()

    def notes(self) -> dict[str, Any]:
        return {"scene": str(self.scene.path), "placement": vars(self.scene.placement)}

    def before_step(self, progress: Progress) -> bool:
        has_grown = self.model.grow(progress.fraction)
        self.model.fade(progress.fraction)
        self.sampler.before_step(self.model, progress.step, progress.seconds)
        return has_grown

    def loss(self, progress: Progress) -> Step:
        """Random rays before random colours, of opaque images too: a background that cannot be predicted makes every
        ray end on something."""
        config, n, part = self.config, int(self.n_rays), ranks.part(int(self.n_rays))
        with record_function(DATA):
            batch = self.views.sample_rays(n, config.seed, progress.step, config.backend, self.needs)
            rays, (rgba, background) = batch[0][part].to(self.device), (x[part].to(self.device) for x in batch[1:])
            target = torch.lerp(background, rgba[:, :3], rgba[:, 3:])
        labels = config.labelling.learned(rays, progress.fraction)
        out = render(self.model, self.sampler, rays, None, (config.seed, progress.step, part.start), labels is not None)
        loss, means = objective(config, self.model, out, background, target, labels)
        self.n_rays.fill_(rays_for(config.target_samples, n, ranks.total(out.n_samples), config.max_rays))
        counts = {"samples": out.n_samples, "samples_evaluated": out.n_evaluated, "rays": len(rays)}
        return Step(loss + self.regularization(out, rays), {"mse": means[1]}, counts).times(len(rays) / n)

    def regularization(self, out: Rendered, rays: Rays) -> Tensor | float:
        """What is added to the objective that all fields have."""
        return self.config.depths.of_rays(out.depths, rays, self.scene.train)

    def score(self, optimizer: Adam) -> float:
        return scores.glance(self.model, self.sampler, self.scene.test, self.scene.background(self.config.background))

    def evaluate(self, report: Report) -> dict[str, Any]:
        config, most = self.config, 4 if report.interrupted else len(self.scene.test)
        found = score_capture(self.model, self.sampler, self.scene, config.background, report.out, most, config.scoring)
        plot_test(report.out, report.psnrs, found["test"])
        report.say(scores.describe(found["test"]))
        return {"scene": str(self.scene.path), **found}

    def finish(self, out: Path) -> None:
        if self.config.video:
            background = self.scene.background(self.config.background)
            write_flight(out / "turntable.mp4", self.model, self.sampler, self.scene, background)
