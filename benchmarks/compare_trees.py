"""Compares the speed of two built checkouts on this machine, in turns: steps, a rendered view, training.

    python benchmarks/compare_trees.py BEFORE AFTER [--pairs 9] [--suites nerf_step sdf_step render train]

Each turn is a process of its own, and runs a suite of `hashgrid bench` as its checkout has it, our contender alone. A
pair is one turn of each; which comes first alternates. Printed is the median over the pairs of the ratio of speeds,
above 1 where AFTER is faster. Writes results/compare_trees.json with every figure; other suites keep theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.util.files import atomic_write_json

PATH = Path(__file__).parent / "results" / "compare_trees.json"
OPTIONS = {
    "nerf_step": ["--seconds", "4", "--warm-steps", "100"],
    "sdf_step": ["--seconds", "3", "--warm-steps", "30"],
    "render": ["--seconds", "4", "--warm-steps", "100"],
    "train": ["--train-seconds", "12", "--views", "2"],
}

# What a turn runs: other contenders are left out, and a curve of theirs is ours.
TURN = """
import importlib, sys
from hashgrid.bench import harness
suite = importlib.import_module("hashgrid.bench." + sys.argv[1])
run = harness.Suite.run
def ours_only(self, case):
    case.contenders = [row for row in case.contenders if row.name.startswith(harness.OURS)]
    run(self, case)
harness.Suite.run = ours_only
if sys.argv[1] == "train":
    train, curves = suite._train, []
    def once(*args, **options):
        curves.extend([] if curves else [train(*args, **options)])
        return curves[0]
    suite._train = once
suite.main(sys.argv[2:])
"""


def turn(tree: Path, suite: str) -> dict[str, float]:
    """Speeds of one suite in one checkout: points, samples or rays per second, and the PSNR of training."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--no-compile", "--no-peers", "--no-plot", "--out", folder, *OPTIONS[suite]]
        command = [sys.executable, "-c", TURN, suite, *options]
        environ = {**os.environ, "PYTHONPATH": str(tree)}
        done = subprocess.run(command, cwd=tree, env=environ, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"`{suite}` failed in {tree}:\n{done.stderr[-2000:]}")
        record = json.loads(next(Path(folder).glob("*.json")).read_text())
    speeds = {}
    for case in record["cases"]:
        row = case["contenders"][0]
        if suite == "train":
            speeds |= {"train: samples": row["curve"][-1]["samples"], "train: PSNR": row["curve"][-1]["psnr"]}
        else:
            speeds[f"{suite}: {case['name']}"] = 1e9 / row["median_ns"]
    return speeds


def summarise(pairs: list[dict[str, Any]]) -> dict[str, float]:
    """Medians of the pairs' ratios; of PSNR the median difference in dB."""
    medians = {}
    for name in dict.fromkeys(name for pair in pairs for name in pair["after"]):
        both = [(pair["before"][name], pair["after"][name]) for pair in pairs if name in pair["after"]]
        is_psnr = name.endswith("PSNR")
        medians[name] = statistics.median(after - before if is_psnr else after / before for before, after in both)
    return medians


def commit(tree: Path) -> str:
    return subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=tree, text=True).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--suites", nargs="+", choices=list(OPTIONS), default=list(OPTIONS))
    args = parser.parse_args()
    trees = {"before": args.before.resolve(), "after": args.after.resolve()}
    warn_if_busy()
    facts = environment(torch.device("cpu"))
    commits = {which: commit(tree) for which, tree in trees.items()}
    stored = json.loads(PATH.read_text())["pairs"] if PATH.exists() else []
    pairs: list[dict[str, Any]] = [pair for pair in stored if pair["suite"] not in args.suites]
    for i in range(args.pairs):
        for suite in args.suites:
            order = ("before", "after") if i % 2 == 0 else ("after", "before")
            pairs.append({"suite": suite, "commits": commits} | {which: turn(trees[which], suite) for which in order})
            for name, ratio in summarise(pairs[-1:]).items():
                print(f"{i + 1}: {name} {ratio:.3f}", flush=True)
        medians = summarise(pairs)
        atomic_write_json(PATH, {"environment": facts, "medians": medians, "pairs": pairs})
    for name, ratio in medians.items():
        print(f"{name}: {ratio:.3f}")


if __name__ == "__main__":
    main()
