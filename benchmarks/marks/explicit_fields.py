"""Voxels, factors and planes beside the hash grid, at equal time on two scenes that stand still; and on one that moves.

    python benchmarks/marks/explicit_fields.py [FIELD ...] [--scenes procedural chair moving] [--seconds 600]

``procedural`` is the scene of formulas, ``chair`` nerf_synthetic_chair_100 of the shared data, ``moving`` a ball that
crosses the box, seen once at each time and scored at times and from sides of its own. ``--cpu-clock`` counts the
seconds that the process has had a core, for machines that are busy; use one thread with it (OMP_NUM_THREADS=1).
Writes results/explicit_fields.json; rows that are not measured stay.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid.bench.environment import environment
from hashgrid.data.procedural import procedural_scene
from hashgrid.data.scene import Scene, load_scene
from hashgrid.geometry.cameras import Cameras
from hashgrid.rendering.scores import evaluate
from hashgrid.tasks.nerf import Nerf
from hashgrid.train.loop import Trainer
from hashgrid.util.files import atomic_write_json

PATH = Path(__file__).parent / "results" / "explicit_fields.json"
CHAIR = "data/nerf/nerf_synthetic_chair_100/chair"
STILL = ("ngp", "planes", "planes_explicit", "plenoxels", "tensorf", "tensorf_cp", "triplane")
MOVING = ("planes", "planes_time", "hexplane")
WHITE = torch.ones(3)
RADIUS = 0.35  # of the ball


def ball(cameras: Cameras) -> Tensor:
    """Pictures [N, H, W, 4] uint8 of a striped ball that moves along x from -0.8 to 0.8."""
    pictures = []
    for view in range(len(cameras)):
        rays, (width, height) = cameras.view_rays(view), cameras.size(view)
        assert rays.time is not None
        centre = torch.stack((1.6 * rays.time - 0.8, 0 * rays.time, 0 * rays.time), dim=-1)
        offset = rays.origins - centre
        b = (offset * rays.directions).sum(-1)
        square = b * b - offset.square().sum(-1) + RADIUS**2
        normal = (offset + (-b - square.clamp(min=0).sqrt())[:, None] * rays.directions) / RADIUS
        stripes = 0.5 + 0.4 * torch.sin(6 * normal)
        rgba = torch.cat((stripes, torch.ones_like(stripes[:, :1])), dim=-1) * (square > 0)[:, None]
        pictures.append((255 * rgba).round().byte().view(height, width, 4))
    return torch.stack(pictures)


def moving_scene(n_train: int, n_test: int, size: int) -> Scene:
    """One view of the ball at each time."""
    scene = procedural_scene(n_train=n_train, n_test=n_test, resolution=size)
    parts = []
    for views, ends in ((scene.train, (0.0, 1.0)), (scene.test, (0.1, 0.9))):
        views = replace(views, times=torch.linspace(*ends, len(views)))
        parts.append(replace(views, data=ball(views).flatten(0, 2)))
    return replace(scene, train=parts[0], test=parts[1])


def make_scene(name: str) -> Scene | None:
    """A scene by name; None where its data are absent."""
    if name == "procedural":
        return procedural_scene(n_train=60, n_test=8, resolution=100)
    if name == "moving":
        return moving_scene(24, 8, 48)
    shared = Path(os.environ.get("HASHGRID_DATA", Path(__file__).resolve().parents[3] / "shared"))
    return load_scene(shared / CHAIR) if (shared / CHAIR).is_dir() else None


def measure(name: str, scene: Scene, seconds: float, n_views: int | None, seed: int) -> dict[str, Any]:
    """Trains one field with its own defaults."""
    config = Nerf.defaults(name, torch.device("cpu"), set()).replace(time_limit=seconds, seed=seed)
    task = Nerf(config, scene)  # type: ignore[arg-type]
    trainer = Trainer(task)
    trainer.train()
    test = evaluate(task.model, task.sampler, task.scene.test, WHITE, None, n_views)
    return {
        "field": name,
        "seed": seed,
        "seconds": trainer.progress.seconds,
        "steps": trainer.progress.step,
        "samples": trainer.progress.samples,
        "parameters": sum(param.numel() for param in task.model.parameters()),
        "psnr": test["psnr_mean"],
        "ssim": test["ssim_mean"],
        "views": len(scene.test) if n_views is None else min(n_views, len(scene.test)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("fields", nargs="*", default=[], metavar="FIELD")
    parser.add_argument("--scenes", nargs="*", default=["procedural", "chair", "moving"])
    parser.add_argument("--seconds", type=float, default=600.0, help="of training, per field")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--views", type=int, help="test views that are scored; all of them if none")
    parser.add_argument("--cpu-clock", action="store_true", help="count time of the process, not of the wall")
    args = parser.parse_args()
    if args.cpu_clock:
        time.perf_counter = time.process_time
    rows = json.loads(PATH.read_text())["rows"] if PATH.exists() else []
    for where in args.scenes:
        scene = make_scene(where)
        if scene is None:
            print(f"{where}: no {CHAIR} in the shared data; set HASHGRID_DATA")
            continue
        for name in args.fields or (MOVING if where == "moving" else STILL):
            for seed in args.seeds:
                row = {"scene": where, "clock": "cpu" if args.cpu_clock else "wall", "threads": torch.get_num_threads()}
                row |= measure(name, scene, args.seconds, args.views, seed)
                print(f"{where} {name}: {row['psnr']:.2f} dB after {row['steps']} steps", flush=True)
                before = json.loads(PATH.read_text())["rows"] if PATH.exists() else rows
                keys = ("scene", "field", "seed")
                rows = [old for old in before if any(old[key] != row[key] for key in keys)] + [row]
                rows.sort(key=lambda row: [str(row[key]) for key in keys])
                atomic_write_json(PATH, {"environment": environment(torch.device("cpu")), "rows": rows})


if __name__ == "__main__":
    main()
