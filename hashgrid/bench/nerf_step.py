"""A whole training step of ``hashgrid nerf``: native kernels against the reference backend, eager and compiled.

On a GPU nerfacc and tcnn take part, with a field of their own of the same size.

March, density, compositing, colours, loss, backward and optimiser, from one checkpoint of a half-trained field.
Occupancy updates are left out: the trainer keeps them below a fixed share of a run's time.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid.bench import harness, peers
from hashgrid.bench.harness import COMPILED, EAGER, OURS, Case, Contender
from hashgrid.data.procedural import procedural_scene
from hashgrid.data.scene import Scene, load_scene
from hashgrid.rendering.volume import render
from hashgrid.tasks.nerf import Nerf, NerfConfig
from hashgrid.train.checkpoint import load_checkpoint
from hashgrid.train.loop import Trainer
from hashgrid.util.device import fast_dtype

N_CHECKED_RAYS = 256
COMPUTE_DTYPES = ("auto", "float32", "bfloat16", "float16")


def main(argv: Sequence[str] | None = None) -> Path:
    """Measures a training step; returns the JSON file."""
    options = harness.parser(__doc__)
    options.add_argument("--scene", type=Path, default=None, help="with transforms.json; procedural if none")
    options.add_argument("--warm-steps", type=int, default=None, help="training before the clock starts; 300 if none")
    options.add_argument("--target-samples", type=int, default=None, help="per step; 2^15 if none, 2^18 on a GPU")
    options.add_argument("--compute-dtype", choices=COMPUTE_DTYPES, default="auto", help="of the native MLPs")
    options.add_argument("--gpu-recipe", action="store_true", help="steps as a GPU takes them, on a CPU too")
    args = options.parse_args(argv)
    args.gpu_recipe |= harness.is_cuda(args)
    args.warm_steps = harness.size(args, args.warm_steps, 300, 300, 2, 150)
    args.target_samples = harness.size(args, args.target_samples, NerfConfig.target_samples, 1 << 18, 1 << 10)
    # How many samples count differs between steps of fixed and of varying size; what a ray shows does not.
    suite = harness.Suite("nerf_step", "ray" if args.gpu_recipe else "sample", args)

    config = NerfConfig.for_device(torch.device("cuda" if args.gpu_recipe else "cpu"))
    config = config.replace(device=args.device, seed=args.seed, steps=10**6, target_samples=args.target_samples)
    if args.tiny:
        config = config.replace(log2_hashmap_size=10, occupancy_resolution=16, steps_per_diagonal=64, max_rays=256)
    native = config if args.compute_dtype == "auto" else config.replace(compute_dtype=args.compute_dtype)
    dtype = fast_dtype(args.compute_dtype, "native", suite.device)
    native = native.replace(compute_dtype=dtype)
    suite.record["settings"]["native_compute_dtype"] = dtype
    varying = native.replace(fixed_size=False)
    plain = varying.replace(backend="reference", compute_dtype="float32", table_dtype="float32")
    if args.scene is None:
        n_train, resolution = (2, 12) if args.tiny else (12, 100)
        scene = procedural_scene(n_train, 1, resolution, args.seed)
    else:
        scene = load_scene(args.scene).normalized()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "warm.safetensors"
        warm = Trainer(Nerf(native, scene))
        while warm.progress.step < args.warm_steps:
            warm.step()
        warm.save(checkpoint)
        del warm

        trainers = {EAGER: resumed(Nerf, scene, plain, checkpoint)}
        if not args.no_compile:
            trainers[COMPILED] = resumed(Nerf, scene, plain, checkpoint)
            model: Any = trainers[COMPILED].task.model
            # The field is where the time goes; marching and compositing have loops that do not compile well.
            for module in (model.grid, model.density_mlp, model.color_mlp):
                module.compile(dynamic=True)
        trainers[OURS] = resumed(Nerf, scene, native, checkpoint)
        if native.fixed_size:
            trainers[f"{OURS}, steps of varying size"] = resumed(Nerf, scene, varying, checkpoint)

    half = dtype != "float32"
    steppers = {name: Stepper(trainer, native, args.gpu_recipe) for name, trainer in trainers.items()}
    contenders = [
        Contender(name, stepper.run, points=stepper.points, check=colors_and_gradients(stepper.trainer))
        for name, stepper in steppers.items()
    ]
    if suite.peers:
        contenders += peers.nerfacc_steps(_nerfacc(scene, native, suite.device), args.warm_steps)
    suite.run(Case("training step", args.target_samples, contenders, tolerance=0.1 if half else 1e-2, rms=half))
    case = suite.record["cases"][-1]
    case["samples_per_ray"] = {name: stepper.samples_per_ray for name, stepper in steppers.items()}
    for row in case["contenders"]:
        if "median_ns" in row:
            print(f"  {row['name']}: {1e3 / row['median_ns']:.3f} M {suite.unit}s/s")
    return suite.write()


def _nerfacc(scene: Scene, config: NerfConfig, device: torch.device) -> Callable[[bool], peers.NerfaccTrainer]:
    """Makes the peer's trainer on rays drawn on the device, as ours are there."""
    views = scene.train.to(device)
    steps = itertools.count()

    def batch(n_rays: int) -> Sequence[Tensor]:
        rays, rgba, background = views.sample_rays(n_rays, config.seed, next(steps))
        return rays.origins, rays.directions, torch.lerp(background, rgba[:, :3], rgba[:, 3:]), background

    return lambda jit: peers.NerfaccTrainer(scene, config, batch, device, jit)


