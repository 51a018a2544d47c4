"""Fields that are learned across scenes, on scenes they have not seen: rendered by three views, and fine-tuned to them.

    python benchmarks/marks/unseen_scenes.py train pixelnerf --steps 1600
    python benchmarks/marks/unseen_scenes.py train ibrnet --steps 1200
    python benchmarks/marks/unseen_scenes.py score pixelnerf
    python benchmarks/marks/unseen_scenes.py score ibrnet
    python benchmarks/marks/unseen_scenes.py tune ibrnet --steps 500 --scenes 0 1 2
    python benchmarks/marks/unseen_scenes.py tune ibrnet --steps 100 --scenes 0 1 2 --views 12
    python benchmarks/marks/unseen_scenes.py picture

Scenes are random primitives, 48x48 (`hashgrid.data.scene_families`). ``train`` leaves a checkpoint as `hashgrid
generalize` does, ``score`` renders unseen scenes by it, ``tune`` trains on the three views of one from it and from a
random start, ``picture`` puts some scenes of both side by side. Seconds are of one core (CPU time of the process), so
that others on the machine do not count. Writes results/unseen_scenes.json, where parts that are not asked for stay, and
results/unseen_scenes.png.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid.bench.environment import environment
from hashgrid.data.scene_families import FamilyOptions, generated_scenes, random_scene
from hashgrid.rendering.scores import evaluate
from hashgrid.rendering.unseen_scores import score_unseen, see
from hashgrid.rendering.volume import render_image
from hashgrid.tasks.generalize import Generalize
from hashgrid.tasks.nerf import Nerf
from hashgrid.tasks.trained import restored
from hashgrid.train.loop import Trainer
from hashgrid.train.run import read_checkpoint
from hashgrid.util.files import atomic_write_image, atomic_write_json

PATH = Path(__file__).parent / "results" / "unseen_scenes.json"
FIELDS = ("pixelnerf", "ibrnet")
CPU, WHITE = torch.device("cpu"), torch.ones(3)
N_UNSEEN, N_SHOWN = 12, 4


def keep(path: Path, part: str, figures: dict[str, Any]) -> None:
    """Puts figures under a name into the JSON, and prints them."""
    print(part, json.dumps(figures), flush=True)
    found = json.loads(path.read_text()) if path.exists() else {}
    atomic_write_json(path, {**found, "environment": environment(CPU), part: figures})


def timed(trainer: Trainer, checkpoint: Path | None = None) -> dict[str, float]:
    """Trains; how many steps and seconds of a core that took."""
    begin = time.process_time()
    trainer.train(checkpoint=checkpoint)
    return {"steps": trainer.progress.step, "core_seconds": time.process_time() - begin}


def train(field: str, steps: int, folder: Path) -> dict[str, Any]:
    config: Any = Generalize.defaults(field, CPU, set())
    config, begin = config.replace(steps=steps, n_unseen=N_UNSEEN), time.process_time()
    family = generated_scenes(config.family, config.sources)
    n_views = sum(len(scene.train) for scene in family.known)
    seconds = time.process_time() - begin
    trainer = Trainer(Generalize(config, family))
    folder.mkdir(parents=True, exist_ok=True)
    spent = timed(trainer, folder / f"{field}.safetensors")
    trainer.save(folder / f"{field}.safetensors")
    n = sum(param.numel() for param in trainer.task.model.parameters())
    scenes = {"scenes": family.n_known, "views": n_views, "core_seconds_of_scenes": seconds}
    return {**spent, **scenes, "parameters": n, "psnr_of_training": trainer.progress.psnr}


def task_of(field: str, folder: Path) -> Generalize:
    return restored(Generalize, read_checkpoint(folder / f"{field}.safetensors", Generalize), "cpu")


def score(field: str, folder: Path) -> dict[str, Any]:
    task = task_of(field, folder)
    return score_unseen(task.model, task.sampler, task.family.unseen, WHITE, folder / field)


def tune(field: str, folder: Path, steps: int, number: int, n_views: int, seed: int) -> dict[str, Any]:
    """PSNR of other views of an unseen scene before any step on ``n_views`` of it, and after as many from the learned
    parameters and from random ones."""
    scene = random_scene(n_views, FamilyOptions.n_targets, FamilyOptions.resolution, number)
    row: dict[str, Any] = {"scene": str(scene.path), "seed": seed}
    for start in ("learned", "random"):
        config: Any = Nerf.defaults(field, CPU, set()).replace(steps=steps, seed=seed)
        if start == "learned":
            config = config.replace(init=folder / f"{field}.safetensors")
        trainer = Trainer(Nerf(config, scene))
        task: Any = trainer.task
        before = evaluate(task.model, task.sampler, task.scene.test, WHITE)["psnr_mean"]
        spent = timed(trainer)
        after = evaluate(task.model, task.sampler, task.scene.test, WHITE)["psnr_mean"]
        row[start] = {"before": before, "after": after, **spent, "psnr_of_training": trainer.progress.psnr}
    print(json.dumps(row), flush=True)
    return row


def with_row(path: Path, part: str, row: dict[str, Any]) -> dict[str, Any]:
    """The rows of a part with another one, in the place of that of the same scene and seed, and means of all."""
    known = json.loads(path.read_text()).get(part, {}).get("rows", []) if path.exists() else []
    rows = [*(old for old in known if (old["scene"], old["seed"]) != (row["scene"], row["seed"])), row]
    rows.sort(key=lambda row: (row["scene"], row["seed"]))
    means = {
        f"{start}_{when}": sum(row[start][when] for row in rows) / len(rows)
        for start in ("learned", "random")
        for when in ("before", "after")
    }
    return {**means, "gain": means["learned_after"] - means["random_after"], "rows": rows}


@torch.no_grad()
def picture(folder: Path) -> Tensor:
    """For some unseen scenes (rows): three sources, truth, pixelNeRF, IBRNet."""
    tasks = [task_of(field, folder) for field in FIELDS]
    rows = []
    for scene in tasks[0].family.unseen[:N_SHOWN]:
        for view in (0, 1):
            images = [scene.train.image_rgb(i, WHITE) for i in range(3)] + [scene.test.image_rgb(view, WHITE)]
            for task in tasks:
                see(task.model, scene.train, WHITE)
                images.append(render_image(task.model, task.sampler, scene.test, view, WHITE, 512)[0])
            rows.append(torch.cat(images, dim=1))
    return torch.cat(rows).repeat_interleave(2, 0).repeat_interleave(2, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("train", "score", "tune", "picture"))
    parser.add_argument("field", nargs="?", choices=FIELDS, default="ibrnet")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--scenes", type=int, nargs="+", default=[0, 1, 2], help="unseen ones that are fine-tuned to")
    parser.add_argument("--views", type=int, default=3, help="of an unseen scene that are fine-tuned to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, default=Path("outputs/unseen_scenes"), help="of checkpoints and pictures"
    )
    parser.add_argument("--out", type=Path, default=PATH)
    args = parser.parse_args()
    if args.part == "picture":
        atomic_write_image(args.out.with_suffix(".png"), picture(args.folder))
    elif args.part == "tune":
        part = f"tune {args.field}" + ("" if args.views == 3 else f" on {args.views} views")
        for number in args.scenes:
            row = tune(args.field, args.folder, args.steps, number, args.views, args.seed)
            keep(args.out, part, with_row(args.out, part, row))
    elif args.part == "train":
        keep(args.out, f"train {args.field}", train(args.field, args.steps, args.folder))
    else:
        keep(args.out, f"score {args.field}", score(args.field, args.folder))


if __name__ == "__main__":
    main()
