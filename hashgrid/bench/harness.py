"""What every benchmark shares: validate, warm up, time contenders in turns, report medians and spread, write results.

A *case* is one piece of work with several *contenders*. Nobody is timed before its results agree with the truth: those
in float64 where the case has them, of the first contender otherwise. Contenders take turns, so that a machine that
speeds up or slows down does so for all of them.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.util.files import atomic_path, atomic_write_json
from hashgrid.util.optional import optional_import

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
        project: what of the truth this one computes too, in its form; None for all of it.
        rms_tolerance: root mean square tolerance of a contender that computes in half precision; None for the case's.
        note: beside the name in tables: which formulation it is.
        peer: another library: where its results differ it is not timed, and the others go on.
    """

    name: str
    run: Callable[[], Sequence[Tensor]]
    points: Callable[[], int] | None = None
    check: Callable[[], Sequence[Tensor]] | None = None
    project: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = None
    rms_tolerance: float | None = None
    peer: bool = False
    note: str = ""


@dataclass
class Limit:
    """A bound the machine sets, measured in the same run: ``ns_per_point`` and what it is made of.

    Attributes:
        ns_per_point: no version runs much faster.
        description: how it comes about.
        parts: time of each resource alone, in ns per point: "bandwidth", "matmul", "l2".
    """

    ns_per_point: float
    description: str
    parts: dict[str, float] = field(default_factory=dict)


@dataclass
class Case:
    """The same work for every contender.

    Attributes:
        name: for example ``"forward"``.
        points: points (rows, samples) of one call.
        contenders: ours among them.
        truth: results in float64; None for those of the first contender.
        tolerance: largest difference to the truth, relative to the largest value of each tensor.
        rms: the difference is a root mean square instead, for half-precision products: rounding decides the sign
            of some unit before a ReLU, and that row's gradient then differs by a good part of itself.
        limit: bound of the machine, if one was measured.
        parts: pieces of a contender's work to time alone, for information; one that fails is left out.
        formulations: ns per point of those tried for plain PyTorch, by name.
    """

    name: str
    points: int
    contenders: list[Contender]
    tolerance: float = 1e-4
    rms: bool = False
    limit: Limit | None = None
    parts: dict[str, Callable[[], object]] = field(default_factory=dict)
    truth: Callable[[], Sequence[Tensor]] | None = None
    formulations: dict[str, float] = field(default_factory=dict)


@dataclass
class Timing:
    """Times of one contender, in ns per point, one per call."""

    name: str
    note: str = ""
    ns: list[float] = field(default_factory=list)
    host_ns: list[float] = field(default_factory=list)  # until the call returned, where the device works on
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
        result = {
            "name": self.name,
            **({"note": self.note} if self.note else {}),
            "median_ns": self.median,
            "quartiles_ns": self.quartiles,
            "calls": len(self.ns),
            "warmup_seconds": self.warmup_seconds,
            "error": self.error,
            "ns": [round(ns, 3) for ns in self.ns],
        }
        return result | ({"host_median_ns": statistics.median(self.host_ns)} if self.host_ns else {})


# ---- clocks ----------------------------------------------------------------------------------------------------------


@dataclass
class Call:
    """One timed call: its time, the host's part of it where the device works on, and its points."""

    seconds: float
    points: int
    host_seconds: float | None = None


class Clock(Protocol):
    """How calls are timed."""

    def turn(self, run: Callable[[], object], points: Callable[[], int], seconds: float) -> list[Call]:
        """As many calls as fit into ``seconds``, at least one."""

    def synchronize(self) -> None:
        """Waits until all work is done."""


class WallClock:
    """For work that is done when the call returns."""

    def turn(self, run: Callable[[], object], points: Callable[[], int], seconds: float) -> list[Call]:
        calls = []
        begin = time.perf_counter()
        while True:
            start = time.perf_counter()
            run()  # the results are freed inside the measured time, as in any program
            stop = time.perf_counter()
            calls.append(Call(stop - start, points()))
            if stop - begin + (stop - start) > seconds:
                return calls

    def synchronize(self) -> None:
        pass


