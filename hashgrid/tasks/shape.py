"""``hashgrid shape``: one shape or many as a function of points and of what says which shape it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid.data.shape_pool import CloudRecipe, ShapePool, ShapeSampleRecipe, draw_clouds
from hashgrid.data.shape_set import ShapeSet, ShapeSetConfig, around, load_shapes, surface_clouds
from hashgrid.fields import LATENT_FIELDS
from hashgrid.fields.latent import LatentField, ShapeModel, shapes_of
from hashgrid.rendering.shape_scores import (
    ShapePictureConfig,
    describe,
    ious,
    measure_shapes,
    show_between,
    show_completed,
)
from hashgrid.tasks.shape_fit import FitRecipe, complete, learn_alone
from hashgrid.train.config import RunConfig
from hashgrid.train.groups import adam_groups
from hashgrid.train.losses import of_shape
from hashgrid.train.schedule import Schedule
from hashgrid.train.task import Progress, Report, Step, Task
from hashgrid.util.config import Config


@dataclass(frozen=True)
class ShapeConfig(RunConfig):
    """DeepSDF's auto-decoder (Park et al. 2019) at a size for a few CPU cores. Lengths are in units of the cube
    [0, 1]^3 that holds each shape."""

    fields = LATENT_FIELDS
    default_seconds = 120.0

    field: Config = LATENT_FIELDS["deepsdf"].Config()
    shapes: ShapeSetConfig = ShapeSetConfig()
    samples: ShapeSampleRecipe = ShapeSampleRecipe()
    clouds: CloudRecipe = CloudRecipe()
    fit: FitRecipe = FitRecipe()
    pictures: ShapePictureConfig = ShapePictureConfig()
    shape_batch: int = 8  # shapes per step
    batch: int = 1 << 14  # samples per step, of all shapes
    truncation: float = 0.05  # of distances; 0.1 in a sphere of radius 1
    code_std: float = 0.1  # of the first codes
    code_weight: float = 1e-4  # of the length of codes, after the first tenth of the run
    without_prior: bool = True  # compare completion with a network that knows no other shape

    def check(self) -> None:
        super().check()
        if not 1 <= self.shape_batch <= self.batch:
            raise ValueError(f"`shape_batch` must be in 1..`batch`, got {self.shape_batch} and {self.batch}")
        if self.shapes.n_unseen and LATENT_FIELDS[self.field.name].target == "unsigned":
            raise ValueError(f"`n_unseen` must be 0 for `--field {self.field.name}`, got {self.shapes.n_unseen}")
        if not self.truncation > 0:
            raise ValueError(f"`truncation` must be positive, got {self.truncation}")


class ShapeTask(Task):
    """Trains a field on shapes: with a code for each, or with an encoder of points.

    Args:
        config: the recipe.
        shapes: what to fit.
    """

    name = "shape"
    Config = ShapeConfig
    summary = "Fits one network to a shape or to many; completes, interpolates and meshes them."
    source_help = "mesh, or folder of meshes: OBJ, PLY, STL, OFF or GLB"
    packages = ("igl", "skimage", "scipy", "PIL", "imageio.v3")
    config: ShapeConfig
    model: ShapeModel

    def __init__(self, config: ShapeConfig, shapes: ShapeSet) -> None:
        super().__init__(config)
        self.shapes, config = shapes, self.config
        self.model = ShapeModel(make_field(config), len(shapes.meshes), config.code_std).to(config.device)
        rates = config.field.learning_rate, config.field.final_learning_rate  # type: ignore[attr-defined]
        self.schedule = Schedule(*rates, decay_start=0.3)
        self.samples: Any = None  # ShapePool, to be trained on
        self._clouds = torch.empty(0)

    @classmethod
    def folder(cls, source: Path | None, config: ShapeConfig) -> str:
        return config.shapes.family if source is None else source.resolve().stem

    @classmethod
    def make(cls, config: ShapeConfig, source: Path | None, notes: dict[str, Any]) -> ShapeTask:
        known = notes.get("source")
        source = Path(known) if source is None and known is not None else source
        closed = LATENT_FIELDS[config.field.name].target != "unsigned"
        return cls(config, load_shapes(source, config.shapes, config.seed, closed))

    def describe(self) -> str:
        return self.shapes.describe()

    def notes(self) -> dict[str, Any]:
        return self.shapes.notes()

    def begin(self) -> None:
        config, meshes = self.config, self.shapes.meshes
        self.samples = ShapePool(meshes, config.samples, config.seed, self.device, config.backend)
        if self.model.codes is None:
            self._clouds = surface_clouds(meshes, config.clouds.cloud_pool, config.seed)[0].to(self.device)

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = adam_groups(self.model.field, self.config.weight_decay)
        if self.model.codes is not None:  # those of other shapes stay in a step
            groups.append({"params": [self.model.codes], "skip_zero": True})
        return groups

    def loss(self, progress: Progress) -> Step:
        config, model = self.config, self.model.train()
        torch.manual_seed(config.seed * 1_000_003 + progress.step)  # of dropout, too
        n_shapes = min(config.shape_batch, len(self.shapes.meshes))
        shapes = torch.randperm(len(self.shapes.meshes))[:n_shapes].to(self.device)
        x, distances = self.samples.sample(progress.step, shapes, config.batch // n_shapes)
        penalty: Tensor | float = 0.0
        if model.codes is None:
            latent = model.field.encode(draw_clouds(self._clouds[shapes], config.clouds))
        else:
            latent = model.latents(shapes)
            strength = config.code_weight * min(1.0, 10 * progress.fraction)
            penalty = strength * (latent.flatten(1).square().sum(-1) + 1e-12).sqrt().mean()
        loss = of_shape(model.field.target, model.field(x, latent), distances, config.truncation)
        return Step(loss + penalty, {"fit": loss.detach()}, {"samples": distances.numel()})

    @torch.no_grad()
    def evaluate(self, report: Report) -> dict[str, Any]:
        config, field, meshes = self.config, self.model.field.eval(), self.shapes.meshes
        if self.model.codes is None:
            latent = field.encode(self._cloud(meshes, halves=False)[0])
        else:
            latent = self.model.latents()
        figures = measure_shapes(report.out, shapes_of(field, latent), meshes, config.pictures)
        report.say(describe(figures))
        if len(meshes) > 1 and config.pictures.image_size:
            show_between(report.out, field, latent, config.pictures)
        if self.shapes.unseen and not report.interrupted:
            figures["unseen"] = self.complete(report)
        return {**figures, "parameters": sum(param.numel() for param in field.parameters())}

    def complete(self, report: Report) -> dict[str, Any]:
        """Completes shapes that were kept back from half of their surface; with and without what was learned."""
        config, field, meshes = self.config, self.model.field, self.shapes.unseen
        clouds, normals = self._cloud(meshes, halves=True)
        seen = *around(clouds, normals, 1 << 14, seed=config.seed), config.fit, config.truncation, clouds, config.seed
        with torch.enable_grad():
            found = {"completed": complete(field, *seen, trained=self.model.trained())}
            if config.without_prior:
                rate = config.field.learning_rate  # type: ignore[attr-defined]
                found["without the prior"] = learn_alone(lambda: make_field(config), rate, *seen)
        n = config.pictures.iou_points
        figures: dict[str, Any] = {name: ious(shapes, meshes, n) for name, shapes in found.items()}
        if self.model.codes is None:
            whole = shapes_of(field, field.encode(self._cloud(meshes, halves=False)[0]))
            figures["whole cloud"] = ious(whole, meshes, n)
        else:
            codes = self.model.latents()[torch.arange(len(meshes)) % len(self.shapes.meshes)]
            figures["code of another"] = ious(shapes_of(field, codes), meshes, n)
        report.say(", ".join(f"{name} IoU {sum(x) / len(x):.3f}" for name, x in figures.items()))
        if config.pictures.image_size:
            show_completed(report.out, clouds, found, meshes, config.pictures)
        return {name: {"iou": sum(x) / len(x), "shapes": x} for name, x in figures.items()}

    def _cloud(self, meshes: list[Any], halves: bool) -> tuple[Tensor, Tensor]:
        clouds, normals = surface_clouds(meshes, self.config.clouds.n_points, self.config.seed + 1, halves)
        return clouds.to(self.device), normals.to(self.device)


def make_field(config: ShapeConfig) -> LatentField:
    """The field that ``config.field`` is the options of, with parameters that ``config.seed`` gives."""
    torch.manual_seed(config.seed)
    return LATENT_FIELDS[config.field.name](config.field, config.backend)  # type: ignore[call-arg]
