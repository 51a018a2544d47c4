"""One Adam update of a table: the eager reference, torch.compile, PyTorch's fused Adam, the native kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hashgrid import ops, reference
from hashgrid.bench import harness
from hashgrid.bench.harness import COMPILED, EAGER, OURS, Case, Contender

LR, BETAS, EPS = 1e-2, (0.9, 0.99), 1e-15


def main(argv: Sequence[str] | None = None) -> Path:
    """Measures an update of every row, and one that skips rows without gradient; returns the JSON file."""
    options = harness.parser(__doc__)
    options.add_argument("--rows", type=int, default=None, help="of the table; 2^20 if none, 12 M on a GPU")
    options.add_argument("--features", type=int, default=2)
    options.add_argument("--touched", type=float, default=0.3, help="part of the rows with a gradient, where rows skip")
    args = options.parse_args(argv)
    args.rows = harness.size(args, args.rows, 1 << 20, 12_196_240, 512)
    suite = harness.Suite("adam_step", "row", args)

    implementations: dict[str, Callable] = {EAGER: reference.adam_step}
    if not args.no_compile:
        implementations[COMPILED] = torch.compile(reference.adam_step, dynamic=False)
    implementations[OURS] = ops.adam_step
    row = 4 * args.features
    for skip in (False, True):
        gradient = torch.randn(args.rows, args.features)
        if skip:
            gradient[torch.rand(args.rows) >= args.touched] = 0
        gradient = gradient.to(suite.device)
        contenders = [_contender(name, step, gradient, skip) for name, step in implementations.items()]
        if not skip:
            contenders.insert(-1, _torch_adam(gradient))
        # p, m, v read and written, g read; with average, half copy, and two counters of each touched row
        moved, formula = 7.0 * row, "7 x 4 F"
        if skip:
            part = args.touched
            moved, formula = row + part * (6 * row + 2 * row + row / 2 + 16), "4 F + touched (8.5 x 4 F + 16)"
        name = "rows without gradient skipped, with average and fp16 copy" if skip else "every row"
        suite.run(Case(name, args.rows, contenders, limit=suite.rates.limit(moved, formula)))
    return suite.write()


def _contender(name: str, step: Callable, gradient: Tensor, skip: bool) -> Contender:
    lr = torch.tensor(LR, device=gradient.device)
    global_step = torch.ones(1, dtype=torch.int32, device=gradient.device)  # as the optimiser keeps it

    def state() -> dict[str, Tensor]:
        zeros = {key: torch.zeros_like(gradient) for key in ("param", "exp_avg", "exp_avg_sq")}
        n_counters = gradient.shape[0] if skip else 1
        zeros["steps"] = torch.zeros(n_counters, dtype=torch.int32, device=gradient.device)
        if skip:
            zeros |= {"ema": torch.zeros_like(gradient), "ema_last": zeros["steps"].clone()}
            zeros["half_copy"] = torch.zeros_like(gradient, dtype=torch.float16)
        return zeros

    def update(values: dict[str, Tensor]) -> Sequence[Tensor]:
        step(
            grad=gradient, lr=lr, beta1=BETAS[0], beta2=BETAS[1], eps=EPS, weight_decay=0.0, skip_zero=skip,
            global_step=global_step, **values,
        )  # fmt: skip
        return values["param"], values["exp_avg"], values["exp_avg_sq"]

    kept = state()
    return Contender(name, lambda: update(kept), check=lambda: update(state()))


def _torch_adam(gradient: Tensor) -> Contender:
    """Its eps is added to the corrected root, which at 1e-15 makes no difference."""

    def make() -> tuple[Tensor, torch.optim.Adam]:
        param = torch.zeros_like(gradient).requires_grad_()
        param.grad = gradient.clone()
        return param, torch.optim.Adam([param], lr=LR, betas=BETAS, eps=EPS, fused=True)

    kept = make()

    def run() -> Sequence[Tensor]:
        kept[1].step()
        return ()

    def check() -> Sequence[Tensor]:
        param, optimizer = make()
        optimizer.step()
        state = optimizer.state[param]
        return param.detach(), state["exp_avg"], state["exp_avg_sq"]

    return Contender("torch.optim.Adam(fused=True)", run, check=check, peer=True)


if __name__ == "__main__":
    main()
