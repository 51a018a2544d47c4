"""Surfaces of the procedural scene, which is known, where it stands in a room and nothing is transparent.

    python benchmarks/marks/surfaces_in_a_room.py neus volsdf density --seconds 240

The room is a cube four times as wide as the box of the shapes, with tiles of many tones; the 60 cameras of 200x200
pixels stand in it. It is a scene without an end, as photos make one: fields of distances have a second field around the
box ("neus, network": a colour per direction instead), the radiance field is contracted. Writes
results/surfaces_in_a_room.json, rows of what is not named stay, and results/surfaces_in_a_room.png.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from surfaces import picture, row_of
from torch import Tensor

from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.data.mesh import Mesh, load_mesh
from hashgrid.data.procedural import procedural_scene
from hashgrid.data.scene import NORMAL_HALF, Scene, Views
from hashgrid.geometry.boxes import Placement
from hashgrid.rendering.mesh_facts import mesh_facts
from hashgrid.rendering.surface_scores import compare_surfaces
from hashgrid.tasks.nerf import Nerf
from hashgrid.tasks.surface import SCORING_VIEWS, Surface, as_given, mesh_of_formulas
from hashgrid.tasks.surfaces import cameras_of_file, nerf_surface
from hashgrid.train.loop import Trainer
from hashgrid.train.task import Report
from hashgrid.util.files import atomic_write_image, atomic_write_json

PATH = Path(__file__).parent / "results" / "surfaces_in_a_room.json"
WALL, TILE = 4 * NORMAL_HALF, 0.75  # distance of the walls from the middle, side of a tile
METHODS = {"neus": "neus", "neus, network": "neus", "volsdf": "volsdf", "density": "ngp"}


def walls(origins: Tensor, directions: Tensor) -> Tensor:
    """Colours [R, 3] where rays from within meet the room: another tone for each tile."""
    reach = (WALL * directions.sign() - origins) / directions
    place = origins + reach.amin(dim=1, keepdim=True) * directions
    tile = (place / TILE + 1e-3).floor() @ torch.tensor(
        [[12.99, 78.23, 37.72], [39.35, 11.14, 83.16], [73.16, 52.24, 9.15]]
    )
    tone = (tile.sin() * 43758.5453) % 1.0
    return 0.25 + 0.5 * (0.6 * tone + 0.4 * tone.mean(dim=1, keepdim=True))


def in_a_room(scene: Scene) -> Scene:
    """The scene as opaque pictures that show walls where it was transparent, without an end."""

    def opaque(views: Views) -> Views:
        rays = [views.view_rays(view) for view in range(len(views))]
        behind = torch.cat([walls(ray.origins, ray.directions) for ray in rays])
        values = views.data.float() / 255
        colors = torch.lerp(behind, values[:, :3], values[:, 3:])
        return replace(views, data=(colors * 255).round().to(torch.uint8))

    return replace(scene, train=opaque(scene.train), test=opaque(scene.test), bounded=False, n_cascades=3)


def train(method: str, scene: Scene, out: Path, seconds: float) -> tuple[Nerf, dict[str, Any]]:
    """The trained task, and what it says of held-out views."""
    kind = Nerf if method == "density" else Surface
    config = kind.Config.for_device(torch.device("cpu"))
    config = config.replace(field=kind.Config.fields[METHODS[method]].Config(), time_limit=seconds, steps=None)
    config = config.replace(views=4, video=False, background_model="network" if "," in method else "auto")
    task = kind(config, scene)
    trainer = Trainer(task)
    trainer.train()
    found = task.evaluate(Report(out, trainer.progress, trainer.curve))
    found["train"] = {"seconds": trainer.progress.seconds, "steps": trainer.progress.step}
    return task, found


def surface_of(method: str, task: Nerf, found: dict[str, Any], truth: Mesh) -> tuple[dict[str, Any], Mesh]:
    """The row, and the mesh inside of the box of the shapes."""
    if method == "density":
        surface = nerf_surface(task, "density", None, {"resolution": 256, "threshold": 30.0})
        mesh = Mesh(surface.vertices, surface.faces, Placement(), False, method)
    else:
        mesh = as_given(load_mesh(found["mesh"]))
    figures = compare_surfaces(mesh, truth, cameras_of_file(task.scene, SCORING_VIEWS))
    return row_of(method, found, figures, mesh_facts(mesh.vertices, mesh.faces)), mesh


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", choices=[*METHODS, []], metavar="METHOD", help="all if none")
    parser.add_argument("--seconds", type=float, default=240.0, help="of training, per field")
    parser.add_argument("--out", type=Path, default=PATH)
    args = parser.parse_args()
    warn_if_busy()
    scene, truth, pictures = in_a_room(procedural_scene(n_train=60, n_test=4)), mesh_of_formulas(), list[Tensor]()
    for method in args.methods or METHODS:
        with tempfile.TemporaryDirectory() as folder:
            row, mesh = surface_of(method, *train(method, scene, Path(folder), args.seconds), truth)
        print(json.dumps(row), flush=True)
        pictures.append(picture(mesh, truth))
        rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
        rows = [old for old in rows if old["method"] != method] + [row]
        atomic_write_json(args.out, {"environment": environment(torch.device("cpu")), "rows": rows})
        atomic_write_image(args.out.with_suffix(".png"), torch.cat([picture(truth, truth), *pictures], dim=1))


if __name__ == "__main__":
    main()