class CudaClock:
    """CUDA events around each call; calls of a turn are queued one behind the other.

    Args:
        device: whose current stream is timed.
        flush: write a buffer of twice the L2 cache before each call, so that no call finds what the last one left.
    """

    def __init__(self, device: torch.device, flush: bool = True) -> None:
        self.device = device
        l2_bytes = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 << 20)
        self._buffer = torch.empty(2 * l2_bytes if flush else 0, dtype=torch.uint8, device=device)

    def turn(self, run: Callable[[], object], points: Callable[[], int], seconds: float) -> list[Call]:
        begin = time.perf_counter()
        calls = self._queue(run, points, 1)
        elapsed = time.perf_counter() - begin
        return calls + self._queue(run, points, min(int(seconds / elapsed), 1000))

    def _queue(self, run: Callable[[], object], points: Callable[[], int], n: int) -> list[Call]:
        queued, stream = [], torch.cuda.current_stream(self.device)
        for _ in range(n):
            self._buffer.zero_()
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(stream)
            begin = time.perf_counter()
            run()
            host_seconds = time.perf_counter() - begin
            stop.record(stream)
            queued.append((start, stop, points(), host_seconds))
        self.synchronize()
        return [Call(start.elapsed_time(stop) / 1e3, count, host) for start, stop, count, host in queued]

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)


def clock_of(device: torch.device, flush: bool = True) -> Clock:
    return CudaClock(device, flush) if device.type == "cuda" else WallClock()


# ---- measuring -------------------------------------------------------------------------------------------------------


def run_case(
    case: Case, seconds: float = 20.0, turn_seconds: float = 0.15, min_calls: int = 5, clock: Clock | None = None
) -> list[Timing]:
    """Validates the contenders of ``case``, then times them in turns.

    Args:
        case: what to run.
        seconds: time for all turns; every contender gets ``min_calls`` calls even if that takes longer.
        turn_seconds: a turn is as many calls as fit, at least one.
        min_calls: calls of each contender, at least.
        clock: how calls are timed; None for the CPU's.

    Raises:
        ValidationError: a contender other than a peer disagrees with the first one.
    """
    clock = WallClock() if clock is None else clock
    timings = [Timing(contender.name, contender.note) for contender in case.contenders]
    _warm_up_and_validate(case, timings, clock)
    running = [(c, t) for c, t in zip(case.contenders, timings, strict=True) if t.failure is None]
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or min(len(timing.ns) for _, timing in running) < min_calls:
        for contender, timing in running:
            points = contender.points or (lambda: case.points)
            for call in clock.turn(contender.run, points, turn_seconds):
                timing.ns.append(call.seconds * 1e9 / max(call.points, 1))
                if call.host_seconds is not None:
                    timing.host_ns.append(call.host_seconds * 1e9 / max(call.points, 1))
    return timings


def _warm_up_and_validate(case: Case, timings: list[Timing], clock: Clock) -> None:
    """Two calls each: the first compiles, the second sees warm memory."""
    truth: Sequence[Tensor] = () if case.truth is None else case.truth()
    for i, (contender, timing) in enumerate(zip(case.contenders, timings, strict=True)):
        begin = time.perf_counter()
        try:
            results = (contender.check or contender.run)()
            clock.synchronize()
            timing.warmup_seconds = time.perf_counter() - begin
            if i == 0 and case.truth is None:
                truth = [result.clone() for result in results]
            expected = truth if contender.project is None else contender.project(truth)
            half = contender.rms_tolerance is not None
            tolerance = contender.rms_tolerance if contender.rms_tolerance is not None else case.tolerance
            timing.error = compare(results, expected, tolerance, f"{case.name}, {contender.name}", case.rms or half)
            contender.run()
            clock.synchronize()
        except Exception as error:  # a peer that does not run is a result too; we and the truth have to
            ours = i == 0 or contender.name.startswith(OURS)
            if ours or (isinstance(error, ValidationError) and not contender.peer):
                raise
            timing.failure = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            print(f"  {contender.name} does not run: {timing.failure}", file=sys.stderr, flush=True)


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


