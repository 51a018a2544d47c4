"""Fused MLP against ``nn.Sequential``, eager and under torch.compile, in fp32 and with bf16 products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hashgrid.bench import harness
from hashgrid.bench.harness import OURS, Case, Contender, Limit
from hashgrid.ops.mlp import mlp

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCES = {"fp32": 1e-4, "bf16": 0.1}


def main(argv: Sequence[str] | None = None) -> Path:
    """Measures forward, and forward + backward to weights and inputs; returns the JSON file."""
    options = harness.parser(__doc__)
    options.add_argument("--points", type=int, default=1 << 18)
    options.add_argument(
        "--widths", type=int, nargs="+", default=[32, 64, 64, 16], help="input, hidden and output sizes"
    )
    options.add_argument("--dtypes", choices=tuple(DTYPES), nargs="+", default=list(DTYPES))
    args = options.parse_args(argv)
    suite = harness.Suite("mlp", "row", args)

    shapes = [(b, a) for a, b in zip(args.widths[:-1], args.widths[1:], strict=True)]
    weights = [nn.init.xavier_uniform_(torch.empty(shape)).requires_grad_() for shape in shapes]
    x = torch.randn(args.points, args.widths[0]).requires_grad_()
    grad_y = torch.randn(args.points, args.widths[-1])
    flop = 2 * sum(a * b for a, b in shapes)
    name = " -> ".join(str(width) for width in args.widths)
    for dtype in args.dtypes:
        rate = harness.matmul_flops(DTYPES[dtype])
        for backward in (False, True):
            work = flop * (3 if backward else 1)
            limit = Limit(
                work / rate * 1e9, f"{work / 1e3:.0f} kFLOP at {rate / 1e9:.0f} GFLOP/s, a large {dtype} matmul"
            )
            suite.run(
                Case(
                    f"{name}, {dtype}, forward" + (" + backward" if backward else ""),
                    args.points,
                    _contenders(weights, x, grad_y, DTYPES[dtype], backward, not args.no_compile),
                    tolerance=TOLERANCES[dtype],
                    rms=dtype == "bf16",
                    limit=limit,
                )
            )
    return suite.write()


def _contenders(
    weights: list[Tensor], x: Tensor, grad_y: Tensor, dtype: torch.dtype, backward: bool, compiled: bool
) -> list[Contender]:
    """``nn.Sequential`` gets inputs and weights that are ``dtype`` already; ours keeps fp32 ones and rounds inside."""
    run = _forward_backward if backward else _forward

    def peer(name: str, dtype: torch.dtype, compiled: bool = False) -> Contender:
        model = _sequential(weights).to(dtype)
        forward = torch.compile(model, dynamic=False, fullgraph=True) if compiled else model
        inputs = x.detach().to(dtype).requires_grad_()
        return Contender(name, run(lambda x, *_: forward(x), inputs, list(model.parameters()), grad_y.to(dtype)))

    half = dtype != torch.float32
    contenders = [peer("nn.Sequential, fp32", torch.float32)] if half else []  # the truth does not round
    contenders.append(peer("nn.Sequential", dtype))
    if compiled:
        contenders.append(peer("nn.Sequential, compiled", dtype, compiled=True))
    compute_dtype = dtype if half else None
    ours = run(lambda x, *weights: mlp(x, list(weights), compute_dtype=compute_dtype), x, weights, grad_y)
    return [*contenders, Contender(OURS, ours)]


def _sequential(weights: Sequence[Tensor]) -> nn.Sequential:
    """Bias-free layers with ReLU between them and copies of ``weights``."""
    layers: list[nn.Module] = []
    for i, weight in enumerate(weights):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        with torch.no_grad():
            layer.weight.copy_(weight)
        layers += [layer] if i == len(weights) - 1 else [layer, nn.ReLU()]
    return nn.Sequential(*layers)


def _forward(
    f: Callable[..., Tensor], x: Tensor, weights: Sequence[Tensor], grad_y: Tensor
) -> Callable[[], Sequence[Tensor]]:
    def run() -> Sequence[Tensor]:
        with torch.no_grad():
            return (f(x, *weights),)

    return run


def _forward_backward(
    f: Callable[..., Tensor], x: Tensor, weights: Sequence[Tensor], grad_y: Tensor
) -> Callable[[], Sequence[Tensor]]:
    def run() -> Sequence[Tensor]:
        y = f(x, *weights)
        return torch.autograd.grad(y, (x, *weights), grad_y)

    return run


if __name__ == "__main__":
    main()
