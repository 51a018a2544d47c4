"""Surfaces of the procedural scene, whose surface is known, by fields of distances and from a radiance field.

    python benchmarks/marks/surfaces.py neus volsdf neus_mlp density --seconds 300
    python benchmarks/marks/surfaces.py neus neus_mlp --steps 300

Each runs `hashgrid surface` or `hashgrid nerf` on the pictures that both have by default, 60 of 200x200, one after the
other, and is compared where photos show the surface. Writes results/surfaces.json, rows of what is not named stay, and
a picture of what was run, results/surfaces.png.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.data.mesh import Mesh, load_mesh
from hashgrid.data.procedural import orbit_cameras
from hashgrid.geometry.boxes import Placement
from hashgrid.rendering.mesh_facts import mesh_facts
from hashgrid.rendering.surface_pictures import surface_pictures
from hashgrid.rendering.surface_scores import compare_surfaces
from hashgrid.tasks.surface import SCORING_VIEWS, as_given, mesh_of_formulas
from hashgrid.tasks.surfaces import cameras_of_file, nerf_surface
from hashgrid.tasks.trained import trained_nerf
from hashgrid.util.files import atomic_write_image, atomic_write_json

PATH = Path(__file__).parent / "results" / "surfaces.json"
OF_DISTANCES = {
    "neus": ["--field", "neus"],
    "neus, no curvature": ["--field", "neus", "--curvature-weight", "0"],
    "neus, numeric gradients": ["--field", "neus", "--gradients", "numeric", "--curvature-weight", "0"],
    "neus, numeric gradients and curvature": [
        *("--field", "neus", "--gradients", "numeric", "--curvature-weight", "1e-3"),
    ],
    "volsdf": ["--field", "volsdf"],
    "volsdf, error_bounded": ["--field", "volsdf", "--sampler", "error_bounded"],
    "neus_mlp": ["--field", "neus_mlp"],
    "idr": ["--field", "idr"],
}
OF_DENSITY: dict[str, dict[str, Any]] = {
    "density": {"threshold": 30.0},
    "tsdf": {"views": 60, "size": 200},
    "poisson": {"views": 60, "size": 200, "points": None},
}
FIGURES = ("chamfer", "accuracy", "completeness", "f_score", "normal_error_degrees", "seen")


def run(command: list[str], out: Path, budget: list[str]) -> dict[str, Any]:
    """What `hashgrid` writes of a run."""
    options = ["--out", str(out), "--no-video", "--views", "4", *budget]
    subprocess.run([sys.executable, "-m", "hashgrid", *command, *options], check=True)
    found: dict[str, Any] = json.loads(next(out.rglob("results.json")).read_text())
    return found


def row_of(method: str, found: dict[str, Any], figures: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """A row of the table."""
    train = found["train"]
    known = {"psnr": found["test"]["psnr_mean"], "seconds": train["seconds"], "steps": train["steps"]}
    of_mesh = {name: facts[name] for name in ("watertight", "components")}
    return {"method": method, **{name: figures[name] for name in FIGURES}, **known, **of_mesh}


def by_distances(method: str, out: Path, budget: list[str]) -> tuple[dict[str, Any], Mesh]:
    found = run(["surface", *OF_DISTANCES[method]], out, budget)
    return row_of(method, found, found, found["extract"]), as_given(load_mesh(found["mesh"]))


def by_density(method: str, trained: Path, found: dict[str, Any], truth: Mesh) -> tuple[dict[str, Any], Mesh]:
    task, _ = trained_nerf(trained, "cpu")
    surface = nerf_surface(task, method, None, {"resolution": 256, **OF_DENSITY[method]})
    facts = mesh_facts(surface.vertices, surface.faces)
    mesh = Mesh(surface.vertices, surface.faces, Placement(), facts["watertight"], method)
    figures = compare_surfaces(mesh, truth, cameras_of_file(task.scene, SCORING_VIEWS))
    return row_of(method, found, figures, facts), mesh


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    methods = [*OF_DISTANCES, *OF_DENSITY]
    parser.add_argument("methods", nargs="*", choices=[*methods, []], metavar="METHOD", help="all if none")
    parser.add_argument("--seconds", type=float, default=300.0, help="of training, per field")
    parser.add_argument("--steps", type=int, help="of training, per field, instead")
    parser.add_argument("--out", type=Path, default=PATH)
    args = parser.parse_args()
    warn_if_busy()
    budget = ["--time-limit", str(args.seconds)] if args.steps is None else ["--steps", str(args.steps)]
    truth, pictures, trained = mesh_of_formulas(), list[Tensor](), None
    with tempfile.TemporaryDirectory() as folder:
        for i, method in enumerate(args.methods or methods):
            if method in OF_DISTANCES:
                row, mesh = by_distances(method, Path(folder) / str(i), budget)
            else:
                if trained is None:
                    trained = Path(folder) / "nerf"
                    of_nerf = run(["nerf"], trained, budget)
                row, mesh = by_density(method, next(trained.rglob("checkpoint.safetensors")).parent, of_nerf, truth)
            row |= {"budget": " ".join(budget), "capability": environment(torch.device("cpu"))["capability"]}
            print(json.dumps(row), flush=True)
            pictures.append(picture(mesh, truth))
            rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
            rows = [old for old in rows if (old["method"], old["budget"]) != (method, row["budget"])] + [row]
            atomic_write_json(args.out, {"environment": environment(torch.device("cpu")), "rows": rows})
    atomic_write_image(args.out.with_suffix(".png"), torch.cat([picture(truth, truth), *pictures], dim=1))


def picture(mesh: Mesh, truth: Mesh) -> Tensor:
    """Normals and errors from one side, one above the other."""

    found = surface_pictures(mesh, orbit_cameras(6, 240, 0), 0, None, truth, 0.05)
    return torch.cat([found["normals"], found["error"]], dim=0)


if __name__ == "__main__":
    main()
