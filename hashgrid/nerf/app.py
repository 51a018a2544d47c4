"""``hashgrid nerf``: load, train, evaluate, write everything down."""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from hashgrid.data.procedural import write_scene
from hashgrid.data.scene import Scene, load_scene
from hashgrid.data.transforms import scene_name
from hashgrid.nerf import report
from hashgrid.nerf.config import NerfConfig
from hashgrid.nerf.evaluate import ViewScore, evaluate
from hashgrid.nerf.profile import StepProfile
from hashgrid.nerf.trainer import Progress, Trainer, read_checkpoint
from hashgrid.rendering.volume import render_view
from hashgrid.util.device import choose_device, why_not_cuda
from hashgrid.util.files import atomic_write_json
from hashgrid.util.memory import peak_memory
from hashgrid.util.optional import optional_import
from hashgrid.util.pictures import background_color, hex_color, write_video
from hashgrid.util.threads import threads_for, threads_in_use

PROCEDURAL_SCENE = Path("outputs") / "procedural_scene"
DEFAULT_SECONDS = 240.0


def run(
    scene_path: Path | None,
    out: Path | None = None,
    resume: bool = False,
    evaluate_only: Path | None = None,
    n_views: int | None = None,
    video: bool = True,
    profile: bool = False,
    changes: dict[str, Any] | None = None,
    allow_huge: bool = False,
) -> int:
    """Trains on ``scene_path`` (a procedural scene when None) and evaluates; or only evaluates a checkpoint.

    Returns:
        Exit status: 0, or 130 when the user interrupted training.

    Raises:
        ValueError: the scene, the checkpoint or an option is wrong.
    """
    begin = time.perf_counter()
    changes = dict(changes or {})
    stored = None
    if evaluate_only is not None:
        stored = read_checkpoint(evaluate_only)
        out = evaluate_only.parent if out is None else out
    elif resume:
        checkpoint = _output_folder(scene_path, out) / "checkpoint.safetensors"
        if not checkpoint.is_file():
            raise ValueError(f"`--resume` needs a checkpoint, `{checkpoint}` does not exist; train without it first")
        stored = read_checkpoint(checkpoint)
    if stored is not None:
        # a run may go on on another machine
        config = NerfConfig.from_dict(stored[1]["config"]).replace(**({"device": "auto"} | changes))
        scene_path = Path(stored[1]["scene"]) if scene_path is None else scene_path
    else:
        device = choose_device(changes.get("device", "auto"), changes.get("backend", NerfConfig.backend))
        config = NerfConfig.for_device(device).replace(**{**changes, "device": str(device)})
    if config.steps is None and config.time_limit is None:
        config = config.replace(time_limit=DEFAULT_SECONDS)
    _check_options(config, n_views, video, stored is not None and "background" not in changes)
    out = _output_folder(scene_path, out)
    with threads_for(config.backend):
        scene = load_scene(
            _procedural_if_none(scene_path),
            test_split=config.test_split,
            holdout=config.holdout,
            downscale=config.downscale,
            cut_out_backdrop=config.cut_out_backdrop,
            allow_huge=allow_huge,
        )
        print(scene.describe(), flush=True)
        out.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(scene, config, seconds_before=time.perf_counter() - begin)
        print(_describe_device(trainer), flush=True)
        if profile and trainer.device.type != "cpu":
            raise ValueError(f"`--profile` is for the CPU, got device {trainer.device}; use Nsight Systems on a GPU")
        if stored is not None:
            trainer.load(*stored)
        return _train_and_evaluate(trainer, out, evaluate_only is None, n_views, video, profile)


def _check_options(config: NerfConfig, n_views: int | None, video: bool, background_is_stored: bool) -> None:
    """Finds what would only be found after training before anything takes time."""
    try:
        if config.background != "auto":
            background_color(config.background)
    except ValueError as error:
        if background_is_stored:
            raise ValueError(f"{error}; it is the checkpoint's, `--background` replaces it") from error
        raise
    if n_views is not None and n_views < 0:
        raise ValueError(f"`--views` must be at least 0, got {n_views}")
    if config.steps is not None and config.steps < 0:
        raise ValueError(f"`--steps` must be at least 0, got {config.steps}")
    if config.time_limit is not None and not config.time_limit > 0:
        raise ValueError(f"`--time-limit` must be positive, got {config.time_limit}")
    for package in ("safetensors", "imageio.v3", "matplotlib", *(("imageio_ffmpeg",) if video else ())):
        optional_import(package, "nerf")


def _train_and_evaluate(
    trainer: Trainer, out: Path, train: bool, n_views: int | None, video: bool, profile: bool
) -> int:
    """The exit status of :func:`run`."""
    interrupted = False
    if train:
        interrupted = _train(trainer, out, StepProfile() if profile else None)
        if interrupted:
            n_views = 4 if n_views is None else min(n_views, 4)
            print("interrupted: the checkpoint is written, a few test views follow; --resume goes on", flush=True)
    train_peak = peak_memory() if train else None
    _evaluate(trainer, out, n_views, interrupted, train_peak)
    if video and not interrupted:
        _turntable(trainer, out)
    print(f"results in {out}", flush=True)
    return 130 if interrupted else 0


def render_procedural_scene(out: Path, n_train: int, n_test: int, resolution: int, seed: int) -> None:
    """Writes the procedural scene with a progress bar."""
    tqdm = optional_import("tqdm", "nerf").tqdm
    with tqdm(total=n_train + n_test, desc="scene", unit="view") as bar:
        write_scene(out, n_train, n_test, resolution, seed, progress=lambda done, total: bar.update(done - bar.n))
    print(f"scene in {out}")


