"""Labels that are wrong, or few: how many a field that saw all views gets right.

    python benchmarks/marks/labels.py --seeds 0 1 2   # all cases if none are named

The scene is `labelled`, which the package makes: a ball and the box across from it look alike. `noisy`: of seven in ten
labels another class is said. `few`: one pixel of each class has a label on five of the thirty training views. Simpler
methods know single pixels: the given label itself, the commonest one of the square of pixels around it, and, where
there are few, the label of the pixel that is nearest in colour. Shares are of pixels that show something, over all
views of a kind. Writes results/labels.json, rows of what is not named stay, and results/labels_CASE.png: for a training
view and a held-out one (rows) truth | rendered | wrong.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.data.scene import VOID, Scene, SceneOptions, Views, load_scene
from hashgrid.rendering.label_scores import confusion, figures, label_strip, shown_labels
from hashgrid.rendering.labels import known_labels
from hashgrid.tasks.nerf import Nerf
from hashgrid.train.loop import Trainer
from hashgrid.util.files import atomic_write_image, atomic_write_json
from hashgrid.util.pictures import GAP

PATH = Path(__file__).parent / "results" / "labels.json"
# no share of the time is asked for: the same numbers on a busy machine
SIZES: dict[str, Any] = {"semantic": True, "target_samples": 1 << 14, "occupancy_time_share": 1.0}
CASES: dict[str, dict[str, Any]] = {
    "noisy": {"label_noise": 0.7},
    "few": {"labelled_views": 5, "labels_per_class": 1},
}
SQUARES = (3, 5, 7, 9, 11, 13)  # sides, of the square of which the commonest label is taken
WHITE = torch.ones(3)


def commonest(labels: Tensor, side: int, n_classes: int) -> Tensor:
    """The commonest label in the square around each pixel of a map [H, W], of those that are known."""
    votes = torch.nn.functional.one_hot(torch.where(labels == VOID, n_classes, labels.long()), n_classes + 1)
    votes = votes[..., :n_classes].permute(2, 0, 1)[None].float()
    counts = torch.nn.functional.avg_pool2d(votes, side, 1, side // 2)[0]
    return torch.where(labels == VOID, VOID, counts.argmax(0)).byte()


def colors_of(views: Views) -> Tensor:
    """Before white [P, 3]."""
    return torch.cat([views.image_rgb(view, WHITE).flatten(0, 1) for view in range(len(views))])


def scores(truth: list[Tensor], found: list[Tensor], n_classes: int) -> dict[str, Any]:
    """Of maps of labels."""
    return figures(sum((confusion(*pair, n_classes) for pair in zip(truth, found, strict=True)), torch.tensor(0)))


def simpler(given: Views, scene: Scene, others: list[int]) -> dict[str, Any]:
    """What methods that know single pixels get right; of few labels, in training views without any."""
    n, train = scene.n_classes, scene.train
    if not others:
        truth, maps = ([views.label_map(i) for i in range(len(train))] for views in (train, given))
        found = {"given labels": scores(truth, maps, n)["label_accuracy"]}
        for side in SQUARES:
            smooth = [commonest(each, side, n) for each in maps]
            found[f"commonest of {side}x{side}"] = scores(truth, smooth, n)["label_accuracy"]
        return found
    known, rules = given.labels != VOID, {}
    colors = colors_of(train)[known]
    for name, views, wanted in (("training", train, others), ("test", scene.test, range(len(scene.test)))):
        nearest = given.labels[known][torch.cdist(colors_of(views), colors).argmin(1)]
        pixels = torch.cat([torch.arange(*views.offsets[i : i + 2].tolist()) for i in wanted])
        pixels = pixels[views.labels[pixels] != VOID]
        rules[name] = float((nearest == views.labels)[pixels].float().mean())
    return {"labelled pixels": int(known.sum()), "nearest colour": rules}


def measure(case: str, scene: Scene, seed: int, steps: int) -> tuple[dict[str, Any], Tensor]:
    """The row of a case, and its picture."""
    options = {**SIZES, **CASES[case], "steps": steps, "seed": seed}
    config: Any = Nerf.defaults(None, torch.device("cpu"), set()).replace(**options)
    task = Nerf(config, scene)
    Trainer(task).train()
    n, few = scene.n_classes, "labelled_views" in CASES[case]
    given = known_labels(config.labelling, scene.train, n, seed)
    others = [i for i in range(len(scene.train)) if bool((given.label_map(i) == VOID).all())]
    row: dict[str, Any] = {}
    training, test = others if few else range(len(scene.train)), range(len(scene.test))
    panels = []
    for name, views, wanted in (("training", task.scene.train, training), ("test", task.scene.test, test)):
        truth = [views.label_map(i) for i in wanted]
        found = [shown_labels(task.model, task.sampler, views, i) for i in wanted]
        row[name] = scores(truth, found, n) | {"views": len(found)}
        panels.append(label_strip(truth[len(truth) // 2], found[len(truth) // 2]))
    width = panels[0].shape[1]
    picture = torch.cat((panels[0], torch.ones(GAP, width, 3), panels[1]))
    return {**row, "simpler": simpler(given, scene, others)}, picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="CASE", help="all if none")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=600, help="of training, each time")
    parser.add_argument("--out", type=Path, default=PATH)
    args = parser.parse_args()
    warn_if_busy()
    scene = load_scene(Path("labelled"), SceneOptions())
    for case in args.cases or CASES:
        for seed in args.seeds:
            found, picture = measure(case, scene, seed, args.steps)
            known = {"case": case, "seed": seed, "steps": args.steps}
            print(json.dumps({**known, **found}), flush=True)
            rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
            rows = [old for old in rows if any(old[key] != value for key, value in known.items())]
            atomic_write_json(args.out, {"environment": environment(), "rows": [*rows, {**known, **found}]})
            if seed == args.seeds[0]:
                enlarged = picture.repeat_interleave(3, 0).repeat_interleave(3, 1)
                atomic_write_image(args.out.with_name(f"{args.out.stem}_{case}.png"), enlarged)


if __name__ == "__main__":
    main()
