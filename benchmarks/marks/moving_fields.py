"""Fields of time on scenes that move, seen once per moment, and fields that stand still beside them.

    python benchmarks/marks/moving_fields.py moving splitting --seconds 180 --seeds 0   # all if none are named

Scenes are those that the package makes; held-out views are at times between those of training, from other sides.
Writes results/moving_fields.json, rows of what is not named stay, and results/moving_fields_SCENE.png: for each field
(rows) four held-out views, the truth first.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.data.scene import Scene, SceneOptions, load_scene
from hashgrid.rendering.scores import evaluate
from hashgrid.rendering.volume import render_image
from hashgrid.tasks.nerf import Nerf
from hashgrid.train.loop import Trainer
from hashgrid.util.files import atomic_write_image, atomic_write_json

PATH = Path(__file__).parent / "results" / "moving_fields.json"
SCENES = ("moving", "splitting")
SIZES: dict[str, Any] = {"target_samples": 1 << 14, "steps_per_diagonal": 192}
# name of a row: field, and its options
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "ngp, stands still": ("ngp", {"max_resolution": 256}),
    "planes, stand still": ("planes", {"plane_resolutions": (32, 64, 128)}),
    "planes_time": ("planes_time", {}),
    "hexplane": ("hexplane", {}),
    "ngp_time": ("ngp_time", {}),
    "dnerf": ("dnerf", {}),
    "hypernerf, motions alone": ("hypernerf", {"ambient_dims": 0}),
    "hypernerf": ("hypernerf", {}),
}
SHOWN = (0, 3, 6, 9)  # of the held-out views


def train(row: str, scene: Scene, seed: int, budget: dict[str, Any]) -> tuple[Nerf, dict[str, Any]]:
    """The trained task and its row of the table."""
    field, options = ROWS[row]
    config: Any = Nerf.defaults(field, torch.device("cpu"), set())
    task = Nerf(config.replace(**SIZES, **options, **budget, seed=seed), scene)
    trainer = Trainer(task)
    trainer.train()
    found = evaluate(task.model, task.sampler, task.scene.test, torch.ones(3))
    n = sum(param.numel() for param in task.model.parameters())
    figures = {"psnr": found["psnr_mean"], "ssim": found["ssim_mean"], "seconds": trainer.progress.seconds}
    return task, {**figures, "steps": trainer.progress.step, "parameters": n}


def shown(task: Nerf) -> Tensor:
    """Held-out views side by side [H, W, 3]."""
    white = torch.ones(3)
    pictures = [render_image(task.model, task.sampler, task.scene.test, view, white)[0] for view in SHOWN]
    return torch.cat(pictures, dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", choices=[*SCENES, []], metavar="SCENE", help="all if none")
    parser.add_argument("--rows", nargs="+", default=[*ROWS], choices=[*ROWS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--seconds", type=float, default=180.0, help="of training, per field")
    parser.add_argument("--steps", type=int, help="of training, per field, instead")
    parser.add_argument("--out", type=Path, default=PATH)
    args = parser.parse_args()
    warn_if_busy()
    budget = {"time_limit": args.seconds, "steps": None} if args.steps is None else {"steps": args.steps}
    for name in args.scenes or SCENES:
        scene = load_scene(Path(name), SceneOptions())
        pictures = [torch.cat([scene.test.image_rgb(view, torch.ones(3)) for view in SHOWN], dim=1)]
        for row in args.rows:
            for seed in args.seeds:
                task, figures = train(row, scene, seed, budget)
                known = {"scene": name, "row": row, "seed": seed, "budget": args.steps or args.seconds}
                print(json.dumps({**known, **figures}), flush=True)
                rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
                rows = [old for old in rows if any(old[key] != value for key, value in known.items())]
                found = {"environment": environment(torch.device("cpu")), "rows": [*rows, {**known, **figures}]}
                atomic_write_json(args.out, found)
                if seed == args.seeds[0]:
                    pictures.append(shown(task))
        atomic_write_image(args.out.with_name(f"{args.out.stem}_{name}.png"), torch.cat(pictures))


if __name__ == "__main__":
    main()
