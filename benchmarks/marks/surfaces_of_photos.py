"""Surfaces of photos of real and rendered things, by fields of distances and from a radiance field, at equal time.

    python benchmarks/marks/surfaces_of_photos.py chair snowmiku --methods neus volsdf density --seconds 240

Nothing is known of their surfaces: what there is, is whether a mesh is closed and one, the scores of held-out views,
and pictures of each mesh from four training views, results/surfaces_of_photos_SCENE.png, one field above the other.
``idr``, which needs masks, is left out where there are none. Writes results/surfaces_of_photos.json; rows of what is
not named stay. Needs the photos: HASHGRID_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from surfaces import OF_DISTANCES, run
from torch import Tensor

from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.data.mesh import Mesh, load_mesh
from hashgrid.data.mesh_colors import read_colors
from hashgrid.geometry.boxes import Placement
from hashgrid.rendering.mesh_facts import mesh_facts
from hashgrid.rendering.surface_pictures import surface_pictures
from hashgrid.tasks.surface import as_given
from hashgrid.tasks.surfaces import cameras_of_file, nerf_surface
from hashgrid.tasks.trained import trained_nerf
from hashgrid.util.files import atomic_write_image, atomic_write_json

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("HASHGRID_DATA", Path(__file__).resolve().parents[3] / "shared")) / "data" / "nerf"
SCENES = {"chair": "nerf_synthetic_chair_100/chair", "suzanne": "suzanne_540", "snowmiku": "snowmiku_plush_504"}
METHODS = ("neus", "volsdf", "idr", "density")
WIDTH = 200  # pixels of a picture


def row_of(scene: str, method: str, found: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """A row of the table."""
    train, test = found["train"], found["test"]
    known = {"psnr": test["psnr_mean"], "views": test["views"], "seconds": train["seconds"], "steps": train["steps"]}
    of_mesh = {name: facts[name] for name in ("faces", "watertight", "components")}
    return {"scene": scene, "method": method, **known, **of_mesh}


def surface_of(scene: str, method: str, out: Path, budget: list[str]) -> tuple[dict[str, Any], Mesh, Any, Any]:
    """The row, the mesh, colours [V, 3] of its vertices, and training cameras, all in the coordinates of the photos."""
    path = str(DATA / SCENES[scene])
    command = ["nerf", path] if method == "density" else ["surface", path, *OF_DISTANCES[method]]
    found = run(command, out, budget)
    task, _ = trained_nerf(next(out.rglob("checkpoint.safetensors")).parent, "cpu")
    if method == "density":
        surface = nerf_surface(task, "density", None, {"resolution": 256, "threshold": 30.0})
        facts, colors = mesh_facts(surface.vertices, surface.faces), surface.colors
        mesh = Mesh(surface.vertices, surface.faces, Placement(), facts["watertight"], method)
    else:
        facts, mesh, known = found["extract"], as_given(load_mesh(found["mesh"])), read_colors(Path(found["mesh"]))
        colors = None if known is None else known(mesh.vertices)
    return row_of(scene, method, found, facts), mesh, colors, cameras_of_file(task.scene, 4)


def sheet(mesh: Mesh, colors: Any, cameras: Any) -> Tensor:
    """Shading above colours [H, W, 3], from each camera."""
    small = cameras.scaled(WIDTH / float(cameras.sizes.max()))
    shown = [surface_pictures(mesh, small, view, colors) for view in range(len(small))]
    names = [name for name in ("shaded", "colors") if name in shown[0]]
    return torch.cat([torch.cat([picture[name] for picture in shown], dim=1) for name in names])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", choices=[*SCENES, []], metavar="SCENE", help="all if none")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seconds", type=float, default=240.0, help="of training, per field")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    warn_if_busy()
    path, budget = args.out / "surfaces_of_photos.json", ["--time-limit", str(args.seconds)]
    for scene in args.scenes or SCENES:
        pictures = []
        for method in args.methods:
            if method == "idr" and scene == "snowmiku":
                continue
            with tempfile.TemporaryDirectory() as folder:
                row, mesh, colors, cameras = surface_of(scene, method, Path(folder), budget)
            row |= {"budget": " ".join(budget), "capability": environment(torch.device("cpu"))["capability"]}
            print(json.dumps(row), flush=True)
            rows = json.loads(path.read_text())["rows"] if path.exists() else []
            rows = [old for old in rows if (old["scene"], old["method"]) != (scene, method)] + [row]
            atomic_write_json(path, {"environment": environment(torch.device("cpu")), "rows": rows})
            if len(mesh.faces):
                pictures.append(sheet(mesh, colors, cameras))
            if pictures:
                atomic_write_image(args.out / f"surfaces_of_photos_{scene}.png", torch.cat(pictures))


if __name__ == "__main__":
    main()
