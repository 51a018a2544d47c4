"""Fused MLP against ``nn.Sequential``, eager and under torch.compile, and tcnn on a GPU, in fp32 and half precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hashgrid.bench import harness, peers
from hashgrid.bench.harness import OURS, Case, Contender, Limit
from hashgrid.ops.mlp import mlp
from hashgrid.util.choices import FACTORS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCES = {"fp32": 1e-4, "bf16": 0.1, "fp16": 0.1}
KINK_TOLERANCE = 5e-3  # of gradients, root mean square: rounding decides on which side of its kink a ReLU is


def main(argv: Sequence[str] | None = None) -> Path:
    """Measures forward, and forward + backward to weights and inputs; returns the JSON file."""
    options = harness.parser(__doc__)
    options.add_argument("--points", type=int, default=None, help="2^18 if none, 2^20 on a GPU")
    options.add_argument(
        "--widths", type=int, nargs="+", default=[32, 64, 64, 16], help="input, hidden and output sizes"
    )
    options.add_argument("--dtypes", choices=tuple(DTYPES), nargs="+", default=None, help="all that the kernels take")
    args = options.parse_args(argv)
    args.points = harness.size(args, args.points, 1 << 18, 1 << 20, 512)
    if args.dtypes is None:
        halves = [torch.bfloat16, torch.float16] if harness.is_cuda(args) else [torch.bfloat16]
        args.dtypes = ["fp32", *(name for name in DTYPES if DTYPES[name] in halves and DTYPES[name] in FACTORS)]
    suite = harness.Suite("mlp", "row", args)
    device = suite.device

    shapes = [(b, a) for a, b in zip(args.widths[:-1], args.widths[1:], strict=True)]
    weights = [nn.init.xavier_uniform_(torch.empty(shape)).to(device).requires_grad_() for shape in shapes]
    x = torch.randn(args.points, args.widths[0]).to(device).requires_grad_()
    grad_y = torch.randn(args.points, args.widths[-1]).to(device)
    name = " -> ".join(str(width) for width in args.widths)
    for dtype in args.dtypes:
        for backward in (False, True):
            contenders = _contenders(weights, x, grad_y, DTYPES[dtype], backward, not args.no_compile)
            if suite.peers and dtype != "fp32":
                contenders += peers.mlps(weights, x, grad_y if backward else None)
            suite.run(
                Case(
                    f"{name}, {dtype}, forward" + (" + backward" if backward else ""),
                    args.points,
                    contenders,
                    tolerance=max(TOLERANCES[dtype], KINK_TOLERANCE if backward else 0.0),
                    rms=backward or dtype != "fp32",
                    limit=_limit(suite, args.widths, DTYPES[dtype], backward),
                    truth=_truth(weights, x, grad_y, backward),
                )
            )
    return suite.write()


def _limit(suite: harness.Suite, widths: Sequence[int], dtype: torch.dtype, backward: bool) -> Limit:
    """Of one row: a forward takes 2 in out FLOP per layer, a backward twice as many; weights weigh nothing."""
    work = 2 * sum(a * b for a, b in zip(widths[:-1], widths[1:], strict=True)) * (3 if backward else 1)
    if suite.device.type == "cuda":
        moved = 4 * (widths[0] + widths[-1])
        if backward:
            moved += 4 * (2 * widths[0] + widths[-1])
        formula = "4 (in + out)" + (" + 4 (2 in + out)" if backward else "")
        return suite.rates.limit(moved, formula, work, dtype)
    if dtype == torch.float32:
        return Limit(
            work / suite.rates.fma * 1e9,
            f"{work / 1e3:.0f} kFLOP at {suite.rates.fma / 1e9:.0f} GFLOP/s, multiply-adds in registers",
        )
    rate = suite.rates.matmul(dtype)
    name = next(name for name, value in DTYPES.items() if value == dtype)
    text = f"{work / 1e3:.0f} kFLOP at {rate / 1e9:.0f} GFLOP/s, a large {name} matmul"
    return Limit(work / rate * 1e9, text)


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
    contenders = [peer("nn.Sequential, fp32", torch.float32)] if half else []
    contenders.append(peer("nn.Sequential", dtype))
    if compiled:
        contenders.append(peer("nn.Sequential, compiled", dtype, compiled=True))
    compute_dtype = dtype if half else None
    ours = run(lambda x, *weights: mlp(x, list(weights), compute_dtype=compute_dtype), x, weights, grad_y)
    return [*contenders, Contender(OURS, ours)]


def _truth(weights: list[Tensor], x: Tensor, grad_y: Tensor, backward: bool) -> Callable[[], Sequence[Tensor]]:
    """In float64."""
    model = _sequential(weights).double()
    inputs = x.detach().double().requires_grad_()
    run = _forward_backward if backward else _forward
    return run(lambda x, *_: model(x), inputs, list(model.parameters()), grad_y.double())


def _sequential(weights: Sequence[Tensor]) -> nn.Sequential:
    """Bias-free layers with ReLU between them and copies of ``weights``, on their device."""
    layers: list[nn.Module] = []
    for i, weight in enumerate(weights):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
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
