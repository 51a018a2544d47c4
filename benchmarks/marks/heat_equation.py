"""What derivatives of a network cost in a loss: the heat equation of `hashgrid pde`, u_t = a u_xx on [0, 1]^2 with
u(x, 0) = sin(pi x) and u = 0 at both ends, with soft conditions and by Adam alone (Raissi et al. 2019). The loss holds
u_t and u_xx, so its gradient is of third order. How well all equations are solved: `equations.py`.

    python benchmarks/marks/heat_equation.py  # seeds 0, 1, 2; writes results/heat_equation.json
    python benchmarks/marks/heat_equation.py --backend reference --seeds 0 --out /tmp

Reports the relative L2 error to u = exp(-a pi^2 t) sin(pi x) on a grid of 256 x 101 points, and the time of a step's
loss and gradients on both backends and by nested `torch.autograd.grad` of the same layers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hashgrid import own_threads
from hashgrid.bench.environment import environment
from hashgrid.data.collocation import Points
from hashgrid.data.equations import find_equation
from hashgrid.fields.smooth import SmoothField
from hashgrid.rendering.solution import grid_of
from hashgrid.tasks.pde import Pde, PdeConfig
from hashgrid.train.loop import Trainer


def make_task(seed: int, args: argparse.Namespace, backend: str) -> Pde:
    """A network of 3 hidden layers of 64 on the heat equation, as the options say."""
    config = PdeConfig(steps=args.steps, seed=seed, backend=backend, device=args.device)
    network = {"n_neurons": 64, "n_hidden_layers": 3, "activation": args.activation}
    recipe = {"conditions": "soft", "condition_weight": 10.0, "batch": args.points, "difficult": 0.0, "adam_share": 1.0}
    return Pde(config.replace(learning_rate=args.lr, **network, **recipe), find_equation("heat"))


def loss(task: Pde, residual: Callable[[Points], Tensor]) -> Tensor:
    """Loss of a step with ``residual``, whichever way it is computed."""
    inside, border = residual(task.problem.block(0)), task.problem.border_errors(task.model)
    return inside.square().mean() + 10 * torch.stack([error.square().mean() for error in border]).sum()


def nested_residual(task: Pde, layers: nn.Module, points: Points) -> Tensor:
    """The residual as one writes it in plain PyTorch: reverse mode of reverse mode."""
    x = points.unit.clone().requires_grad_()
    u = layers(2 * x - 1)
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first[:, 0].sum(), x, create_graph=True)
    return task.equation.residual(x, u[:, 0], first, second[:, :1])


def relative_error(task: Pde) -> float:
    """L2 distance to the solution on 256 x 101 points, relative to the solution's norm."""
    x = torch.cartesian_prod(*grid_of(task.equation))
    truth = task.equation.true_values(x)
    assert truth is not None
    return float((task.problem.values(task.model, x) - truth).norm() / truth.norm())


def threads_of(backend: str, n: int) -> contextlib.AbstractContextManager[int]:
    """Native kernels have threads of their own; everything else has PyTorch's."""
    return own_threads(n) if backend == "native" else contextlib.nullcontext(n)


def train(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    start, start_cpu = time.perf_counter(), time.process_time()
    trainer = Trainer(make_task(seed, args, args.backend))
    trainer.train()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    assert isinstance(trainer.task, Pde)
    return {
        "seed": seed,
        "train.seconds": seconds,
        "train.cpu_seconds": cpu_seconds,  # of all threads: what a busy machine lengthens less
        "train.steps": args.steps,
        "relative_l2": relative_error(trainer.task),
    }


def step_times(args: argparse.Namespace, turns: int = 15) -> dict[str, float]:
    """Median seconds of a step's loss and gradients by each way, which take turns: on a CPU of its time and on one
    thread, as neither waiting nor other processes count then."""
    native, reference, nested = (make_task(0, args, backend) for backend in ("native", "reference", "reference"))
    assert isinstance(nested.model, SmoothField)
    layers = nested.model.mlp = nested.model.mlp.to_sequential()  # type: ignore[assignment]
    steps: dict[str, Callable[[], None]] = {
        "native": lambda: loss(native, lambda points: native.problem.residual(native.model, points)).backward(),
        "reference": lambda: loss(
            reference, lambda points: reference.problem.residual(reference.model, points)
        ).backward(),
        "nested": lambda: loss(nested, lambda points: nested_residual(nested, layers, points)).backward(),
    }
    clock = time.perf_counter if native.device.type == "cuda" else time.process_time
    times: dict[str, list[float]] = {name: [] for name in steps}
    torch.set_num_threads(1)
    for turn in range(turns + 2):
        for name, step in steps.items():
            start = clock()
            step()
            if native.device.type == "cuda":
                torch.cuda.synchronize(native.device)
            if turn >= 2:
                times[name].append(clock() - start)
    return {name: sorted(values)[turns // 2] for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--points", type=int, default=1024, help="inside the square, per step")
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--activation", default="tanh", help="tanh or sine")
    parser.add_argument("--backend", default="native", help="native or reference")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)

    load = os.getloadavg()
    runs = []
    for seed in args.seeds:
        with threads_of(args.backend, args.threads):
            run = train(seed, args)
        runs.append(run)
        took = f"{run['train.seconds']:.1f} s ({run['train.cpu_seconds']:.1f} s of the CPU)"
        print(f"seed {seed}: relative L2 {run['relative_l2']:.2e} after {took}")
    seconds = step_times(args)
    ratios = {name: seconds[name] / seconds["native"] for name in ("reference", "nested")}
    shares = ", ".join(f"{name} {1e3 * seconds[name]:.2f} ms ({ratio:.1f} times)" for name, ratio in ratios.items())
    print(f"step on one thread: native {1e3 * seconds['native']:.2f} ms, {shares}")
    options = {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items() if name != "out"
    }
    report = {"options": options, "runs": runs, "step.seconds": seconds, "step.ratios": ratios}
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "heat_equation.json"
    path.write_text(json.dumps({**report, "load_before": load, "environment": environment(device)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
