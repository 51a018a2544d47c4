"""One auto-decoder for the closed meshes of a folder: overlap of each with its mesh.

    python benchmarks/marks/shapes_autodecoder.py FOLDER [--minutes 20] [--seeds 0]

Reading the meshes and computing samples is part of the time. Writes results/shapes_autodecoder.json; pictures and
meshes go to --out.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.data.errors import MeshWarning
from hashgrid.data.shape_set import load_shapes
from hashgrid.tasks.shape import ShapeConfig, ShapeTask
from hashgrid.train.loop import Trainer
from hashgrid.train.task import Report
from hashgrid.util.files import atomic_write_json
from hashgrid.util.threads import threads_for

PATH = Path(__file__).parent / "results" / "shapes_autodecoder.json"


def measure(folder: Path, config: ShapeConfig, out: Path) -> dict[str, Any]:
    """Trains with one seed."""
    begin, begin_cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings(), threads_for(config.backend):
        warnings.simplefilter("ignore", MeshWarning)  # of the open ones, which are left out
        task = ShapeTask(config, load_shapes(folder, config.shapes, config.seed))
        task.begin()
        trainer = Trainer(task, seconds_before=time.perf_counter() - begin)
        trainer.train()
        spent = {"seconds": trainer.progress.seconds, "cpu_seconds": time.process_time() - begin_cpu}
        figures = task.evaluate(Report(out, trainer.progress))
    rows = [{key: row.get(key) for key in ("name", "iou", "chamfer", "watertight")} for row in figures["shapes"]]
    counts = {"steps": trainer.progress.step, "samples": trainer.progress.samples}
    kept = {key: figures[key] for key in ("iou", "iou_min", "chamfer", "parameters")}
    return {"seed": config.seed, **spent, **counts, **kept, "shapes": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--field", default="deepsdf")
    parser.add_argument("--neurons", type=int, help="of a hidden layer, where not the field's default")
    parser.add_argument("--pool", type=int, default=1 << 20, help="samples of all shapes")
    parser.add_argument("--out", type=Path, default=Path("outputs") / "marks" / "shapes_autodecoder")
    parser.add_argument("--json", type=Path, default=PATH)
    args = parser.parse_args()
    if not args.folder.is_dir():
        print(f"skipped: there is no folder `{args.folder}`")
        return
    warn_if_busy()
    runs = []
    for seed in args.seeds:
        config = ShapeTask.defaults(args.field, torch.device("cpu"), set())
        sizes = {"n_meshes": 32, "pool": args.pool, "shape_batch": 11, "seed": seed}
        config = config.replace(time_limit=60 * args.minutes, **sizes)
        if args.neurons is not None:
            config = config.replace(n_neurons=args.neurons)
        runs.append(measure(args.folder, config, args.out / str(seed)))  # type: ignore[arg-type]
        facts = {"field": args.field, "minutes": args.minutes, "environment": environment(torch.device("cpu"))}
        atomic_write_json(args.json, {**facts, "runs": runs})


if __name__ == "__main__":
    main()
