"""Training, resuming and evaluating a NeRF, end to end on a tiny procedural scene."""

import json
import math
import re
import signal
import subprocess
import sys

import pytest
import torch
from problems.nerf import OPTIONS, nerf_trainer

from hashgrid.cli import main
from hashgrid.data.pictures import generated_picture
from hashgrid.fields import RADIANCE_FIELDS, ngp
from hashgrid.geometry.rays import At
from hashgrid.rendering.volume import render, render_pixels_in_one, visible
from hashgrid.tasks.image import Image, ImageConfig
from hashgrid.train.checkpoint import CheckpointError, load_checkpoint
from hashgrid.train.loop import Trainer, TrainingError
from hashgrid.train.profile import PHASES, StepProfile


def trained(scene, steps, total, **changes):
    trainer = nerf_trainer(scene, total, **changes)
    for _ in range(steps):
        trainer.step()
    return trainer


# PSNR of the smoothed error of the training rays after so many steps of TINY, with AVX-512; others
# differ by 0.02 dB in places. Without the gradient of the colour network it is 17.5 dB at the end, without that of the
# density network 14.4, the value it starts from.
CURVE = {30: 15.37, 60: 17.0, 90: 17.57, 120: 17.86}


def test_training_follows_its_curve(scene):
    # the share of time spent on the occupancy grid is all of a run that clocks decide
    trainer, curve = nerf_trainer(scene, 120, occupancy_time_share=1), {}
    while not trainer.finished:
        trainer.step()
        curve[trainer.progress.step] = trainer.progress.psnr
    assert {step: curve[step] for step in CURVE} == pytest.approx(CURVE, abs=0.15)
    assert trainer.task.sampler.grid.occupied_fraction == pytest.approx(0.225, abs=0.02)


def test_resumed_run_ends_where_an_uninterrupted_one_does(scene, tmp_path):
    whole = trained(scene, 40, 40)
    half = trained(scene, 20, 40)
    half.save(tmp_path / "checkpoint.safetensors")
    resumed = nerf_trainer(scene, 40)
    resumed.load(*load_checkpoint(tmp_path / "checkpoint.safetensors"))
    assert resumed.progress.step == 20 and resumed.task.n_rays == half.task.n_rays
    while not resumed.finished:
        resumed.step()
    for name, value in whole.task.model.state_dict().items():
        torch.testing.assert_close(resumed.task.model.state_dict()[name], value, rtol=0, atol=0, msg=name)
    assert resumed.progress.loss == whole.progress.loss


def test_backends_agree_on_a_step(scene):
    native, reference = (trained(scene, 1, 10, backend=backend) for backend in ("native", "reference"))
    assert math.isclose(native.progress.loss, reference.progress.loss, rel_tol=1e-4)
    for (name, a), b in zip(native.task.model.named_parameters(), reference.task.model.parameters(), strict=True):
        # Adam's first step moves every touched weight by the learning rate, whatever the size of its gradient; a
        # gradient that is zero up to rounding may differ in sign.
        differing = ((a - b).abs() > 1e-4).float().mean()
        assert float(differing) < 0.01, name


def test_training_stops_at_a_loss_that_is_not_finite(scene):
    trainer = trained(scene, 1, 10)
    with torch.no_grad():
        trainer.task.model.color_mlp.weights[0].fill_(math.nan)
    with pytest.raises(TrainingError, match="the loss is nan at step 1"):
        trainer.step()


