"""Something that moves through the pictures: what masks over it are worth, in clean views, and masks turned round.

    python benchmarks/marks/masks.py  # writes results/masks.json and masks.png

Into each training view of the scene of formulas a disc of a random colour is painted at a random place. Test views are
clean. Three runs of as many steps: without masks, with the masks of a folder (`--masks`), and with the same masks the
wrong way round (`--mask-polarity white-hidden`), which must be told.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch

from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.data.errors import SceneWarning
from hashgrid.data.masks import write_masks
from hashgrid.data.procedural import write_scene
from hashgrid.data.scene import load_scene
from hashgrid.rendering.scores import evaluate
from hashgrid.tasks.nerf import Nerf
from hashgrid.train.loop import Trainer
from hashgrid.util.files import atomic_write_json
from hashgrid.util.threads import own_threads

RESULTS = Path(__file__).parent / "results"
WHITE = torch.ones(3)
SMALL: dict[str, Any] = {"log2_hashmap_size": 16, "max_resolution": 256, "target_samples": 1 << 13}
RUNS: dict[str, dict[str, Any]] = {
    "no masks": {"masks": "none"},
    "masks": {},
    "masks the wrong way round": {"mask_polarity": "white-hidden"},
}


def paint_discs(scene: Path, masks: Path, radius: float, seed: int) -> float:
    """Paints an opaque disc into each training view, and writes a mask for it, black there; the share it hides."""
    rng, hidden = np.random.default_rng(seed), []
    masks.mkdir()
    for file in sorted((scene / "train").glob("*.png")):
        image = iio.imread(file)
        height, width = image.shape[:2]
        y, x = np.mgrid[:height, :width]
        place, size = rng.uniform(0.2, 0.8, 2) * (height, width), rng.uniform(0.7, 1.3) * radius * width
        disc = np.hypot(y - place[0], x - place[1]) < size
        image[disc] = (*rng.integers(0, 256, 3), 255)
        iio.imwrite(file, image)
        iio.imwrite(masks / f"{file.name}.png", np.where(disc, 0, 255).astype(np.uint8))
        hidden.append(disc.mean())
    return float(np.mean(hidden))


def measure(scene: Path, steps: int, **options: Any) -> tuple[dict[str, Any], Nerf]:
    """Trains once; the score in test views, and what was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SceneWarning)
        loaded = load_scene(scene, **options)
    config = Nerf.defaults(None, torch.device("cpu"), set()).replace(**SMALL, steps=steps)
    task = Nerf(config, loaded)  # type: ignore[arg-type]
    trainer = Trainer(task)
    trainer.train()
    test = evaluate(task.model, task.sampler, task.scene.test, WHITE)
    said = [str(entry.message) for entry in caught if issubclass(entry.category, SceneWarning)]
    return {
        "psnr": test["psnr_mean"],
        "ssim": test["ssim_mean"],
        "steps": trainer.progress.step,
        "samples": trainer.progress.samples,
        "seconds": trainer.progress.seconds,
        "told": loaded.train.note,
        "warned": [text for text in said if "wrong way round" in text],
    }, task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=30, help="that are trained on")
    parser.add_argument("--resolution", type=int, default=100)
    parser.add_argument("--steps", type=int, default=300, help="of training, per run")
    parser.add_argument("--radius", type=float, default=0.2, help="of discs, in widths of the picture")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    warn_if_busy()
    rows = []
    with tempfile.TemporaryDirectory() as folder, own_threads():
        scene, masks = write_scene(Path(folder) / "scene", args.views, 8, args.resolution), Path(folder) / "hidden"
        hidden = paint_discs(scene, masks, args.radius, seed=0)
        for name, options in RUNS.items():
            row, task = measure(scene, args.steps, **{"masks": str(masks), **options})
            rows.append({"run": name, **row})
            print(f"{name}: {row['psnr']:.2f} dB; {row['told'] or 'no masks'}; {row['warned']}", flush=True)
            if name == "masks":
                write_masks(args.out / "masks.png", task.scene.train, WHITE)
    facts = {"views": args.views, "resolution": args.resolution, "hidden_share": hidden, "rows": rows}
    atomic_write_json(args.out / "masks.json", {**facts, "environment": environment("cpu")})
    print(json.dumps({"gain": rows[1]["psnr"] - rows[0]["psnr"]}))


if __name__ == "__main__":
    main()
