"""What faults of captures cost, and what learning them gives back: on the procedural scene, whose truth is known.

    python benchmarks/marks/captures.py [exposure poses lens behind] [--steps 600] [--samples 4096] [--seeds 0 1 2]

- exposure: training views between 1 stop darker and 1 stop brighter; right halves of test views are scored.
- poses: training cameras moved by 1 degree and 1 % of their distance; test cameras at their true places, aligned, and
  fitted to the left halves of their views as well.
- lens: pictures of a plain lens, said to be of a k1 of 0.1 and a focal length 2 % too long.
- behind: opaque pictures before a sky; ``clutter`` is the mean opacity where there is nothing but sky.

Writes results/captures.json; parts that are not named keep their rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.data.procedural import procedural_scene
from hashgrid.data.scene import Scene, Views
from hashgrid.geometry.cameras import Cameras
from hashgrid.rendering.appearance import exposed
from hashgrid.rendering.capture_scores import figures, fit_pose, fitter, left_half, refined
from hashgrid.rendering.scores import evaluate
from hashgrid.rendering.volume import render_image
from hashgrid.tasks.nerf import Nerf, NerfConfig
from hashgrid.train.loop import Trainer
from hashgrid.util.files import atomic_write_json

PATH = Path(__file__).parent / "results" / "captures.json"
WHITE = torch.ones(3)
KEYS = ("part", "seed", "steps", "samples")  # of a row
SIZES: dict[str, Any] = {
    **{"n_levels": 6, "log2_hashmap_size": 15, "max_resolution": 256, "n_neurons": 32, "compute_dtype": "float32"},
    **{"occupancy_resolution": 64, "steps_per_diagonal": 256},
}


def train(scene: Scene, steps: int, seed: int, **options: Any) -> Nerf:
    """A small field after so many steps."""
    config = NerfConfig().replace(**SIZES, steps=steps, seed=seed, device="cpu", **options)
    task = Nerf(config, scene)
    Trainer(task).train()
    return task


def score(task: Nerf, halves: bool = False, fits_poses: bool = False) -> float:
    """Mean PSNR of the test views, of their right halves if those are asked for; each seen from where its left half is
    seen best, if that is asked for, whatever was trained."""
    test = refined(task.scene, task.model.capture).test
    fit = fitter(task.model, task.sampler, test, WHITE)
    if fits_poses:

        def fit(cameras: Cameras, view: int) -> None:
            pixels, target = left_half(test, view, WHITE)
            cameras.c2w[view] = fit_pose(task.model, task.sampler, cameras, pixels, target, WHITE)

    elif halves and fit is None:
        fit = lambda cameras, view: None  # noqa: E731
    return float(evaluate(task.model, task.sampler, test, WHITE, fit=fit)["psnr_mean"])


def exposure(scene: Scene, steps: int, seed: int) -> dict[str, Any]:
    views = scene.train
    stops = torch.linspace(-1, 1, len(views))[torch.randperm(len(views), generator=torch.Generator().manual_seed(seed))]
    of_pixels = stops.repeat_interleave(views.sizes.prod(1))[:, None]
    colors = (exposed(views.data[:, :3].float() / 255, of_pixels) * 255).round().byte()
    varied = replace(scene, train=replace(views, data=torch.cat((colors, views.data[:, 3:]), dim=1)))
    row: dict[str, Any] = {"as it was": score(train(scene, steps, seed), True)}
    for appearance in ("none", "exposure", "affine", "code"):
        task = train(varied, steps, seed, appearance=appearance)
        row[appearance] = score(task, True)
        if appearance == "exposure":
            found = torch.tensor(figures(task.scene, task.model.capture)["exposure_stops"])
            row["stops_rms_error"] = float((found - (stops - stops.mean())).square().mean().sqrt())
    return row


WAYS: dict[str, dict[str, Any]] = {
    "none": {},
    "so3xr3": {"refine_cameras": "so3xr3"},
    "se3": {"refine_cameras": "se3"},
    "so3xr3, all levels at once": {"refine_cameras": "so3xr3", "coarse_share": 0.0},
}


def poses(scene: Scene, steps: int, seed: int) -> dict[str, Any]:
    """Of whole views from where the similarity of the training cameras puts them, and of the right halves of views
    ``fitted`` to their left ones, all three ways alike."""
    row: dict[str, Any] = {}

    def scores(name: str, task: Nerf) -> Nerf:
        row[name], row[f"{name}, fitted"] = score(task), score(task, fits_poses=True)
        return task

    scores("as it was", train(scene, steps, seed))
    for name, options in WAYS.items():
        task = scores(name, train(scene, steps, seed, perturb_cameras=1.0, test_poses="moved", **options))
        errors = figures(task.scene, task.model.capture)["pose_errors"]
        row[f"{name}: errors"] = errors["after"]
        row["errors before"] = errors["before"]
    for name in WAYS:
        for how in ("", ", fitted"):
            if name != "none":
                lost = row[f"as it was{how}"] - row[f"none{how}"]
                row[f"{name}{how}: returned"] = (row[f"{name}{how}"] - row[f"none{how}"]) / lost
    return row


def lens(scene: Scene, steps: int, seed: int) -> dict[str, Any]:
    def wrong(views: Views) -> Views:
        zoom = torch.tensor([1.02, 1.02, 1.0, 1.0])
        return replace(
            views, intrinsics=views.intrinsics * zoom, distortion=torch.tensor([[0.1, 0.0]]).repeat(len(views), 1)
        )

    row: dict[str, Any] = {"as it was": score(train(scene, steps, seed))}
    scene = replace(scene, train=wrong(scene.train), test=wrong(scene.test))
    row["none"] = score(train(scene, steps, seed))
    task = train(scene, steps, seed, refine_lens=True)
    row["refined"] = score(task)
    found = figures(task.scene, task.model.capture)["lens"]
    row["k1 left"], row["focal length left"] = 0.1 + found["k1_added"], 1.02 * found["focal_factor"] - 1
    return row


def sky(directions: Tensor) -> Tensor:
    """Colours [R, 3] of directions [R, 3]: a horizon and some clouds."""
    x, y, z = directions.unbind(-1)
    clouds = 0.15 * torch.sin(6 * x + 2 * y) * torch.cos(5 * y - 3 * z)
    return (torch.stack((0.45 + 0.3 * z, 0.6 + 0.2 * z, 0.75 + 0.1 * z), dim=-1) + clouds[:, None]).clamp(0, 1)


def under_sky(views: Views) -> Views:
    rays = torch.cat([views.view_rays(view).directions for view in range(len(views))])
    values = views.data.float() / 255
    colors = torch.lerp(sky(rays), values[:, :3], values[:, 3:])
    return replace(views, data=(colors * 255).round().byte())


def behind(scene: Scene, steps: int, seed: int) -> dict[str, Any]:
    opaque = replace(scene, train=under_sky(scene.train), test=under_sky(scene.test), bounded=False, n_cascades=3)
    ways: dict[str, dict[str, Any]] = {
        "none": {},
        "none, distortion 0.01": {"distortion_weight": 0.01},
        "color": {"background_model": "color"},
        "network": {"background_model": "network"},
        "network, distortion 0.01": {"background_model": "network", "distortion_weight": 0.01},
        "network, entropy 0.01": {"background_model": "network", "opacity_entropy_weight": 0.01},
    }
    row: dict[str, Any] = {}
    for name, options in ways.items():
        task = train(opaque, steps, seed, **options)
        row[name] = score(task)
        clutter = []
        for view in range(len(task.scene.test)):
            opacity = render_image(task.model, task.sampler, task.scene.test, view, WHITE)[1]
            clutter.append(float(opacity[scene.test.image(view)[..., 3] == 0].mean()))
        row[f"{name}: clutter"] = statistics.fmean(clutter)
    return row


PARTS = {"exposure": exposure, "poses": poses, "lens": lens, "behind": behind}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--samples", type=int, default=1 << 12, help="per step; gradients of poses need many")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="*", default=[*WAYS], choices=[*WAYS], help="of refining poses, beside none")
    parser.add_argument("--out", type=Path, default=PATH)
    args = parser.parse_args()
    for way in {*WAYS} - {"none", *args.ways}:
        del WAYS[way]
    warn_if_busy()
    SIZES.update(target_samples=args.samples, max_rays=args.samples // 4)
    scene = procedural_scene(n_train=40, n_test=6, resolution=64)
    for name in args.parts:
        for seed in args.seeds:
            row = {
                "part": name,
                "seed": seed,
                "steps": args.steps,
                "samples": args.samples,
                **PARTS[name](scene, args.steps, seed),
            }
            print(json.dumps(row), flush=True)
            stored = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
            rows = [old for old in stored if any(old[key] != row[key] for key in KEYS)] + [row]
            rows.sort(key=lambda row: (row["part"], row["seed"]))
            atomic_write_json(args.out, {"environment": environment(torch.device("cpu")), "rows": rows})


if __name__ == "__main__":
    main()
