"""``hashgrid sdf``: a signed distance field from a mesh or from points, and a mesh from the field."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid.data.distances import DistanceRecipe
from hashgrid.data.pools import DistancePool, PointPool, PointRecipe
from hashgrid.data.shape import Shape, load_shape, noted_placement, recall_shape
from hashgrid.fields import DISTANCE_FIELDS
from hashgrid.fields.distance import DistanceField
from hashgrid.geometry.boxes import Placement
from hashgrid.nn.hash_grid import keep_gradients, levels_on
from hashgrid.optim import Adam
from hashgrid.rendering.measure import RunningIou, describe, measure
from hashgrid.rendering.shape_views import PictureConfig, write_pictures, write_surface
from hashgrid.train.config import RunConfig
from hashgrid.train.loop import load_model
from hashgrid.train.losses import DistanceLosses
from hashgrid.train.run import read_checkpoint
from hashgrid.train.schedule import Schedule
from hashgrid.train.task import Progress, Report, Step, Task
from hashgrid.util.config import Config
from hashgrid.util.optional import optional_import


@dataclass(frozen=True)
class SdfConfig(RunConfig):
    """Instant-NGP's recipe (Müller et al. 2022, section 5.2) with batch and rates for a few CPU cores. Lengths are in
    units of the cube [0, 1]^3 that holds the shape."""

    fields = DISTANCE_FIELDS
    default_seconds = 30.0

    field: Config = DISTANCE_FIELDS["grid"].Config()
    points: Path | None = None  # fit points, best with normals, instead of SOURCE: PLY, XYZ, TXT or NPZ
    truth: Path | None = None  # mesh to compare with, in the coordinates of the input
    margin: float = 0.1  # between the shape and the sides of the cube
    distances: DistanceRecipe = DistanceRecipe()
    cloud: PointRecipe = PointRecipe()
    losses: DistanceLosses = DistanceLosses()
    pictures: PictureConfig = PictureConfig()
    batch: int = 1 << 15  # samples of a mesh per step
    coarse_to_fine: float = 0.0  # of the run, until all levels are on; 0 for all from the start
    coarse_levels: int = 2  # on from the start
    ema_decay: float = 0.95  # of the averaged weights

    @classmethod
    def defaults(cls, field: str = "grid", from_points: bool = False) -> SdfConfig:
        """Defaults of a field for a mesh, or for oriented points without distances: for these a smooth grid, no finer
        than the points are dense, that is positive at first, so that the inside grows from the points and not from
        anywhere else."""
        kind, config = DISTANCE_FIELDS[field], cls()
        if from_points:
            config = config.replace(coarse_to_fine=0.4, eikonal_weight=1.0)
        return config.replace(field=kind.Config(), **(kind.recipe_for_points if from_points else kind.recipe))

    def check(self) -> None:
        super().check()
        if self.batch < 1:
            raise ValueError(f"`batch` must be at least 1, got {self.batch}")
        if not 0 <= self.margin < 0.5:
            raise ValueError(f"`margin` must be in [0, 0.5), got {self.margin}")


class Sdf(Task):
    """Fits a field to the distances from a mesh, or to points with normals.

    Args:
        config: the recipe.
        shape: what to fit.
    """

    name = "sdf"
    metric = "iou"
    preview = "strip.png"
    Config = SdfConfig
    summary = "Fits a signed distance field to a mesh or to points, and makes a mesh of it; without either to a knot."
    source_help = "mesh: OBJ, PLY, STL, OFF or GLB"
    packages = ("igl", "skimage", "scipy", "PIL", "imageio.v3")
    config: SdfConfig
    model: DistanceField

    def __init__(self, config: SdfConfig, shape: Shape) -> None:
        super().__init__(config)
        self.shape, config = shape, self.config
        self.model = make_field(config).to(config.device)
        rates = config.field.learning_rate, config.field.final_learning_rate  # type: ignore[attr-defined]
        self.schedule = Schedule(*rates, decay_start=0.2)
        self.ema_decay = config.ema_decay
        self.samples: Any = None  # DistancePool or PointPool, to be trained on
        self._monitor = None if shape.mesh is None or shape.mesh.doubt else RunningIou(shape.mesh)

    @classmethod
    def defaults(cls, field: str | None, device: torch.device, given: set[str]) -> RunConfig:
        return SdfConfig.defaults(field or "grid", "--points" in given)

    @classmethod
    def folder(cls, source: Path | None, config: SdfConfig) -> str:
        source = config.points if source is None else source
        return "torus_knot" if source is None else source.stem

    @classmethod
    def make(cls, config: SdfConfig, source: Path | None, notes: dict[str, Any]) -> Sdf:
        if config.pictures.mesh_format == "glb":
            optional_import("trimesh")
        if config.pictures.video:
            optional_import("imageio_ffmpeg")
        files = source, config.points, config.truth, config.margin
        return cls(config, recall_shape(notes, *files) if notes else load_shape(*files))

    def describe(self) -> str:
        return self.shape.describe()

    def notes(self) -> dict[str, Any]:
        return self.shape.notes()

    def begin(self) -> None:
        config, shape = self.config, self.shape
        how = config.seed, self.device, config.backend
        if shape.cloud is not None:
            self.samples = PointPool(shape.cloud, config.cloud, *how)
        else:
            assert shape.mesh is not None
            self.samples = DistancePool(shape.mesh, config.distances, *how, refreshed=config.time_limit is not None)
        keep_gradients(self.model)

    def state(self) -> dict[str, Tensor]:
        return self.samples.state() if isinstance(self.samples, DistancePool) else {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        if isinstance(self.samples, DistancePool):
            self.samples.load_state(state)

    def level_weights(self, fraction: float) -> Tensor | None:
        """Weights [n_levels] of the field's levels, one level after the other; None once all are on."""
        share = fraction / self.config.coarse_to_fine if self.config.coarse_to_fine else 1.0
        return levels_on(self.model.n_levels, self.config.coarse_levels, share, self.device)

    def loss(self, progress: Progress) -> Step:
        config, weights = self.config, self.level_weights(progress.fraction)
        if isinstance(self.samples, PointPool):
            points = self.samples.sample(progress.step)
            loss, n = config.losses.of_points(self.model, points, weights), len(points.x)
        else:
            x, distances = self.samples.sample(config.batch, progress.step)
            loss, n = config.losses.of_distances(self.model, x, distances, weights), len(x)
        return Step(loss, {}, {"samples": n})

    def headline(self, progress: Progress) -> str:
        overlap = "" if self._monitor is None else f" IoU {self._monitor(self.model, progress.seconds):.4f}"
        return super().headline(progress) + overlap

    def score(self, optimizer: Adam) -> float:
        with optimizer.swap_ema():
            return math.nan if self._monitor is None else self._monitor(self.model, math.inf)

    def evaluate(self, report: Report) -> dict[str, Any]:
        config, field, shape = self.config, self.model.requires_grad_(False), self.shape
        begin = time.perf_counter()
        path, vertices, faces = write_surface(report.out, field, shape.placement, config.pictures)
        extract = {"seconds": time.perf_counter() - begin, "vertices": len(vertices), "faces": len(faces)}
        figures = measure(field, vertices.double().numpy(), faces.numpy(), shape)
        report.say(describe(figures, len(faces)))
        figures |= {"scale": shape.placement.unit, "offset": shape.placement.origin}
        figures |= {"input": str(shape.path), "mesh": str(path), "extract": extract}
        if len(vertices):
            pictures = config.pictures.replace(video=False) if report.interrupted else config.pictures
            figures["pictures"] = write_pictures(report.out, field, vertices, shape, pictures, config.backend)
        return figures

    def close(self) -> None:
        if isinstance(self.samples, DistancePool):
            self.samples.close()


def make_field(config: SdfConfig) -> DistanceField:
    """The field that ``config.field`` is the options of, with parameters that ``config.seed`` gives."""
    torch.manual_seed(config.seed)
    return DISTANCE_FIELDS[config.field.name](config.field, config.backend)  # type: ignore[call-arg]


def load_field(path: str | Path) -> tuple[DistanceField, Placement]:
    """The field in a checkpoint of ``hashgrid sdf``, on the CPU, and the place of its cube in the input.

    Raises:
        ValueError: there is no such file, it is damaged, or it holds something else.
    """
    tensors, metadata = read_checkpoint(Path(path), Sdf)
    config = SdfConfig.from_dict({**metadata["config"], "device": "cpu"}, f"`{path}`")
    with torch.random.fork_rng(devices=[]):
        field = make_field(config)
    load_model(field, tensors, averaged=True)
    return field, noted_placement(metadata["notes"])
