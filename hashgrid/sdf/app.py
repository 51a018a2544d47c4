"""``hashgrid sdf``: load, train, extract the mesh, measure, render, write everything down."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.generated import torus_knot
from hashgrid.data.mesh import Mesh, Placement, euler_characteristic, is_watertight, load_mesh
from hashgrid.data.mesh_files import FORMATS, write_mesh, write_ply
from hashgrid.data.points import PointCloud, load_points
from hashgrid.fields.distance import Field, make_field
from hashgrid.geometry.cameras import UP
from hashgrid.rendering.extract import n_components
from hashgrid.sdf import report
from hashgrid.sdf.checkpoint import read_field, save_field
from hashgrid.sdf.config import SdfConfig
from hashgrid.sdf.evaluate import compare_meshes, eikonal_error, iou
from hashgrid.sdf.objectives import POINT_LOSSES, DistanceSamples, PointSamples
from hashgrid.sdf.trainer import Objective, Progress, Trainer
from hashgrid.util.choices import BACKENDS, INTERPOLATIONS, check_option
from hashgrid.util.device import choose_device
from hashgrid.util.files import atomic_write_image, atomic_write_json
from hashgrid.util.memory import peak_memory
from hashgrid.util.optional import optional_import
from hashgrid.util.pictures import write_video
from hashgrid.util.threads import threads_for, threads_in_use

GENERATED = Path("outputs") / "torus_knot.ply"
CHUNK = 1 << 18  # points evaluated together
MONITOR = 20_000  # points of the running IoU, and
MONITOR_SECONDS = 4.0  # time between two of them


@dataclass
class Subject:
    """What a field is fitted to, or compared with.

    Attributes:
        path: of the input.
        name: of the file.
        placement: of the cube in the input.
        mesh: the surface, where it is known.
        cloud: points of it, where these are the input.
    """

    path: Path
    name: str
    placement: Placement
    mesh: Mesh | None = None
    cloud: PointCloud | None = None

    @property
    def what(self) -> str:
        return "points" if self.mesh is None else "mesh"

    def describe(self) -> str:
        if self.cloud is not None:
            return f"{self.name}: {len(self.cloud.points)} points"
        if self.mesh is None:
            return f"{self.name}: a field alone, without what it was fitted to"
        closed = "watertight" if self.mesh.watertight else "open"
        return f"{self.name}: {len(self.mesh.vertices)} vertices, {len(self.mesh.faces)} faces, {closed}"

    def objective(self, config: SdfConfig) -> Objective:
        device = choose_device(config.device, config.backend)
        if self.cloud is not None:
            return PointSamples(self.cloud, config, device)
        assert self.mesh is not None
        return DistanceSamples(self.mesh, config, device)

    def distance(self) -> Callable[[Tensor], Tensor] | None:
        """Unsigned distances [N] of points [N, 3] in the cube to the truth: the mesh or, without one, the points."""
        if self.mesh is not None:
            nearest = self.mesh.nearest
            return lambda x: torch.from_numpy(nearest(x.double().numpy())[0])
        if self.cloud is not None:
            tree = optional_import("scipy.spatial", "sdf").cKDTree(self.cloud.points)
            return lambda x: torch.from_numpy(tree.query(x.double().numpy(), workers=-1)[0])
        return None


def run(
    path: Path | None = None,
    out: Path | None = None,
    points: Path | None = None,
    truth: Path | None = None,
    evaluate_only: Path | None = None,
    video: bool = True,
    changes: dict[str, Any] | None = None,
) -> int:
    """Fits a field to the mesh ``path`` or to ``points``; or only evaluates a checkpoint. Without any of them it fits a
    generated shape.

    Args:
        path: mesh.
        out: folder of what is written.
        points: oriented points, instead of a mesh.
        truth: mesh to compare with, in the coordinates of the points.
        evaluate_only: checkpoint, to write everything else again without training.
        video: whether to render a turntable.
        changes: of the configuration.

    Returns:
        Exit status: 0, or 130 when the user interrupted training.

    Raises:
        ValueError: the input or an option is wrong.
    """
    begin = time.perf_counter()
    changes = dict(changes or {})
    if path is not None and points is not None:
        raise ValueError(f"`MESH` and `--points` exclude each other, got {path} and {points}; use `--truth` to compare")
    if evaluate_only is not None:
        return _evaluate_only(evaluate_only, path, points, truth, out, video, changes)
    config = _checked(_defaults(points is not None, changes.get("field")).replace(**changes))
    with threads_for(config.backend):
        return _fit(path, out, points, truth, video, config, begin)


def _fit(
    path: Path | None,
    out: Path | None,
    points: Path | None,
    truth: Path | None,
    video: bool,
    config: SdfConfig,
    begin: float,
) -> int:
    """Trains and writes what :func:`run` promises; returns its exit status."""
    subject = _load(path, points, truth, config.margin)
    out = Path("outputs") / "sdf" / Path(subject.name).stem if out is None else out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):  # raises now what would be raised after training
        pass
    print(subject.describe(), flush=True)
    trainer = Trainer(subject.objective(config), config, seconds_before=time.perf_counter() - begin)
    interrupted = _train(trainer, subject)
    progress = trainer.progress
    train = {
        "seconds": progress.seconds,
        "steps": progress.step,
        "samples": progress.samples,
        "interrupted": interrupted,
        "peak_memory_bytes": peak_memory(),
    }
    if interrupted:
        print("interrupted: what there is gets written, without the video", flush=True)
    kind = "mesh" if subject.cloud is None else "points"
    notes = {"name": subject.name, "input": str(subject.path.resolve()), "kind": kind, "train": train}
    if truth is not None:
        notes["truth"] = str(truth.resolve())
    save_field(out / "field.safetensors", trainer.field, subject.placement, trainer.config, **notes)
    _write_outputs(out, trainer.field, subject, trainer.config, train, video and not interrupted)
    return 130 if interrupted else 0


def _evaluate_only(
    checkpoint: Path,
    path: Path | None,
    points: Path | None,
    truth: Path | None,
    out: Path | None,
    video: bool,
    changes: dict[str, Any],
) -> int:
    stored = read_field(checkpoint)
    config = _checked(stored.config.replace(**changes))
    if path is None and points is None:
        known = Path(stored.notes.get("input", ""))
        if known.is_file():
            path, points = (known, None) if stored.notes.get("kind") != "points" else (None, known)
            if truth is None and Path(stored.notes.get("truth", "")).is_file():
                truth = Path(stored.notes["truth"])
        elif truth is None:
            print(f"{known} is not there: nothing to compare with; give MESH or --truth", flush=True)
    name = stored.notes.get("name", checkpoint.stem)
    subject = Subject(Path(stored.notes.get("input", "")), name, stored.placement)
    if path is not None or points is not None:
        subject = _load(path, points, truth, config.margin, stored.placement)
    elif truth is not None:
        subject.mesh = _placed(load_mesh(truth), stored.placement)
    out = checkpoint.parent if out is None else out
    out.mkdir(parents=True, exist_ok=True)
    print(subject.describe(), flush=True)
    field = stored.field.to(choose_device(config.device, config.backend))
    with threads_for(config.backend):
        _write_outputs(out, field, subject, config, stored.notes.get("train", {}), video)
    return 0


def _defaults(from_points: bool, field: str | None) -> SdfConfig:
    if from_points:
        return SdfConfig.for_points()
    return SdfConfig.for_siren() if field == "siren" else SdfConfig()


def _checked(config: SdfConfig) -> SdfConfig:
    """Finds wrong options before anything takes time."""
    choose_device(config.device, config.backend)
    check_option("backend", config.backend, BACKENDS)
    check_option("interpolation", config.interpolation, INTERPOLATIONS)
    check_option("compute_dtype", config.compute_dtype, ("float32", "float16", "bfloat16"))
    check_option("loss", config.loss, ("mape", "truncated_l1"))
    check_option("point_loss", config.point_loss, POINT_LOSSES)
    check_option("up", config.up, (*UP, "auto"))
    check_option("mesh_format", config.mesh_format, FORMATS)
    if config.mesh_format == "glb":
        optional_import("trimesh", "sdf")  # is missed now, not after training
    for name in ("mesh_resolution", "image_size", "batch", "pool"):
        if getattr(config, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(config, name)}")
    if config.video_size < 2 or config.video_size % 2:
        raise ValueError(f"`video_size` must be even, got {config.video_size}")
    if not 0 <= config.margin < 0.5:
        raise ValueError(f"`margin` must be in [0, 0.5), got {config.margin}")
    with torch.random.fork_rng(devices=[]):
        make_field(config)
    return config


def _load(
    path: Path | None, points: Path | None, truth: Path | None, margin: float, placement: Placement | None = None
) -> Subject:
    """The input; in another placement of the cube than its own where one is given."""
    if points is not None:
        cloud = load_points(points, margin)
        if placement is not None:
            moved = placement.to_cube(cloud.placement.to_input(torch.from_numpy(cloud.points)).numpy())
            cloud = PointCloud(moved, cloud.normals, placement, cloud.name)
        mesh = None if truth is None else _placed(load_mesh(truth, margin), cloud.placement)
        return Subject(points, cloud.name, cloud.placement, mesh, cloud)
    if path is None:
        path = GENERATED
        write_ply(path, *torus_knot())
        print(f"no MESH given: fitting a generated shape, {path}", flush=True)
    mesh = load_mesh(path, margin)
    if placement is not None:
        mesh = _placed(mesh, placement)
    if truth is not None:
        mesh = _placed(load_mesh(truth, margin), mesh.placement)
    return Subject(path, mesh.name, mesh.placement, mesh)


def _placed(mesh: Mesh, placement: Placement) -> Mesh:
    """The mesh in another placement of the cube."""
    vertices = placement.to_cube(mesh.placement.to_input(torch.from_numpy(mesh.vertices)).numpy())
    return dataclasses.replace(mesh, vertices=vertices, placement=placement)


def _train(trainer: Trainer, subject: Subject) -> bool:
    """Whether the user interrupted."""
    tqdm = optional_import("tqdm", "sdf").tqdm
    monitor = None if subject.mesh is None or subject.mesh.doubt else _Monitor(subject.mesh)
    with tqdm(total=100.0, bar_format="sdf {percentage:3.0f}%|{bar:20}| {desc}", mininterval=0.2) as bar:

        def show(progress: Progress) -> None:
            overlap = "" if monitor is None else f" IoU {monitor(trainer.field, progress.seconds):.4f}"
            left = progress.seconds * (1 / max(progress.fraction, 1e-3) - 1)
            bar.set_description_str(
                f"step {progress.step} {trainer.objective.loss_name} {progress.loss:.4f}{overlap}"
                f" {progress.points_per_second / 1e6:.2f} M points/s {left:.0f} s left",
                refresh=False,
            )
            bar.update(100 * progress.fraction - bar.n)

        try:
            trainer.train(show)
        except KeyboardInterrupt:
            return True
    return False


class _Monitor:
    """A running estimate of the IoU with a mesh, on a few points of its box."""

    def __init__(self, mesh: Mesh) -> None:
        low, high = mesh.bounds
        self._points = low + torch.rand(MONITOR, 3, generator=torch.Generator().manual_seed(4)) * (high - low)
        self._truth = torch.from_numpy(mesh.inside(self._points.double().numpy()))
        self._next, self._value = 0.0, float("nan")

    @torch.no_grad()
    def __call__(self, field: Field, seconds: float) -> float:
        if seconds >= self._next:
            self._next = seconds + MONITOR_SECONDS
            inside = field(self._points.to(field.device)).cpu() < 0
            self._value = float((inside & self._truth).sum() / (inside | self._truth).sum().clamp(min=1))
        return self._value


def _write_outputs(
    out: Path, field: Field, subject: Subject, config: SdfConfig, train: dict[str, Any], video: bool
) -> None:
    """Extracts, measures and renders; ``results.json`` comes last."""
    begin = time.perf_counter()
    vertices, faces = field.to_mesh(config.mesh_resolution)
    normals = torch.cat([field.normals(part.to(field.device)).cpu() for part in vertices.split(CHUNK)])
    mesh_path = out / f"mesh.{config.mesh_format}"
    write_mesh(mesh_path, subject.placement.to_input(vertices.double()).numpy(), faces.numpy(), normals.numpy())
    atomic_write_image(out / "slice.png", report.slice_image(field))
    extracted = time.perf_counter() - begin
    results = {
        "input": str(subject.path),
        "mesh": str(mesh_path),
        **measure(field, vertices.double().numpy(), faces.numpy(), subject),
        "n_parameters": sum(param.numel() for param in field.parameters()),
        "scale": subject.placement.scale,
        "offset": subject.placement.offset.tolist(),
        "extract": {"seconds": extracted, "vertices": len(vertices), "faces": len(faces)},
        "train": train,
        "device": str(field.device) if field.device.type == "cpu" else torch.cuda.get_device_name(field.device),
        "threads": threads_in_use(),
        "config": config.to_dict(),
    }
    print(_summary(results), flush=True)
    if len(vertices):
        results["pictures"] = _write_pictures(out, field, subject, vertices, config, video)
    results["peak_memory_bytes"] = peak_memory()
    atomic_write_json(out / "results.json", results)
    print(f"results in {out}", flush=True)


def measure(field: Field, vertices: np.ndarray, faces: np.ndarray, subject: Subject) -> dict[str, Any]:
    """The figures of a field and of the mesh extracted from it, vertices [V, 3] in the cube and faces [F, 3]. Those
    without a truth to compare with are None."""
    results: dict[str, Any] = dict.fromkeys(
        ("iou", "iou_missing", "chamfer", "normal_consistency", "eikonal_error", "watertight", "euler", "euler_input")
    )
    ours = Mesh(vertices, faces, subject.placement, is_watertight(faces), "extracted") if len(faces) else None
    if subject.mesh is not None:
        if subject.mesh.doubt:
            results["iou_missing"] = f"what is inside is a guess: {subject.mesh.doubt}"
        else:
            results["iou"] = iou(field, subject.mesh)
        results |= compare_meshes(vertices, faces, subject.mesh)
        results["euler_input"] = euler_characteristic(subject.mesh.faces)
    elif ours is not None:
        results |= {"watertight": ours.watertight, "euler": euler_characteristic(faces)}
    surface = subject.mesh or ours
    if surface is not None:
        results["eikonal_error"] = eikonal_error(field, surface)
    results["components"] = n_components(faces)
    if subject.cloud is not None and ours is not None:
        distance = ours.nearest(subject.cloud.points)[0]
        results["points_to_surface"] = {"mean": float(distance.mean()), "max": float(distance.max())}
    return results


def _write_pictures(
    out: Path, field: Field, subject: Subject, vertices: Tensor, config: SdfConfig, video: bool
) -> dict[str, Any]:
    """Stills and the turntable; returns seconds and the scale of ``error.png``."""
    begin = time.perf_counter()
    up = config.up
    if up == "auto":
        up = "z" if subject.path.suffix.lower() == ".stl" else "y"
    points = vertices if subject.mesh is None else torch.from_numpy(subject.mesh.vertices).float()
    scale = report.write_views(
        out, field, points, up, config.image_size, subject.distance(), subject.what, config.backend
    )
    stills = time.perf_counter() - begin
    if video and config.n_frames > 0:
        tqdm = optional_import("tqdm", "sdf").tqdm
        frames = report.turntable(field, points, up, config.n_frames, config.video_size, config.backend)
        write_video(out / "turntable.mp4", tqdm(frames, total=config.n_frames, desc="turntable", unit="frame"))
    return {
        "error_scale": scale,
        "seconds": stills,
        "turntable_seconds": time.perf_counter() - begin - stills if video else None,
    }


def _summary(results: dict[str, Any]) -> str:
    train = results["train"]
    trained = f"{train['steps']} steps in {train['seconds']:.1f} s" if train else "not trained here"
    if results["extract"]["faces"] == 0:
        return f"the field has no surface; {trained}"
    closed = "watertight" if results["watertight"] else "open"
    surface = f"{closed}, {results['components']} part{'s' if results['components'] != 1 else ''}"
    if results["chamfer"] is not None:
        overlap = "no IoU" if results["iou"] is None else f"IoU {results['iou']:.4f}"
        return (
            f"{overlap}, Chamfer {results['chamfer']:.2e}, normal consistency"
            f" {results['normal_consistency']:.4f}; {surface}; {trained}"
        )
    if "points_to_surface" in results:
        return f"points {results['points_to_surface']['mean']:.2e} from the surface; {surface}; {trained}"
    return f"{surface}; {trained}"
