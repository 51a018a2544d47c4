"""Hash encoding: the eager reference, the reference under torch.compile, the native kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hashgrid import reference
from hashgrid.bench import harness
from hashgrid.bench.harness import COMPILED, EAGER, OURS, Case, Contender, Limit
from hashgrid.levels import LevelTable, make_level_table
from hashgrid.ops.hash_encode import hash_encode
from hashgrid.reference.hash_encode import _cell_corners

SAMPLES_PER_RAY = 64


def main(argv: Sequence[str] | None = None) -> Path:
    """Measures forward, and forward + backward to the table; returns the JSON file."""
    options = harness.parser(__doc__)
    options.add_argument("--points", type=int, default=1 << 18)
    options.add_argument("--positions", choices=("uniform", "rays"), default="uniform")
    options.add_argument("--n-levels", type=int, default=16)
    options.add_argument("--n-features-per-level", type=int, default=2)
    options.add_argument("--log2-hashmap-size", type=int, default=19)
    options.add_argument("--base-resolution", type=int, default=16)
    options.add_argument("--max-resolution", type=int, default=2048)
    args = options.parse_args(argv)
    suite = harness.Suite("hash_encode", "point", args)

    levels = make_level_table(3, args.n_levels, args.log2_hashmap_size, args.base_resolution, args.max_resolution)
    positions = ray_positions(args.points) if args.positions == "rays" else torch.rand(args.points, 3)
    table = torch.empty(levels.n_entries, args.n_features_per_level).uniform_(-1e-4, 1e-4)
    grad_y = torch.randn(args.points, args.n_levels * args.n_features_per_level)

    plain = functools.partial(reference.hash_encode, levels=levels)
    contenders: dict[str, Callable[..., Tensor]] = {EAGER: plain}
    if not args.no_compile:
        contenders[COMPILED] = torch.compile(plain, dynamic=False, fullgraph=True)
    contenders[OURS] = functools.partial(hash_encode, levels=levels)

    lines = lines_per_point(positions, levels, 4 * args.n_features_per_level)
    level_bytes = max(levels.sizes) * 4 * args.n_features_per_level
    line_ns = harness.random_line_seconds(level_bytes) * 1e9
    size = f"{level_bytes / 2**20:.0f} MB"
    reads = f"{lines:.0f} cache lines per point at {line_ns:.2f} ns, random over the {size} of a level"
    suite.run(
        Case(
            "forward",
            args.points,
            [Contender(name, _forward(encode, positions, table)) for name, encode in contenders.items()],
            limit=Limit(lines * line_ns, reads),
        )
    )

    leaf = table.clone().requires_grad_()
    cases = [Contender(name, _forward_backward(encode, positions, leaf, grad_y)) for name, encode in contenders.items()]
    cases.append(Contender(f"{OURS}, kept gradient", _forward_backward_kept(positions, leaf, grad_y, levels)))
    zero_ns = harness.best_seconds(torch.empty_like(table).zero_) * 1e9 / args.points
    suite.run(
        Case(
            "forward + backward to the table",
            args.points,
            cases,
            limit=Limit(2 * lines * line_ns + zero_ns, f"twice the lines of the forward, {zero_ns:.0f} ns of zeroing"),
        )
    )
    return suite.write()


def ray_positions(n: int) -> Tensor:
    """[n, 3] positions along random rays through the unit cube, neighbours sqrt(3)/1024 apart as in training."""
    n_rays = -(-n // SAMPLES_PER_RAY)
    step = 3**0.5 / 1024
    half = SAMPLES_PER_RAY * step / 2
    centres = half + torch.rand(n_rays, 1, 3) * (1 - 2 * half)
    directions = torch.nn.functional.normalize(torch.randn(n_rays, 1, 3), dim=-1)
    t = (torch.arange(SAMPLES_PER_RAY) * step - half)[None, :, None]
    return (centres + t * directions).reshape(-1, 3)[:n].contiguous()


def lines_per_point(positions: Tensor, levels: LevelTable, row_bytes: int, n_probes: int = 8192) -> float:
    """Distinct 64-byte lines that one point touches in all levels, averaged; nothing is shared between points."""
    probes = positions[torch.randperm(positions.shape[0])[:n_probes]]
    total = 0.0
    for level in range(levels.n_levels):
        index, _ = _cell_corners(probes, levels, level, "linear")
        lines = ((index + levels.offsets[level]) * row_bytes // 64).sort(dim=1).values  # [n, 8]
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
