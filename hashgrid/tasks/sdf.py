"""``hashgrid sdf``: a signed distance field from a mesh or from points, and a mesh from the field."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.distance_pool import DistancePool
from hashgrid.data.distances import DistanceRecipe
from hashgrid.data.mesh import Placement, load_mesh
from hashgrid.data.mesh_files import write_mesh
from hashgrid.data.points import PointPool, PointRecipe
from hashgrid.data.shape import Shape, load_shape, placed
from hashgrid.fields import DISTANCE_FIELDS
from hashgrid.fields.distance import DistanceField
from hashgrid.nn import HashGrid
from hashgrid.rendering import shape_views
from hashgrid.rendering.extract import to_mesh
from hashgrid.rendering.measure import RunningIou, describe, measure
from hashgrid.train import losses
from hashgrid.train.config import RunConfig
from hashgrid.train.loop import Progress, Step, load_model
from hashgrid.train.run import Command, read_checkpoint
from hashgrid.train.schedule import Schedule
from hashgrid.util.config import Config
from hashgrid.util.files import atomic_write_image
from hashgrid.util.optional import optional_import

CHUNK = 1 << 18  # points evaluated together


@dataclass(frozen=True)
class SdfConfig(RunConfig):
    """Instant-NGP's recipe (Müller et al. 2022, section 5.2) with batch and rates for a few CPU cores. Lengths are in
    units of the cube [0, 1]^3 that holds the shape."""

    choices: ClassVar[Mapping[str, Mapping[str, type]]] = {"field": DISTANCE_FIELDS}
    default_seconds = 30.0

    field: Config = DISTANCE_FIELDS["grid"].Config()
    points: Path | None = None  # fit points, best with normals, instead of SOURCE: PLY, XYZ, TXT or NPZ
    truth: Path | None = None  # mesh to compare with, in the coordinates of the input
    margin: float = 0.1  # between the shape and the sides of the cube
    distances: DistanceRecipe = DistanceRecipe()
    cloud: PointRecipe = PointRecipe()
    batch: int = 1 << 15  # samples of a mesh per step
    loss: Literal["mape", "truncated_l1"] = "mape"  # of distances
    mape_offset: float = 0.01  # |error| / (|distance| + this)
    truncation: float = 0.1  # of distances, for truncated_l1
    point_loss: Literal["siren", "igr"] = "siren"  # of points without distances
    gradient_step: float = 0.001  # of finite differences for gradients in the loss of points; 0 for exact ones
    eikonal_weight: float = 0.0  # of the eikonal term
    eikonal_share: float = 0.125  # of the batch of a mesh, where the eikonal term is on
    sign_weight: float = 100.0  # of points on the wrong side, by the winding number of the cloud; 0 for none
    surface_weight: float = 30.0  # of points on the surface
    normal_weight: float = 1.0  # of normals
    off_surface_weight: float = 0.1  # of surface far from all points
    off_surface_sharpness: float = 20.0
    coarse_to_fine: float = 0.0  # of the run, until all levels are on; 0 for all from the start
    coarse_levels: int = 2  # on from the start
    weight_decay: float = 1e-6  # of networks
    ema_decay: float = 0.95  # of the averaged weights
    resolution: int = 256  # cells per side of the extracted mesh
    mesh_format: Literal["ply", "glb"] = "ply"
    up: Literal["auto", "x", "y", "z"] = "auto"  # axis that is up in pictures; auto is z for STL, else y
    image_size: int = 640  # pixels per side of the stills
    video: bool = True  # write a turntable
    n_frames: int = 48  # of the turntable
    video_size: int = 400  # pixels per side of the turntable; even

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
        for name in ("resolution", "image_size", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.video_size < 2 or self.video_size % 2:
            raise ValueError(f"`video_size` must be even, got {self.video_size}")
        if not 0 <= self.margin < 0.5:
            raise ValueError(f"`margin` must be in [0, 0.5), got {self.margin}")


class Sdf(Command):
    """Fits a field to the distances from a mesh, or to points with normals.

    Args:
        config: the recipe.
        shape: what to fit.
    """

    name = "sdf"
    Config = SdfConfig
    summary = "Fits a signed distance field to a mesh or to points, and makes a mesh of it; without either to a knot."
    source_help = "mesh: OBJ, PLY, STL, OFF or GLB"
    packages = ("igl", "skimage", "scipy", "PIL", "imageio.v3", "safetensors", "tqdm")
    config: SdfConfig
    model: DistanceField

    def __init__(self, config: SdfConfig, shape: Shape) -> None:
        self.config = config = config.on_device()
        self.shape = shape
        self.model = make_field(config).to(config.device)
        rates = config.field.learning_rate, config.field.final_learning_rate  # type: ignore[attr-defined]
        self.schedule = Schedule(*rates, decay_start=0.2)
        self.ema_decay = config.ema_decay
        self.samples: DistancePool | PointPool | None = None
        self._monitor = None if shape.mesh is None or shape.mesh.doubt else RunningIou(shape.mesh)

    @classmethod
    def defaults(cls, field: str | None, device: torch.device, given: set[str]) -> RunConfig:
        return SdfConfig.defaults(field or "grid", "--points" in given)

    @classmethod
    def folder(cls, source: Path | None, config: RunConfig) -> str:
        assert isinstance(config, SdfConfig)
        source = config.points if source is None else source
        return "torus_knot" if source is None else source.stem

    @classmethod
    def make(cls, config: RunConfig, source: Path | None, notes: dict[str, Any]) -> Sdf:
        assert isinstance(config, SdfConfig)
        if config.mesh_format == "glb":
            optional_import("trimesh")
        if config.video:
            optional_import("imageio_ffmpeg")
        if not notes:
            return cls(config, load_shape(source, config.points, config.truth, config.margin))
        placement = _placement(notes)
        known = Path(notes["input"])
        if source is None and config.points is None and known.is_file() and notes["kind"] == "mesh":
            source = known
        if source is not None or (config.points is not None and config.points.is_file()):
            return cls(config, load_shape(source, config.points, config.truth, config.margin, placement))
        print(f"{known} is not there: nothing to compare with; give SOURCE or --truth", flush=True)
        shape = Shape(known, notes["name"], placement)
        if config.truth is not None:
            shape.mesh = placed(load_mesh(config.truth), placement)
        return cls(config, shape)

    def describe(self) -> str:
        return self.shape.describe()

    def notes(self) -> dict[str, Any]:
        placement = {"scale": float(self.shape.placement.scale), "offset": self.shape.placement.offset.tolist()}
        kind = "mesh" if self.shape.cloud is None else "points"
        return {"input": str(self.shape.path.resolve()), "name": self.shape.name, "kind": kind, "placement": placement}

    def begin(self) -> None:
        config, device = self.config, self.device
        if self.shape.cloud is not None:
            self.samples = PointPool(self.shape.cloud, config.cloud, config.seed, device, config.backend)
        else:
            assert self.shape.mesh is not None
            refreshed = config.steps is None or config.time_limit is not None
            self.samples = DistancePool(
                self.shape.mesh, config.distances, config.seed, device, refreshed, config.backend
            )
        for module in self.model.modules():
            if isinstance(module, HashGrid):  # no fresh pages for a gradient in every step
                module.accumulate_grad = True

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.model.parameter_groups(self.config.weight_decay)

    def level_weights(self, fraction: float) -> Tensor | None:
        """Weights [n_levels] of the field's levels, one level after the other; None once all are on."""
        config, n_levels = self.config, self.model.n_levels
        if n_levels == 0 or fraction >= config.coarse_to_fine:
            return None
        coarse = min(config.coarse_levels, n_levels)
        on = coarse + fraction / config.coarse_to_fine * (n_levels - coarse)
        return (on - torch.arange(n_levels, device=self.device)).clamp(0, 1)

    def loss(self, progress: Progress) -> Step:
        weights = self.level_weights(progress.fraction)
        if isinstance(self.samples, PointPool):
            loss, n = self._loss_of_points(self.samples, progress.step, weights)
        else:
            assert self.samples is not None
            loss, n = self._loss_of_distances(self.samples, progress.step, weights)
        return Step(loss, {}, {"samples": n})

    def _loss_of_distances(self, samples: DistancePool, step: int, weights: Tensor | None) -> tuple[Tensor, int]:
        config, field = self.config, self.model
        points, target = samples.sample(config.batch, step)
        # the gradient costs three times the distance; samples are random, so that any part of them will do
        n_eikonal = round(config.batch * config.eikonal_share) if config.eikonal_weight > 0 else 0
        distance = field(points[n_eikonal:], weights)
        if n_eikonal > 0:
            with_gradient, gradient = field.gradient(points[:n_eikonal], weights)
            distance = torch.cat([with_gradient, distance])
        if config.loss == "mape":
            loss = losses.mape(distance, target, config.mape_offset)
        else:
            loss = losses.truncated_l1(distance, target, config.truncation)
        if n_eikonal > 0:
            loss = loss + config.eikonal_weight * losses.eikonal(gradient)
        return loss, config.batch

    def _loss_of_points(self, samples: PointPool, step: int, weights: Tensor | None) -> tuple[Tensor, int]:
        """A field that vanishes at the points, has their normals, and grows by one per unit of length everywhere:
        implicit geometric regularisation (IGR, Gropp et al. 2020), or the losses of SIREN (Sitzmann et al. 2020).

        Those losses allow more surfaces than the one through the points, and a hash grid, in which distant places have
        no parameters in common, comes up with them. So points off the surface also have to be on the side that the
        winding number of the oriented points says.
        """
        config, field = self.config, self.model
        x, normals, signs = samples.sample(step)
        n = len(normals)
        if config.gradient_step > 0:
            distance, gradient = field.differences(x, config.gradient_step, weights)
        else:
            distance, gradient = field.gradient(x, weights)
        on, off = gradient[:n], gradient[n:]
        if config.point_loss == "igr":
            normal, growth = losses.normal_difference(on, normals), losses.eikonal(off)
        else:
            normal, growth = losses.normal_cosine(on, normals), losses.eikonal_l1(gradient)
        loss = config.surface_weight * losses.on_surface(distance[:n])
        loss = loss + config.normal_weight * normal + config.eikonal_weight * growth
        uniform = distance[-config.cloud.uniform_batch :]
        loss = loss + config.off_surface_weight * losses.off_surface(uniform, config.off_surface_sharpness)
        return loss + config.sign_weight * losses.wrong_side(distance[n:], signs), len(x)

    def headline(self, progress: Progress) -> str:
        overlap = "" if self._monitor is None else f" IoU {self._monitor(self.model, progress.seconds):.4f}"
        return f"loss {progress.loss:.4f}{overlap}"

    def evaluate(
        self, out: Path, progress: Progress, curve: list[dict[str, float]], interrupted: bool
    ) -> dict[str, Any]:
        config, field, shape = self.config, self.model.requires_grad_(False), self.shape
        begin = time.perf_counter()
        vertices, faces = to_mesh(field, config.resolution)
        normals = torch.cat([field.normals(part.to(field.device)).cpu() for part in vertices.split(CHUNK)])
        path = out / f"mesh.{config.mesh_format}"
        write_mesh(path, shape.placement.to_input(vertices.double()).numpy(), faces.numpy(), normals.numpy())
        atomic_write_image(out / "slice.png", shape_views.slice_image(field))
        extract = {"seconds": time.perf_counter() - begin, "vertices": len(vertices), "faces": len(faces)}
        figures = measure(field, vertices.double().numpy(), faces.numpy(), shape)
        trained = f"{progress.step} steps in {progress.seconds:.1f} s"
        print(f"{describe(figures, len(faces))}; {trained}", flush=True)
        where = {"scale": shape.placement.scale, "offset": shape.placement.offset.tolist()}
        results = {"input": str(shape.path), "mesh": str(path), **figures, **where, "extract": extract}
        if len(vertices):
            up = config.up
            if up == "auto":
                up = "z" if shape.path.suffix.lower() == ".stl" else "y"
            points = vertices if shape.mesh is None else torch.from_numpy(shape.mesh.vertices).float()
            n_frames = config.n_frames if config.video and not interrupted else 0
            results["pictures"] = shape_views.write_pictures(
                out, field, points, up, config.image_size, n_frames, config.video_size, shape, config.backend
            )
        return results

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
    load_model(field, tensors, metadata, Sdf.name, averaged=True)
    return field, _placement(metadata["notes"])


def _placement(notes: dict[str, Any]) -> Placement:
    return Placement(notes["placement"]["scale"], np.array(notes["placement"]["offset"], np.float64))
