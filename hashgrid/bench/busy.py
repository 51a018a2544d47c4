"""What a training step and a rendered view cost beside busy processes, on own threads and on PyTorch's.

The load is this benchmark's own: processes that compute without a pause, in turns with quiet times, so that a machine
that changes speed does so for both. On two cores a program of two threads beside one busy process can have 3/4 of the
machine at best, and then takes 1.33 times as long.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from hashgrid.bench import harness
from hashgrid.bench.render import frame, resized
from hashgrid.bench.sdf_step import torus
from hashgrid.data.procedural import procedural_scene
from hashgrid.data.shape import Shape
from hashgrid.tasks.nerf import Nerf, NerfConfig
from hashgrid.tasks.sdf import Sdf, SdfConfig
from hashgrid.train.loop import Trainer
from hashgrid.util.optional import optional_import
from hashgrid.util.threads import own_threads

BUSY = [sys.executable, "-c", "while True: pass"]
OWN, TORCH = "own threads", "PyTorch's threads"
COLORS = {OWN: "#d1495b", TORCH: "#8d99ae"}


def main(argv: Sequence[str] | None = None) -> Path:
    """Measures all work on both kinds of threads, quiet and busy; returns the JSON file."""
    options = harness.parser(__doc__)
    options.add_argument("--busy", type=int, default=1, help="busy processes")
    options.add_argument("--rounds", type=int, default=None, help="turns of quiet and busy times; 5 if none")
    args = options.parse_args(argv)
    if harness.is_cuda(args):
        raise ValueError(f"`--device` must be cpu: this suite is about the CPU's threads; got {args.device}")
    args.rounds = harness.size(args, args.rounds, 5, 5, 1, 2)
    suite = harness.Suite("busy", "call", args)
    suite.record["unit"] = "ms per call"
    seconds = 0.0 if args.tiny else suite.seconds / 10
    for name, run in _work(args.tiny, args.seed).items():
        case = _measure(name, run, args.rounds, seconds, args.busy)
        suite.record["cases"].append(case)
        print(f"\n{name}: ms per call, quiet and beside {args.busy} busy")
        for row in case["contenders"]:
            print(f"  {row['name']:20}{row['quiet_ms']:9.2f}{row['busy_ms']:9.2f}   {row['ratio']:.2f} x", flush=True)
    return suite.write(_plot)


def _work(tiny: bool, seed: int) -> dict[str, Callable[[], object]]:
    """A step of `hashgrid nerf`, a view of its field, a step of `hashgrid sdf`."""
    config = NerfConfig(steps=10**6, device="cpu", seed=seed)
    recipe = SdfConfig(steps=10**6, device="cpu", seed=seed)
    if tiny:
        config = config.replace(log2_hashmap_size=10, occupancy_resolution=16, steps_per_diagonal=64, max_rays=256)
        recipe = recipe.replace(log2_hashmap_size=10, pool=1 << 12, batch=1 << 8)
    scene = procedural_scene(*((2, 1, 12) if tiny else (12, 1, 100)), seed)
    field, shape = Nerf(config, scene), Sdf(recipe, Shape.of(torus()))
    shape.begin()
    nerf, sdf = Trainer(field), Trainer(shape)
    for trainer in (nerf, sdf):
        for _ in range(2 if tiny else 150):
            trainer.step()
    view = frame(field, resized(scene.test, 12 if tiny else 200), torch.ones(3))
    return {
        "training step of hashgrid nerf": nerf.step,
        "rendered view": view,
        "training step of hashgrid sdf": sdf.step,
    }


def _measure(name: str, run: Callable[[], object], rounds: int, seconds: float, n_busy: int) -> dict[str, Any]:
    times: dict[str, dict[str, list[float]]] = {kind: {"quiet": [], "busy": []} for kind in (OWN, TORCH)}
    for _ in range(rounds):
        for state, load in (("quiet", 0), ("busy", n_busy)):
            for kind in times:
                with _busy(load), own_threads() if kind == OWN else contextlib.nullcontext():
                    times[kind][state].append(_milliseconds(run, seconds))
    rows: list[dict[str, Any]] = []
    for kind, measured in times.items():
        quiet, busy = (statistics.median(measured[state]) for state in ("quiet", "busy"))
        rows.append({"name": kind, "quiet_ms": quiet, "busy_ms": busy, "ratio": busy / quiet, "rounds_ms": measured})
    own, torchs = (row["busy_ms"] for row in rows)
    return {"name": name, "contenders": rows, "speedup": {f"{TORCH}, busy": torchs / own}}


@contextlib.contextmanager
def _busy(n: int) -> Iterator[None]:
    """So many processes that compute without a pause."""
    processes = [subprocess.Popen(BUSY) for _ in range(n)]
    try:
        time.sleep(0.5)  # they have begun; or nothing is left of the last ones, nor of what threads learned of them
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _milliseconds(run: Callable[[], object], seconds: float) -> float:
    """Mean time of a call, of as many as take ``seconds``: a median would hide calls that wait for long."""
    run()
    begin, n = time.perf_counter(), 0
    while n == 0 or time.perf_counter() - begin < seconds:
        run()
        n += 1
    return (time.perf_counter() - begin) * 1e3 / n


def _plot(record: dict[str, Any], path: Path) -> None:
    matplotlib = optional_import("matplotlib", "nerf")
    matplotlib.use("Agg")
    plt = optional_import("matplotlib.pyplot", "nerf")
    figure, axes = plt.subplots(1, len(record["cases"]), figsize=(11, 3), layout="constrained")
    for ax, case in zip(axes, record["cases"], strict=True):
        for i, row in enumerate(case["contenders"]):
            bars = ax.bar([i - 0.2, i + 0.2], [row["quiet_ms"], row["busy_ms"]], 0.38, color=COLORS[row["name"]])
            bars[0].set_alpha(0.5)
            ax.annotate(f"{row['ratio']:.2f} x", (i + 0.2, row["busy_ms"]), xytext=(0, 2), textcoords="offset points",
                        ha="center")  # fmt: skip
        ax.set_xticks(range(len(case["contenders"])), [f"{row['name']}\nquiet, busy" for row in case["contenders"]])
        ax.set_title(case["name"], loc="left", fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("ms")
    machine = record["environment"]
    busy = record["settings"]["busy"]
    figure.suptitle(
        f"beside {busy} busy: {machine['cpu']}, {machine['cores']} cores, {machine['capability']}", fontsize=9
    )
    harness.save_figure(figure, path)


if __name__ == "__main__":
    main()
