"""What every benchmark shares: validate, warm up, time contenders in turns, report medians and spread, write results.

A *case* is one piece of work with several *contenders*. The first contender is the truth: nobody is timed before its
results agree with it. Contenders take turns, so that a machine that speeds up or slows down does so for all of them.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.files import atomic_path, atomic_write_json
from hashgrid.optional import optional_import
from hashgrid.version import __version__

FORMAT = "hashgrid-bench-1"
EAGER, COMPILED, OURS = "PyTorch eager", "torch.compile", "hashgrid"


class ValidationError(RuntimeError):
    """A contender computes something else than the truth; its time would mean nothing."""


@dataclass
class Contender:
    """One way to do the work.

    Attributes:
        name: shown in tables.
        run: does the work once and returns the tensors that are validated.
        points: points of the last call, where that varies; None for the case's number.
        check: gives the tensors to validate where ``run`` changes state; None where ``run`` does.
    """

    name: str
    run: Callable[[], Sequence[Tensor]]
    points: Callable[[], int] | None = None
    check: Callable[[], Sequence[Tensor]] | None = None


@dataclass
class Limit:
    """A bound the machine sets, measured in the same run: ``ns_per_point`` and what it is made of."""

    ns_per_point: float
    description: str


@dataclass
class Case:
    """The same work for every contender.

    Attributes:
        name: for example ``"forward"``.
        points: points (rows, samples) of one call.
        contenders: the first one is the truth.
        tolerance: largest difference to the truth, relative to the largest value of each tensor.
        rms: the difference is a root mean square instead, for half-precision products: rounding decides the sign
            of some unit before a ReLU, and that row's gradient then differs by a good part of itself.
        limit: bound of the machine, if one was measured.
    """

    name: str
    points: int
    contenders: list[Contender]
    tolerance: float = 1e-4
    rms: bool = False
    limit: Limit | None = None


@dataclass
class Timing:
    """Times of one contender, in ns per point, one per call."""

    name: str
    ns: list[float] = field(default_factory=list)
    warmup_seconds: float = 0.0  # the first call: compilation, first touch of memory
    error: float | None = None  # largest difference to the truth, relative
    failure: str | None = None  # why it did not run

    @property
    def median(self) -> float:
        return statistics.median(self.ns)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.ns) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.ns, n=4, method="inclusive")
        return low, high

    def to_dict(self) -> dict[str, Any]:
        if self.failure is not None:
            return {"name": self.name, "failure": self.failure}
        return {
            "name": self.name,
            "median_ns": self.median,
            "quartiles_ns": self.quartiles,
            "calls": len(self.ns),
            "warmup_seconds": self.warmup_seconds,
            "error": self.error,
            "ns": self.ns,
        }


# ---- measuring -------------------------------------------------------------------------------------------------------


def run_case(case: Case, seconds: float = 20.0, turn_seconds: float = 0.15, min_calls: int = 5) -> list[Timing]:
    """Validates the contenders of ``case``, then times them in turns.

    Args:
        case: what to run.
        seconds: time for all turns; every contender gets ``min_calls`` calls even if that takes longer.
        turn_seconds: a turn is as many calls as fit, at least one.
        min_calls: calls of each contender, at least.

    Raises:
        ValidationError: a contender disagrees with the first one.
    """
    timings = [Timing(contender.name) for contender in case.contenders]
    _warm_up_and_validate(case, timings)
    running = [(c, t) for c, t in zip(case.contenders, timings, strict=True) if t.failure is None]
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or min(len(timing.ns) for _, timing in running) < min_calls:
        for contender, timing in running:
            _turn(case, contender, timing, turn_seconds)
    return timings


def _turn(case: Case, contender: Contender, timing: Timing, seconds: float) -> None:
    begin = time.perf_counter()
    while True:
        start = time.perf_counter()
        contender.run()  # the results are freed inside the measured time, as in any program
        stop = time.perf_counter()
        points = case.points if contender.points is None else contender.points()
        timing.ns.append((stop - start) * 1e9 / max(points, 1))
        if stop - begin + (stop - start) > seconds:
            return


def _warm_up_and_validate(case: Case, timings: list[Timing]) -> None:
    """Two calls each: the first compiles, the second sees warm memory."""
    truth: Sequence[Tensor] = ()
    for i, (contender, timing) in enumerate(zip(case.contenders, timings, strict=True)):
        begin = time.perf_counter()
        try:
            results = (contender.check or contender.run)()
        except Exception as error:  # a peer that does not run is a result too; we and the truth have to
            if i == 0 or contender.name.startswith(OURS):
                raise
            timing.failure = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            print(f"  {contender.name} does not run: {timing.failure}", file=sys.stderr, flush=True)
            continue
        timing.warmup_seconds = time.perf_counter() - begin
        if i == 0:
            truth = [result.clone() for result in results]
        timing.error = compare(results, truth, case.tolerance, f"{case.name}, {contender.name}", case.rms)
        contender.run()


def compare(
    results: Sequence[Tensor], truth: Sequence[Tensor], tolerance: float, what: str, rms: bool = False
) -> float:
    """The largest difference, relative to the largest value of each tensor; with ``rms`` root mean squares of both.

    Raises:
        ValidationError: it exceeds ``tolerance``, or shapes differ.
    """
    worst = 0.0
    for i, (result, expected) in enumerate(zip(results, truth, strict=True)):
        if result.shape != expected.shape:
            raise ValidationError(f"{what}: result {i} has shape {list(result.shape)}, not {list(expected.shape)}")
        order = 2 if rms else float("inf")
        scale = float(torch.linalg.vector_norm(expected.double(), order)) or 1.0
        error = float(torch.linalg.vector_norm(result.double() - expected.double(), order)) / scale
        if not error <= tolerance:  # NaN fails too
            raise ValidationError(f"{what}: result {i} is off by {error:.2e} relative, more than {tolerance:.0e}")
        worst = max(worst, error)
    return worst


def best_seconds(work: Callable[[], object], repeats: int = 15) -> float:
    """The fastest of some calls: what a limit is made of, which noise can only worsen."""
    work()
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return best


def random_line_seconds(n_bytes: int) -> float:
    """Time per random 64-byte cache line of a buffer of ``n_bytes``, all threads together.

    ``embedding_bag`` sums rows of 16 floats: it reads whole lines in random order with prefetch and writes almost
    nothing, where ``index_select`` would spend its time on the copy.
    """
    rows = max(n_bytes // 64, 1)
    table = torch.ones(rows, 16)
    index = torch.randint(rows, (1 << 20,), dtype=torch.int32)
    offsets = torch.arange(0, index.numel(), 256, dtype=torch.int32)
    return best_seconds(lambda: torch.nn.functional.embedding_bag(index, table, offsets, mode="sum")) / index.numel()


def matmul_flops(dtype: torch.dtype, size: int = 1536) -> float:
    """FLOP/s of a large matrix product in ``dtype``, all threads together: what a tuned BLAS gets out of the units."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return 2 * size**3 / best_seconds(lambda: a @ b, repeats=7)


