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
from hashgrid.util.config import Config


@dataclass(frozen=True)
class ShapePictureConfig(Config):
    """What is made of shapes to be looked at, and measured."""

    resolution: int = 32  # cells per side of the lattice that is looked at first,
    upsamplings: int = 2  # and how often cells at the surface are cut in two along each side
    n_meshes: int = 12  # shapes that are written, compared by their surfaces and shown
    n_between: int = 5  # shapes shown between the first two
    image_size: int = 160  # pixels per side of each shape's picture; 0 for no pictures
    iou_points: int = 1 << 16  # points in the box of each shape
    up: str = "y"  # axis that is up in pictures

    def check(self) -> None:
        super().check()
        for name, least in (("resolution", 1), ("upsamplings", 0), ("n_meshes", 0), ("iou_points", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}")
        if self.up not in ("x", "y", "z"):
            raise ValueError(f"`up` must be x, y or z, got {self.up!r}")


def extract(shape: OneShape, config: ShapePictureConfig, like: Mesh | None = None) -> Mesh:
    """The mesh of a shape, in the cube, with the placement of another one."""
    vertices, faces, _ = mise(shape, config.resolution, config.upsamplings)
    placement = Placement() if like is None else like.placement
    name = "shape" if like is None else like.name
    return Mesh(vertices.double().numpy(), faces.numpy(), placement, is_watertight(faces.numpy()), name)


def ious(shapes: Sequence[OneShape], meshes: Sequence[Mesh], n: int) -> list[float]:
    """Intersection over union of shapes with meshes, on ``n`` uniform points of each mesh's box."""
    pairs = zip(shapes, meshes, strict=True)
    return [RunningIou(mesh, n, seed=1)(shape) for shape, mesh in pairs]  # type: ignore[arg-type]


def measure_shapes(
    out: Path, shapes: Sequence[OneShape], meshes: Sequence[Mesh], config: ShapePictureConfig
) -> dict[str, Any]:
    """Figures of shapes, and of each; writes ``meshes/NAME.ply`` of the first ones, in the coordinates of their files,
    and ``shapes.png``, these above the truth."""
    overlaps = ious(shapes, meshes, config.iou_points)
    each: list[dict[str, Any]] = [{"name": mesh.name, "iou": x} for mesh, x in zip(meshes, overlaps, strict=True)]
    n = config.n_meshes
    ours = [extract(shape, config, mesh) for shape, mesh in zip(shapes[:n], meshes[:n], strict=True)]
    for index, (mesh, truth, figures) in enumerate(zip(ours, meshes, each, strict=False)):
        figures |= compare_meshes(mesh.vertices, mesh.faces, truth, n=1 << 15)
        path = out / "meshes" / f"{index:03d}_{Path(truth.name).stem}.ply"
        write_ply(path, truth.placement.to_file(torch.from_numpy(mesh.vertices)).numpy(), mesh.faces)
        figures["mesh"] = str(path)
    if config.image_size and ours:
        rows = [[picture_of_mesh(x, config.image_size, config.up) for x in row] for row in (ours, meshes[: len(ours)])]
        write_table(out / "shapes.png", list(zip(("learned", "truth"), rows, strict=True)))
    chamfers = [x["chamfer"] for x in each if x.get("chamfer") is not None]
    summary = {"iou": float(np.mean(overlaps)), "iou_min": min(overlaps)}
    return {**summary, "chamfer": float(np.mean(chamfers)) if chamfers else None, "shapes": each}


def show_between(out: Path, field: LatentField, latent: Any, config: ShapePictureConfig) -> None:
    """Writes ``between.png``: from the first shape to the second one along a line between their latents."""
    a, b = pick(latent, slice(0, 1)), pick(latent, slice(1, 2))
    weights = torch.linspace(0, 1, config.n_between + 2).tolist()
    meshes = [extract(OneShape(field, between(a, b, weight)), config) for weight in weights]
    pictures = [picture_of_mesh(mesh, config.image_size, config.up) for mesh in meshes]
    write_table(out / "between.png", [("from one shape to another", pictures)])


def show_completed(
    out: Path,
    clouds: Tensor,
    found: Mapping[str, Sequence[OneShape]],
    meshes: Sequence[Mesh],
    config: ShapePictureConfig,
) -> None:
    """Writes ``completed.png``: clouds [B, P, 3], what was made of them, by name, and the truth."""
    n, size, up = config.n_meshes, config.image_size, config.up
    rows = [("points", [picture_of_points(x.double().cpu().numpy(), size, up) for x in clouds[:n]])]
    for name, shapes in found.items():
        rows.append((name, [picture_of_mesh(extract(shape, config), size, up) for shape in shapes[:n]]))
    write_table(out / "completed.png", [*rows, ("truth", [picture_of_mesh(mesh, size, up) for mesh in meshes[:n]])])