def fastest(candidates: Mapping[str, Callable[[], object]], clock: Clock, calls: int = 3) -> dict[str, float]:
    """Seconds of each candidate's best call, the fastest first; one that fails is left out, unless all do."""
    seconds, failures = {}, []
    for name, work in candidates.items():
        try:
            work()
            clock.synchronize()
            seconds[name] = min(clock.turn(work, lambda: 1, 0.0)[0].seconds for _ in range(calls))
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__}: {error}")
            print(f"  {failures[-1].partition(chr(10))[0]}", file=sys.stderr)
    if not seconds:
        raise RuntimeError("no formulation runs: " + "; ".join(failures))
    return dict(sorted(seconds.items(), key=lambda item: item[1]))


def median_seconds(work: Callable[[], object], clock: Clock, seconds: float, min_calls: int = 5) -> float:
    """Of calls in a row, after two that do not count."""
    for _ in range(2):
        work()
    clock.synchronize()
    calls: list[Call] = []
    begin = time.perf_counter()
    while len(calls) < min_calls or time.perf_counter() - begin < seconds:
        calls += clock.turn(work, lambda: 1, 0.0)
    return statistics.median(call.seconds for call in calls)


def best_seconds(work: Callable[[], object], repeats: int = 15, clock: Clock | None = None) -> float:
    """The fastest of some calls: what a limit is made of, which noise can only worsen."""
    clock = WallClock() if clock is None else clock
    work()
    return min(clock.turn(work, lambda: 1, 0.0)[0].seconds for _ in range(repeats))


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


