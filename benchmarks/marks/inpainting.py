"""chelsea.png from a tenth of its pixels: what `hashgrid image --keep 0.1` makes of the others, beside interpolation.

    python benchmarks/marks/inpainting.py  # seeds 0, 1, 2 of the pixels; writes results/inpainting.json, .png

Nearest neighbour and linear interpolation are SciPy's, biharmonic inpainting is scikit-image's. PSNR is that of the
pixels that were not known, and of all. Needs the photo: --photo, or HASHGRID_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from skimage.restoration import inpaint_biharmonic
from torch import Tensor

from hashgrid.bench.environment import environment
from hashgrid.data.pictures import read_picture
from hashgrid.data.signals import Signal
from hashgrid.tasks.image import Image
from hashgrid.train.loop import Trainer
from hashgrid.util.files import atomic_write_image
from hashgrid.util.threads import threads_for

DATA = Path(os.environ.get("HASHGRID_DATA", Path(__file__).resolve().parents[3] / "shared")) / "data"


def interpolated(signal: Signal, known: Tensor) -> dict[str, tuple[Tensor, float]]:
    """Stored values [H, W, C] by each interpolation, and its seconds."""
    pixels, mask = signal.values.numpy(), known.numpy()
    places, (height, width) = np.argwhere(mask), mask.shape
    rows, columns = np.mgrid[:height, :width]
    found = {}

    def keep(name: str, values: np.ndarray, begin: float) -> None:
        stored = torch.from_numpy(values.clip(0, 255).round().astype(np.uint8))
        found[name] = stored, time.perf_counter() - begin

    begin = time.perf_counter()
    nearest = NearestNDInterpolator(places, pixels[mask])(rows, columns)
    keep("nearest", nearest, begin)
    begin = time.perf_counter()
    linear = LinearNDInterpolator(places, pixels[mask].astype(np.float64))(rows, columns)
    keep("linear", np.where(np.isnan(linear), nearest, linear), begin)
    begin = time.perf_counter()
    keep("biharmonic", 255 * inpaint_biharmonic(pixels / 255 * mask[..., None], ~mask, channel_axis=-1), begin)
    return found


def trained(path: Path, seed: int, seconds: float, field: str) -> tuple[Image, Tensor, float]:
    """The task, stored values [H, W, C] and seconds of a run of `hashgrid image --keep 0.1`."""
    config = Image.defaults(field, torch.device("cpu"), {"--keep"}).replace(keep=0.1, seed=seed, time_limit=seconds)
    with threads_for("native"):
        task = Image(config.with_budget(), read_picture(path), path)
        task.begin()
        trainer = Trainer(task)
        trainer.train()
        return task, task.signal.sampled(task.model), trainer.progress.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, default=DATA / "image" / "chelsea.png")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--fields", nargs="+", default=["hash", "siren"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    load, rows, pictures = os.getloadavg(), [], {}
    for seed in args.seeds:
        for field in args.fields:
            task, values, seconds = trained(args.photo, seed, args.seconds, field)
            made = {field: (values, seconds)}
            if field == args.fields[0]:
                made |= interpolated(task.signal, task.signal.known_mask())
            for name, (stored, seconds) in made.items():
                row: dict[str, Any] = {"seed": seed, "by": name, "seconds": seconds, **task.quality(stored)}
                rows.append(row)
                pictures.setdefault(name, stored)
                print(f"seed {seed} {name}: unknown {row['psnr_unknown']:.2f} dB, all {row['psnr']:.2f} dB", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    shown = [task.signal.values, *pictures.values()]
    atomic_write_image(args.out / "inpainting.png", torch.cat([picture[60:220, 100:320] for picture in shown], dim=1))
    report = {"photo": args.photo.name, "rows": rows, "pictures": ["photo", *pictures], "load_before": load}
    (args.out / "inpainting.json").write_text(
        json.dumps({**report, "environment": environment("cpu")}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
