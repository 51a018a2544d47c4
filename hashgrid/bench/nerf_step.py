"""A whole training step of ``hashgrid nerf``: native kernels against the reference backend, eager and compiled.

March, density, compositing, colours, loss, backward and optimiser, from one checkpoint of a half-trained field.
Occupancy updates are left out: the trainer keeps them below a fixed share of a run's time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hashgrid.bench import harness
from hashgrid.bench.harness import COMPILED, EAGER, OURS, Case, Contender
from hashgrid.nerf.config import NerfConfig
from hashgrid.nerf.dataset import Scene, load_scene
from hashgrid.nerf.procedural import write_scene
from hashgrid.nerf.render import render_rays
from hashgrid.nerf.trainer import Trainer, read_checkpoint

N_CHECKED_RAYS = 256


def main(argv: Sequence[str] | None = None) -> Path:
    """Measures a training step; returns the JSON file."""
    options = harness.parser(__doc__)
    options.add_argument("--scene", type=Path, default=None, help="with transforms.json; procedural if none")
    options.add_argument("--warm-steps", type=int, default=300, help="training steps before the clock starts")
    options.add_argument("--target-samples", type=int, default=NerfConfig.target_samples, help="samples per step")
    options.add_argument(
        "--compute-dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of the native MLPs"
    )
    args = options.parse_args(argv)
    suite = harness.Suite("nerf_step", "sample", args)

    config = NerfConfig(seed=args.seed, steps=10**6, target_samples=args.target_samples)
    native = config.replace(compute_dtype=args.compute_dtype).resolved()
    suite.record["settings"]["native_compute_dtype"] = native.compute_dtype
    plain = config.replace(backend="reference", compute_dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        if args.scene is None:
            write_scene(Path(folder), n_train=12, n_test=1, resolution=100, seed=args.seed)
        scene = load_scene(Path(folder) if args.scene is None else args.scene)
        checkpoint = Path(folder) / "warm.safetensors"
        warm = Trainer(scene, native)
        while warm.progress.step < args.warm_steps:
            warm.step()
        warm.save(checkpoint)
        del warm

        trainers = {EAGER: _trainer(scene, plain, checkpoint)}
        if not args.no_compile:
            trainers[COMPILED] = _trainer(scene, plain, checkpoint)
            model = trainers[COMPILED].model
            # The field is where the time goes; marching and compositing have loops that do not compile well.
            for module in (model.grid, model.density_mlp, model.color_mlp):
                module.compile(dynamic=True)
        trainers[OURS] = _trainer(scene, native, checkpoint)

    half = native.compute_dtype == "bfloat16"
    contenders = [_contender(*item) for item in trainers.items()]
    suite.run(Case("training step", args.target_samples, contenders, tolerance=0.1 if half else 1e-2, rms=half))
    for name, row in zip(trainers, suite.record["cases"][-1]["contenders"], strict=True):
        if "median_ns" in row:
            print(f"  {name}: {1e3 / row['median_ns']:.3f} M samples/s")
    return suite.write()


def _trainer(scene: Scene, config: NerfConfig, checkpoint: Path) -> Trainer:
    trainer = Trainer(scene, config)
    trainer.load(*read_checkpoint(checkpoint))
    return trainer


def _contender(name: str, trainer: Trainer) -> Contender:
    samples = 0

    def step() -> Sequence[Tensor]:
        nonlocal samples
        if trainer.progress.step % trainer.config.occupancy_interval == 0:
            trainer.progress.step += 1
        before = trainer.progress.samples
        trainer.step()
        samples = trainer.progress.samples - before
        return ()

    return Contender(name, step, points=lambda: samples, check=_check(trainer))


def _check(trainer: Trainer) -> Callable[[], Sequence[Tensor]]:
    """Colours of fixed rays and the gradients of all parameters, as the checkpoint gives them."""

    def check() -> Sequence[Tensor]:
        generator = torch.Generator().manual_seed(0)
        rays_o, rays_d, rgba = trainer.scene.train.sample_rays(N_CHECKED_RAYS, generator)
        trainer.optimizer.zero_grad(set_to_none=True)  # before the forward, which takes hold of the table's buffer
        out = render_rays(trainer.model, trainer.occupancy, rays_o, rays_d, trainer.marching, torch.ones(3))
        torch.nn.functional.mse_loss(out.colors, rgba[:, :3]).backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trainer.model.parameters()]
        trainer.optimizer.zero_grad(set_to_none=True)
        return [out.colors.detach(), *gradients]

    return check


if __name__ == "__main__":
    main()
