"""How much memory a thousand photos of 12 megapixels take: `hashgrid nerf` on them, pixels in a file.

    python benchmarks/marks/thousand_photos.py --folder FOLDER  # writes results/thousand_photos.json

Photos are JPEGs of 4000x3000, a few different ones under a thousand names; each name is decoded. The peak is that of
the training process: its resident size at most (VmHWM, as of `getrusage`), and what of it was its own and not pages of
the file, that the system takes back when it needs them. The second start finds the file.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch

from hashgrid.bench.environment import environment
from hashgrid.data.procedural import orbit_cameras
from hashgrid.util.files import atomic_write_json
from hashgrid.util.memory import resident_memory

PATH = Path(__file__).parent / "results" / "thousand_photos.json"
WIDTH, HEIGHT = 4000, 3000
ENCODINGS = 8


def write_photos(folder: Path, n: int) -> Path:
    """A capture of ``n`` photos: noise of several scales, as photographs have it, and cameras around it."""
    rng, stored = np.random.default_rng(0), [folder.parent / f"encoding_{i}.jpg" for i in range(ENCODINGS)]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for file in stored:
        if file.exists():
            continue
        image = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        for cell, strength in ((500, 60), (50, 40), (5, 20), (1, 6)):
            noise = rng.normal(size=(HEIGHT // cell, WIDTH // cell, 3)).astype(np.float32)
            image += strength * noise.repeat(cell, 0).repeat(cell, 1)
        iio.imwrite(file, (128 + image).clip(0, 255).astype(np.uint8), quality=90)
    cameras, frames = orbit_cameras(n, 100, 0), []
    for i in range(n):
        name = folder / "images" / f"{i:04d}.jpg"
        if not name.exists():
            os.link(stored[i % len(stored)], name)
        pose = torch.cat((cameras.c2w[i], torch.tensor([[0.0, 0.0, 0.0, 1.0]]))).tolist()
        frames.append({"file_path": f"images/{i:04d}.jpg", "transform_matrix": pose})
    meta = {"fl_x": 3600.0, "w": WIDTH, "h": HEIGHT, "aabb": [[-1.5] * 3, [1.5] * 3], "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(meta))
    return folder


def train(scene: Path, steps: int) -> dict[str, Any]:
    """Loads and trains in this process; seconds and bytes."""
    from hashgrid.data.scene import load_scene
    from hashgrid.tasks.nerf import Nerf
    from hashgrid.train.loop import Trainer

    peaks, running = {"RssAnon": 0, "RssFile": 0}, True

    def watch() -> None:
        while running:
            now = resident_memory()
            for name in peaks:
                peaks[name] = max(peaks[name], now.get(name, 0))
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    begin = time.perf_counter()
    loaded = load_scene(scene)
    seconds = time.perf_counter() - begin
    config = Nerf.defaults(None, torch.device("cpu"), set()).replace(steps=steps)
    trainer = Trainer(Nerf(config, loaded))  # type: ignore[arg-type]
    trainer.train()
    running = False
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "load_seconds": seconds,
        "train_seconds": trainer.progress.seconds,
        "steps": trainer.progress.step,
        "rays": trainer.progress.counts["rays"],
        "views": [len(loaded.train), len(loaded.test)],
        "bytes_of_pixels": loaded.train.data.numel() + loaded.test.data.numel(),
        "peak_resident_bytes": peak,
        "peak_own_bytes": peaks["RssAnon"],
        "peak_file_bytes": peaks["RssFile"],
    }


def in_a_process(scene: Path, cache: Path, steps: int) -> dict[str, Any]:
    """:func:`train` in a process of its own, whose peak is nothing else's."""
    command = [sys.executable, __file__, "--scene", str(scene), "--steps", str(steps)]
    environ = {**os.environ, "HASHGRID_CACHE": str(cache)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environ)
    *said, last = done.stdout.strip().splitlines()
    print("\n".join(said), flush=True)
    result: dict[str, Any] = json.loads(last)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=Path("outputs/thousand"), help="with room for 36 GB")
    parser.add_argument("--scene", type=Path, help="train on it, and print what that took")
    parser.add_argument("--out", type=Path, default=PATH)
    args = parser.parse_args()
    if args.scene is not None:
        print(json.dumps(train(args.scene, args.steps)), flush=True)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(args.folder).free
    scene, cache, rows = write_photos(args.folder / f"capture_{args.photos}", args.photos), args.folder / "cache", []
    shutil.rmtree(cache, ignore_errors=True)
    for start in ("first", "second"):
        rows.append({"start": start, **in_a_process(scene, cache, args.steps)})
        print(rows[-1], flush=True)
    shutil.rmtree(cache)
    facts = {"photos": args.photos, "size": [WIDTH, HEIGHT], "disk_free_before": free, "rows": rows}
    atomic_write_json(args.out, {**facts, "environment": environment("cpu")})


if __name__ == "__main__":
    main()
