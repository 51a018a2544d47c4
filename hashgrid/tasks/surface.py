"""``hashgrid surface``: a coloured mesh from posed photographs, by a signed distance field seen as a volume."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from hashgrid.data.errors import SceneError
from hashgrid.data.loaders.procedural import name_of
from hashgrid.data.mesh import Mesh, is_watertight, load_mesh
from hashgrid.data.mesh_files import write_mesh
from hashgrid.data.procedural import signed_distance
from hashgrid.data.scene import NORMAL_HALF, Scene
from hashgrid.fields import RADIANCE_FIELDS
from hashgrid.fields.neus import Neus
from hashgrid.fields.surface_field import SurfaceField
from hashgrid.geometry.boxes import Placement
from hashgrid.rendering.extract import to_mesh
from hashgrid.rendering.mesh_facts import mesh_facts, vertex_normals
from hashgrid.rendering.samplers import SamplerConfig
from hashgrid.rendering.surface_pictures import write_surface_pictures
from hashgrid.rendering.surface_scores import compare_surfaces, describe
from hashgrid.tasks.nerf import Nerf, NerfConfig
from hashgrid.tasks.surfaces import cameras_of_file, nerf_surface
from hashgrid.train.task import Report
from hashgrid.util.config import Config

SCORING_VIEWS = 30  # training views that say what of a surface is seen, at most, evenly spread
FORMULAS_CELLS = 256  # of the mesh of the procedural scene along each side


@dataclass(frozen=True)
class SurfaceConfig(NerfConfig):
    """NeuS over a hash grid (Wang et al. 2021; Li et al. 2023), trained as a radiance field is, for a few CPU cores."""

    fields = {name: kind for name, kind in RADIANCE_FIELDS.items() if issubclass(kind, SurfaceField)}
    default_seconds = 600.0

    field: Config = Neus.Config()
    sampling: SamplerConfig = SamplerConfig(steps_per_diagonal=Neus.recipe["steps_per_diagonal"])
    truth: Path | None = None  # mesh to compare with, in the coordinates of the photos
    resolution: int = 256  # cells of the mesh along the longest side of the box
    # what no training view sees of the mesh: whole parts are left out, all such faces, so that it is open, or nothing
    unseen: Literal["drop_parts", "drop_faces", "keep"] = "drop_parts"
    speck: float = 1e-3  # of the area of its largest part: smaller parts are left out
    target_samples: int = Neus.recipe["target_samples"]  # that count, per step; the number of rays follows
    learning_rate: float = Neus.recipe["learning_rate"]  # after the first steps
    final_learning_rate: float = Neus.recipe["final_learning_rate"]  # at the end of a run

    @classmethod
    def for_device(cls, device: torch.device) -> SurfaceConfig:
        """Defaults for ``device``, the same for all."""
        return cls(device=str(device))

    def check(self) -> None:
        super().check()
        if self.scene.block.box is not None:
            raise ValueError("`box` must be left out: blocks are of `hashgrid nerf`, a surface has a box of its own")
        if self.resolution < 2:
            raise ValueError(f"`resolution` must be at least 2, got {self.resolution}")


class Surface(Nerf):
    """Trains a distance field on a scene's training views, and makes a mesh of it.

    Args:
        config: the recipe.
        scene: the data, in any coordinates.
        by_formulas: whether it is the procedural scene, whose surface is known.
    """

    name = "surface"
    Config = SurfaceConfig
    summary = "Makes a coloured mesh from posed photographs; of a procedural scene if none, whose surface is known."
    packages = ("igl", "skimage", *Nerf.packages)
    splits = False  # its losses are means over samples, of which each part of a batch has another number
    config: SurfaceConfig
    model: SurfaceField

    def __init__(self, config: SurfaceConfig, scene: Scene, by_formulas: bool = False) -> None:
        super().__init__(config, scene)
        views = scene.train
        if views.has_alpha and not any(bool(views.image(view)[..., 3].any()) for view in range(len(views))):
            raise SceneError(
                f"{scene.path}: training images must show something, all {len(views)} are transparent everywhere;"
                " are their masks inverted?"
            )
        self.by_formulas, path = by_formulas, config.truth
        self.truth = None if path is None else as_given(load_mesh(path))  # before training, if it cannot be read

    @classmethod
    def make(cls, config: Any, source: Path | None, notes: dict[str, Any]) -> Surface:
        task: Any = super().make(config, source, notes)
        task.by_formulas = notes.get("by_formulas", True) if source is None else name_of(source) == "procedural"
        return task  # type: ignore[no-any-return]

    def notes(self) -> dict[str, Any]:
        return {**super().notes(), "by_formulas": self.by_formulas}

    def evaluate(self, report: Report) -> dict[str, Any]:
        found = super().evaluate(report)
        begin, path = time.perf_counter(), report.out / "mesh.ply"
        options = {"resolution": self.config.resolution, "unseen": self.config.unseen, "speck": self.config.speck}
        surface = nerf_surface(self, "distance", None, options)
        vertices, faces = surface.vertices, surface.faces
        write_mesh(path, vertices, faces, vertex_normals(vertices, faces), surface.colors)
        found |= {"mesh": str(path), "sharpness": float(self.model.sharpness.detach()) / self.scene.placement.unit}
        if not len(faces):
            report.say("the field has no surface")
            return found
        found["extract"] = {"seconds": time.perf_counter() - begin, **mesh_facts(vertices, faces)}
        parts = f"{len(faces)} faces in {found['extract']['components']} parts"
        truth = mesh_of_formulas() if self.truth is None and self.by_formulas else self.truth
        ours = Mesh(vertices, faces, Placement(), is_watertight(faces), path.name)
        cameras = cameras_of_file(self.scene)
        write_surface_pictures(report.out / "mesh.png", ours, cameras, surface.colors, truth)
        if truth is not None:
            found |= compare_surfaces(ours, truth, cameras_of_file(self.scene, SCORING_VIEWS))
            parts = f"{describe(found)}; {parts}"
        report.say(parts)
        return found


def as_given(mesh: Mesh) -> Mesh:
    """A mesh in the coordinates of its file, instead of the unit cube."""
    return replace(mesh, vertices=mesh.placement.to_file(torch.from_numpy(mesh.vertices)).numpy())


def mesh_of_formulas() -> Mesh:
    """The surface of the procedural scene, off by a ten thousandth of its size at most."""
    side = 2 * NORMAL_HALF
    vertices, faces = to_mesh(lambda x: signed_distance((x - 0.5) * side) / side, FORMULAS_CELLS, lipschitz=1.0)
    places: np.ndarray = (vertices.double().numpy() - 0.5) * side
    return Mesh(places, faces.numpy(), Placement(), True, "procedural scene")
