"""PSNR over wall time: ``hashgrid nerf`` on its native kernels and on the reference backend, eager and compiled.

Every contender trains the same recipe from the same seed; the clock stops while test views are rendered.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hashgrid.bench import harness
from hashgrid.bench.harness import COMPILED, EAGER, OURS
from hashgrid.data.procedural import procedural_scene
from hashgrid.data.scene import Scene, load_scene
from hashgrid.rendering.scores import evaluate
from hashgrid.tasks.nerf import Nerf, NerfConfig
from hashgrid.train.loop import Trainer
from hashgrid.util.optional import optional_import

FRACTIONS = (1 / 30, 1 / 12, 1 / 6, 1 / 3, 2 / 3, 1.0)  # of the time at which test views are rendered


def main(argv: Sequence[str] | None = None) -> Path:
    """Trains one contender after the other; returns the JSON file."""
    options = harness.parser(__doc__)
    options.add_argument("--scene", type=Path, default=None, help="with transforms.json; procedural if none")
    options.add_argument("--train-seconds", type=float, default=None, help="of each contender; 60 if none")
    options.add_argument("--views", type=int, default=None, help="test views per mark; 4 if none")
    args = options.parse_args(argv)
    suite = harness.Suite("train", "second", args)
    if args.train_seconds is None:
        args.train_seconds = 0.5 if args.tiny else 10.0 if args.quick else 60.0
    args.views = harness.size(args, args.views, 4, 4, 1, 2)
    suite.record["settings"] |= {"train_seconds": args.train_seconds, "views": args.views}
    config = NerfConfig.for_device(suite.device).replace(seed=args.seed, time_limit=args.train_seconds)
    if args.tiny:
        config = config.replace(log2_hashmap_size=10, occupancy_resolution=16, steps_per_diagonal=64, max_rays=256)
    plain = config.replace(backend="reference", compute_dtype="float32", table_dtype="float32", fixed_size=False)
    if args.scene is None:
        n_train, resolution = (2, 12) if args.tiny else (40, 160)
        scene = procedural_scene(n_train, args.views, resolution, args.seed)
    else:
        scene = load_scene(args.scene).normalized()
    curves = {OURS: _train(scene, config, args.views, compiled=False)}
    curves[EAGER] = _train(scene, plain, args.views, compiled=False)
    if not args.no_compile:
        curves[COMPILED] = _train(scene, plain, args.views, compiled=True)
    case = _summary(curves, args.train_seconds)
    suite.record["cases"].append(case)
    _print(case)
    return suite.write(_plot)


def _train(scene: Scene, config: NerfConfig, n_views: int, compiled: bool) -> list[dict[str, float]]:
    """Seconds, steps, samples and the mean PSNR of the test views along one run."""
    task = Nerf(config, scene)
    trainer = Trainer(task)
    if compiled:
        model: Any = task.model
        for module in (model.grid, model.density_mlp, model.color_mlp):
            module.compile(dynamic=True)
    curve: list[dict[str, float]] = []
    for fraction in FRACTIONS:
        while trainer.update_clock() < fraction:
            trainer.step()
        with trainer.pause():
            progress = trainer.progress
            point = {"seconds": progress.seconds, "steps": progress.step, "samples": progress.samples}
            curve.append(point | {"psnr": _test_psnr(task, n_views)})
    return curve


def _test_psnr(task: Nerf, n_views: int) -> float:
    """Of views evenly spread over the test split."""
    background = task.scene.background(task.config.background)
    return evaluate(task.model, task.sampler, task.scene.test, background, n_views=n_views)["psnr_mean"]


def _summary(curves: dict[str, list[dict[str, float]]], seconds: float) -> dict[str, Any]:
    """``speedup``: how much longer a contender took to its last PSNR than ours to the same."""
    speedup = {}
    for name, curve in curves.items():
        if name != OURS:
            speedup[name] = curve[-1]["seconds"] / max(_seconds_to(curves[OURS], curve[-1]["psnr"]), 1e-9)
    return {
        "name": f"PSNR over {seconds:.0f} s",
        "contenders": [{"name": name, "curve": curve} for name, curve in curves.items()],
        "speedup": speedup,
    }


def _seconds_to(curve: Sequence[dict[str, float]], target: float) -> float:
    """When ``curve`` first reaches a PSNR, between its points by a straight line; its end if it does not."""
    before = {"seconds": 0.0, "psnr": 0.0}
    for point in curve:
        if point["psnr"] >= target:
            part = (target - before["psnr"]) / max(point["psnr"] - before["psnr"], 1e-9)
            return before["seconds"] + part * (point["seconds"] - before["seconds"])
        before = point
    return curve[-1]["seconds"]


def _print(case: dict[str, Any]) -> None:
    print(f"\n{case['name']}: dB (millions of samples) after seconds")
    for row in case["contenders"]:
        marks = "  ".join(f"{p['seconds']:.0f} s {p['psnr']:.2f} ({p['samples'] / 1e6:.1f})" for p in row["curve"])
        ratio = case["speedup"].get(row["name"])
        note = "" if ratio is None else f"  hashgrid is there {ratio:.1f} x as fast"
        print(f"  {row['name']:16}{marks}{note}")


def _plot(record: dict[str, Any], path: Path) -> None:
    matplotlib = optional_import("matplotlib")
    matplotlib.use("Agg")
    plt = optional_import("matplotlib.pyplot")
    (case,) = record["cases"]
    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    colors = {OURS: "#d1495b", EAGER: "#8d99ae", COMPILED: "#2b2d42"}
    marks: list[float] = []
    for row in case["contenders"]:
        seconds, values = ([point[key] for point in row["curve"]] for key in ("seconds", "psnr"))
        marks = [float(f"{x:.2g}") for x in seconds]
        ax.plot(seconds, values, marker="o", color=colors[row["name"]], label=f"{row['name']}: {values[-1]:.1f} dB")
    ax.set_xscale("log")
    ax.set_xticks(marks, [f"{mark:g}" for mark in marks])
    ax.minorticks_off()
    ax.set_xlabel("training time in seconds")
    ax.set_ylabel("PSNR of test views in dB")
    ax.grid(alpha=0.3, which="both")
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    machine = record["environment"]
    ax.set_title(f"{machine['cpu']}, {machine['threads']} threads", fontsize=9)
    harness.save_figure(figure, path)


if __name__ == "__main__":
    main()