def test_rendering_front_to_back_leaves_out_only_what_is_not_seen(scene, monkeypatch):
    trainer = trained(scene, 60, 60)
    model, sampler = trainer.task.model, trainer.task.sampler
    monkeypatch.setattr(ngp, "density_of", lambda geometry, plain=ngp.density_of: 300 * plain(geometry))  # surfaces
    rays = some_rays(scene)
    samples = sampler(rays, model, None).samples
    everywhere = At(rays, model.unit(samples.positions(rays.origins, rays.directions)), samples.ray_indices)
    with torch.no_grad():
        expected, geometry = model.density(everywhere)
        to_show = visible(model, samples, rays, sampler.early_stop_eps, first_window=4)
        with torch.enable_grad():
            to_train = visible(model, samples, rays, sampler.early_stop_eps, first_window=4)
        seen, index = samples.visible(expected, sampler.early_stop_eps)
        at = At(rays, everywhere.unit[index], seen.ray_indices)
        encoded = model.grid(at.unit)
    for found, kept, n_evaluated in (to_show, to_train):
        assert torch.equal(found.packed_info, seen.packed_info) and torch.equal(found.t_ends, seen.t_ends)
        assert 0 < len(index) <= n_evaluated < samples.n_samples * 3 / 4
        torch.testing.assert_close(kept.column(0), at.unit, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(kept.sigmas, expected[index], rtol=1e-3, atol=1e-3)
    assert to_train[1].to_train and not to_show[1].to_train
    torch.testing.assert_close(to_train[1].column(1), encoded, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(to_show[1].column(1), geometry[index], rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        colors = model.radiance(at, to_show[1])[1]
        torch.testing.assert_close(colors, model.color(at, geometry[index]), rtol=1e-3, atol=1e-3)


def test_rendering_by_one_op_shows_the_same(scene):
    """The op that images are rendered with on a GPU; here it is made of the ops it is compared with."""
    trainer = trained(scene, 60, 60)
    model, sampler, rays = trainer.task.model, trainer.task.sampler, some_rays(scene)
    background = torch.zeros(3)
    with torch.no_grad():
        expected = render(model, sampler, rays)
    colors, opacities, depths = render_pixels_in_one(model, sampler, rays, background)
    assert expected.n_evaluated > expected.n_samples > 0
    torch.testing.assert_close(colors, expected.colors, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(opacities, expected.opacities, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(depths, expected.depths, rtol=1e-4, atol=1e-4)


def some_rays(scene):
    pixel = torch.arange(300)
    return scene.test.rays(torch.zeros(300, dtype=torch.long), pixel % 48, pixel // 8)


def test_profile_accounts_for_the_time_of_some_steps(scene, tmp_path, capsys):
    trainer = nerf_trainer(scene, 60)
    profile = StepProfile(tmp_path, n_steps=16, begin=0.5)
    steps = []
    trainer.train(lambda progress: (steps.append(progress.step), profile.step(progress)))
    profile.close()
    assert steps == list(range(1, 61))
    result = json.loads((tmp_path / "profile.json").read_text())
    phases = result["phases"]
    assert result["steps"] == 16 and 0 < result["samples"] < trainer.progress.samples
    assert math.isclose(sum(phases.values()), result["seconds"]) and list(phases) == [*PHASES, "everything else"]
    # Occupancy updates are one of 16 steps; what they encode is theirs.
    assert phases.pop("checkpoint") == 0 and all(seconds > 0 for seconds in phases.values())
    table = capsys.readouterr().out
    assert "mlp, backward" in table and re.search(r"peak memory \d\.\d\d GB", table)
    names = {event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert {"hashgrid::mlp", "hashgrid::adam_step", "hashgrid occupancy update"} <= names

    StepProfile(tmp_path / "none", n_steps=16).close()
    assert "no profile" in capsys.readouterr().out and not (tmp_path / "none").exists()


def test_a_budget_is_needed(scene):
    with pytest.raises(ValueError, match="give `steps`, `time_limit` or both"):
        nerf_trainer(scene, None)


ON_CPU = ["--device", "cpu", "--no-video"]  # `--resume` and `--eval` choose a device anew


def options(**values):
    more = [part for key, value in values.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    return [*OPTIONS, *more]


def test_command_trains_resumes_and_evaluates(scene_path, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--steps", "30", *ON_CPU, *options(occupancy_time_share=1)]
    assert main(["nerf", str(scene_path), "--out", str(out), *arguments]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["train"]["steps"] == 30 and results["train"]["samples"] > 0 and results["train"]["seconds"] > 0
    assert results["train"]["samples_evaluated"] >= results["train"]["samples"]
    # Hardly begun; without the gradient of the table it is 10.69 dB, of the densities 10.87, of the colours 11.07.
    assert results["test"]["views"] == 2 and results["test"]["psnr_mean"] == pytest.approx(11.14, abs=0.05)
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


# `hashgrid nerf`, killed by its own hand while it saves a checkpoint: the number and the moment are arguments. Every
# second step saves one, and no clock decides anything.
KILLED = """
import os, signal, sys
import hashgrid.util.files, hashgrid.train.loop as trainer
from hashgrid.cli import main
at, moment = int(sys.argv[1]), sys.argv[2]
saved = 0
save, replace = trainer.Trainer.save, os.replace
def count_and_save(self, path):
    global saved
    if self.progress.step % 2 and not self.finished:
        return
    saved += 1
    save(self, path)
    if saved == at and moment == "behind":
        os.kill(os.getpid(), signal.SIGKILL)
def kill_or_replace(source, target, **options):
    if saved == at and moment == "within":
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(source, target, **options)
trainer.Trainer.save, os.replace = count_and_save, kill_or_replace
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.full
@pytest.mark.parametrize("n_kills", [1, 5])
def test_run_killed_ends_like_an_uninterrupted_one(n_kills, scene_path, tmp_path):
    """In turn while the next checkpoint is written, and right behind that."""
    begin = ["--steps", "24", *options(checkpoint_seconds=0, occupancy_time_share=1)]

    def command(out, at, moment):
        more = ["--resume"] if (out / "checkpoint.safetensors").exists() else begin
        arguments = ["nerf", str(scene_path), "--out", str(out), *ON_CPU, *more]
        done = subprocess.run([sys.executable, "-c", KILLED, str(at), moment, *arguments], capture_output=True)
        return done.returncode

    killed, steps = tmp_path / "killed", []
    for i in range(n_kills):
        assert command(killed, 2, ("within", "behind")[i % 2]) == -signal.SIGKILL
        steps.append(load_checkpoint(killed / "checkpoint.safetensors")[1]["progress"]["step"])
    # two checkpoints further each time, or one where the second was never put in its place
    assert steps == [2, 6, 8, 12, 14][:n_kills]
    assert command(killed, 0, "never") == 0
    assert main(["nerf", str(scene_path), "--out", str(tmp_path / "whole"), *ON_CPU, *begin]) == 0
    ends = [load_checkpoint(tmp_path / run / "checkpoint.safetensors") for run in ("killed", "whole")]
    assert ends[0][1]["progress"]["step"] == ends[1][1]["progress"]["step"] == 24
    for name, value in ends[1][0].items():
        if name == "state.seconds":  # of occupancy updates: a clock's
            continue
        torch.testing.assert_close(ends[0][0][name], value, rtol=0, atol=0, msg=name)
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
        (
            ["nerf", "--field", "nonsense"],
            f"`--field` must be one of {', '.join(RADIANCE_FIELDS)}, got 'nonsense'",
        ),
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


def test_checkpoint_of_another_task_is_refused(tmp_path, capsys):
    """That of a photo, and a file that is none at all."""
    path = tmp_path / "image.safetensors"
    config = ImageConfig(steps=1).replace(log2_hashmap_size=8, n_levels=2)
    Trainer(Image(config, generated_picture(4, 4))).save(path)
    assert main(["nerf", "--eval", str(path), "--out", str(tmp_path / "out"), *ON_CPU]) == 1
    error = "image.safetensors` must be a checkpoint of `hashgrid nerf`, got one of 'image'"
    assert error in capsys.readouterr().err and not (tmp_path / "out").exists()
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="image.safetensors"):
        load_checkpoint(path)
