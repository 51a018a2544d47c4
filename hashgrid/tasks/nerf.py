"""``hashgrid nerf``: a radiance field from posed photographs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.profiler import record_function

from hashgrid.data.procedural import procedural_folder
from hashgrid.data.scene import Scene, load_scene
from hashgrid.data.transforms import scene_name
from hashgrid.fields import RADIANCE_FIELDS
from hashgrid.fields.base import RadianceField
from hashgrid.geometry.cameras import orbit
from hashgrid.nn import OccupancyGrid
from hashgrid.ops._backend import ngp_ops
from hashgrid.optim import Adam
from hashgrid.rendering import scores
from hashgrid.rendering.samplers import OccupancyUpdates, Rendered, make_sampler
from hashgrid.rendering.volume import render, render_image
from hashgrid.tasks.nerf_graph import FixedStep
from hashgrid.train.config import RunConfig
from hashgrid.train.loop import Progress, Step, Stepper
from hashgrid.train.profile import DATA
from hashgrid.train.report import plot_curve
from hashgrid.train.run import Command
from hashgrid.train.schedule import Schedule
from hashgrid.util.config import Config
from hashgrid.util.optional import optional_import
from hashgrid.util.pictures import background_color, hex_color, write_video

UPDATES = ("interval", "warmup_steps", "uniform", "occupied", "time_share")  # options of occupancy updates


@dataclass(frozen=True)
class NerfConfig(RunConfig):
    """Instant-NGP's recipe (Müller et al. 2022) with batch, schedule and update rates for a few CPU cores; a GPU has
    its own."""

    choices: ClassVar[Mapping[str, Mapping[str, type]]] = {"field": RADIANCE_FIELDS}
    default_seconds = 240.0

    field: Config = RADIANCE_FIELDS["ngp"].Config()
    sampler: Literal["auto", "occupancy", "stratified", "coarse_to_fine"] = "auto"  # where a field is asked; its own
    background: str = "auto"  # of test images: white, black, grey, #rrggbb or R,G,B; auto: what opaque images had
    downscale: int = 1  # factor by which images are reduced
    holdout: int = 8  # distance of test views in a scene without a split; 0 for none
    test_split: Literal["test", "val"] = "test"  # which of a scene's splits is tested
    cut_out_backdrop: bool = True  # take one colour around the object in all opaque images as transparent
    allow_huge: bool = False  # read images of more than 179 million pixels
    views: int | None = None  # evaluate only so many test views, evenly spread
    video: bool = True  # write a turntable
    target_samples: int = 1 << 15  # samples that count, per step; the number of rays follows
    max_rays: int = 1 << 14  # per step
    steps_per_diagonal: int = 512  # step = sqrt(3) / this, in units of the innermost box; 1024 on a GPU
    early_stop_eps: float = 1e-4  # transmittance below which nothing counts
    fixed_size: bool = False  # steps of exactly `target_samples`, from which nothing is read back: for GPUs
    cuda_graph: bool = True  # record steps of fixed size on a GPU, and replay them
    learning_rate: float = 2e-2
    final_learning_rate: float = 3e-4
    decay_start: float = 0.3  # progress at which the exponential decay begins
    weight_decay: float = 1e-6  # of networks
    huber_delta: float = 0.1  # error from which the loss grows linearly
    distortion_weight: float = 0.0  # of the distortion of weights along rays (Barron et al. 2022)
    occupancy_resolution: int = 128  # cells per axis
    occupancy_interval: int = 16  # steps between two updates
    occupancy_warmup_steps: int = 256  # the time share is not looked at before
    occupancy_uniform: float = 1 / 16  # share of all cells evaluated per update; 1/4 on a GPU
    occupancy_occupied: float = 1 / 16  # as many of the occupied ones
    occupancy_time_share: float = 0.08  # of a run, at most

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
        if self.views is not None and self.views < 0:
            raise ValueError(f"`views` must be at least 0, got {self.views}")
        if self.fixed_size and self.distortion_weight:
            raise ValueError("`distortion_weight` must be 0 with `fixed_size`; choose `--no-fixed-size`")


class Nerf(Command):
    """Trains a radiance field on a scene's training views.

    Args:
        config: the recipe.
        scene: the data, in any coordinates.
    """

    name = "nerf"
    Config = NerfConfig
    summary = (
        "Trains a radiance field on posed photographs and renders the test views; without SOURCE of a procedural scene."
    )
    source_help = "folder that holds transforms*.json"
    packages = ("safetensors", "imageio.v3", "matplotlib", "tqdm")
    config: NerfConfig
    model: RadianceField

    def __init__(self, config: NerfConfig, scene: Scene) -> None:
        scene, config = scene.normalized(), config.on_device()
        device = torch.device(config.device)
        if hasattr(config.field, "resolved"):
            config = config.replace(field=config.field.resolved(config.backend, device))
        self.config, self.scene = config, scene
        torch.manual_seed(config.seed)
        kind = RADIANCE_FIELDS[config.field.name]
        self.model = kind(config.field, scene.outer_aabb, scene.n_cascades, config.backend).to(device)  # type: ignore[call-arg,arg-type]
        self.sampler = make_sampler(
            self.model.sampler if config.sampler == "auto" else config.sampler,
            self._grid(),
            step_size=float((scene.aabb[3:] - scene.aabb[:3]).max()) * 3**0.5 / config.steps_per_diagonal,
            cone_angle=scene.cone_angle,
            near=scene.near,
            early_stop_eps=config.early_stop_eps,
            updates=OccupancyUpdates(config.seed, *(getattr(config, f"occupancy_{name}") for name in UPDATES)),
            n_samples=getattr(config.field, "n_coarse", 64),
            n_fine=getattr(config.field, "n_fine", 64),
        ).to(device)
        self.schedule = Schedule(config.learning_rate, config.final_learning_rate, config.decay_start)
        # what the kernel of a GPU does not draw is drawn on the host: distorted without a table, or masked
        drawn_by_kernel = scene.train.rays_are_tabulated and scene.train.counts is None
        to_device = device.type != "cpu" and _images_fit(scene, device) and drawn_by_kernel
        self.views = scene.train.to(device) if to_device else scene.train
        self.n_rays = torch.tensor([min(1024, config.max_rays)])

    @classmethod
    def defaults(cls, field: str | None, device: torch.device, given: set[str]) -> RunConfig:
        config = NerfConfig.for_device(device)
        kind = RADIANCE_FIELDS[field or "ngp"]
        if kind.Config is not type(config.field):
            config = config.replace(field=kind.Config(), fixed_size=False, **kind.recipe)
        return config

    @classmethod
    def folder(cls, source: Path | None, config: RunConfig) -> str:
        return "procedural_scene" if source is None else scene_name(source)

    @classmethod
    def make(cls, config: RunConfig, source: Path | None, notes: dict[str, Any]) -> Nerf:
        assert isinstance(config, NerfConfig)
        if config.video:
            optional_import("imageio_ffmpeg")
        if source is None:
            source = Path(notes["scene"]) if "scene" in notes else procedural_folder()
        names = ("test_split", "holdout", "downscale", "cut_out_backdrop", "allow_huge")
        return cls(config, load_scene(source, **{name: getattr(config, name) for name in names}))

    def _grid(self) -> OccupancyGrid:
        """An occupancy grid that knows what no camera sees."""
        config, scene, train = self.config, self.scene, self.scene.train
        grid = OccupancyGrid(scene.aabb, config.occupancy_resolution, scene.n_cascades, config.backend)
        grid.to(config.device).mark_invisible_cells(train.c2w, train.intrinsics, train.sizes, near=scene.near)
        return grid

    def describe(self) -> str:
        return self.scene.describe()

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.model.parameter_groups(self.config.weight_decay)

    def stepper(self, optimizer: Adam) -> Stepper | None:
        if not self.config.fixed_size:
            return None
        return FixedStep(self, optimizer)

    def state(self) -> dict[str, Tensor]:
        return {"n_rays": self.n_rays, **self.sampler.state_dict()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.n_rays = state["n_rays"].clone()
        self.sampler.load_state_dict({name: value for name, value in state.items() if name != "n_rays"})

    def notes(self) -> dict[str, Any]:
        return {"scene": str(self.scene.path), "placement": vars(self.scene.placement)}

    def before_step(self, progress: Progress) -> None:
        self.sampler.before_step(self.model, progress.step, progress.seconds)

    def loss(self, progress: Progress) -> Step:
        """Random rays before random colours, of opaque images too: a background that cannot be predicted makes every
        ray end on something."""
        config, n = self.config, int(self.n_rays)
        with record_function(DATA):
            batch = self.views.sample_rays(n, config.seed, progress.step, config.backend, self.model.needs)
            rays, (rgba, background) = batch[0].to(self.device), (x.to(self.device) for x in batch[1:])
            target = torch.lerp(background, rgba[:, :3], rgba[:, 3:])
        out = render(self.model, self.sampler, rays, None, (config.seed, progress.step))
        loss, means = self.photometric(out, background, target)
        loss = loss + self.regularization(out)
        if out.coarse is not None:
            loss = loss + self.photometric(out.coarse, background, target)[0]
        self._adapt_rays(out.n_samples)
        counts = {"samples": out.n_samples, "samples_evaluated": out.n_evaluated, "rays": n}
        return Step(loss, {"mse": means[1]}, counts)

    def photometric(self, out: Rendered, background: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Huber loss of colours over the background, and its mean and that of the squared error [2]."""
        pixel_loss = ngp_ops(self.config.backend).pixel_loss
        return pixel_loss(out.colors, out.opacities, background, target, self.config.huber_delta)

    def regularization(self, out: Rendered) -> Tensor | float:
        """What is added to the photometric loss."""
        weight = self.config.distortion_weight
        return weight * out.distortion.mean() if weight else 0.0

    def _adapt_rays(self, n_samples: int) -> None:
        """The next batch aims at ``target_samples`` samples that count."""
        n = int(self.n_rays)
        wanted = n * self.config.target_samples / max(n_samples, 1)
        bounded = min(max(wanted, n / 2), n * 2, self.config.max_rays)
        self.n_rays.fill_(max(64, int(bounded) // 64 * 64))

    def headline(self, progress: Progress) -> str:
        return f"loss {progress.loss:.4f} PSNR {progress.psnr:.2f} dB"

    def evaluate(
        self, out: Path, progress: Progress, curve: list[dict[str, float]], interrupted: bool
    ) -> dict[str, Any]:
        config, scene = self.config, self.scene
        n_test = len(scene.test)
        n_views = n_test if config.views is None else min(config.views, n_test)
        n_views = min(n_views, 4) if interrupted else n_views
        indices = [i * n_test // n_views for i in range(n_views)] if n_views else []
        background = scene.background(config.background)
        with optional_import("tqdm").tqdm(total=len(indices), desc="test views", unit="view") as bar:

            def show(text: str) -> None:
                bar.set_postfix_str(text, refresh=False)
                bar.update()

            test = scores.evaluate(self.model, self.sampler, scene.test, background, out, indices, show)
        points = [(point["seconds"], -10 * math.log10(max(point.get("mse", 1.0), 1e-10))) for point in curve]
        plot_curve(out / "psnr_over_time.png", points, "PSNR [dB]", test["psnr_mean"], "test views")
        trained = f"trained {progress.step} steps, {progress.samples / 1e6:.1f} M samples in {progress.seconds:.1f} s"
        if indices:
            print(f"{scores.describe(test)}; {trained}", flush=True)
        protocol = {
            "background": hex_color(background.tolist()) if config.background == "auto" else config.background,
            "color": "sRGB, blended and compared in sRGB, 8 bits, clipped",
            "test_views": scene.split,
        }
        return {"scene": str(scene.path), "test": {**test, "views_total": n_test}, "protocol": protocol}

    def finish(self, out: Path) -> None:
        """Writes a flight around the scene."""
        if not self.config.video:
            return
        cameras = orbit(self.scene.train, self.scene.up, 48).to(self.device)
        background = self.scene.background(self.config.background).to(self.device)
        tqdm = optional_import("tqdm").tqdm
        views = tqdm(range(len(cameras)), desc="turntable", unit="frame")
        frames = (render_image(self.model, self.sampler, cameras, view, background)[0] for view in views)
        write_video(out / "turntable.mp4", frames)


def _images_fit(scene: Scene, device: torch.device) -> bool:
    """Whether the training images take less than half of the device's free memory."""
    return device.type != "cuda" or scene.train.data.numel() < torch.cuda.mem_get_info(device)[0] / 2
