"""Hash encoding: plain PyTorch in its fastest formulation, eager and compiled, the native kernels, Dr.Jit, tcnn."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hashgrid.bench import formulations, harness, peers
from hashgrid.bench.harness import COMPILED, EAGER, OURS, Case, Contender, Limit
from hashgrid.levels import LevelTable, make_level_table
from hashgrid.ops._ngp import hash_encode_into
from hashgrid.ops.hash_encode import hash_encode
from hashgrid.reference.hash_encode import _cell_corners

SAMPLES_PER_RAY = 64
TOLERANCE = (
    1e-3  # to float64: an fp32 position is known to 1e-4 of a cell of the finest level, whose rows are unrelated
)


def ray_positions(n: int) -> Tensor:
    """[n, 3] positions along random rays through the unit cube, neighbours sqrt(3)/1024 apart as in training."""
    n_rays = -(-n // SAMPLES_PER_RAY)
    step = 3**0.5 / 1024
    half = SAMPLES_PER_RAY * step / 2
    centres = half + torch.rand(n_rays, 1, 3) * (1 - 2 * half)
    directions = torch.nn.functional.normalize(torch.randn(n_rays, 1, 3), dim=-1)
    t = (torch.arange(SAMPLES_PER_RAY) * step - half)[None, :, None]
    return (centres + t * directions).reshape(-1, 3)[:n].contiguous()


def uniform_positions(n: int) -> Tensor:
    """[n, 3] positions anywhere in the unit cube, in random order."""
    return torch.rand(n, 3)


KINDS = {"uniform": uniform_positions, "rays": ray_positions}


def main(argv: Sequence[str] | None = None) -> Path:
    """Measures forward, forward + backward to the table, and backward to positions; returns the JSON file."""
    options = harness.parser(__doc__)
    options.add_argument("--points", type=int, nargs="+", default=None, help="2^18 if none, 2^20 on a GPU")
    options.add_argument("--positions", choices=KINDS, nargs="+", default=list(KINDS))
    options.add_argument("--n-levels", type=int, default=16)
    options.add_argument("--n-features-per-level", type=int, default=2)
    options.add_argument("--log2-hashmap-size", type=int, default=None, help="19 if none")
    options.add_argument("--base-resolution", type=int, default=16)
    options.add_argument("--max-resolution", type=int, default=2048)
    args = options.parse_args(argv)
    args.points = args.points or [harness.size(args, None, 1 << 18, 1 << 20, 512, 1 << 16)]
    args.log2_hashmap_size = harness.size(args, args.log2_hashmap_size, 19, 19, 9)
    suite = harness.Suite("hash_encode", "point", args)

    levels = make_level_table(3, args.n_levels, args.log2_hashmap_size, args.base_resolution, args.max_resolution)
    table = torch.empty(levels.n_entries, args.n_features_per_level).uniform_(-1e-4, 1e-4).to(suite.device)
    grid = peers.Grid(args.n_levels, args.n_features_per_level, args.log2_hashmap_size, args.base_resolution,
                      args.max_resolution)  # fmt: skip
    work = _Work(suite, levels, table, grid, compiled=not args.no_compile)
    for n, kind in itertools.product(args.points, args.positions):
        positions = (KINDS[kind](n)).to(suite.device)
        grad_y = torch.randn(n, args.n_levels * args.n_features_per_level).to(suite.device)
        suite.run(work.forward(kind, positions))
        suite.run(work.forward_backward(kind, positions, grad_y))
        suite.run(work.backward_positions(kind, positions, grad_y))
    return suite.write()


@dataclass
class _Work:
    """The cases over one grid. Plain PyTorch takes part in its fastest formulation, found anew for each case."""

    suite: harness.Suite
    levels: LevelTable
    table: Tensor
    grid: peers.Grid
    compiled: bool

    def __post_init__(self) -> None:
        suite, levels = self.suite, self.levels
        self.plain = {name: functools.partial(f, levels=levels) for name, f in formulations.HASH_ENCODE.items()}
        self.by_compiler = {
            name: torch.compile(f, dynamic=False, fullgraph=True) for name, f in self.plain.items() if self.compiled
        }
        self.ours = functools.partial(hash_encode, levels=levels)
        # read in half precision, as tcnn does
        half = functools.partial(hash_encode_into, levels=levels, half_table=self.table.half())
        self.half = half if suite.peers else None
        self.others = peers.hash_encoders(self.grid) if suite.peers else {}
        if suite.cpu_peers:
            self.others = peers.cpu_hash_encoders(self.grid)

    def forward(self, kind: str, positions: Tensor) -> Case:
        run = functools.partial(_forward, positions=positions, table=self.table)
        contenders, notes = self._plain(run)
        contenders.append(Contender(OURS, run(self.ours)))
        if self.half is not None:
            contenders.append(Contender(f"{OURS}, fp16 table", run(self.half), rms_tolerance=1e-2))
        contenders += [make(positions, self.table, None) for make in self.others.values()]
        return self._case("forward", kind, positions, contenders, notes, run, _limits(self, positions)[0])

    def forward_backward(self, kind: str, positions: Tensor, grad_y: Tensor) -> Case:
        leaf = self.table.clone().requires_grad_()
        run = functools.partial(_forward_backward, positions=positions, table=leaf, grad_y=grad_y)
        contenders, notes = self._plain(run)
        contenders.append(Contender(OURS, run(self.ours)))
        kept = _forward_backward_kept(positions, leaf, grad_y, self.levels)
        contenders.append(Contender(f"{OURS}, kept gradient", kept))
        if self.half is not None:
            contenders.append(Contender(f"{OURS}, fp16 table", run(self.half), rms_tolerance=1e-2))
        contenders += [make(positions, self.table, grad_y) for make in self.others.values()]
        limit = _limits(self, positions)[1]
        return self._case("forward + backward to the table", kind, positions, contenders, notes, run, limit)

    def backward_positions(self, kind: str, positions: Tensor, grad_y: Tensor) -> Case:
        """The backward alone. The truth is fp32: in float64 a position may lie in the next cell, where it differs."""
        leaf = positions.clone().requires_grad_()
        encoders = {EAGER: self.plain["level by level"], OURS: self.ours}
        contenders = [
            Contender(name, _backward(encode(leaf, self.table), leaf, grad_y)) for name, encode in encoders.items()
        ]
        limit = _limits(self, positions)[0]
        return Case(
            f"backward to positions, {kind}, N = {positions.shape[0]}", positions.shape[0], contenders, limit=limit
        )

    def _plain(self, run: Callable[..., Callable[[], Sequence[Tensor]]]) -> tuple[list[Contender], dict[str, float]]:
        """The fastest formulation, eager and compiled, and the seconds of all."""
        contenders: list[Contender] = []
        notes: dict[str, float] = {}
        for kind, encoders in ((EAGER, self.plain), (COMPILED, self.by_compiler)):
            if not encoders:
                continue
            runs = {name: run(encode) for name, encode in encoders.items()}
            seconds = harness.fastest(runs, self.suite.clock)
            notes |= {f"{kind}, {name}": value for name, value in seconds.items()}
            contenders.append(Contender(kind, runs[next(iter(seconds))], note=next(iter(seconds))))
        return contenders, notes

    def _case(
        self,
        name: str,
        kind: str,
        positions: Tensor,
        contenders: list[Contender],
        notes: dict[str, float],
        run: Callable[..., Callable[[], Sequence[Tensor]]],
        limit: Limit,
    ) -> Case:
        n = positions.shape[0]
        wide = {key: value.double() for key, value in run.keywords.items()}  # type: ignore[attr-defined]
        if "grad_y" in wide:
            wide["table"] = wide["table"].detach().requires_grad_()
        parts: dict[str, Callable[[], object]] = {}
        if self.suite.peers:
            parts["cast of all parameters to fp16"] = self.table.half
        case = Case(f"{name}, {kind}, N = {n}", n, contenders, TOLERANCE, limit=limit, parts=parts)
        case.truth = run.func(self.plain["level by level"], **wide)  # type: ignore[attr-defined]
        case.formulations = {key: value * 1e9 / n for key, value in notes.items()}
        return case


def _limits(work: _Work, positions: Tensor) -> tuple[Limit, Limit]:
    """Of the forward, and of the forward + backward to the table."""
    suite, table, levels = work.suite, work.table, work.levels
    n = positions.shape[0]
    row_bytes = table.element_size() * table.shape[1]
    if suite.device.type == "cuda":
        # What has to move is input, output and each table once; rows come from L2. The backward reads positions and the
        # gradient of the output, writes one gradient of the table and adds a row per corner.
        features = levels.n_levels * table.shape[1]
        once = table.numel() * table.element_size() / n
        moved = 12 + 4 * features + once
        sectors = lines_per_point(positions.cpu(), levels, row_bytes, line_bytes=32)
        forward = suite.rates.limit(moved, "12 + 4 L F + table / N", sectors=sectors)
        backward = suite.rates.limit(
            2 * moved, "2 (12 + 4 L F + table / N)", sectors=sectors, adds=float(8 * levels.n_levels)
        )
        return forward, backward
    lines = lines_per_point(positions, levels, row_bytes)
    level_bytes = max(levels.sizes) * row_bytes
    line_ns = suite.rates.random_line_seconds(level_bytes) * 1e9
    size = f"{level_bytes / 2**20:.0f} MB"
    reads = f"{lines:.0f} cache lines per point at {line_ns:.2f} ns, random over the {size} of a level"
    zero_ns = harness.best_seconds(torch.empty_like(table).zero_) * 1e9 / n
    return Limit(lines * line_ns, reads), Limit(
        2 * lines * line_ns + zero_ns, f"twice the lines of the forward, {zero_ns:.0f} ns of zeroing"
    )


def lines_per_point(
    positions: Tensor, levels: LevelTable, row_bytes: int, n_probes: int = 8192, line_bytes: int = 64
) -> float:
    """Distinct lines that one point touches in all levels, averaged; nothing is shared between points."""
    probes = positions[torch.randperm(positions.shape[0])[:n_probes]]
    total = 0.0
    for level in range(levels.n_levels):
        index, _ = _cell_corners(probes, levels, level, "linear")
        lines = ((index + levels.offsets[level]) * row_bytes // line_bytes).sort(dim=1).values  # [n, 8]
        total += float(1 + (lines.diff(dim=1) != 0).sum(dim=1).double().mean())
    return total


def _forward(encode: Callable[..., Tensor], positions: Tensor, table: Tensor) -> Callable[[], Sequence[Tensor]]:
    def run() -> Sequence[Tensor]:
        with torch.no_grad():
            return (encode(positions, table),)

    return run


def _forward_backward(
    encode: Callable[..., Tensor], positions: Tensor, table: Tensor, grad_y: Tensor
) -> Callable[[], Sequence[Tensor]]:
    """A fresh gradient per call: everybody pays for its zeroing and its page faults."""

    def run() -> Sequence[Tensor]:
        y = encode(positions, table)
        return torch.autograd.grad(y, table, grad_y)

    return run


def _backward(y: Tensor, leaf: Tensor, grad_y: Tensor) -> Callable[[], Sequence[Tensor]]:
    """The backward alone, through a graph that is kept."""

    def run() -> Sequence[Tensor]:
        return torch.autograd.grad(y, leaf, grad_y, retain_graph=True)

    return run


def _forward_backward_kept(
    positions: Tensor, table: Tensor, grad_y: Tensor, levels: LevelTable
) -> Callable[[], Sequence[Tensor]]:
    """As the trainers run it: one gradient buffer for all steps, zeroed before each."""
    buffer = torch.zeros_like(table, requires_grad=False)

    def run() -> Sequence[Tensor]:
        buffer.zero_()
        hash_encode_into(positions, table, levels, grad_buffer=buffer).backward(grad_y)
        return (buffer,)

    return run


if __name__ == "__main__":
    main()
