"""How near `hashgrid pde` comes to the solutions of differential equations, beside DeepXDE in the same time.

    python benchmarks/marks/equations.py  # every problem, seeds 0, 1, 2, 180 s each
    python benchmarks/marks/equations.py --problems heat --seeds 0 --seconds 20 --only deepxde

Relative L2 error on 256 x 101 points. DeepXDE (`pip install deepxde`, PyTorch backend) has the network, the points and
the optimisers of its own example of each problem, or of the nearest one it has: Adam for the example's iterations, at
most half of the time, then L-BFGS until it converges or the time is up. Its example of Helmholtz holds conditions
exactly; that of waves weighs losses and draws points anew (its network of Fourier features is not there in PyTorch, a
plain one of that size takes its place).

Writes results/equations.json; what is not run keeps its rows.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.data.equations import EQUATIONS, Equation, find_equation
from hashgrid.rendering.solution import grid_of
from hashgrid.tasks.pde import Pde, PdeConfig
from hashgrid.train.loop import Trainer
from hashgrid.util.files import atomic_write_json
from hashgrid.util.threads import threads_for

PI = np.pi


def relative_l2(equation: Equation, predict: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Error of ``predict``, values [N] of points [N, 2], relative to the norm of the solution."""
    x = torch.cartesian_prod(*grid_of(equation))
    truth = equation.true_values(x)
    assert truth is not None
    return float((predict(x) - truth).norm() / truth.norm())


# ---- hashgrid --------------------------------------------------------------------------------------------------------