def resumed(task: type[Nerf], scene: Scene, config: NerfConfig, checkpoint: Path) -> Trainer:
    """A trainer that goes on from a checkpoint."""
    trainer = Trainer(task(config, scene))
    trainer.load(*load_checkpoint(checkpoint))
    return trainer


class Stepper:
    """Calls of a trainer: a step, or as many as the trainer takes before it reads its counts back."""

    def __init__(self, trainer: Trainer, config: NerfConfig, count_rays: bool) -> None:
        self.trainer, self.count_rays, self._points = trainer, count_rays, 0
        self._begin = _counts(trainer)
        self.interval = config.sampling.occupancy_interval

    def run(self) -> Sequence[Tensor]:
        progress = self.trainer.progress
        if progress.step % self.interval == 0:
            progress.step += 1
        rays, samples = _counts(self.trainer)
        while _counts(self.trainer)[0] == rays:
            self.trainer.step()
        more_rays, more_samples = _counts(self.trainer)
        self._points = more_rays - rays if self.count_rays else more_samples - samples
        return ()

    def points(self) -> int:
        """Rays or samples of the last call."""
        return self._points

    @property
    def samples_per_ray(self) -> float:
        (rays, samples), (more_rays, more_samples) = self._begin, _counts(self.trainer)
        return (more_samples - samples) / max(more_rays - rays, 1)


def _counts(trainer: Trainer) -> tuple[int, int]:
    """Rays and samples so far."""
    counts = trainer.progress.counts
    return counts.get("rays", 0), counts.get("samples", 0)


def colors_and_gradients(trainer: Trainer) -> Callable[[], Sequence[Tensor]]:
    """Colours of fixed rays and the gradients of all parameters, as the checkpoint gives them."""

    def check() -> Sequence[Tensor]:
        task: Any = trainer.task
        device = task.device
        rays, rgba, _ = (x.to(device) for x in task.scene.train.sample_rays(N_CHECKED_RAYS))
        trainer.optimizer.zero_grad(set_to_none=True)  # before the forward, which takes hold of the table's buffer
        white = torch.ones(3, device=device)
        out = render(task.model, task.sampler, rays, white)
        torch.nn.functional.mse_loss(out.colors, rgba[:, :3]).backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in task.model.parameters()]
        trainer.optimizer.zero_grad(set_to_none=True)
        return [out.colors.detach(), *gradients]

    return check


if __name__ == "__main__":
    main()