def _describe_device(trainer: Trainer) -> str:
    """Where it runs; and why not on a GPU that is there."""
    config = trainer.config
    if trainer.device.type == "cuda":
        return f"running on {torch.cuda.get_device_name(trainer.device)}"
    text = f"running on the CPU with {threads_in_use()} threads"
    unused = torch.cuda.is_available() and why_not_cuda(config.backend)
    return f"{text}: {unused}" if unused else text


def _output_folder(scene: Path | None, out: Path | None) -> Path:
    if out is not None:
        return out
    return Path("outputs") / "nerf" / ("procedural_scene" if scene is None else scene_name(scene))


def _procedural_if_none(scene: Path | None) -> Path:
    if scene is not None:
        return scene
    if not (PROCEDURAL_SCENE / "transforms_test.json").is_file():
        print(f"no SCENE given: rendering a procedural one to {PROCEDURAL_SCENE}", flush=True)
        render_procedural_scene(PROCEDURAL_SCENE, 60, 20, 200, seed=0)
    return PROCEDURAL_SCENE


def _train(trainer: Trainer, out: Path, profile: StepProfile | None) -> bool:
    """Whether the user interrupted."""
    tqdm = optional_import("tqdm", "nerf").tqdm
    checkpoint = out / "checkpoint.safetensors"
    bar_format = "train {percentage:3.0f}%|{bar:20}| {desc}"
    interrupted = False
    with tqdm(total=100.0, bar_format=bar_format, mininterval=0.2) as bar:

        def show(progress: Progress) -> None:
            bar.set_description_str(
                f"step {progress.step} loss {progress.loss:.4f} PSNR {progress.psnr:.2f} dB"
                f" {progress.samples_per_second / 1e6:.2f} M samples/s {progress.rays_per_second / 1e3:.0f} k rays/s"
                f" {progress.seconds_left:.0f} s left",
                refresh=False,
            )
            bar.update(100 * progress.fraction - bar.n)
            if profile is not None:
                profile.on_step(progress)

        try:
            trainer.train(show, checkpoint)
        except KeyboardInterrupt:
            interrupted = True
    trainer.save(checkpoint)
    if profile is not None:
        profile.write(out, peak_memory())
    return interrupted


def _evaluate(trainer: Trainer, out: Path, n_views: int | None, interrupted: bool, train_peak: int | None) -> None:
    tqdm = optional_import("tqdm", "nerf").tqdm
    scene, config, progress = trainer.scene, trainer.config, trainer.progress
    background = scene.background(config.background)
    n_test = len(scene.test)
    n_views = n_test if n_views is None else min(n_views, n_test)
    indices = [i * n_test // n_views for i in range(n_views)] if n_views else []
    scores: list[ViewScore] = []
    with tqdm(total=len(indices), desc="test views", unit="view") as bar:

        def show(score: ViewScore) -> None:
            scores.append(score)
            bar.set_postfix_str(f"PSNR {_decibels(_mean([s.psnr for s in scores]))}", refresh=False)
            bar.update()

        _, seconds = evaluate(
            trainer.model, trainer.occupancy, scene.test, trainer.marching, background, out, indices, show
        )
    results: dict[str, Any] = {
        "scene": str(scene.path),
        "train": {
            "seconds": progress.seconds,
            "steps": progress.step,
            "samples": progress.samples,
            "samples_evaluated": progress.evaluated,
            "rays": progress.rays,
            "interrupted": interrupted,
            "peak_memory_bytes": train_peak,
        },
        "test": {
            "psnr_mean": _mean([score.psnr for score in scores]),
            "ssim_mean": _mean([score.ssim for score in scores]),
            "views": len(scores),
            "views_total": n_test,
            "seconds": seconds,
        },
        "protocol": {
            "background": hex_color(background.tolist()) if config.background == "auto" else config.background,
            "color": "sRGB, blended and compared in sRGB, 8 bits, clipped",
            "test_views": scene.split,
        },
        "peak_memory_bytes": peak_memory(),
        "threads": threads_in_use(),
        "device": str(trainer.device) if trainer.device.type == "cpu" else torch.cuda.get_device_name(trainer.device),
        "config": config.to_dict(),
    }
    atomic_write_json(out / "results.json", results)
    report.write_scores(out / "test_views.csv", [(s.view, s.psnr, s.ssim) for s in scores])
    report.plot_training(out / "psnr_over_time.png", trainer.curve, results["test"]["psnr_mean"])
    if scores:
        print(
            f"{len(scores)} test views: PSNR {_decibels(results['test']['psnr_mean'])}, SSIM"
            f" {_decimals(results['test']['ssim_mean'])} in {seconds:.1f} s; trained {progress.step} steps,"
            f" {progress.samples / 1e6:.1f} M samples in {progress.seconds:.1f} s",
            flush=True,
        )


def _mean(scores: list[float]) -> float | None:
    """The mean of the scores that are there: a view whose pixels are all masked has NaN."""
    known = [score for score in scores if not math.isnan(score)]
    return statistics.fmean(known) if known else None


def _decibels(psnr: float | None) -> str:
    return "unknown (all masked)" if psnr is None else f"{psnr:.2f} dB"


def _decimals(ssim: float | None) -> str:
    return "unknown" if ssim is None else f"{ssim:.4f}"


def _turntable(trainer: Trainer, out: Path, n_frames: int = 48) -> None:
    tqdm = optional_import("tqdm", "nerf").tqdm
    scene: Scene = trainer.scene
    cameras = report.orbit(scene, n_frames).to(trainer.device)
    background = scene.background(trainer.config.background)
    frames = []
    for view in tqdm(range(len(cameras)), desc="turntable", unit="frame"):
        frames.append(render_view(trainer.model, trainer.occupancy, cameras, view, trainer.marching, background)[0])
    write_video(out / "turntable.mp4", frames)
