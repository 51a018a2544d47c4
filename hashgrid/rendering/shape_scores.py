"""How close the shapes of a latent field come to meshes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.mesh import Mesh, is_watertight
from hashgrid.data.mesh_files import write_ply
from hashgrid.fields.latent import LatentField, OneShape, between, pick
from hashgrid.geometry.boxes import Placement
from hashgrid.rendering.measure import RunningIou, compare_meshes
from hashgrid.rendering.mesh_pictures import picture_of_mesh, picture_of_points, write_table
from hashgrid.rendering.mise import mise
from hashgrid.rendering.surface_points import surface_points
from hashgrid.util.config import Config
from hashgrid.util.optional import optional_import


@dataclass(frozen=True)
class ShapePictureConfig(Config):
    """What is made of shapes to be looked at, and measured."""

    resolution: int = 32  # cells per side of the lattice that is looked at first,
    upsamplings: int = 2  # and how often cells at the surface are cut in two along each side
    n_meshes: int = 12  # shapes that are written, compared by their surfaces and shown
    n_between: int = 5  # shapes shown between the first two
    n_dense: int = 20_000  # points of each surface without an inside
    image_size: int = 160  # pixels per side of each shape's picture; 0 for no pictures
    iou_points: int = 1 << 17  # points in the cube of each shape
    up: str = "y"  # axis that is up in pictures

    def check(self) -> None:
        super().check()
        for name, least in (("resolution", 1), ("upsamplings", 0), ("n_meshes", 0), ("iou_points", 1), ("n_dense", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}")
        if self.up not in ("x", "y", "z"):
            raise ValueError(f"`up` must be x, y or z, got {self.up!r}")


def extract(shape: OneShape, config: ShapePictureConfig, like: Mesh | None = None) -> Mesh:
    """The mesh of a shape, in the cube, with the placement of another one; points without faces where distances have
    no sign."""
    placement, name = (Placement(), "shape") if like is None else (like.placement, like.name)
    if shape.field.target == "unsigned":
        points = surface_points(shape, config.n_dense, level=-shape.field.level)
        return Mesh(points.double().numpy(), np.zeros((0, 3), np.int64), placement, False, name)
    vertices, faces, _ = mise(shape, config.resolution, config.upsamplings)
    return Mesh(vertices.double().numpy(), faces.numpy(), placement, is_watertight(faces.numpy()), name)


def show(mesh: Mesh, config: ShapePictureConfig) -> Tensor:
    """A picture [size, size, 3] of a mesh or of points alone."""
    if len(mesh.faces) or not len(mesh.vertices):
        return picture_of_mesh(mesh, config.image_size, config.up)
    return picture_of_points(mesh.vertices, config.image_size, config.up)


def compare(ours: Mesh, truth: Mesh, n: int = 1 << 15) -> dict[str, Any]:
    """Figures of a mesh (:func:`hashgrid.rendering.measure.compare_meshes`), or the Chamfer distance of points alone:
    the mean of both mean distances, in units of the cube."""
    if len(ours.faces) or not len(ours.vertices):
        return compare_meshes(ours.vertices, ours.faces, truth, n)
    there = optional_import("scipy.spatial").cKDTree(ours.vertices)
    back = there.query(truth.sample_surface(n, np.random.default_rng(2))[0], workers=-1)[0].mean()
    return {"chamfer": float(truth.nearest(ours.vertices)[0].mean() + back) / 2, "points": len(ours.vertices)}


def ious(shapes: Sequence[OneShape], meshes: Sequence[Mesh], n: int) -> list[float]:
    """Intersection over union of shapes with meshes, on ``n`` uniform points of their cubes: the box of a mesh would
    forgive what is filled outside of it."""
    cube, pairs = torch.tensor([[0.0] * 3, [1.0] * 3]), zip(shapes, meshes, strict=True)
    return [RunningIou(mesh, n, seed=1, bounds=cube)(shape) for shape, mesh in pairs]  # type: ignore[arg-type]


def measure_shapes(
    out: Path, shapes: Sequence[OneShape], meshes: Sequence[Mesh], config: ShapePictureConfig
) -> dict[str, Any]:
    """Figures of shapes, and of each; writes ``meshes/NAME.ply`` of the first ones, in the coordinates of their files,
    and ``shapes.png``, these above the truth."""
    each: list[dict[str, Any]] = [{"name": mesh.name} for mesh in meshes]
    signed = shapes[0].field.target != "unsigned"
    for figures, overlap in zip(each, ious(shapes, meshes, config.iou_points) if signed else (), strict=False):
        figures["iou"] = overlap
    n = config.n_meshes
    ours = [extract(shape, config, mesh) for shape, mesh in zip(shapes[:n], meshes[:n], strict=True)]
    for index, (mesh, truth, figures) in enumerate(zip(ours, meshes, each, strict=False)):
        figures |= compare(mesh, truth)
        path = out / "meshes" / f"{index:03d}_{Path(truth.name).stem}.ply"
        write_ply(path, truth.placement.to_file(torch.from_numpy(mesh.vertices)).numpy(), mesh.faces)
        figures["mesh"] = str(path)
    if config.image_size and ours:
        rows = [[show(mesh, config) for mesh in row] for row in (ours, meshes[:n])]
        write_table(out / "shapes.png", list(zip(("learned", "truth"), rows, strict=True)))
    found = {key: [x[key] for x in each if x.get(key) is not None] for key in ("iou", "chamfer")}
    means = {key: float(np.mean(values)) if values else None for key, values in found.items()}
    return {**means, "iou_min": min(found["iou"], default=None), "shapes": each}


def show_between(out: Path, field: LatentField, latent: Any, config: ShapePictureConfig) -> None:
    """Writes ``between.png``: from the first shape to the second one along a line between their latents."""
    a, b = pick(latent, slice(0, 1)), pick(latent, slice(1, 2))
    weights = torch.linspace(0, 1, config.n_between + 2).tolist()
    meshes = [extract(OneShape(field, between(a, b, weight)), config) for weight in weights]
    pictures = [show(mesh, config) for mesh in meshes]
    write_table(out / "between.png", [("from one shape to another", pictures)])


def show_completed(
    out: Path,
    clouds: Tensor,
    found: Mapping[str, Sequence[OneShape]],
    meshes: Sequence[Mesh],
    config: ShapePictureConfig,
) -> None:
    """Writes ``completed.png``: clouds [B, P, 3], what was made of them, by name, and the truth."""
    n = config.n_meshes
    rows = [("points", [picture_of_points(x.double().cpu().numpy(), config.image_size, config.up) for x in clouds[:n]])]
    for name, shapes in found.items():
        rows.append((name, [show(extract(shape, config), config) for shape in shapes[:n]]))
    write_table(out / "completed.png", [*rows, ("truth", [show(mesh, config) for mesh in meshes[:n]])])


def describe(figures: dict[str, Any]) -> str:
    """Figures of :func:`measure_shapes` in one line."""
    n = len(figures["shapes"])
    text = f"{n} shape{'s' if n != 1 else ''}"
    text += "" if figures["iou"] is None else f", IoU {figures['iou']:.4f}, least {figures['iou_min']:.4f}"
    return text + ("" if figures["chamfer"] is None else f", Chamfer {figures['chamfer']:.2e}")
