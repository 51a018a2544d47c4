"""Hash encoding: the eager reference, torch.compile, the native kernels, and on a GPU tcnn and Dr.Jit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hashgrid import reference
from hashgrid.bench import harness, peers
from hashgrid.bench.harness import COMPILED, EAGER, OURS, Case, Contender, Limit
from hashgrid.levels import LevelTable, make_level_table
from hashgrid.ops.hash_encode import hash_encode
from hashgrid.reference.hash_encode import _cell_corners

SAMPLES_PER_RAY = 64


def main(argv: Sequence[str] | None = None) -> Path:
    """Measures forward, and forward + backward to the table; returns the JSON file."""
    options = harness.parser(__doc__)
    options.add_argument("--points", type=int, default=None, help="2^18 if none, 2^20 on a GPU")
    options.add_argument("--positions", choices=("uniform", "rays"), default="uniform")
    options.add_argument("--n-levels", type=int, default=16)
    options.add_argument("--n-features-per-level", type=int, default=2)
    options.add_argument("--log2-hashmap-size", type=int, default=None, help="19 if none")
    options.add_argument("--base-resolution", type=int, default=16)
    options.add_argument("--max-resolution", type=int, default=2048)
    args = options.parse_args(argv)
    args.points = harness.size(args, args.points, 1 << 18, 1 << 20, 512)
    args.log2_hashmap_size = harness.size(args, args.log2_hashmap_size, 19, 19, 9)
    suite = harness.Suite("hash_encode", "point", args)
    device = suite.device

    levels = make_level_table(3, args.n_levels, args.log2_hashmap_size, args.base_resolution, args.max_resolution)
    positions = ray_positions(args.points) if args.positions == "rays" else torch.rand(args.points, 3)
    table = torch.empty(levels.n_entries, args.n_features_per_level).uniform_(-1e-4, 1e-4).to(device)
    grad_y = torch.randn(args.points, args.n_levels * args.n_features_per_level).to(device)
    positions = positions.to(device)

    plain = functools.partial(reference.hash_encode, levels=levels)
    encoders: dict[str, Callable[..., Tensor]] = {EAGER: plain}
    if not args.no_compile:
        encoders[COMPILED] = torch.compile(plain, dynamic=False, fullgraph=True)
    encoders[OURS] = functools.partial(hash_encode, levels=levels)
    grid = peers.Grid(args.n_levels, args.n_features_per_level, args.log2_hashmap_size, args.base_resolution,
                      args.max_resolution)  # fmt: skip
    others = peers.hash_encoders(grid) if suite.peers else {}

    forward_limit, backward_limit = _limits(suite, positions, table, levels)
    contenders = [Contender(name, _forward(encode, positions, table)) for name, encode in encoders.items()]
    shadow = table.half()
    if suite.peers:  # read in half precision, as tcnn does
        half = functools.partial(hash_encode, levels=levels, shadow=shadow)
        contenders.append(Contender(f"{OURS}, fp16 table", _forward(half, positions, table), rms_tolerance=1e-2))
    contenders += [make(positions, table, None) for make in others.values()]
    parts: dict[str, Callable[[], object]] = {}
    if suite.peers:
        parts["cast of all parameters to fp16"] = table.half
    suite.run(Case("forward", args.points, contenders, limit=forward_limit, parts=parts))

    leaf = table.clone().requires_grad_()
    contenders = [
        Contender(name, _forward_backward(encode, positions, leaf, grad_y)) for name, encode in encoders.items()
    ]
    contenders.append(Contender(f"{OURS}, kept gradient", _forward_backward_kept(positions, leaf, grad_y, levels)))
    if suite.peers:
        run = _forward_backward(half, positions, leaf, grad_y.half())
        contenders.append(Contender(f"{OURS}, fp16 table", run, rms_tolerance=1e-2))
    contenders += [make(positions, table, grad_y) for make in others.values()]
    suite.run(Case("forward + backward to the table", args.points, contenders, limit=backward_limit, parts=dict(parts)))
    return suite.write()


def _limits(suite: harness.Suite, positions: Tensor, table: Tensor, levels: LevelTable) -> tuple[Limit, Limit]:
    """Of the forward, and of the forward + backward to the table."""
    n = positions.shape[0]
    row_bytes = table.element_size() * table.shape[1]
    if suite.device.type == "cuda":
        # Rows come from L2, whatever their number; what has to move is input, output and each table once. The backward
        # reads positions and the gradient of the output and writes one gradient of the table.
        features = levels.n_levels * table.shape[1]
        once = table.numel() * table.element_size() / n
        sectors = lines_per_point(positions.cpu(), levels, row_bytes, line_bytes=32)
        note = f"{sectors:.0f} sectors of 32 bytes per point from L2"
        moved = 12 + 4 * features
        forward = suite.rates.limit(moved + once, f"12 + 4 L F + table / N; {note}")
        backward = suite.rates.limit(2 * (moved + once), f"2 (12 + 4 L F + table / N); {note}")
        return forward, backward
    lines = lines_per_point(positions, levels, row_bytes)
    level_bytes = max(levels.sizes) * row_bytes
    line_ns = harness.random_line_seconds(level_bytes) * 1e9
    size = f"{level_bytes / 2**20:.0f} MB"
    reads = f"{lines:.0f} cache lines per point at {line_ns:.2f} ns, random over the {size} of a level"
    zero_ns = harness.best_seconds(torch.empty_like(table).zero_) * 1e9 / n
    return Limit(lines * line_ns, reads), Limit(
        2 * lines * line_ns + zero_ns, f"twice the lines of the forward, {zero_ns:.0f} ns of zeroing"
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


def _forward_backward_kept(
    positions: Tensor, table: Tensor, grad_y: Tensor, levels: LevelTable
) -> Callable[[], Sequence[Tensor]]:
    """As the trainers run it: one gradient buffer for all steps, zeroed before each."""
    buffer = torch.zeros_like(table, requires_grad=False)

    def run() -> Sequence[Tensor]:
        buffer.zero_()
        hash_encode(positions, table, levels, grad_buffer=buffer).backward(grad_y)
        return (buffer,)

    return run


if __name__ == "__main__":
    main()
