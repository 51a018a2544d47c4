"""Shapes that no network has seen, completed from the half of their surface on one side of a plane.

    python benchmarks/marks/shapes_completion.py [FIELD ...] [--minutes 10] [--seeds 0]

64 generated shapes are learned and 8 completed: by codes that fit the half (deepsdf), or by an encoder of points
(occupancy_points, conv_occupancy). Beside it stands the same network without the prior: one for each shape, from the
start, that is trained on the half alone. Writes results/shapes_completion.json; fields that are not named keep their
rows.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.data.shape_set import load_shapes
from hashgrid.tasks.shape import ShapeConfig, ShapeTask
from hashgrid.train.loop import Trainer
from hashgrid.train.task import Report
from hashgrid.util.files import atomic_write_json
from hashgrid.util.threads import threads_for

PATH = Path(__file__).parent / "results" / "shapes_completion.json"
FIELDS = ("deepsdf", "occupancy_points", "conv_occupancy")


def measure(config: ShapeConfig, out: Path) -> dict[str, Any]:
    """Trains and completes with one field and seed."""
    begin, begin_cpu = time.perf_counter(), time.process_time()
    with threads_for(config.backend):
        task = ShapeTask(config, load_shapes(None, config.shapes, config.seed))
        task.begin()
        trainer = Trainer(task, seconds_before=time.perf_counter() - begin)
        trainer.train()
        spent = {"seconds": trainer.progress.seconds, "cpu_seconds": time.process_time() - begin_cpu}
        figures = task.evaluate(Report(out, trainer.progress))
    unseen = figures["unseen"]
    gain = unseen["completed"]["iou"] - unseen["without the prior"]["iou"]
    counts = {"steps": trainer.progress.step, "samples": trainer.progress.samples, "parameters": figures["parameters"]}
    seen = {"iou_seen": figures["iou"], "iou_seen_min": figures["iou_min"], "gain": gain}
    return {"field": config.field.name, "seed": config.seed, **spent, **counts, **seen, "unseen": unseen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("fields", nargs="*", default=FIELDS)
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, per field")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--family", default="drilled")
    parser.add_argument("--shapes", type=int, default=64)
    parser.add_argument("--fit-steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("outputs") / "marks" / "shapes_completion")
    parser.add_argument("--json", type=Path, default=PATH)
    args = parser.parse_args()
    warn_if_busy()
    rows = json.loads(args.json.read_text())["rows"] if args.json.exists() else []
    for name in args.fields:
        for seed in args.seeds:
            config = ShapeTask.defaults(name, torch.device("cpu"), set())
            shapes = {"family": args.family, "n_shapes": args.shapes, "n_unseen": 8, "fit_steps": args.fit_steps}
            config = config.replace(time_limit=60 * args.minutes, seed=seed, n_meshes=8, **shapes)
            row = measure(config, args.out / f"{name}_{seed}")  # type: ignore[arg-type]
            rows = [old for old in rows if (old["field"], old["seed"]) != (name, seed)] + [row]
            facts = {"minutes": args.minutes, **shapes, "environment": environment(torch.device("cpu"))}
            atomic_write_json(args.json, {**facts, "rows": rows})


if __name__ == "__main__":
    main()
