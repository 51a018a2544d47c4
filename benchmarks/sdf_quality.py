"""How well ``hashgrid sdf`` fits meshes and point clouds, against a SIREN and the reference backend at equal time.

``python benchmarks/sdf_quality.py MESH [MESH ...] [--points] [--seconds 60]`` trains one field after the other with
default settings, measures them in the same way, and writes ``results/sdf_meshes.json`` (``sdf_points.json``) and the
same as a Markdown table. With ``--points`` fields see 50 000 points of each mesh with normals and no distances. Time is
everything from reading the file to the last step, pools of samples included; a quiet machine is assumed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.data.mesh import load_mesh
from hashgrid.data.points import load_points
from hashgrid.data.shape import Shape
from hashgrid.rendering.extract import n_components, to_mesh
from hashgrid.rendering.measure import compare_meshes, eikonal_error, iou
from hashgrid.tasks.sdf import Sdf, SdfConfig, make_field
from hashgrid.train.loop import Trainer
from hashgrid.util.files import atomic_write_json, atomic_write_text

N_POINTS = 50_000
METHODS = {  # field and backend
    "hash grid": ("grid", "native"),
    "SIREN": ("siren", "native"),
    "reference backend": ("grid", "reference"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("meshes", nargs="+", type=Path)
    parser.add_argument("--points", action="store_true", help="fit points with normals, without distances")
    parser.add_argument("--seconds", type=float, help="per field (default: SdfConfig's)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--add", action="store_true", help="to the rows of an earlier call")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    warn_if_busy()
    name = "sdf_points" if args.points else "sdf_meshes"
    facts, rows = environment(torch.device("cpu")), []
    if args.add and (args.out / f"{name}.json").exists():
        rows = json.loads((args.out / f"{name}.json").read_text())["rows"]
    for path in args.meshes:
        for method in args.methods:
            row = {"mesh": path.name, "method": method, **measure(path, method, args.points, args.seconds)}
            print(_line(row), flush=True)
            rows = [old for old in rows if (old["mesh"], old["method"]) != (path.name, method)] + [row]
            rows.sort(key=lambda row: (row["mesh"].lower(), list(METHODS).index(row["method"])))
            atomic_write_json(args.out / f"{name}.json", {"environment": facts, "rows": rows})
    atomic_write_text(args.out / f"{name}.md", table(rows))


def measure(path: Path, method: str, from_points: bool, seconds: float | None) -> dict[str, Any]:
    """Trains one field and compares it, and the mesh extracted from it, with the mesh."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mesh = load_mesh(path)
    field_name, backend = METHODS[method]
    config = SdfConfig.defaults(field_name, from_points)
    config = config.replace(time_limit=seconds or config.default_seconds, device="cpu", backend=backend)
    begin = time.perf_counter()
    if from_points:
        with tempfile.TemporaryDirectory() as folder:
            points, face = mesh.sample_surface(N_POINTS, np.random.default_rng(0))
            np.savez(Path(folder) / "points.npz", points=points, normals=mesh.face_normals[face])
            begin = time.perf_counter()
            cloud = load_points(Path(folder) / "points.npz")
        vertices = cloud.placement.from_file(torch.from_numpy(mesh.vertices)).numpy()
        mesh = dataclasses.replace(mesh, vertices=vertices)
        task = Sdf(config, Shape.of(cloud))
    else:
        task = Sdf(config, Shape.of(load_mesh(path)))
    task.begin()
    trainer = Trainer(task, seconds_before=time.perf_counter() - begin)
    before = trainer.update_clock() * config.time_limit
    trainer.train()
    trainer.take_averages()
    task.close()
    field = make_field(config.replace(backend="native"))  # the same function, evaluated faster
    field.load_state_dict(task.model.state_dict())
    vertices, faces = to_mesh(field, config.pictures.resolution)
    progress = trainer.progress
    return {
        "warnings": [str(w.message) for w in caught],
        "iou": iou(field, mesh),
        **compare_meshes(vertices.double().numpy(), faces.numpy(), mesh),
        "components": n_components(faces),
        "eikonal_error": eikonal_error(field, mesh),
        "n_parameters": sum(param.numel() for param in field.parameters()),
        "steps": progress.step,
        "samples": progress.samples,
        "seconds": progress.seconds,
        "seconds_before_training": before,
    }


COLUMNS = "| mesh | field | IoU | Chamfer | normals | Euler (input) | closed | steps | M points/s |"


def _line(row: dict[str, Any]) -> str:
    rate = row["samples"] / (row["seconds"] - row["seconds_before_training"]) / 1e6
    chamfer = "-" if row["chamfer"] is None else f"{row['chamfer']:.2e}"
    normals = "-" if row["normal_consistency"] is None else f"{row['normal_consistency']:.4f}"
    return (
        f"| {row['mesh']} | {row['method']} | {row['iou']:.4f} | {chamfer} | {normals} | {row['euler']}"
        f" ({row.get('euler_input', '-')}) | {'yes' if row['watertight'] else 'no'} | {row['steps']} | {rate:.2f} |"
    )


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown; Chamfer distances in units of the cube."""
    return "\n".join([COLUMNS, "|---" * (COLUMNS.count("|") - 1) + "|", *map(_line, rows), ""])


if __name__ == "__main__":
    sys.exit(main())
