"""A whole training step of ``hashgrid sdf``: native kernels against the reference backend, eager and compiled.

Samples from the pool, field, loss, backward and optimiser, with distances alone, the default, and with the eikonal
term, which differentiates the gradient of the field.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid.bench import harness
from hashgrid.bench.harness import COMPILED, EAGER, OURS, Case, Contender
from hashgrid.data.mesh import Mesh, load_mesh, make_mesh
from hashgrid.data.shape import Shape
from hashgrid.rendering.extract import to_mesh
from hashgrid.tasks.sdf import Sdf, SdfConfig
from hashgrid.train.loop import Trainer

N_CHECKED = 1024


def main(argv: Sequence[str] | None = None) -> Path:
    """Measures a training step; returns the JSON file."""
    options = harness.parser(__doc__)
    options.add_argument("--mesh", type=Path, default=None, help="OBJ, PLY, STL, OFF or GLB; a torus if none")
    options.add_argument("--batch", type=int, default=None, help="samples per step; SdfConfig's if none, 2^18 on a GPU")
    options.add_argument("--warm-steps", type=int, default=None, help="training before the clock starts; 100 if none")
    args = options.parse_args(argv)
    args.batch = harness.size(args, args.batch, SdfConfig.batch, 1 << 18, 1 << 8)
    args.warm_steps = harness.size(args, args.warm_steps, 100, 100, 2)
    suite = harness.Suite("sdf_step", "sample", args)
    distances = SdfConfig(device=args.device, seed=args.seed, steps=10**6, batch=args.batch)
    if args.tiny:
        distances = distances.replace(log2_hashmap_size=10, pool=1 << 12)
    mesh = torus() if args.mesh is None else load_mesh(args.mesh)
    eikonal = distances.replace(eikonal_weight=0.1)
    for name, recipe in (("distances", distances), ("distances and eikonal term", eikonal)):
        suite.run(_case(name, mesh, recipe, args.warm_steps, compiled=not args.no_compile and recipe is distances))
        for row in suite.record["cases"][-1]["contenders"]:
            if "median_ns" in row:
                print(f"  {row['name']}: {1e3 / row['median_ns']:.3f} M samples/s")
    return suite.write()


def _case(name: str, mesh: Mesh, config: SdfConfig, warm_steps: int, compiled: bool) -> Case:
    """All contenders go on from the same half-trained field. Second derivatives do not compile."""
    warm = _trainer(mesh, config, None)
    while warm.progress.step < warm_steps:
        warm.step()
    state = warm.task.model.state_dict()
    plain = config.replace(backend="reference")
    trainers = {EAGER: _trainer(mesh, plain, state)}
    if compiled:
        trainers[COMPILED] = _trainer(mesh, plain, state)
        trainers[COMPILED].task.model.compile()
    trainers[OURS] = _trainer(mesh, config, state)
    contenders = [
        Contender(kind, _runner(trainer), check=_check(trainer, config)) for kind, trainer in trainers.items()
    ]
    return Case(name, config.batch, contenders, tolerance=1e-2)


def _trainer(mesh: Mesh, config: SdfConfig, state: dict[str, Tensor] | None) -> Trainer:
    task = Sdf(config, Shape.of(mesh))
    task.begin()
    if state is not None:
        task.model.load_state_dict(state)
    return Trainer(task)


def _runner(trainer: Trainer) -> Callable[[], Sequence[Tensor]]:
    def run() -> Sequence[Tensor]:
        trainer.step()
        return ()

    return run


def _check(trainer: Trainer, config: SdfConfig) -> Callable[[], Sequence[Tensor]]:
    """Distances of fixed points and the gradients of all parameters, as the half-trained field gives them."""

    def check() -> Sequence[Tensor]:
        field: Any = trainer.task.model
        x = torch.rand(N_CHECKED, 3, generator=torch.Generator().manual_seed(0)).to(config.device)
        trainer.optimizer.zero_grad(set_to_none=True)
        if config.losses.eikonal_weight > 0:
            distance, gradient = field.gradient(x)
            (distance.square().mean() + (gradient.norm(dim=-1) - 1).square().mean()).backward()
        else:
            distance = field(x)
            distance.square().mean().backward()
        gradients = [p.grad.clone() for p in field.parameters() if p.grad is not None]
        trainer.optimizer.zero_grad(set_to_none=True)
        return [distance.detach(), *gradients]

    return check


def torus() -> Mesh:
    def distance(points: Tensor) -> Tensor:
        p = points - 0.5
        return torch.hypot(torch.hypot(p[:, 0], p[:, 1]) - 0.3, p[:, 2]) - 0.1

    vertices, faces = to_mesh(distance, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return make_mesh(vertices.double().numpy(), faces.numpy(), name="torus")


if __name__ == "__main__":
    main()
