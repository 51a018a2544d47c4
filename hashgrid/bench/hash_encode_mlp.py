"""A hash grid and the network behind it without gradients, as rendering asks for it: one op, the two ops, plain PyTorch
eager and compiled, and tcnn on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hashgrid.bench import formulations, harness, peers
from hashgrid.bench.harness import COMPILED, EAGER, OURS, Case, Contender, Limit
from hashgrid.bench.hash_encode import KINDS, lines_per_point
from hashgrid.bench.hash_encode import TOLERANCE as POSITION_TOLERANCE
from hashgrid.bench.mlp import DTYPES
from hashgrid.bench.mlp import TOLERANCES as PRODUCT_TOLERANCES
from hashgrid.levels import LevelTable, make_level_table
from hashgrid.ops import hash_encode, mlp
from hashgrid.ops._ngp import hash_encode_mlp


def main(argv: Sequence[str] | None = None) -> Path:
    """Measures fp32 and half-precision products; returns the JSON file."""
    options = harness.parser(__doc__)
    options.add_argument("--points", type=int, default=None, help="2^18 if none, 2^20 on a GPU")
    options.add_argument("--positions", choices=KINDS, nargs="+", default=list(KINDS))
    options.add_argument("--log2-hashmap-size", type=int, default=None, help="19 if none")
    options.add_argument("--widths", type=int, nargs="+", default=[64, 16], help="hidden and output sizes")
    options.add_argument(
        "--dtypes", choices=DTYPES, nargs="+", default=None, help="fp32 and bf16 if none; fp16 on a GPU"
    )
    args = options.parse_args(argv)
    n = harness.size(args, args.points, 1 << 18, 1 << 20, 512, 1 << 16)
    log2_hashmap_size = harness.size(args, args.log2_hashmap_size, 19, 19, 9)
    suite = harness.Suite("hash_encode_mlp", "point", args)
    grid = peers.Grid(16, 2, log2_hashmap_size, 16, 2048)
    levels = make_level_table(3, 16, log2_hashmap_size, 16, 2048)
    table = torch.empty(levels.n_entries, 2).uniform_(-1, 1).to(suite.device)
    widths = [32, *args.widths]
    weights = [
        nn.init.xavier_uniform_(torch.empty(b, a)).to(suite.device)
        for a, b in zip(widths[:-1], widths[1:], strict=True)
    ]
    plain = {name: functools.partial(f, levels=levels) for name, f in formulations.HASH_ENCODE.items()}
    name = " -> ".join(str(width) for width in widths)
    for dtype in args.dtypes or (["fp16"] if harness.is_cuda(args) else ["fp32", "bf16"]):
        networks = {key: functools.partial(_network, f, dtype=DTYPES[dtype]) for key, f in plain.items()}
        compute_dtype = None if dtype == "fp32" else DTYPES[dtype]
        half_table = table.to(compute_dtype) if suite.peers and compute_dtype is not None else None
        for kind in args.positions:
            positions = KINDS[kind](n).to(suite.device)
            contenders = []
            for label, compiled in ((EAGER, False), (COMPILED, True)):
                if compiled and args.no_compile:
                    continue
                runs = {key: _run(_compiled(f) if compiled else f, positions, table, weights)
                        for key, f in networks.items()}  # fmt: skip
                seconds = harness.fastest(runs, suite.clock)
                contenders.append(Contender(label, runs[next(iter(seconds))], note=next(iter(seconds))))
            for label, function in (("hashgrid, two ops", _two_ops), (OURS, _one_op)):
                ours = functools.partial(function, levels=levels, compute_dtype=compute_dtype)
                contenders.append(Contender(label, _run(ours, positions, table, weights)))
            if half_table is not None:
                ours = functools.partial(_one_op, levels=levels, compute_dtype=compute_dtype, half_table=half_table)
                contenders.append(Contender(f"{OURS}, {dtype} table", _run(ours, positions, table, weights)))
            if suite.peers:
                contenders += peers.networks_with_input_encoding(grid, positions, table, weights)
            suite.run(
                Case(
                    f"grid and {name}, {dtype}, {kind}, N = {n}",
                    n,
                    contenders,
                    tolerance=PRODUCT_TOLERANCES[dtype] if compute_dtype else POSITION_TOLERANCE,
                    rms=compute_dtype is not None,
                    limit=_limit(suite, positions, table, levels, weights, DTYPES[dtype]),
                    truth=_run(functools.partial(_network, plain["level by level"], dtype=torch.float64),
                               positions.double(), table.double(), [weight.double() for weight in weights]),
                )
            )  # fmt: skip
    return suite.write()


def _limit(
    suite: harness.Suite,
    positions: Tensor,
    table: Tensor,
    levels: LevelTable,
    weights: Sequence[Tensor],
    dtype: torch.dtype,
) -> Limit | None:
    """On a GPU: positions in, results out, the table once, rows from L2, products."""
    if suite.device.type != "cuda":
        return None
    once = table.numel() * table.element_size() / positions.shape[0]
    flop = 2 * sum(weight.numel() for weight in weights)
    sectors = lines_per_point(positions.cpu(), levels, table.element_size() * table.shape[1], line_bytes=32)
    moved = 12 + 4 * weights[-1].shape[0] + once
    return suite.rates.limit(moved, "12 + 4 out + table / N", flop, dtype, sectors)


def _network(
    encode: Callable[..., Tensor], positions: Tensor, table: Tensor, weights: Sequence[Tensor], dtype: torch.dtype
) -> Tensor:
    """With products of ``dtype``."""
    y = encode(positions, table).to(dtype)
    for weight in weights[:-1]:
        y = torch.relu(y @ weight.to(dtype).T)
    return (y @ weights[-1].to(dtype).T).to(table.dtype)


def _compiled(network: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(network, dynamic=False, fullgraph=True)


def _one_op(
    positions: Tensor, table: Tensor, weights: Sequence[Tensor], levels, compute_dtype, half_table=None
) -> Tensor:
    return hash_encode_mlp(positions, table, levels, weights, compute_dtype=compute_dtype, half_table=half_table)


def _two_ops(positions: Tensor, table: Tensor, weights: Sequence[Tensor], levels, compute_dtype) -> Tensor:
    return mlp(hash_encode(positions, table, levels), weights, compute_dtype=compute_dtype)


def _run(
    f: Callable[..., Tensor], positions: Tensor, table: Tensor, weights: Sequence[Tensor]
) -> Callable[[], Sequence[Tensor]]:
    def run() -> Sequence[Tensor]:
        with torch.no_grad():
            return (f(positions, table, weights),)

    return run


if __name__ == "__main__":
    main()
