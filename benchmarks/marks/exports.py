"""Meshes of the procedural scene from its radiance field against the formulas that it is made of.

    python benchmarks/marks/exports.py [--seconds 120] [--run RUN]

For each method of `hashgrid export`: precision (of 30 000 points of the mesh, those nearer than a threshold to the true
surface), recall (of the points of the true surface that some training view sees, those nearer than that to the mesh),
their F-score, and colours, of the vertices and of a texture, as another reader finds them in the GLB, against the mean
of what the views that see a point are shown. The scene is 2.6 across. Writes results/exports.json.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.cli import main as hashgrid
from hashgrid.data.mesh import Mesh, is_watertight
from hashgrid.data.mesh_colors import read_colors
from hashgrid.data.procedural import signed_distance, surface_color, write_scene
from hashgrid.data.scene import load_scene
from hashgrid.geometry.boxes import Placement
from hashgrid.geometry.cameras import Cameras
from hashgrid.rendering.extract import to_mesh
from hashgrid.tasks.surfaces import METHODS
from hashgrid.util.files import atomic_write_json
from hashgrid.util.optional import optional_import

PATH = Path(__file__).parent / "results" / "exports.json"
THRESHOLDS = (0.01, 0.02, 0.05)
SIDE = 3.0  # of the box around the scene
CROP = (-0.9, -0.2, -0.6, 0.3, 0.9, 0.35)


def true_points(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points of the true surface [n, 3] and their normals."""
    vertices, faces = to_mesh(lambda x: signed_distance((x - 0.5) * SIDE) / SIDE, 256, lipschitz=1.0)
    mesh = Mesh((vertices.double().numpy() - 0.5) * SIDE, faces.numpy(), Placement(), True, "truth")
    points, face = mesh.sample_surface(n, np.random.default_rng(seed))
    return points, mesh.face_normals[face]


def seen(points: Tensor, cameras: Cameras, view: int) -> Tensor:
    """Whether a view sees points [N, 3] of the surface: they are in the picture, and nothing is before them."""
    pixel, depth = cameras.project(points, view)
    inside = (depth > 0) & (pixel >= 0).all(-1) & (pixel < cameras.sizes[view]).all(-1)
    towards = cameras.origins[view].float() - points
    far = towards.norm(dim=-1)
    towards, gone = towards / far[:, None], torch.full_like(far, 0.01)
    least = torch.full_like(far, math.inf)
    for _ in range(40):
        distance = signed_distance(points + gone[:, None] * towards)
        least = torch.minimum(least, torch.where(gone < far, distance, math.inf))
        gone = gone + distance.clamp(0.01, 0.3)
    return inside & (least > 2e-3)


def true_colors(points: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """What views see of points in the mean [N, 3], and how many do [N]."""
    total, count = torch.zeros_like(points), torch.zeros(len(points))
    for view in range(len(cameras)):
        sees = seen(points, cameras, view)
        directions = torch.nn.functional.normalize(points[sees] - cameras.origins[view].float(), dim=-1)
        total[sees] += surface_color(points[sees], directions)
        count[sees] += 1
    return total / count.clamp_min(1)[:, None], count


def measure(path: Path, points: np.ndarray, colors: np.ndarray | None) -> dict[str, Any]:
    """Figures of a GLB file."""
    read = optional_import("trimesh").load(path, force="mesh", process=False)
    faces = np.asarray(read.faces, np.int64)
    mesh = Mesh(np.asarray(read.vertices, np.float64), faces, Placement(), is_watertight(faces), path.name)
    ours = torch.from_numpy(mesh.sample_surface(30_000, np.random.default_rng(1))[0]).float()
    off, away = signed_distance(ours).abs(), mesh.nearest(points)[0]
    row: dict[str, Any] = {}
    for threshold in THRESHOLDS:
        precision, recall = float((off < threshold).float().mean()), float((away < threshold).mean())
        f_score = 2 * precision * recall / max(precision + recall, 1e-12)
        row[f"{threshold}"] = {"precision": precision, "recall": recall, "f_score": f_score}
    if colors is not None:
        known, near = read_colors(path), away < THRESHOLDS[-1]
        assert known is not None
        error = known(points[near]) - colors[near]
        row |= {"color_error": float(np.abs(error).mean()), "color_psnr": -10 * math.log10((error**2).mean())}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="of training")
    parser.add_argument("--run", type=Path, help="a run of `hashgrid nerf` on the scene; one is trained if none")
    parser.add_argument("--picture", type=int, default=100, help="width and height of the scene's pictures")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--views", type=int, default=30)
    parser.add_argument("--texture", type=int, default=1024)
    parser.add_argument("--faces", type=int, default=20_000, help="of the mesh with a texture")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--out", type=Path, default=Path("outputs") / "marks" / "exports")
    parser.add_argument("--json", type=Path, default=PATH)
    args = parser.parse_args()
    warn_if_busy()
    run = args.run
    if run is None:
        scene = write_scene(args.out / "scene", 60, 8, args.picture)
        run = args.out / "run"
        _call("nerf", scene, "--time-limit", args.seconds, "--no-video", "--out", run)
    results = json.loads((run / "results.json").read_text())
    train = load_scene(results["scene"]).train
    points, _ = true_points(6000)
    colors, count = true_colors(torch.from_numpy(points).float(), train.select(range(0, len(train), 2)))
    visible = (count > 0).numpy()
    points, shades = points[visible], colors[visible].numpy()
    rows = json.loads(args.json.read_text())["rows"] if args.json.exists() else []
    for method in args.methods:
        options = ["--method", method, "--resolution", args.resolution]
        looks = [] if method == "density" else ["--views", args.views, "--size", args.picture]
        folder = args.out / method
        _call("export", run, folder / "mesh.glb", *options, *looks, "--keep", 1)
        _call(
            "export",
            run,
            folder / "textured.glb",
            *options,
            *looks,
            "--keep",
            1,
            "--texture",
            args.texture,
            "--faces",
            args.faces,
        )
        few = [] if method == "density" else ["--views", 6, "--size", args.picture]
        _call("export", run, folder / "crop.glb", *options, *few, "--crop", *CROP)
        crop = optional_import("trimesh").load(folder / "crop.glb", force="mesh", process=False).vertices
        facts = json.loads((folder / "export.json").read_text())["mesh.glb"]
        row = {
            "method": method, **measure(folder / "mesh.glb", points, shades),
            "textured": measure(folder / "textured.glb", points, shades),
            "cropped_inside": bool((crop >= np.float32(CROP[:3])).all() and (crop <= np.float32(CROP[3:])).all()),
            **{key: facts[key] for key in ("vertices", "faces", "watertight", "seconds")},
        }  # fmt: skip
        print(json.dumps(row), flush=True)
        rows = [old for old in rows if old["method"] != method] + [row]
        trained = {"psnr": results["test"]["psnr_mean"], "steps": results["train"]["steps"]}
        sizes = {key: getattr(args, key) for key in ("picture", "resolution", "views", "texture", "faces")}
        seen_share = {"true_surface_seen": float(visible.mean())}
        facts = {"environment": environment(torch.device("cpu")), "trained": trained, **sizes, **seen_share}
        atomic_write_json(args.json, {**facts, "rows": rows})


def _call(*words: Any) -> None:
    if hashgrid([str(word) for word in words]) != 0:
        raise SystemExit(f"`hashgrid {' '.join(map(str, words))}` failed")


if __name__ == "__main__":
    main()
