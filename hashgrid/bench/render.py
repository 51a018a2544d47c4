"""A frame of a trained radiance field, from its rays to pixels: native kernels against the reference backend.

Pictures per second are what a viewer would show: the camera's rays are made in each call, the result stays on the
device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hashgrid.bench import harness
from hashgrid.bench.harness import EAGER, OURS, Case, Contender
from hashgrid.data.procedural import procedural_scene
from hashgrid.data.scene import load_scene
from hashgrid.geometry.cameras import Cameras
from hashgrid.rendering.volume import render, render_image
from hashgrid.tasks.nerf import Nerf, NerfConfig
from hashgrid.train.loop import Trainer
from hashgrid.util.device import fast_dtype


def main(argv: Sequence[str] | None = None) -> Path:
    """Measures a frame; returns the JSON file."""
    options = harness.parser(__doc__)
    options.add_argument("--scene", type=Path, default=None, help="with transforms.json; procedural if none")
    options.add_argument("--warm-steps", type=int, default=None, help="training before; 300 if none, 2000 on a GPU")
    options.add_argument("--resolution", type=int, default=None, help="of the frame; 200 if none, 800 on a GPU")
    args = options.parse_args(argv)
    args.warm_steps = harness.size(args, args.warm_steps, 300, 2000, 2, 150)
    args.resolution = harness.size(args, args.resolution, 200, 800, 12, 100)
    suite = harness.Suite("render", "ray", args)

    config = NerfConfig.for_device(suite.device).replace(seed=args.seed, steps=10**6)
    if args.tiny:
        config = config.replace(log2_hashmap_size=10, occupancy_resolution=16, steps_per_diagonal=64, max_rays=256)
    dtype = fast_dtype("auto" if suite.device.type == "cpu" else "float16", "native", suite.device)
    if args.scene is None:
        scene = procedural_scene(*((2, 1, 12) if args.tiny else (24, 1, 200)), args.seed)
    else:
        scene = load_scene(args.scene).normalized()
    native = Nerf(config, scene)
    trainer = Trainer(native)
    while trainer.progress.step < args.warm_steps:
        trainer.step()
    plain = Nerf(config.replace(backend="reference", compute_dtype="float32", table_dtype="float32"), scene)
    plain.model.load_state_dict(native.model.state_dict())
    plain.sampler.load_state_dict(native.sampler.state_dict())

    camera = resized(scene.test, args.resolution).to(suite.device)
    n_rays = int(camera.sizes.prod())
    white = torch.ones(3, device=suite.device)
    half = dtype != "float32"
    contenders = [Contender(name, frame(task, camera, white)) for name, task in ((EAGER, plain), (OURS, native))]
    suite.run(Case("frame", n_rays, contenders, tolerance=0.1 if half else 1e-2, rms=half))
    case = suite.record["cases"][-1]
    with torch.no_grad():
        rays = camera.view_rays(0)
        case["samples_per_ray"] = render(native.model, native.sampler, rays, white).n_samples
    case["samples_per_ray"] /= n_rays
    for row in case["contenders"]:
        if "median_ns" in row:
            row["frames_per_second"] = 1e9 / (row["median_ns"] * n_rays)
            print(f"  {row['name']}: {row['frames_per_second']:.2f} frames of {n_rays} rays per second")
    return suite.write()


def resized(cameras: Cameras, resolution: int) -> Cameras:
    """The first camera, with pictures ``resolution`` wide."""
    return cameras.select([0]).scaled(resolution / cameras.size(0)[0])


def frame(task: Nerf, camera: Cameras, background: Tensor) -> Callable[[], Sequence[Tensor]]:
    return lambda: render_image(task.model, task.sampler, camera, 0, background)


if __name__ == "__main__":
    main()
