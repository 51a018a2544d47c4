"""Spherical harmonics and frequency encoding: the eager reference, torch.compile, the native kernels, on a GPU tcnn."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hashgrid import ops, reference
from hashgrid.bench import harness, peers
from hashgrid.bench.harness import COMPILED, EAGER, OURS, Case, Contender


def main(argv: Sequence[str] | None = None) -> Path:
    """Measures forward, and forward + backward to the inputs; returns the JSON file."""
    options = harness.parser(__doc__)
    options.add_argument("--points", type=int, default=None, help="2^18 if none, 2^21 on a GPU")
    options.add_argument("--degree", type=int, default=4, help="of the spherical harmonics")
    options.add_argument("--n-frequencies", type=int, default=12)
    args = options.parse_args(argv)
    args.points = harness.size(args, args.points, 1 << 18, 1 << 21, 512)
    suite = harness.Suite("encodings", "point", args)

    directions = torch.nn.functional.normalize(torch.randn(args.points, 3), dim=1).to(suite.device)
    positions = torch.rand(args.points, 3).to(suite.device)
    n_harmonics, n_waves = args.degree**2, 2 * 3 * args.n_frequencies
    sh = {"degree": args.degree}, directions, n_harmonics, peers.sh_encoders(args.degree)
    frequency = {"n_frequencies": args.n_frequencies}, positions, n_waves, peers.frequency_encoders(args.n_frequencies)
    for name, (settings, x, n_outputs, others) in (("sh_encode", sh), ("frequency_encode", frequency)):
        plain = functools.partial(getattr(reference, name), **settings)
        encoders: dict[str, Callable[..., Tensor]] = {EAGER: plain}
        if not args.no_compile:
            encoders[COMPILED] = torch.compile(plain, dynamic=False, fullgraph=True)
        encoders[OURS] = functools.partial(getattr(ops, name), **settings)
        label = f"{name}, {', '.join(f'{key} {value}' for key, value in settings.items())}"

        grad_y = torch.randn(args.points, n_outputs).to(suite.device)
        for backward in (False, True):
            g = grad_y if backward else None
            contenders = [Contender(key, _run(encode, x, g)) for key, encode in encoders.items()]
            if suite.peers:
                contenders += [make(x, g) for make in others.values()]
            # the backward reads input and gradient and writes the gradient of the input
            moved = 12 + 4 * n_outputs
            formula = f"12 + 4 x {n_outputs}"
            if backward:
                moved, formula = 2 * moved + 12, f"2 ({formula}) + 12"
            case_name = f"{label}, forward" + (" + backward" if backward else "")
            suite.run(Case(case_name, args.points, contenders, limit=suite.rates.limit(moved, formula)))
    return suite.write()


def _run(encode: Callable[..., Tensor], x: Tensor, grad_y: Tensor | None) -> Callable[[], Sequence[Tensor]]:
    leaf = x.clone().requires_grad_()

    def forward() -> Sequence[Tensor]:
        with torch.no_grad():
            return (encode(x),)

    def forward_backward() -> Sequence[Tensor]:
        return torch.autograd.grad(encode(leaf), leaf, grad_y)

    return forward if grad_y is None else forward_backward


if __name__ == "__main__":
    main()