# ---- environment -----------------------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """What the numbers depend on and no option says."""
    module = _extension.module
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "hashgrid": __version__,
        "capability": None if module is None else module.cpu_capability(),
        "compiler": None if module is None else module.compiler(),
    }


def _cpu_model() -> str:
    """Model name and vector extensions: virtual machines often hide the former."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    family = ", ".join(f"{key} {facts[key]}" for key in ("cpu family", "model") if key in facts)
    return f"{facts.get('model name', 'unknown')} ({family})" if family else facts.get("model name", "unknown")


def warn_if_busy() -> None:
    """Other programs on the cores spoil every number, and ratios too."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.25 * cores:
        print(f"warning: load average {load:.1f} on {cores} cores; measure on a quiet machine", file=sys.stderr)


# ---- reporting -------------------------------------------------------------------------------------------------------


def summary(case: Case, timings: list[Timing]) -> dict[str, Any]:
    """One case as JSON values."""
    measured = {timing.name: timing for timing in timings if timing.failure is None}
    ours = measured[OURS].median
    result: dict[str, Any] = {
        "name": case.name,
        "points": case.points,
        "contenders": [timing.to_dict() for timing in timings],
        "speedup": {name: timing.median / ours for name, timing in measured.items() if name != OURS},
    }
    if case.limit is not None:
        result["limit"] = {
            "ns": case.limit.ns_per_point,
            "description": case.limit.description,
            "fraction_reached": case.limit.ns_per_point / ours,
        }
    return result