def hashgrid_run(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    begin = time.perf_counter()
    with threads_for(args.backend):
        config = PdeConfig(time_limit=args.seconds, seed=seed, backend=args.backend, device=args.device)
        task = Pde(config, find_equation(name))
        trainer = Trainer(task, seconds_before=time.perf_counter() - begin)
        trainer.train()
        error = relative_l2(task.equation, lambda x: task.problem.values(task.model, x))
    n = sum(param.numel() for param in task.model.parameters())
    return {"relative_l2": error, "seconds": trainer.progress.seconds, "steps": trainer.progress.step, "parameters": n}


# ---- DeepXDE ---------------------------------------------------------------------------------------------------------


def first(u: Any, x: Any, axis: int) -> Any:
    import deepxde as dde

    return dde.grad.jacobian(u, x, i=0, j=axis)


def second(u: Any, x: Any, axis: int) -> Any:
    import deepxde as dde

    return dde.grad.hessian(u, x, i=axis, j=axis)


def in_time(
    low: float, high: float, end: float, start: Any, ends: Any, at_rest: bool = False, inflow: bool = False
) -> Callable[[], Any]:
    """Box and conditions of a problem of x and t: ``start`` at t = 0, where it may rest, and ``ends`` of x, or
    the lower one alone."""

    def make() -> tuple[Any, list[Any]]:
        import deepxde as dde

        box = dde.geometry.GeometryXTime(dde.geometry.Interval(low, high), dde.geometry.TimeDomain(0, end))
        known = [
            dde.icbc.DirichletBC(box, ends, lambda x, on: on and not (inflow and x[0] > low)),
            dde.icbc.IC(box, start, lambda _, on: on),
        ]
        if at_rest:
            slope = lambda x, u, _: first(u, x, 1)  # noqa: E731
            known.append(dde.icbc.OperatorBC(box, slope, lambda x, _: dde.utils.isclose(x[1], 0)))
        return box, known

    return make


def square(low: float, high: float, border: Any, middle: bool = False) -> Callable[[], Any]:
    """Box and conditions of a problem of x and y: values at the ``border``; the ``middle`` may be 0."""

    def make() -> tuple[Any, list[Any]]:
        import deepxde as dde

        box = dde.geometry.Rectangle([low, low], [high, high])
        known = [] if border is None else [dde.icbc.DirichletBC(box, border, lambda _, on: on)]
        if middle:
            known.append(dde.icbc.PointSetBC(np.zeros((1, 2)), np.zeros((1, 1))))
        return box, known

    return make


def zero(x: np.ndarray) -> np.ndarray:
    return np.zeros((len(x), 1))


def sine(x: np.ndarray) -> np.ndarray:
    return np.sin(PI * x[:, :1])


def product_of_sines(x: Any, a: float = 1, b: float = 1) -> Any:
    return torch.sin(a * PI * x[:, :1]) * torch.sin(b * PI * x[:, 1:])


def flow(x: np.ndarray) -> np.ndarray:
    return np.sin(2 * PI * (x[:, :1] - x[:, 1:]))


BY_TIME = {"num_domain": 2540, "num_boundary": 80, "num_initial": 160}  # Burgers.py and heat.py
SMALL_NET = ([20] * 3, "tanh", "Glorot normal")
WIDE_NET = ([50] * 4, "tanh", "Glorot uniform")  # Poisson_Lshape.py
HELMHOLTZ = 1 - (1 + 4**2) * PI**2  # of the source

# Per problem: box and conditions, residual, points, network, iterations of Adam, and what else its example has.
RECIPES: dict[str, dict[str, Any]] = {
    "heat": {  # heat.py
        "make": in_time(0, 1, 1, sine, zero),
        "residual": lambda x, u: first(u, x, 1) - 0.1 * second(u, x, 0),
        "points": BY_TIME, "net": SMALL_NET, "adam": 20000,
    },
    "burgers": {  # Burgers.py
        "make": in_time(-1, 1, 1, lambda x: -sine(x), zero),
        "residual": lambda x, u: first(u, x, 1) + u * first(u, x, 0) - 0.01 / PI * second(u, x, 0),
        "points": BY_TIME, "net": SMALL_NET, "adam": 15000,
    },
    "wave": {  # wave_1d.py
        "make": in_time(0, 1, 2, sine, zero, at_rest=True),
        "residual": lambda x, u: second(u, x, 1) - second(u, x, 0),
        "points": {"num_domain": 360, "num_boundary": 360, "num_initial": 360},
        "net": ([100] * 3, "tanh", "Glorot uniform"), "adam": 10000,
        "features": lambda x: (x * torch.tensor([1.0, 0.5]) - 0.5) * 2 * 3**0.5,
        "decay": ("inverse time", 2000, 0.9), "balanced": True, "resampled": True,
    },
    "helmholtz": {  # Helmholtz_Dirichlet_2d.py: 10 points per wave, hard conditions
        "make": square(-1, 1, None),
        "residual": lambda x, u: second(u, x, 0) + second(u, x, 1) + u - HELMHOLTZ * product_of_sines(x, 1, 4),
        "points": {"num_domain": 1600, "num_boundary": 160},
        "net": ([150] * 3, "sin", "Glorot uniform"), "adam": 5000,
        "output": lambda x, u: (1 - x[:, :1] ** 2) * (1 - x[:, 1:] ** 2) * u,
    },
    "poisson": {  # Poisson_Lshape.py
        "make": square(0, 1, zero),
        "residual": lambda x, u: second(u, x, 0) + second(u, x, 1) + 2 * PI**2 * product_of_sines(x),
        "points": {"num_domain": 1200, "num_boundary": 120}, "net": WIDE_NET, "adam": 50000,
    },
    "advection": {  # no example of its own: that of Burgers
        "make": in_time(0, 1, 1, flow, flow, inflow=True),
        "residual": lambda x, u: first(u, x, 1) + first(u, x, 0),
        "points": BY_TIME, "net": SMALL_NET, "adam": 15000,
    },
    "eikonal": {  # no example of its own: that of Poisson
        "make": square(-1, 1, lambda x: np.linalg.norm(x, axis=1, keepdims=True), middle=True),
        "residual": lambda x, u: first(u, x, 0) ** 2 + first(u, x, 1) ** 2 - 1,
        "points": {"num_domain": 1200, "num_boundary": 120}, "net": WIDE_NET, "adam": 50000,
    },
}  # fmt: skip


def deepxde_run(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    import deepxde as dde
    from deepxde.optimizers.config import LBFGS_options

    dde.config.set_default_float("float64" if args.float64 else "float32")
    dde.config.set_random_seed(seed)
    recipe, begin = RECIPES[name], time.perf_counter()
    box, known = recipe["make"]()
    kind = dde.data.TimePDE if "num_initial" in recipe["points"] else dde.data.PDE
    data = kind(box, recipe["residual"], known, **recipe["points"])
    hidden, activation, initialisation = recipe["net"]
    net = dde.nn.FNN([2, *hidden, 1], activation, initialisation)
    if "features" in recipe:
        net.apply_feature_transform(recipe["features"])
    if "output" in recipe:
        net.apply_output_transform(recipe["output"])
    model = dde.Model(data, net)

    class Until(dde.callbacks.Callback):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.seconds = seconds

        def on_epoch_end(self) -> None:
            self.model.stop_training = time.perf_counter() - begin > self.seconds

    quiet = {"verbose": 0}
    weights = {}
    if recipe.get("balanced"):
        model.compile("adam", lr=1e-3, **quiet)
        weights = {"loss_weights": list(5 / model.train(iterations=0, **quiet)[0].loss_train[0])}
    model.compile("adam", lr=1e-3, decay=recipe.get("decay"), **weights, **quiet)
    callbacks = [Until(args.seconds / 2)]
    if recipe.get("resampled"):
        callbacks.append(dde.callbacks.PDEPointResampler(period=1))
    model.train(iterations=recipe["adam"], callbacks=callbacks, display_every=10**9, **quiet)
    adam = {"seconds": time.perf_counter() - begin, "steps": model.train_state.step}
    dde.optimizers.set_LBFGS_options(maxiter=10**6)
    LBFGS_options |= {"iter_per_step": 20, "fun_per_step": 25}  # looks at the clock that often
    model.compile("L-BFGS", **weights, **quiet)
    model.train(callbacks=[Until(args.seconds)], **quiet)
    seconds, dtype = time.perf_counter() - begin, np.float64 if args.float64 else np.float32
    equation = find_equation(name)
    error = relative_l2(equation, lambda x: torch.from_numpy(model.predict(x.numpy().astype(dtype))[:, 0]).double())
    n = sum(param.numel() for param in net.parameters())
    steps = model.train_state.step
    return {"relative_l2": error, "seconds": seconds, "steps": steps, "parameters": n, "adam": adam}


CONTENDERS = {"hashgrid": hashgrid_run, "deepxde": deepxde_run}


def print_table(rows: list[dict[str, Any]]) -> None:
    """The worst seed of every problem."""
    print(f"{'problem':12}" + "".join(f"{name:>22}" for name in CONTENDERS))
    for problem in EQUATIONS:
        cells = []
        for name in CONTENDERS:
            mine = [row for row in rows if (row["problem"], row["contender"]) == (problem, name)]
            errors = [row["relative_l2"] for row in mine]
            took = max((row["seconds"] for row in mine), default=0.0)
            cells.append(f"{max(errors):.1e} of {len(errors)}, {took:4.0f} s" if errors else "")
        print(f"{problem:12}" + "".join(f"{cell:>22}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=list(EQUATIONS), choices=list(EQUATIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=180.0, help="of everything, per run")
    parser.add_argument("--only", choices=list(CONTENDERS), help="one of the two")
    parser.add_argument("--backend", default="native", help="of hashgrid: native or reference")
    parser.add_argument("--device", default="cpu", help="of hashgrid")
    parser.add_argument("--float64", action="store_true", help="DeepXDE in double precision")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    os.environ.setdefault("DDE_BACKEND", "pytorch")
    contenders = [args.only] if args.only else list(CONTENDERS)
    if importlib.util.find_spec("deepxde") is None and "deepxde" in contenders:
        print("no deepxde: `pip install deepxde`")
        contenders.remove("deepxde")
    warn_if_busy()
    path = args.out / "equations.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    for problem in args.problems:
        for seed in args.seeds:
            for name in contenders:
                torch.set_num_threads(args.threads)
                key = {"problem": problem, "contender": name, "seed": seed}
                row = {**key, "budget": args.seconds, **CONTENDERS[name](problem, seed, args)}
                rows = [old for old in rows if any(old[part] != key[part] for part in key)] + [row]
                print(
                    f"{problem} seed {seed} {name}: {row['relative_l2']:.2e} after {row['seconds']:.0f} s", flush=True
                )
                args.out.mkdir(parents=True, exist_ok=True)
                atomic_write_json(path, {"rows": rows, "environment": environment()})
    print_table(rows)


if __name__ == "__main__":
    main()
