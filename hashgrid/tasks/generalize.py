"""``hashgrid generalize``: a radiance field that is learned across scenes, and shows others by three views of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid.data.errors import SceneError
from hashgrid.data.scene import Scene, SceneOptions
from hashgrid.data.scene_families import FamilyOptions, SceneFamily, generated_scenes, scenes_of
from hashgrid.fields import RADIANCE_FIELDS
from hashgrid.fields.source_views import SourceField
from hashgrid.geometry.rays import Rays
from hashgrid.maths import pixel_colors
from hashgrid.rendering.choices import make_sampler
from hashgrid.rendering.samplers import SamplerConfig
from hashgrid.rendering.unseen_scores import score_unseen, see
from hashgrid.rendering.volume import render
from hashgrid.train.config import RunConfig
from hashgrid.train.schedule import Schedule
from hashgrid.train.task import Progress, Report, Step, Task
from hashgrid.util.config import Config

WHITE = torch.ones(3)


@dataclass(frozen=True)
class GeneralizeConfig(RunConfig):
    """Defaults of learning across scenes."""

    fields = {name: kind for name, kind in RADIANCE_FIELDS.items() if issubclass(kind, SourceField)}
    default_seconds = 900.0

    field: Config = RADIANCE_FIELDS["pixelnerf"].Config()
    family: FamilyOptions = FamilyOptions()
    scene: SceneOptions = SceneOptions()
    sources: int = 3  # views that a scene is seen by: as many when it is judged, one to as many in training
    scenes_per_step: int = 4
    rays: int = 256  # per step, of all its scenes together
    learning_rate: float = 1e-3  # after the first steps
    final_learning_rate: float = 1e-4  # at the end of a run
    decay_start: float = 0.5  # progress at which the exponential decay begins

    def check(self) -> None:
        super().check()
        for name in ("sources", "scenes_per_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.rays < self.scenes_per_step:
            raise ValueError(f"`rays` must be at least `scenes_per_step`, got {self.rays} and {self.scenes_per_step}")


class Generalize(Task):
    """Trains a field on rays of some views of a scene by others, another scene each time.

    Args:
        config: the recipe.
        family: the scenes.
        source: their folder, if they are not generated.
    """

    name = "generalize"
    Config = GeneralizeConfig
    summary = "Trains one radiance field across scenes, and renders scenes it has not seen by three views of each."
    source_help = "folder of scenes, each a folder of posed photos; random primitives if none"
    packages = ("PIL", "imageio.v3")
    metric = "test.psnr_mean"
    preview = "unseen/*.png"
    config: GeneralizeConfig
    model: SourceField

    def __init__(self, config: GeneralizeConfig, family: SceneFamily, source: Path | None = None) -> None:
        super().__init__(config)
        self.family, self.source, config = family, source, self.config
        kind: Any = RADIANCE_FIELDS[config.field.name]
        self.model = kind(config.field, family.aabb, 1, config.backend).to(config.device)
        self.sampler = make_sampler(SamplerConfig(), self.model, family.unseen[0], config.seed, config.backend)
        self.schedule = Schedule(config.learning_rate, config.final_learning_rate, config.decay_start)

    @classmethod
    def defaults(cls, field: str | None, device: torch.device, given: set[str]) -> RunConfig:
        """The recipe is that of the task: fields' own are for one scene."""
        config = cls.Config.for_device(device)
        return config.replace(field=cls.Config.fields[field].Config()) if field in cls.Config.fields else config

    @classmethod
    def folder(cls, source: Path | None, config: Any) -> str:
        return f"{config.field.name}_{'primitives' if source is None else source.resolve().stem}"

    @classmethod
    def make(cls, config: GeneralizeConfig, source: Path | None, notes: dict[str, Any]) -> Generalize:
        source = Path(notes["folder"]) if source is None and notes.get("folder") else source
        if source is None:
            return cls(config, generated_scenes(config.family, config.sources))
        return cls(config, scenes_of(source, config.family, config.sources, config.scene), source)

    def describe(self) -> str:
        return f"{self.family.name}: {self.family.n_known} scenes to learn from, {len(self.family.unseen)} others"

    def notes(self) -> dict[str, Any]:
        return {"folder": None if self.source is None else str(self.source.resolve())}

    def begin(self) -> None:
        few = [scene.path for scene in self.family.known if len(scene.train) < 2]  # makes them now, not in a step
        if few:
            raise SceneError(f"`SOURCE` must be scenes of at least two training views, {few[0]} has one")

    def loss(self, progress: Progress) -> Step:
        """The mean squared error of rays before random colours, so that opacities are learned, too."""
        config, step = self.config, progress.step
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        chosen = torch.randint(len(self.family.known), (config.scenes_per_step,), generator=generator).tolist()
        errors, n_samples = list[Tensor](), 0
        for i, number in enumerate(chosen):
            rays, rgba = self.draw(self.family.known[number], config.rays // len(chosen), generator)
            behind = torch.rand(len(rgba), 3, generator=generator)
            target, behind = (x.to(self.device) for x in (torch.lerp(behind, rgba[:, :3], rgba[:, 3:]), behind))
            out = render(self.model, self.sampler, rays, behind, (config.seed, step * len(chosen) + i))
            errors.append((out.colors - target).square().mean())
            n_samples += out.n_samples
        loss = torch.stack(errors).mean()
        return Step(loss, {"mse": loss.detach()}, {"samples": n_samples, "rays": config.rays})

    def draw(self, scene: Scene, n: int, generator: torch.Generator) -> tuple[Rays, Tensor]:
        """Shows the field one to ``sources`` views of a scene; ``n`` rays of its other views, and their RGBA [n, 4]."""
        views, most = scene.train, min(self.config.sources, len(scene.train) - 1)
        order = torch.randperm(len(views), generator=generator)
        n_sources = int(torch.randint(1, most + 1, (1,), generator=generator))
        see(self.model, views, WHITE, numbers=order[:n_sources].tolist())
        view = order[n_sources:][torch.randint(len(views) - n_sources, (n,), generator=generator)]
        size = views.sizes[view]
        x, y = (torch.rand(n, 2, generator=generator) * size).long().unbind(1)
        rays, rgba = views.rays(view, x, y), pixel_colors(views.data, views.offsets[view] + y * size[:, 0] + x)
        return Rays(rays.origins, rays.directions).to(self.device), rgba

    @torch.no_grad()
    def evaluate(self, report: Report) -> dict[str, Any]:
        n = 2 if report.interrupted else None
        found = score_unseen(self.model, self.sampler, self.family.unseen, WHITE, report.out, n)
        known = {"the nearest source": "psnr_nearest", "the mean of sources": "psnr_average"}
        known |= {"by pictures of another scene": "psnr_of_other"}
        beside = [f"{name} {found[key]:.2f}" for name, key in known.items() if found[key] is not None]
        report.say(f"{len(found['scenes'])} unseen scenes: PSNR {found['psnr_mean']:.2f} dB; {', '.join(beside)}")
        return {"family": self.family.name, "test": found}
