"""Training, resuming and evaluating a NeRF, end to end on a tiny procedural scene."""

import json
import math
import random
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
import torch
from problems.nerf import TINY

from hashgrid.checkpoint import CheckpointError
from hashgrid.cli import main
from hashgrid.nerf.config import NerfConfig
from hashgrid.nerf.profile import PHASES, StepProfile
from hashgrid.nerf.render import render_rays, visible_features
from hashgrid.nerf.trainer import Trainer, TrainingError, read_checkpoint


def trained(scene, steps, total, **changes):
    trainer = Trainer(scene, NerfConfig(steps=total, **{**TINY, **changes}))
    for _ in range(steps):
        trainer.step()
    return trainer


def test_training_explains_the_images(scene):
    trainer = trained(scene, 120, 120, target_samples=16384, max_rays=2048)
    assert trainer.finished
    # 48 pixels alias the texture: about 19 dB is what they allow. One step has 14.
    assert trainer.progress.psnr > 17
    assert trainer.occupancy.occupied_fraction < 0.6


def test_resumed_run_ends_where_an_uninterrupted_one_does(scene, tmp_path):
    whole = trained(scene, 40, 40)
    half = trained(scene, 20, 40)
    half.save(tmp_path / "checkpoint.safetensors")
    resumed = Trainer(scene, NerfConfig(steps=40, **TINY))
    resumed.load(*read_checkpoint(tmp_path / "checkpoint.safetensors"))
    assert resumed.progress.step == 20 and resumed.n_rays == half.n_rays
    while not resumed.finished:
        resumed.step()
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=0, msg=name)
    assert resumed.progress.loss == whole.progress.loss


def test_backends_agree_on_a_step(scene):
    native, reference = (trained(scene, 1, 10, backend=backend) for backend in ("native", "reference"))
    assert math.isclose(native.progress.loss, reference.progress.loss, rel_tol=1e-4)
    for (name, a), b in zip(native.model.named_parameters(), reference.model.parameters(), strict=True):
        # Adam's first step moves every touched weight by the learning rate, whatever the size of its gradient; a
        # gradient that is zero up to rounding may differ in sign.
        differing = ((a - b).abs() > 1e-4).float().mean()
        assert float(differing) < 0.01, name


def test_training_stops_at_a_loss_that_is_not_finite(scene):
    trainer = trained(scene, 1, 10)
    with torch.no_grad():
        trainer.model.color_mlp.weights[0].fill_(math.nan)
    with pytest.raises(TrainingError, match="the loss is nan at step 1"):
        trainer.step()


