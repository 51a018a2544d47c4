"""PSNR of test views after equal steps, of one process and of two: `hashgrid nerf` on the procedural scene.

    python benchmarks/marks/ranks_psnr.py --seeds 0 1 2      # the defaults, 10 minutes; writes results/ranks_psnr.json
    python benchmarks/marks/ranks_psnr.py --samples 131072

Occupancy is looked at by steps and not by a clock, so that both do the same. A folder that has results is only read.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from hashgrid.util.files import atomic_write_json
from hashgrid.util.info import describe

RESULTS = Path(__file__).parent / "results" / "ranks_psnr.json"


def psnr(n_processes: int, seed: int, steps: int, samples: int, folder: Path) -> float:
    out = folder / f"{n_processes}_{seed}_{samples}"
    if not (out / "results.json").exists():
        start = [sys.executable, "-m"]
        if n_processes > 1:
            start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes), "-m"]
        options = [
            "--steps",
            str(steps),
            "--seed",
            str(seed),
            "--occupancy-time-share",
            "1",
            "--no-video",
            "--out",
            out,
        ]
        options += ["--target-samples", str(samples)]
        command = [*start, "hashgrid", "nerf", *map(str, options)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    found = json.loads((out / "results.json").read_text())
    assert found["train"]["steps"] == steps and found["config"]["seed"] == seed
    return found["test"]["psnr_mean"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--samples", type=int, default=1 << 15, help="per step")
    parser.add_argument("--folder", type=Path, default=Path("outputs/ranks_psnr"), help="of all runs")
    args = parser.parse_args()
    rows = []
    for seed in args.seeds:
        one, two = (psnr(n, seed, args.steps, args.samples, args.folder) for n in (1, 2))
        rows.append({"seed": seed, "one": one, "two": two})
        print(f"seed {seed}: one process {one:.2f} dB, two {two:.2f} dB, {two - one:+.2f}", flush=True)
    means = {name: statistics.mean(row[name] for row in rows) for name in ("one", "two")}
    print(f"mean: {means['one']:.2f} and {means['two']:.2f} dB")
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    stored[str(args.samples)] = {"steps": args.steps, "rows": rows, "mean": means, "machine": dict(describe())}
    atomic_write_json(RESULTS, stored)


if __name__ == "__main__":
    main()
