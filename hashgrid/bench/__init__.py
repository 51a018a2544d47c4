"""Benchmarks that an installed package can run: ``hashgrid bench``; ``benchmarks/*.py`` are thin scripts over them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

# Suites and their modules.
SUITES = {
    "encode": "hash_encode",
    "mlp": "mlp",
    "field": "hash_encode_mlp",
    "encodings": "encodings",
    "march": "march_rays",
    "composite": "composite",
    "optim": "adam_step",
    "nerf-step": "nerf_step",
    "render": "render",
    "sdf-step": "sdf_step",
    "surface-step": "surface_step",
    "train": "train",
    "scaling": "scaling",
    "busy": "busy",
}
QUICK = ("encode", "mlp", "march", "composite", "optim", "nerf-step")  # what `--quick` runs, if none are named
CPU_ONLY = ("busy",)


def run(
    names: Sequence[str] = (), out: Path | str = "benchmarks/results", device: str = "cpu", options: Sequence[str] = ()
) -> list[Path]:
    """Runs the suites ``names`` (all of :data:`SUITES` when empty; with ``--quick`` those of :data:`QUICK`).

    Args:
        names: of suites.
        out: folder of the results.
        device: "cpu" or "cuda".
        options: that every suite takes, for example ``["--quick"]``; see :func:`hashgrid.bench.harness.parser`.

    Returns:
        The JSON files written, one per suite, each with a plot beside it. A table of all ratios is printed at the end.

    Raises:
        ValueError: a name is unknown.
        ImportError: a package for the plots or the scene is missing.
    """
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        raise ValueError(f"`names` must be among {', '.join(SUITES)}, got {', '.join(unknown)}")
    able = tuple(name for name in SUITES if torch.device(device).type == "cpu" or name not in CPU_ONLY)
    chosen = names or (QUICK if "--quick" in options else able)
    arguments = ["--out", str(out), "--device", device, *options]
    paths = []
    for name in chosen:
        print(f"\n==== {name}", flush=True)
        paths.append(importlib.import_module(f"hashgrid.bench.{SUITES[name]}").main(arguments))
    print(_table([json.loads(path.read_text()) for path in paths]), flush=True)
    return paths


def _table(records: Sequence[dict[str, Any]]) -> str:
    """How many times as fast as the others hashgrid is, case by case, and the fraction of the machine's limit."""
    lines = ["", f"{'hashgrid, times as fast as':66}{'eager':>8}{'compiled':>10}{'others':>28}{'limit':>8}"]
    for record in records:
        for case in record["cases"]:
            ratios = dict(case["speedup"])
            eager = next(
                (ratios.pop(name) for name in list(ratios) if "eager" in name or name == "nn.Sequential"), None
            )
            compiled = next((ratios.pop(name) for name in list(ratios) if "compile" in name), None)
            peers = {name: ratio for name, ratio in ratios.items() if not name.startswith(("hashgrid", "nn."))}
            cells = [f"{record['benchmark']}: {case['name']}"[:65]]
            cells += ["" if ratio is None else f"{ratio:.1f}x" for ratio in (eager, compiled)]
            cells.append(", ".join(f"{name} {ratio:.1f}x" for name, ratio in peers.items())[:27])
            cells.append(f"{case['limit']['fraction_reached']:.0%}" if "limit" in case else "")
            lines.append(f"{cells[0]:66}{cells[1]:>8}{cells[2]:>10}{cells[3]:>28}{cells[4]:>8}")
    return "\n".join(lines)