def test_rendering_front_to_back_leaves_out_only_what_is_not_seen(scene):
    trainer = trained(scene, 60, 60)
    model, eps = trainer.model, trainer.marching.early_stop_eps
    rays_o, rays_d = scene.test.rays(torch.zeros(300, dtype=torch.long), torch.arange(300) % 48, torch.arange(300) // 8)
    samples = trainer.occupancy.march(rays_o, rays_d, step_size=trainer.marching.step_size)
    with torch.no_grad():
        expected, expected_geometry = model.geometry(model.grid(model.unit(samples.positions(rays_o, rays_d))))
        expected *= 300  # surfaces
        model.density_of = lambda geometry, plain=model.density_of: 300 * plain(geometry)
        to_show, to_train = (
            visible_features(model, samples, rays_o, rays_d, eps, first_window=4, to_train=train)
            for train in (False, True)
        )
        kept, index = samples.visible(expected, eps)
        unit = model.unit(kept.positions(rays_o, rays_d))
        encoded = model.grid(unit)
    for seen in (to_show, to_train):
        assert torch.equal(seen.samples.packed_info, kept.packed_info)
        assert torch.equal(seen.samples.t_ends, kept.t_ends)
        assert 0 < len(index) <= seen.n_evaluated < samples.n_samples * 3 / 4
    torch.testing.assert_close(to_train.values[0], unit, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(to_train.values[1], encoded, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(to_show.values[0], expected_geometry[index], rtol=1e-3, atol=1e-3)


def test_rendering_on_a_gpu_shows_the_same(scene):
    """The op it takes there, on the ops the op is made of here."""
    trainer = trained(scene, 60, 60)
    model, marching = trainer.model, trainer.marching
    rays_o, rays_d = scene.test.rays(torch.zeros(300, dtype=torch.long), torch.arange(300) % 48, torch.arange(300) // 8)
    with torch.no_grad():
        expected = render_rays(model, trainer.occupancy, rays_o, rays_d, marching, None)
    colors, opacities, depths, n_evaluated = model.render(trainer.occupancy, rays_o, rays_d, **asdict(marching))
    assert int(n_evaluated) == expected.n_evaluated > expected.n_samples > 0
    torch.testing.assert_close(colors, expected.colors, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(opacities, expected.opacities, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(depths, expected.depths, rtol=1e-4, atol=1e-4)


def test_profile_accounts_for_the_time_of_some_steps(scene, tmp_path, capsys):
    trainer = Trainer(scene, NerfConfig(steps=60, **TINY))
    profile = StepProfile(n_steps=16, begin=0.5)
    steps = []
    trainer.train(lambda progress: (steps.append(progress.step), profile.on_step(progress)))
    profile.write(tmp_path, peak_memory=10**9)
    assert steps == list(range(1, 61))
    result = json.loads((tmp_path / "profile.json").read_text())
    phases = result["phases"]
    assert result["steps"] == 16 and 0 < result["samples"] < trainer.progress.samples
    assert math.isclose(sum(phases.values()), result["seconds"]) and list(phases) == [*PHASES, "everything else"]
    # Occupancy updates are one of 16 steps; what they encode is theirs.
    assert phases.pop("checkpoint") == 0 and all(seconds > 0 for seconds in phases.values())
    table = capsys.readouterr().out
    assert "mlp, backward" in table and "peak memory 1.00 GB" in table
    names = {event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert {"hashgrid::mlp", "hashgrid::adam_step", "hashgrid occupancy update"} <= names

    unfinished = StepProfile(n_steps=16)
    unfinished.write(tmp_path / "none", peak_memory=0)
    assert "no profile" in capsys.readouterr().out and not (tmp_path / "none").exists()


def test_a_budget_is_needed(scene):
    with pytest.raises(ValueError, match="give `steps`, `time_limit` or both"):
        Trainer(scene, NerfConfig())


ON_CPU = ["--device", "cpu", "--no-video"]  # `--resume` and `--eval` choose a device anew


def options(**values):
    return [part for key, value in {**TINY, **values}.items() for part in ("--set", f"{key}={value}")]


def test_command_trains_resumes_and_evaluates(scene_path, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["nerf", str(scene_path), "--out", str(out), "--steps", "30", *ON_CPU, *options()]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["train"]["steps"] == 30 and results["train"]["samples"] > 0 and results["train"]["seconds"] > 0
    assert results["train"]["samples_evaluated"] >= results["train"]["samples"]
    assert results["test"]["views"] == 2 and results["test"]["psnr_mean"] > 8
    assert 0 < results["test"]["ssim_mean"] <= 1
    for name in ("checkpoint.safetensors", "test_views.csv", "psnr_over_time.png"):
        assert (out / name).is_file(), name
    for folder in ("renders", "comparisons", "depth"):
        assert len(list((out / folder).glob("*.png"))) == 2, folder

    assert main(["nerf", str(scene_path), "--out", str(out), "--resume", "--steps", "40", *ON_CPU]) == 0
    assert json.loads((out / "results.json").read_text())["train"]["steps"] == 40

    again = tmp_path / "again"
    checkpoint = str(out / "checkpoint.safetensors")
    assert main(["nerf", "--eval", checkpoint, "--out", str(again), *ON_CPU]) == 0
    first, second = (json.loads((path / "results.json").read_text())["test"] for path in (out, again))
    assert first["psnr_mean"] == second["psnr_mean"]


def test_run_killed_five_times_ends_like_an_uninterrupted_one(scene_path, tmp_path):
    generator = random.Random(0)
    # the share of time spent on the occupancy grid is all of a run that clocks decide
    options_ = options(checkpoint_seconds=0.2, occupancy_time_share=1)

    def command(out, *more):
        return [sys.executable, "-m", "hashgrid", "nerf", str(scene_path), "--out", str(out), *ON_CPU, *more]

    def start(out):
        checkpoint = out / "checkpoint.safetensors"
        more = ["--resume"] if checkpoint.exists() else ["--steps", "800", *options_]
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = subprocess.Popen(command(out, *more), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before):
            time.sleep(0.01)
        return process

    killed, steps = tmp_path / "killed", []
    for _ in range(5):
        process = start(killed)
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(generator.uniform(0, 0.2))
        process.kill()
        process.wait()
        steps.append(read_checkpoint(killed / "checkpoint.safetensors")[1]["progress"]["step"])
    assert 0 < steps[0] and steps == sorted(set(steps)) and steps[-1] < 800, steps
    assert start(killed).wait() == 0
    assert start(tmp_path / "whole").wait() == 0
    psnr = [
        json.loads((tmp_path / run / "results.json").read_text())["test"]["psnr_mean"] for run in ("killed", "whole")
    ]
    assert math.isclose(*psnr, abs_tol=0.1), psnr
    assert not [path.name for path in killed.iterdir() if path.name.startswith(".") or path.suffix == ".tmp"]


def test_turntable_is_written(scene_path, tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    out = tmp_path / "out"
    assert main(["nerf", str(scene_path), "--out", str(out), "--steps", "2", "--views", "1", *options()]) == 0
    assert (out / "turntable.mp4").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nerf", "does_not_exist"], "does_not_exist"),
        (["nerf", "--set", "nonsense=1"], "`--set` takes KEY=VALUE"),
        (["image", "does_not_exist.png"], "`does_not_exist.png` does not exist"),
    ],
)
def test_command_reports_mistakes_in_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    if arguments[0] == "image":
        pytest.importorskip("imageio.v3")
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("hashgrid: error: ") and message in error and error.count("\n") == 1


def test_checkpoint_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises((CheckpointError, ValueError), match="checkpoint"):
        read_checkpoint(path)


def test_image_command_fits_a_photo(tmp_path):
    imageio = pytest.importorskip("imageio.v3")
    y, x = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 60), indexing="ij")
    photo = torch.stack((x, y, (12 * x * y).sin() / 2 + 0.5), dim=-1)
    imageio.imwrite(tmp_path / "photo.png", (photo * 255).round().byte().numpy())
    out = tmp_path / "out"
    assert main(["image", str(tmp_path / "photo.png"), "--out", str(out), "--steps", "60"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["psnr"] > 30 and results["train"]["steps"] == 60
    assert (out / "reconstruction.png").is_file() and (out / "error.png").is_file()
