"""A scene as one field and as blocks: PSNR of held-out views, and pictures of both.

    python benchmarks/marks/blocks.py --pictures outputs/blocks   # a quarter of an hour on one core
    python benchmarks/marks/blocks.py --steps 20 --train 12 --test 2 --pixels 40 --out outputs/blocks.json

The street that the package makes, as long as eight of its pairs of houses. Rows:

    one        `hashgrid nerf` of all of it, with the steps of a block
    one, all   the same with as many steps as all blocks together
    blocks     `--grid` blocks with an overlap of `--overlap`, each a run of its own
    uncut      all of it by the field of a block: contracted space, cascades of boxes, the steps of a block

Blocks are seen together by `hashgrid.rendering.blocks`. `seam` is the PSNR of pixels whose surface is where two blocks
overlap, `inside` that of all others that show something, by the depths that the row itself saw. Writes
results/blocks.json, and PNGs of truth and rows to `--pictures`.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid.data.blocks import BlockOptions, block_of
from hashgrid.data.scene import Scene, load_scene
from hashgrid.geometry.blocks import Cut, shares
from hashgrid.rendering.volume import render_image
from hashgrid.tasks.manifest import composed
from hashgrid.tasks.nerf import Nerf, NerfConfig
from hashgrid.train.loop import Trainer
from hashgrid.util.files import atomic_write_image, atomic_write_json
from hashgrid.util.info import describe
from hashgrid.util.threads import threads_for

RESULTS = Path(__file__).parent / "results" / "blocks.json"
# what `hashgrid blocks` says to `hashgrid nerf` of a scene that has an end
RECIPE = {"contraction": "cube", "sampler": "occupancy", "calm_distance": 0.0}


def train(scene: Scene, steps: int, **changes: Any) -> tuple[Nerf, float]:
    """A field of a scene after so many steps, and the seconds that they took."""
    config = NerfConfig.for_device(torch.device("cpu")).replace(steps=steps, seed=1, occupancy_time_share=1.0)
    trainer = Trainer(Nerf(config.replace(**changes), scene))
    trainer.train()
    return trainer.task, trainer.progress.seconds  # type: ignore[return-value]


def score(model: Any, sampler: Any, scene: Scene, cut: Cut) -> tuple[dict[str, float], list[Tensor]]:
    """Figures and pictures of the test views."""
    background, cameras, begin = torch.ones(3), scene.test.select(range(len(scene.test))), time.perf_counter()
    placement, pictures, errors, owners = scene.placement, [], [], []
    for view in range(len(scene.test)):
        color, opacity, depth = render_image(model, sampler, cameras, view, background)
        truth = scene.test.image_rgb(view, background)
        rays = cameras.view_rays(view)
        reached = (depth / opacity.clamp_min(1e-6)).view(-1, 1)
        places = placement.to_file(rays.origins + reached * rays.directions).float()
        margins = torch.tensor(cut.margins())
        most = torch.stack([shares(places, torch.tensor(cut.edges(n)), margins) for n in cut.numbers()]).amax(0)
        owners.append(torch.where(opacity.view(-1) > 0.5, most, -1.0))
        errors.append((color - truth).square().mean(-1).view(-1))
        pictures.append(color)
    seconds = (time.perf_counter() - begin) / len(pictures)
    error, owner = torch.cat(errors), torch.cat(owners)
    parts = {"inside": owner == 1, "seam": (owner >= 0) & (owner < 1)}
    psnr = {name: -10 * math.log10(float(error[part].mean())) for name, part in parts.items() if bool(part.any())}
    mean = sum(-10 * math.log10(float(each.mean())) for each in errors) / len(errors)
    return {"psnr": mean, **psnr, "seconds_per_view": seconds}, pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=700, help="of each block")
    parser.add_argument("--grid", type=int, nargs=3, default=[2, 1, 1])
    parser.add_argument("--overlap", type=float, default=0.1)
    for name, value, text in (("train", 80, "views"), ("test", 8, "views"), ("pixels", 128, "along a side")):
        parser.add_argument(f"--{name}", type=int, default=value, help=text)
    parser.add_argument(
        "--table", type=int, default=15, help="logarithm of the entries of each field's table per level"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--pictures", type=Path, help="folder of PNGs")
    args = parser.parse_args()
    raw = load_scene(f"street:train={args.train},test={args.test},resolution={args.pixels}")
    scene, corners = raw.normalized(), tuple(raw.aabb.tolist())
    cut, sizes = Cut(corners, tuple(args.grid), args.overlap), {"log2_hashmap_size": args.table}
    facts = {"grid": args.grid, "overlap": args.overlap, "scene": str(raw.path), "log2_hashmap_size": args.table}
    facts |= {"torch": torch.__version__, "machine": dict(describe())}
    n_blocks, rows, shown = len(cut.numbers()), list[dict[str, Any]](), list[list[Tensor]]()

    def note(name: str, model: Any, sampler: Any, seconds: float, n_steps: int) -> None:
        figures, pictures = score(model, sampler, scene, cut)
        rows.append({"row": name, "steps": n_steps, "training_seconds": seconds, **figures})
        shown.append(pictures)
        atomic_write_json(args.out, {**facts, "rows": rows})
        print(
            f"{name:9}", " ".join(f"{key} {value:.2f}" for key, value in rows[-1].items() if key != "row"), flush=True
        )

    with threads_for("native"):
        tasks, seconds = [], 0.0
        for number in cut.numbers():
            part = block_of(raw, BlockOptions(cut.box(number), cut.whole))  # type: ignore[arg-type]
            task, spent = train(part, args.steps, **RECIPE, **sizes)
            tasks, seconds = [*tasks, task], seconds + spent
        note("blocks", *composed(tasks, scene, cut), seconds, args.steps * n_blocks)
        task, seconds = train(raw, args.steps, **sizes)
        note("one", task.model, task.sampler, seconds, args.steps)
        task, seconds = train(raw, args.steps * n_blocks, **sizes)
        note("one, all", task.model, task.sampler, seconds, args.steps * n_blocks)
        task, seconds = train(block_of(raw, BlockOptions(cut.whole)), args.steps, **RECIPE, **sizes)  # type: ignore[arg-type]
        note("uncut", task.model, task.sampler, seconds, args.steps)
    if args.pictures is not None:
        for view in range(len(scene.test)):
            truth = scene.test.image_rgb(view, torch.ones(3))
            row = [truth, *(pictures[view] for pictures in shown)]
            atomic_write_image(args.pictures / f"{view:03d}.png", torch.cat(row, dim=1))


if __name__ == "__main__":
    main()