class Rates:
    """What the device can do, measured with PyTorch's own kernels when first asked for.

    Args:
        device: to measure.
        clock: how.
        tiny: sizes to try the code with, not for numbers.
    """

    def __init__(self, device: torch.device, clock: Clock, tiny: bool = False) -> None:
        self.device, self.clock, self.tiny = device, clock, tiny
        self.measured: dict[str, float] = {}

    @functools.cache  # noqa: B019 (one object per run)
    def random_line_seconds(self, n_bytes: int) -> float:
        """Of a buffer of ``n_bytes`` on the CPU; see the function of that name."""
        seconds = random_line_seconds(n_bytes)
        self.measured[f"random_line_ns_{n_bytes >> 20}_mb"] = seconds * 1e9
        return seconds

    @functools.cached_property
    def random_sector_seconds(self) -> float:
        """Of a GPU's L2 cache, per sector of 32 bytes: ``torch.take`` of one float of a random sector each. Indices and
        results, 12 bytes each, pass through it as well."""
        buffer, index = self._random_sectors()
        seconds = best_seconds(lambda: torch.take(buffer, index), clock=self.clock) / index.numel()
        self.measured["random_sector_ns"] = seconds * 1e9
        return seconds

    @functools.cached_property
    def random_add_seconds(self) -> float:
        """The same of an addition to a float of a random sector, by ``scatter_add_``."""
        buffer, index = self._random_sectors()
        values = torch.rand(index.numel(), device=self.device)
        seconds = best_seconds(lambda: buffer.scatter_add_(0, index, values), clock=self.clock) / index.numel()
        self.measured["random_add_ns"] = seconds * 1e9
        return seconds

    def _random_sectors(self) -> tuple[Tensor, Tensor]:
        """A buffer of 16 MB, four levels of a table as usual, and indices of one float per sector."""
        n_sectors, n = (1 << 8, 1 << 10) if self.tiny else (1 << 19, 1 << 23)
        index = 8 * torch.randint(n_sectors, (n,), device=self.device)
        return torch.rand(8 * n_sectors, device=self.device), index

    @functools.cached_property
    def bandwidth(self) -> float:
        """Bytes per second of a large copy, read and written bytes together."""
        n = 1 << (16 if self.tiny else 28 if self.device.type == "cuda" else 24)
        source = torch.rand(n, device=self.device)
        target = torch.empty_like(source)
        rate = 2 * 4 * n / best_seconds(lambda: target.copy_(source), clock=self.clock)
        self.measured["copy_bytes_per_second"] = rate
        return rate

    @functools.cached_property
    def fma(self) -> float:
        """FLOP/s of fp32 multiply-adds without memory, on a CPU: more than a matrix product of any library gets."""
        rate = float(_extension.require().measure_fma_rate(torch.get_num_threads()))
        self.measured["fma_flops"] = rate
        return rate

    def matmul(self, dtype: torch.dtype) -> float:
        """FLOP/s of a large matrix product in ``dtype``: what a tuned BLAS gets out of the units."""
        key = f"matmul_{str(dtype).removeprefix('torch.')}_flops"
        if key not in self.measured:
            size = 128 if self.tiny else 8192 if self.device.type == "cuda" else 1536
            a, b = (torch.randn(size, size, device=self.device).to(dtype) for _ in range(2))
            self.measured[key] = 2 * size**3 / best_seconds(lambda: a @ b, 7, self.clock)
        return self.measured[key]

    def limit(
        self,
        n_bytes: float,
        formula: str,
        flop: float = 0.0,
        dtype: torch.dtype = torch.float32,
        sectors: float = 0.0,
        adds: float = 0.0,
    ) -> Limit:
        """The slowest of moving ``n_bytes`` per point through memory, computing, and what is asked of the L2 cache.

        Args:
            n_bytes: each input read once, each output written once.
            formula: of ``n_bytes``, for the reader.
            flop: in matrix products.
            dtype: of the products.
            sectors: of 32 bytes, read from random places of a GPU's L2 cache.
            adds: to random places there.
        """
        parts = {"bandwidth": n_bytes / self.bandwidth * 1e9}
        words = [f"{n_bytes:.0f} bytes ({formula}) at {self.bandwidth / 1e9:.0f} GB/s, a large copy"]
        if flop:
            rate = self.matmul(dtype)
            parts["matmul"] = flop / rate * 1e9
            name = str(dtype).removeprefix("torch.")
            words.append(f"{flop / 1e3:.0f} kFLOP at {rate / 1e9:.0f} GFLOP/s, a large {name} matmul")
        if sectors or adds:
            read = self.random_sector_seconds * 1e9
            add = self.random_add_seconds * 1e9 if adds else 0.0
            parts["l2"] = sectors * read + adds * add
            words.append(f"{sectors:.0f} random sectors of 32 bytes from L2 at {read:.4f} ns, torch.take")
            if adds:
                words[-1] += f", {adds:.0f} additions there at {add:.4f} ns, scatter_add_"
        worst = max(parts, key=lambda part: parts[part])
        return Limit(parts[worst], words[list(parts).index(worst)], parts)


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
    if case.formulations:
        result["formulations"] = case.formulations
    if case.limit is not None:
        result["limit"] = {
            "ns": case.limit.ns_per_point,
            "description": case.limit.description,
            "fraction_reached": case.limit.ns_per_point / ours,
            "fractions": {part: ns / ours for part, ns in case.limit.parts.items()},
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
        notes = ["" if ratio is None else f"{ratio:.2f} x as fast", row.get("note", "")]
        note = ", ".join(filter(None, notes))
        spread = f"{low:.1f} .. {high:.1f}"
        print(f"  {row['name']:32}{row['median_ns']:10.1f}{spread:>22}{row['calls']:7}{error:>9}  {note}")
    for name, ns in result.get("parts", {}).items():
        print(f"  {name:32}{ns:10.1f}")
    if "limit" in result:
        limit = result["limit"]
        print(
            f"  limit {limit['ns']:.1f} ns ({limit['description']}): {limit['fraction_reached']:.0%} reached",
            flush=True,
        )


def plot_bars(record: dict[str, Any], path: Path) -> None:
    """Horizontal bars of the medians with quartiles, labelled with the ratio to ours; one panel per case."""
    matplotlib = optional_import("matplotlib")
    matplotlib.use("Agg")
    plt = optional_import("matplotlib.pyplot")
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
    where = f"{machine['cpu']}, {machine['threads']} threads, {machine['capability']}"
    if "gpu" in machine:
        where = machine["gpu"]["name"]
    figure.suptitle(f"{record['benchmark']}: {where}, torch {machine['torch']}", fontsize=9)
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """As PNG; closes it."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    optional_import("matplotlib.pyplot").close(figure)


# ---- command lines ---------------------------------------------------------------------------------------------------


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the JSON and the plot")
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    options.add_argument("--seconds", type=float, default=15.0, help="time for the turns of each case")
    options.add_argument("--threads", type=int, default=None, help="torch threads; as torch has them when not given")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options.add_argument("--no-peers", action="store_true", help="leave other libraries out")
    options.add_argument("--warm-cache", action="store_true", help="do not flush the L2 cache between calls (CUDA)")
    options.add_argument("--no-plot", action="store_true", help="write the JSON only")
    options.add_argument("--quick", action="store_true", help="smaller sizes, a second per case, no torch.compile")
    options.add_argument("--tiny", action="store_true", help="small sizes to try the suite with, not for numbers")
    return options


def size(args: argparse.Namespace, given: int | None, cpu: int, cuda: int, tiny: int, quick: int | None = None) -> int:
    """The option ``given``, or else the default of the device; ``quick`` where that was asked for."""
    if given is not None:
        return given
    default = cuda if is_cuda(args) else cpu
    return tiny if args.tiny else default if quick is None or not args.quick else quick


def is_cuda(args: argparse.Namespace) -> bool:
    return torch.device(args.device).type == "cuda"


class Suite:
    """One benchmark from its options to its files.

    Args:
        name: of the files; ``_cuda`` is added on a GPU.
        unit: what is counted, "point" or "sample".
        args: options of :func:`parser`.
    """

    def __init__(self, name: str, unit: str, args: argparse.Namespace) -> None:
        _extension.require()
        if args.quick:
            args.no_compile, args.seconds = True, min(args.seconds, 0.8)
        self.device = torch.device(args.device)
        if self.device.type == "cuda" and _extension.cuda_module is None:
            raise ImportError(f"`--device {args.device}` needs the CUDA kernels: {_extension.cuda_reason}")
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        torch.manual_seed(args.seed)
        if not args.no_compile:
            torch.compiler.reset()  # suites of one process would share a limit on compilations
        warn_if_busy()
        self.unit, self.out, self.seconds, self.plot = unit, Path(args.out), args.seconds, not args.no_plot
        self.turn_seconds, self.min_calls = (0.0, 2) if args.tiny else (0.15, 5)
        self.peers = self.device.type == "cuda" and not args.no_peers
        self.cpu_peers = self.device.type == "cpu" and not args.no_peers
        self.clock = clock_of(self.device, not args.warm_cache)
        self.rates = Rates(self.device, self.clock, args.tiny)
        self.record: dict[str, Any] = {
            "format": FORMAT,
            "benchmark": name,
            "device": str(self.device),
            "unit": f"ns per {unit}",
            "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "out"},
            "environment": environment(self.device),
            "rates": self.rates.measured,
            "cases": [],
        }

    def run(self, case: Case) -> None:
        """Measures ``case`` and prints its table."""
        result = summary(case, run_case(case, self.seconds, self.turn_seconds, self.min_calls, self.clock))
        result["parts"] = self._time_parts(case)
        print_summary(result, self.unit)
        self.record["cases"].append(result)

    def _time_parts(self, case: Case) -> dict[str, float]:
        parts = {}
        for name, work in case.parts.items():
            try:
                parts[name] = best_seconds(work, clock=self.clock) * 1e9 / case.points
            except Exception as error:
                print(f"  {name} cannot be timed: {error}", file=sys.stderr)
        return parts

    def write(self, plot: Callable[[dict[str, Any], Path], None] | None = None) -> Path:
        """Writes ``<name>.json`` and ``<name>.png``, drawn by ``plot`` or as bars; returns the former."""
        suffix = "_cuda" if self.device.type == "cuda" else ""
        path = self.out / f"{self.record['benchmark']}{suffix}.json"
        atomic_write_json(path, self.record)
        print(f"\n{path}", flush=True)
        if self.plot:
            (plot or plot_bars)(self.record, path.with_suffix(".png"))
            print(path.with_suffix(".png"), flush=True)
        return path
