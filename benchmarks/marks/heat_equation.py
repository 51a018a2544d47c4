"""A network that solves the heat equation u_t = a u_xx on [0, 1]^2 with u(x, 0) = sin(pi x) and u = 0 at both ends
(a physics-informed network, Raissi et al. 2019). Its loss holds u_t and u_xx, so its gradient is of third order.

    python benchmarks/marks/heat_equation.py  # seeds 0, 1, 2; writes results/heat_equation.json
    python benchmarks/marks/heat_equation.py --backend reference --seeds 0 --out /tmp

Reports the relative L2 error to u = exp(-a pi^2 t) sin(pi x) on a grid of 256 x 101 points, and the time of a step's
loss and gradients on both backends and by nested `torch.autograd.grad` of the same layers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid import FusedMLP, derivatives_along, own_threads
from hashgrid.bench.environment import environment

DIFFUSIVITY = 0.1
BORDER_WEIGHT = 10.0  # of the squared errors at t = 0 and at both ends beside the squared residual


def exact(x: Tensor) -> Tensor:
    """The solution [N, 1] at points [N, 2] of (x, t)."""
    return torch.exp(-DIFFUSIVITY * math.pi**2 * x[:, 1:]) * torch.sin(math.pi * x[:, :1])


def residual(network: torch.nn.Module, x: Tensor) -> Tensor:
    """``u_t - a u_xx`` [N, 1]. The network sees [-1, 1]^2: a unit step of x or t is one of 2 there."""
    along_x = torch.tensor([[1.0, 0.0]], device=x.device)  # u_tt is not wanted
    _, first, second = derivatives_along(network, 2 * x - 1, 2 * torch.eye(2, device=x.device), along_x)
    return first[:, 1] - DIFFUSIVITY * second[:, 0]


def border(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Points [3 n, 2] at t = 0 and at both ends, and the values [3 n, 1] there."""
    x = torch.rand(3 * n, 2, device=device)
    x[:n, 1] = 0
    x[n : 2 * n, 0] = 0
    x[2 * n :, 0] = 1
    return x, torch.where(x[:, 1:] == 0, torch.sin(math.pi * x[:, :1]), 0)


def nested_residual(network: torch.nn.Module, x: Tensor) -> Tensor:
    """The same as one writes it in plain PyTorch: reverse mode of reverse mode."""
    x = x.requires_grad_()
    (first,) = torch.autograd.grad(network(2 * x - 1).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first[:, 0].sum(), x, create_graph=True)
    return first[:, 1:] - DIFFUSIVITY * second[:, :1]


def loss(
    network: torch.nn.Module,
    n_points: int,
    device: torch.device,
    of: Callable[[torch.nn.Module, Tensor], Tensor] = residual,
) -> Tensor:
    inside = torch.rand(n_points, 2, device=device)
    x, values = border(n_points // 8, device)
    return of(network, inside).square().mean() + BORDER_WEIGHT * (network(2 * x - 1) - values).square().mean()


def make_network(activation: str, backend: str, device: torch.device) -> FusedMLP:
    return FusedMLP(2, 1, 64, 3, activation=activation, bias=True, backend=backend).to(device)


def relative_error(network: torch.nn.Module, device: torch.device) -> float:
    """L2 distance to the solution on 256 x 101 points, relative to the solution's norm."""
    axes = torch.linspace(0, 1, 256, device=device), torch.linspace(0, 1, 101, device=device)
    x = torch.cartesian_prod(*axes)
    with torch.no_grad():
        return ((network(2 * x - 1) - exact(x)).norm() / exact(x).norm()).item()


def threads_of(backend: str, n: int) -> contextlib.AbstractContextManager[int]:
    """Native kernels have threads of their own; everything else has PyTorch's."""
    return own_threads(n) if backend == "native" else contextlib.nullcontext(n)


def train(seed: int, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    torch.manual_seed(seed)
    network = make_network(args.activation, args.backend, device)
    optimizer = torch.optim.Adam(network.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    start, start_cpu = time.perf_counter(), time.process_time()
    for _ in range(args.steps):
        optimizer.zero_grad()
        loss(network, args.points, device).backward()
        optimizer.step()
        schedule.step()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    return {
        "seed": seed,
        "train.seconds": seconds,
        "train.cpu_seconds": cpu_seconds,  # of all threads: what a busy machine lengthens less
        "train.steps": args.steps,
        "relative_l2": relative_error(network, device),
    }


def step_times(args: argparse.Namespace, device: torch.device, turns: int = 15) -> dict[str, float]:
    """Median seconds of a step's loss and gradients by each way, which take turns: on a CPU of its time and on one
    thread, as neither waiting nor other processes count then."""
    native, reference = (make_network(args.activation, backend, device) for backend in ("native", "reference"))
    layers = reference.to_sequential()
    steps = {
        "native": lambda: loss(native, args.points, device).backward(),
        "reference": lambda: loss(reference, args.points, device).backward(),
        "nested": lambda: loss(layers, args.points, device, nested_residual).backward(),
    }
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times: dict[str, list[float]] = {name: [] for name in steps}
    torch.set_num_threads(1)
    for turn in range(turns + 2):
        for name, step in steps.items():
            start = clock()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn >= 2:
                times[name].append(clock() - start)
    return {name: sorted(values)[turns // 2] for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--points", type=int, default=1024, help="inside the square, per step")
    parser.add_argument("--lr", type=float, default=5e-3)
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
            run = train(seed, args, device)
        runs.append(run)
        took = f"{run['train.seconds']:.1f} s ({run['train.cpu_seconds']:.1f} s of the CPU)"
        print(f"seed {seed}: relative L2 {run['relative_l2']:.2e} after {took}")
    seconds = step_times(args, device)
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
