"""A capture that has no end: cascades of boxes, contracted space, and proposals, side by side.

    python benchmarks/marks/unbounded.py --seconds 60 --views 2   # writes results/unbounded.json

The scene is snowmiku_plush_504, or --scene; PSNR, SSIM and FLIP are those of test views, seconds those of training.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.util.files import atomic_write_json

DATA = Path(os.environ.get("HASHGRID_DATA", Path(__file__).resolve().parents[3] / "shared")) / "data"
PATH = Path(__file__).parent / "results" / "unbounded.json"
CASES: dict[str, list[str]] = {
    "cascades": ["--sampler", "occupancy", "--calm-distance", "0"],
    "cascades, calm": ["--sampler", "occupancy"],
    "contraction": ["--sampler", "occupancy", "--contraction", "cube"],
    "proposals, not calm": ["--calm-distance", "0"],
    "proposals": [],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all if none")
    parser.add_argument("--scene", type=Path, default=DATA / "nerf" / "snowmiku_plush_504")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=PATH)
    args = parser.parse_args()
    warn_if_busy()
    load, rows = os.getloadavg(), []
    for name in args.cases or CASES:
        with tempfile.TemporaryDirectory() as folder:
            options = ["--time-limit", str(args.seconds), "--views", str(args.views), "--seed", str(args.seed)]
            command = [sys.executable, "-m", "hashgrid", "nerf", str(args.scene), "--no-video", "--out", folder]
            subprocess.run([*command, *options, *CASES[name]], check=True)
            found = json.loads((Path(folder) / "results.json").read_text())
        test, train = found["test"], found["train"]
        row = {key: test[key] for key in ("psnr_mean", "ssim_mean", "flip_mean", "seconds") if key in test}
        rows.append(
            {"case": name, "options": CASES[name], "steps": train["steps"], "seconds": train["seconds"], "test": row}
        )
        print(rows[-1], flush=True)
        report = {"scene": args.scene.name, "views": args.views, "seed": args.seed, "rows": rows, "load_before": load}
        atomic_write_json(args.out, {**report, "environment": environment("cpu")})


if __name__ == "__main__":
    main()
