"""How well each radiance field explains the procedural scene, against copying the nearest training view.

    python benchmarks/marks/radiance_fields.py [FIELD ...] [--seconds 600]

A field that has learned the scene, and not its pictures, is far above the picture of nearly the same view.
Writes results/radiance_fields.json; fields that are not named keep their rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.data.procedural import procedural_scene
from hashgrid.data.scene import Scene
from hashgrid.fields import RADIANCE_FIELDS
from hashgrid.rendering.scores import evaluate
from hashgrid.tasks.nerf import Nerf
from hashgrid.train.loop import Trainer
from hashgrid.util.files import atomic_write_json
from hashgrid.util.metrics import psnr
from hashgrid.util.threads import own_threads

PATH = Path(__file__).parent / "results" / "radiance_fields.json"
WHITE = torch.ones(3)


def nearest_view_psnr(scene: Scene) -> float:
    """Mean PSNR of the test views when each is shown the training view whose camera is nearest."""
    scores = []
    for view in range(len(scene.test)):
        distance = (scene.train.origins - scene.test.origins[view]).norm(dim=-1)
        nearest = int(distance.argmin())
        scores.append(psnr(scene.train.image_rgb(nearest, WHITE), scene.test.image_rgb(view, WHITE)))
    return statistics.fmean(scores)


def measure(name: str, scene: Scene, seconds: float) -> dict[str, Any]:
    """Trains one field with its own defaults."""
    config = Nerf.defaults(name, torch.device("cpu"), set()).replace(time_limit=seconds)
    task = Nerf(config, scene)  # type: ignore[arg-type]
    trainer = Trainer(task)
    trainer.train()
    test = evaluate(task.model, task.sampler, task.scene.test, WHITE)
    return {
        "field": name,
        "seconds": trainer.progress.seconds,
        "steps": trainer.progress.step,
        "samples": trainer.progress.samples,
        "parameters": sum(param.numel() for param in task.model.parameters()),
        "psnr": test["psnr_mean"],
        "ssim": test["ssim_mean"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("fields", nargs="*", default=list(RADIANCE_FIELDS))
    parser.add_argument("--seconds", type=float, default=600.0, help="of training, per field")
    args = parser.parse_args()
    warn_if_busy()
    scene = procedural_scene(n_train=60, n_test=8, resolution=100)
    nearest = nearest_view_psnr(scene)
    rows = json.loads(PATH.read_text())["rows"] if PATH.exists() else []
    for name in args.fields:
        with own_threads():
            row = measure(name, scene, args.seconds) | {"above_nearest_view": 0.0}
        row["above_nearest_view"] = row["psnr"] - nearest
        above = f"{row['above_nearest_view']:+.2f} dB against the nearest view ({nearest:.2f})"
        print(f"{name}: {row['psnr']:.2f} dB, {above}", flush=True)
        rows = [old for old in rows if old["field"] != name] + [row]
        facts = environment(torch.device("cpu"))
        atomic_write_json(PATH, {"environment": facts, "nearest_view_psnr": nearest, "rows": rows})


if __name__ == "__main__":
    main()
