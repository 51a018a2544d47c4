"""How well a field explains few X-ray projections of the phantom, against filtered back projection of the same.

    python benchmarks/marks/tomography.py  # 64^3 from 20 views, 120 s, seeds 0 to 2; writes results/tomography.json
    python benchmarks/marks/tomography.py --seconds 10 --size 32 --seeds 0 --out /tmp

PSNR in dB of all voxels relative to the range of the phantom, whose voxels are means. Filtered back projection is
`skimage.transform.iradon` slice by slice, clipped at zero, with the best of its filters. Seconds are those of training
alone, and those of the CPU are of all threads: what a busy machine lengthens less.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch

from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.data.backprojection import FILTERS, filtered_back_projection
from hashgrid.data.projections import Projections, scan_phantom
from hashgrid.data.signals import Signal
from hashgrid.fields import SIGNAL_FIELDS
from hashgrid.tasks.ct import Ct
from hashgrid.train.loop import Trainer
from hashgrid.util.files import atomic_write_json
from hashgrid.util.threads import own_threads


def back_projection(scan: Projections, truth: Signal) -> dict[str, Any]:
    """PSNR of each filter."""
    results = {name: filtered_back_projection(scan, truth.shape[0], name).clamp_min(0) for name in FILTERS}
    quality = {name: truth.psnr(volume[..., None]) for name, volume in results.items()}
    return {"filter": max(quality, key=lambda name: quality[name]), "psnr": max(quality.values()), "all": quality}


def train(field: str, seed: int, scan: Projections, args: argparse.Namespace) -> dict[str, Any]:
    config = Ct.defaults(field, torch.device("cpu"), set()).replace(
        device="cpu", seed=seed, time_limit=args.seconds, steps=args.steps
    )
    task = Ct(config, scan)  # type: ignore[arg-type]
    task.begin()
    trainer, cpu = Trainer(task), time.process_time()
    trainer.train()
    cpu = time.process_time() - cpu
    assert task.truth is not None
    return {
        "field": field,
        "seed": seed,
        "psnr": task.truth.psnr(task.volume()[..., None]),
        "residual": task.residual(),
        "train.seconds": trainer.progress.seconds,
        "train.cpu_seconds": cpu,
        "train.steps": trainer.progress.step,
        "train.samples": trainer.progress.samples,
        "parameters": sum(param.numel() for param in task.model.parameters()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fields", nargs="*", default=["hash"], help=f"among {', '.join(SIGNAL_FIELDS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=120.0, help="of training")
    parser.add_argument("--steps", type=int, help="at most")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--views", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    warn_if_busy()
    load = os.getloadavg()
    scan = scan_phantom(args.views, args.size)
    assert scan.truth is not None
    truth = Signal(scan.truth[..., None], float(scan.truth.min()), float(scan.truth.max()))
    plain, runs = back_projection(scan, truth), []
    print(f"filtered back projection ({plain['filter']}): {plain['psnr']:.2f} dB", flush=True)
    for field in args.fields:
        for seed in args.seeds:
            with own_threads():
                run = train(field, seed, scan, args)
            run["gain"] = run["psnr"] - plain["psnr"]
            took = f"{run['train.seconds']:.0f} s, {run['train.cpu_seconds']:.0f} s of the CPU"
            print(f"{field}, seed {seed}: {run['psnr']:.2f} dB, {run['gain']:+.2f} after {took}", flush=True)
            runs.append(run)
    options = {name: value for name, value in vars(args).items() if name != "out"}
    report = {"options": options, "filtered_back_projection": plain, "runs": runs, "load_before": load}
    args.out.mkdir(parents=True, exist_ok=True)
    atomic_write_json(args.out / "tomography.json", report | {"environment": environment(torch.device("cpu"))})


if __name__ == "__main__":
    main()