def print_summary(result: dict[str, Any], unit: str) -> None:
    """The table of one case."""
    print(f"\n{result['name']}: ns per {unit}, {result['points']} {unit}s per call")
    print(f"  {'':32}{'median':>10}{'quartiles':>22}{'calls':>7}{'error':>9}  hashgrid is")
    for row in result["contenders"]:
        if "failure" in row:
            print(f"  {row['name']:32}does not run: {row['failure']}")
            continue
        low, high = row["quartiles_ns"]
        error = "" if row["error"] is None else f"{row['error']:.0e}"
        ratio = result["speedup"].get(row["name"])
        note = "" if ratio is None else f"{ratio:.2f} x as fast"
        spread = f"{low:.1f} .. {high:.1f}"
        print(f"  {row['name']:32}{row['median_ns']:10.1f}{spread:>22}{row['calls']:7}{error:>9}  {note}")
    if "limit" in result:
        limit = result["limit"]
        print(
            f"  limit {limit['ns']:.1f} ns ({limit['description']}): {limit['fraction_reached']:.0%} reached",
            flush=True,
        )


def plot(record: dict[str, Any], path: Path) -> None:
    """Horizontal bars of the medians with quartiles, labelled with the ratio to ours; one panel per case."""
    matplotlib = optional_import("matplotlib", "nerf")
    matplotlib.use("Agg")
    plt = optional_import("matplotlib.pyplot", "nerf")
    cases = record["cases"]
    heights = [1 + sum("failure" not in row for row in case["contenders"]) for case in cases]
    figure, axes = plt.subplots(
        len(cases),
        1,
        figsize=(9, 0.9 + 0.45 * sum(heights)),
        squeeze=False,
        height_ratios=heights,
        layout="constrained",
    )
    for ax, case in zip(axes[:, 0], cases, strict=True):
        rows = [row for row in case["contenders"] if "failure" not in row]
        medians = [row["median_ns"] for row in rows]
        spread = [
            [median - row["quartiles_ns"][0] for median, row in zip(medians, rows, strict=True)],
            [row["quartiles_ns"][1] - median for median, row in zip(medians, rows, strict=True)],
        ]
        colors = ["#d1495b" if row["name"].startswith(OURS) else "#8d99ae" for row in rows]
        ax.barh([row["name"] for row in rows], medians, xerr=spread, color=colors, ecolor="#2b2d42", capsize=2)
        ax.invert_yaxis()
        for y, row in enumerate(rows):
            ratio = case["speedup"].get(row["name"])
            label = f"{row['median_ns']:.0f}" if ratio is None else f"{row['median_ns']:.0f}  ({ratio:.1f} x)"
            ax.annotate(label, (row["quartiles_ns"][1], y), xytext=(5, 0), textcoords="offset points", va="center")
        if "limit" in case:
            ax.axvline(case["limit"]["ns"], color="#2b2d42", linestyle=":", linewidth=1, label="measured limit")
            ax.legend(loc="lower right", frameon=False, fontsize=8)
        ax.set_xlim(0, 1.2 * max(row["quartiles_ns"][1] for row in rows))
        ax.set_title(case["name"], loc="left", fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel(record["unit"] + ", median and quartiles; (factor to hashgrid)")
    machine = record["environment"]
    figure.suptitle(
        f"{record['benchmark']}: {machine['cpu']}, {machine['threads']} threads, {machine['capability']},"
        f" torch {machine['torch']}",
        fontsize=9,
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)


# ---- command lines ---------------------------------------------------------------------------------------------------


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the JSON and the plot")
    options.add_argument("--seconds", type=float, default=15.0, help="time for the turns of each case")
    options.add_argument("--threads", type=int, default=None, help="torch threads; as torch has them when not given")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    return options


class Suite:
    """One benchmark from its options to its files.

    Args:
        name: of the files.
        unit: what is counted, "point" or "sample".
        args: options of :func:`parser`.
    """

    def __init__(self, name: str, unit: str, args: argparse.Namespace) -> None:
        _extension.require()
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        torch.manual_seed(args.seed)
        warn_if_busy()
        self.unit, self.out, self.seconds = unit, Path(args.out), args.seconds
        self.record: dict[str, Any] = {
            "format": FORMAT,
            "benchmark": name,
            "unit": f"ns per {unit}",
            "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "out"},
            "environment": environment(),
            "cases": [],
        }

    def run(self, case: Case) -> None:
        """Measures ``case`` and prints its table."""
        result = summary(case, run_case(case, self.seconds))
        print_summary(result, self.unit)
        self.record["cases"].append(result)

    def write(self) -> Path:
        """Writes ``<name>.json`` and ``<name>.png``; returns the former."""
        path = self.out / f"{self.record['benchmark']}.json"
        atomic_write_json(path, self.record)
        plot(self.record, path.with_suffix(".png"))
        print(f"\n{path}\n{path.with_suffix('.png')}", flush=True)
        return path
