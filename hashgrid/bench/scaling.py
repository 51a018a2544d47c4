"""How the cost of the encoding grows with the number of points and with the size of the table.

Time per point forward and forward + backward, with a gradient of the table made in each call or kept from call to call,
and the memory that a call takes, measured in a process of its own.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from hashgrid.bench import harness
from hashgrid.bench.environment import cache_bytes
from hashgrid.bench.harness import OURS
from hashgrid.bench.hash_encode import uniform_positions
from hashgrid.levels import make_level_table
from hashgrid.ops._ngp import hash_encode_into
from hashgrid.util.optional import optional_import

N_FEATURES = 2
PASSES = ("forward", "forward + backward", "forward + backward, kept gradient")

# By how many bytes a call raises the peak of a fresh process. Not getrusage: a child inherits its parent's peak.
MEMORY = """
import re, torch
from hashgrid.bench.scaling import make_pass
torch.set_num_threads({threads})
work = make_pass({name!r}, 1024, {log2_size}, "cpu")
work()
work = make_pass({name!r}, {points}, {log2_size}, "cpu")
def kilobytes(key):
    with open("/proc/self/status") as status:
        return int(re.search(key + r":\\s*(\\d+) kB", status.read()).group(1))
before = kilobytes("VmRSS")
work()
print(max(kilobytes("VmHWM") - before, 0) * 1024)
"""


def main(argv: Sequence[str] | None = None) -> Path:
    """Measures both series; returns the JSON file."""
    options = harness.parser(__doc__)
    options.add_argument("--log2-points", type=int, nargs="+", default=None, help="16 to 22 if none")
    options.add_argument("--log2-sizes", type=int, nargs="+", default=None, help="of the table; 14 to 22 if none")
    args = options.parse_args(argv)
    suite = harness.Suite("scaling", "point", args)
    args.log2_points = args.log2_points or list(range(5, 7) if args.tiny else range(16, 19 if args.quick else 23))
    args.log2_sizes = args.log2_sizes or list(range(5, 7) if args.tiny else range(14, 20 if args.quick else 23))
    middle_points, middle_size = (6, 6) if args.tiny else (18, 19)

    memory = suite.device.type == "cpu" and Path("/proc/self/status").exists()
    points = [_measure(suite, 1 << n, middle_size, memory) for n in args.log2_points]
    _print("number of points", [f"2^{n}" for n in args.log2_points], points)
    sizes = [_measure(suite, 1 << middle_points, size, memory=False) for size in args.log2_sizes]
    _print("entries per level", [f"2^{size}" for size in args.log2_sizes], sizes)
    case = {
        "name": "cost of a point",
        "contenders": [{"name": OURS}],
        "log2_points": args.log2_points,
        "by_points": points,
        "log2_sizes": args.log2_sizes,
        "by_size": sizes,
        "cache_bytes": cache_bytes(),
        # cost of a point at the largest number of points over that at the smallest
        "speedup": {f"growth, {name}": points[-1][name] / points[0][name] for name in PASSES},
    }
    suite.record["cases"].append(case)
    return suite.write(_plot)


def make_pass(name: str, n: int, log2_size: int, device: str | torch.device) -> Callable[[], object]:
    """One of `PASSES` of ``n`` uniform points through a 16 x 2 grid."""
    levels = make_level_table(3, 16, log2_size, 16, 2048)
    positions = uniform_positions(n).to(device)
    table = torch.empty(levels.n_entries, N_FEATURES).uniform_(-1e-4, 1e-4).to(device).requires_grad_()
    kept = torch.zeros_like(table) if name == PASSES[2] else None
    encode = functools.partial(hash_encode_into, positions, table, levels, grad_buffer=kept)

    def forward() -> object:
        with torch.no_grad():
            return encode()

    if name == PASSES[0]:
        return forward
    grad_y = torch.randn(n, levels.n_levels * N_FEATURES).to(device)
    return lambda: encode().backward(grad_y) if kept is not None else torch.autograd.grad(encode(), table, grad_y)


def _measure(suite: harness.Suite, n: int, log2_size: int, memory: bool) -> dict[str, float]:
    """ns per point of each pass, and with ``memory`` bytes per point."""
    result: dict[str, float] = {}
    for name in PASSES:
        work = make_pass(name, n, log2_size, suite.device)
        result[name] = harness.median_seconds(work, suite.clock, min(suite.seconds / 5, 3.0)) * 1e9 / n
        if memory:
            code = MEMORY.format(threads=torch.get_num_threads(), name=name, log2_size=log2_size, points=n)
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            result[f"{name}, bytes"] = int(json.loads(done.stdout)) / n
    return result


def _print(what: str, labels: Sequence[str], rows: Sequence[dict[str, float]]) -> None:
    print(f"\n{what:20}" + "".join(f"{name:>42}" for name in rows[0]))
    for label, row in zip(labels, rows, strict=True):
        cells = [f"{value:.0f} bytes" if name.endswith("bytes") else f"{value:.1f} ns" for name, value in row.items()]
        print(f"{label:20}" + "".join(f"{cell:>42}" for cell in cells), flush=True)


def _plot(record: dict[str, Any], path: Path) -> None:
    matplotlib = optional_import("matplotlib")
    matplotlib.use("Agg")
    plt = optional_import("matplotlib.pyplot")
    (case,) = record["cases"]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    series = (
        (axes[0], "points per call", case["log2_points"], case["by_points"]),
        (axes[1], "entries per level (8 bytes each)", case["log2_sizes"], case["by_size"]),
    )
    for ax, label, exponents, rows in series:
        for name, color in zip(PASSES, ("#d1495b", "#2b2d42", "#00798c"), strict=True):
            ax.plot([2**e for e in exponents], [row[name] for row in rows], marker="o", color=color, label=name)
        ax.set_xscale("log", base=2)
        ax.set_ylim(bottom=0)
        ax.set_xlabel(label)
        ax.set_ylabel("ns per point")
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    for name, n_bytes in case["cache_bytes"].items():
        for width, style, what in ((8, ":", "a level"), (16 * 8, "--", "the table")):
            x = n_bytes / width
            if 2 ** case["log2_sizes"][0] / 1.5 <= x <= 2 ** case["log2_sizes"][-1] * 1.5:
                axes[1].axvline(x, color="#8d99ae", linestyle=style, linewidth=1)
                axes[1].annotate(f"{what} = {name}", (x, 0), xytext=(2, 4), textcoords="offset points", rotation=90,
                                 fontsize=7, va="bottom")  # fmt: skip
    axes[0].legend(frameon=False)
    machine = record["environment"]
    figure.suptitle(f"hash_encode, L = 16, F = 2: {machine['cpu']}, {machine['threads']} threads", fontsize=9)
    harness.save_figure(figure, path)


if __name__ == "__main__":
    main()
