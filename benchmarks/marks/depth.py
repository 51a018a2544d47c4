"""What known depths are worth where views are few: errors of depth in views that nobody trained on.

    python benchmarks/marks/depth.py  # writes results/depth.json

The scene of formulas from a few views, with depths of its surface by marching: in units of the scene, or, as a network
that sees one picture at a time would give them, times a scale and plus a shift that differ from view to view. Depths
are read from 16-bit PNGs. Errors are of rendered distances, divided by opacities, over pixels that show something.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch
from torch import Tensor

from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.data.procedural import orbit_cameras, signed_distance, write_scene
from hashgrid.data.scene import Scene, load_scene
from hashgrid.geometry.cameras import Cameras
from hashgrid.rendering.scores import evaluate
from hashgrid.rendering.volume import render_image
from hashgrid.tasks.nerf import Nerf
from hashgrid.train.loop import Trainer
from hashgrid.util.files import atomic_write_json
from hashgrid.util.threads import own_threads

PATH = Path(__file__).parent / "results" / "depth.json"
WHITE = torch.ones(3)
SMALL: dict[str, Any] = {"log2_hashmap_size": 15, "max_resolution": 256, "target_samples": 1 << 13}
FAR = 7.0
RUNS = {  # depths that are given, and options
    "no depths": ("metric", {"depth_weight": 0.0}),
    "metric": ("metric", {}),
    "up to scale and shift": ("free", {"depth_scale": "free"}),
    "up to scale and shift, taken as metric": ("free", {}),
}


def distances(cameras: Cameras, view: int) -> Tensor:
    """Distances along rays to the surface [H, W]; 0 where there is none."""
    rays = cameras.view_rays(view)
    t = torch.full((len(rays),), 2.0)
    for _ in range(200):
        t = t + 0.8 * signed_distance(rays.origins + t[:, None] * rays.directions)
    hit = signed_distance(rays.origins + t[:, None] * rays.directions).abs() < 5e-3
    width, height = cameras.size(view)
    return torch.where(hit & (t < FAR), t, 0.0).view(height, width)


def write_depths(scene: Path, cameras: Cameras, kind: str, seed: int) -> None:
    """Adds depths along the axis to the training views of a folder."""
    rng, file = np.random.default_rng(seed), scene / "transforms_train.json"
    meta = json.loads(file.read_text())
    for view, frame in enumerate(meta["frames"]):
        rays = cameras.view_rays(view)
        width, height = cameras.size(view)
        depth = distances(cameras, view) * -(rays.directions @ cameras.c2w[view, :, 2]).view(height, width)
        values, known = depth.numpy(), depth.numpy() > 0
        if kind == "free":
            values = np.where(known, rng.uniform(0.3, 1.5) * values + rng.uniform(-0.2, 3.0), 0)
        iio.imwrite(scene / f"{kind}_{view}.png", (values * 5000).round().clip(0, 65535).astype(np.uint16))
        frame |= {"depth_file_path": f"{kind}_{view}.png", "depth_unit_scale_factor": 1 / 5000}
    file.write_text(json.dumps(meta))


def measure(scene: Scene, truth: list[Tensor], steps: int, seed: int, **options: Any) -> dict[str, float]:
    """Trains once, so many steps; the mean and the median error of depth in test views, and their PSNR."""
    config = Nerf.defaults(None, torch.device("cpu"), set()).replace(**SMALL, steps=steps, seed=seed, **options)
    task = Nerf(config, scene)  # type: ignore[arg-type]
    trainer = Trainer(task)
    trainer.train()
    test, unit, errors = task.scene.test, task.scene.placement.unit, []
    for view in range(len(test)):
        _, opacity, depth = render_image(task.model, task.sampler, test, view, WHITE)
        known = truth[view] > 0
        errors.append((unit * depth / opacity.clamp_min(1e-3) - truth[view])[known].abs())
    off = torch.cat(errors)
    return {
        "depth_error_mean": float(off.mean()),
        "depth_error_median": float(off.median()),
        "psnr": evaluate(task.model, task.sampler, test, WHITE)["psnr_mean"],
        "steps": trainer.progress.step,
        "seconds": trainer.progress.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=5, help="that are trained on")
    parser.add_argument("--resolution", type=int, default=100)
    parser.add_argument("--steps", type=int, default=300, help="of training, per run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=PATH)
    args = parser.parse_args()
    warn_if_busy()
    rows = []
    with tempfile.TemporaryDirectory() as folder, own_threads():
        path = write_scene(Path(folder) / "scene", args.views, 8, args.resolution)
        train, test = orbit_cameras(args.views, args.resolution, 0), orbit_cameras(8, args.resolution, 1)
        truth = [distances(test, view) for view in range(len(test))]
        for seed in args.seeds:
            for name, (kind, options) in RUNS.items():
                write_depths(path, train, kind, seed)
                row = {"depths": name, "seed": seed, **measure(load_scene(path), truth, args.steps, seed, **options)}
                rows.append(row)
                error = f"mean {row['depth_error_mean']:.3f}, median {row['depth_error_median']:.4f}"
                print(f"{name}, seed {seed}: error of depth {error}; {row['psnr']:.2f} dB", flush=True)
    facts = {"views": args.views, "resolution": args.resolution, "rows": rows, "environment": environment("cpu")}
    atomic_write_json(args.out, facts)


if __name__ == "__main__":
    main()
