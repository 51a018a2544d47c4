"""`hashgrid sdf` from end to end: what it writes, what it refuses, what survives."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from hashgrid.cli import main
from hashgrid.data.distances import CHUNK, make_chunk
from hashgrid.data.generated import torus_knot
from hashgrid.data.mesh import euler_characteristic, is_watertight, make_mesh, signed_volume
from hashgrid.data.mesh_files import write_ply
from hashgrid.data.shape import Shape
from hashgrid.geometry.boxes import Placement
from hashgrid.rendering.measure import iou
from hashgrid.tasks.sdf import Sdf, SdfConfig, load_field
from hashgrid.train.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from hashgrid.train.loop import Trainer

trimesh = pytest.importorskip("trimesh")
for name in ("igl", "skimage", "imageio.v3", "PIL", "safetensors"):
    pytest.importorskip(name)

TINY = {
    "device": "cpu",
    "log2_hashmap_size": 12,
    "max_resolution": 64,
    "pool": 32768,
    "batch": 4096,
    "resolution": 40,
    "image_size": 32,
    "video_size": 32,
}
SETTINGS = [part for key, value in TINY.items() for part in (f"--{key.replace('_', '-')}", str(value))]
ON_CPU = ["--device", "cpu", "--no-video"]  # `--eval` chooses a device anew
KEYS = {
    "iou", "chamfer", "normal_consistency", "eikonal_error", "watertight", "euler", "euler_input", "components", "mesh",
    "train",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def fewer_points() -> Iterator[None]:
    """Overlaps from 2^17 points instead of 2^20, which are half of a small run's time: they move by 0.001."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hashgrid.rendering.measure.iou", partial(iou, n=1 << 17))
        yield


@pytest.fixture(scope="module")
def ball(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mesh") / "ball.ply"
    sphere = trimesh.creation.icosphere(subdivisions=3, radius=2.0)
    write_ply(path, np.asarray(sphere.vertices) + 5, np.asarray(sphere.faces))
    return path


@pytest.fixture(scope="module")
def fitted(ball, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    assert main(["sdf", str(ball), "--out", str(out), "--steps", "300", "--n-frames", "2", *SETTINGS]) == 0
    return out


def test_command_writes_everything(fitted, ball) -> None:
    names = {"checkpoint.safetensors", "mesh.ply", "slice.png", "render.png", "normals.png", "error.png", "strip.png"}
    assert {path.name for path in fitted.iterdir()} == names | {
        "turntable.mp4",
        "results.json",
        "config.json",
        "report.html",
    }
    results = json.loads((fitted / "results.json").read_text())
    assert KEYS <= set(results) and results["mesh"] == str(fitted / "mesh.ply")
    assert results["iou"] > 0.95 and results["watertight"] and results["euler_input"] == 2
    assert results["components"] >= 1 and results["train"]["steps"] == 300 and results["train"]["samples"] == 300 * 4096
    mesh = trimesh.load(fitted / "mesh.ply", process=False)
    assert np.abs(np.linalg.norm(mesh.vertices - 5, axis=-1) - 2).mean() < 0.05  # in the coordinates of the input


def test_stored_field_is_evaluated_again(fitted, ball, tmp_path) -> None:
    before = json.loads((fitted / "results.json").read_text())
    checkpoint = fitted / "checkpoint.safetensors"
    assert main(["sdf", "--eval", str(checkpoint), "--out", str(tmp_path), *ON_CPU]) == 0
    after = json.loads((tmp_path / "results.json").read_text())
    assert after["train"].pop("peak_memory_bytes") is None and before["train"].pop("peak_memory_bytes") > 0
    for key in KEYS - {"mesh"}:
        assert after[key] == before[key], key
    assert (tmp_path / "mesh.ply").read_bytes() == (fitted / "mesh.ply").read_bytes()
    moved = tmp_path / "moved.safetensors"
    tensors, metadata = load_checkpoint(checkpoint)
    metadata["notes"]["input"] = "/nowhere.ply"
    save_checkpoint(moved, tensors, metadata)
    assert main(["sdf", "--eval", str(moved), *ON_CPU, "--resolution", "24"]) == 0  # beside the checkpoint
    alone = json.loads((tmp_path / "results.json").read_text())
    assert alone["iou"] is None and alone["chamfer"] is None and alone["watertight"] and alone["components"] >= 1
    assert main(["sdf", "--eval", str(moved), *ON_CPU, "--truth", str(ball)]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["iou"] == before["iou"]


def test_points_are_compared_with_a_truth_or_with_themselves(ball, tmp_path) -> None:
    mesh = trimesh.load(ball)
    points, face = trimesh.sample.sample_surface(mesh, 3000, seed=0)
    np.savez(tmp_path / "cloud.npz", points=points, normals=mesh.face_normals[face])
    arguments = ["sdf", "--points", str(tmp_path / "cloud.npz"), "--steps", "130", "--no-video", *SETTINGS]
    for setting in ("point-batch=512", "uniform-batch=512", "near-pool=16384", "uniform-pool=16384"):
        arguments += [f"--{setting}"]
    assert main([*arguments, "--out", str(tmp_path / "a"), "--truth", str(ball)]) == 0
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    # with AVX-512 as with SSE2; half a per cent of the radius beside the surface
    assert results["iou"] == pytest.approx(0.970, abs=0.005)
    assert results["chamfer"] == pytest.approx(0.0046, abs=0.0008)
    assert results["points_to_surface"]["mean"] == pytest.approx(0.0045, abs=0.0008)
    assert main(["sdf", "--eval", str(tmp_path / "a" / "checkpoint.safetensors"), *ON_CPU]) == 0  # remembers the truth
    again = json.loads((tmp_path / "a" / "results.json").read_text())
    assert again["iou"] == results["iou"] and again["chamfer"] == results["chamfer"]
    assert main([*arguments, "--out", str(tmp_path / "b")]) == 0
    results = json.loads((tmp_path / "b" / "results.json").read_text())
    assert KEYS <= set(results) and results["iou"] is None and results["points_to_surface"]["mean"] < 0.0055
    assert (tmp_path / "b" / "error.png").exists()


def test_generated_shape_is_fitted_without_any_file(tmp_path, monkeypatch, capsys) -> None:
    vertices, faces = torus_knot()
    assert is_watertight(faces) and euler_characteristic(faces) == 0 and signed_volume(vertices, faces) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_mesh(vertices, faces)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hashgrid.data.shape.torus_knot", lambda: torus_knot(n_along=128, n_around=12))
    assert main(["sdf", "--steps", "60", "--no-video", *SETTINGS]) == 0
    assert (tmp_path / "outputs" / "sdf" / "torus_knot" / "results.json").exists()
    assert "generated shape" in capsys.readouterr().out


@pytest.mark.full
def test_interrupted_run_writes_what_there_is(ball, tmp_path, monkeypatch) -> None:
    step = Trainer.step

    def interrupt(self) -> None:
        if self.progress.step == 60:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(Trainer, "step", interrupt)
    assert main(["sdf", str(ball), "--out", str(tmp_path), "--steps", "100", *SETTINGS]) == 130
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["train"]["interrupted"] and results["train"]["steps"] == 60
    assert (tmp_path / "checkpoint.safetensors").exists() and not (tmp_path / "turntable.mp4").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--margin", "0.7"], "`margin` must be in [0, 0.5), got 0.7"),
        (["--video-size", "33"], "`video_size` must be even, got 33"),
        (["--resolution", "0"], "`resolution` must be at least 1, got 0"),
        (["--steps", "-1"], "`steps` must be at least 0, got -1"),
        (["--device", "tpu"], "`device` must be"),
        (["--points", "cloud.ply"], "exclude each other"),
        (["--eval", "none.safetensors"], "no checkpoint at `none.safetensors`"),
        (["--truth", "none.ply"], "`none.ply` does not exist"),
    ],
)
def test_wrong_options_are_one_line_before_training(arguments, message, ball, tmp_path, capsys) -> None:
    assert main(["sdf", str(ball), "--out", str(tmp_path / "out"), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("hashgrid: error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "many"], "many"),
        (["--batch", "0.5"], "0.5"),
        (["--interpolation", "cubic"], "cubic"),
        (["--loss", "mse"], "mse"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_options_of_the_wrong_kind_are_named(arguments, message, ball, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["sdf", str(ball), "--out", str(tmp_path / "out"), *arguments])
    assert exit_.value.code == 2 and message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_folder_that_cannot_be_written_is_named(ball, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert main(["sdf", str(ball), "--out", str(tmp_path / "file"), *SETTINGS]) == 1
    error = capsys.readouterr().err
    assert error.startswith("hashgrid: error: ") and "file" in error and error.count("\n") == 1


def test_warning_is_one_line(ball, tmp_path, capsys) -> None:
    mesh = trimesh.load(ball, process=False)
    write_ply(tmp_path / "open.ply", np.asarray(mesh.vertices), np.asarray(mesh.faces)[5:])
    assert main(["sdf", str(tmp_path / "open.ply"), "--margin", "1"]) == 1  # stops before the mesh
    assert main(["sdf", str(tmp_path / "open.ply"), "--out", str(tmp_path / "out"), "--truth", "none.ply"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].startswith("hashgrid: warning: `open.ply` is not watertight") and len(lines) == 3


# ---- stored fields ---------------------------------------------------------------------------------------------------


def test_averaged_field_survives_the_file_bit_for_bit(tmp_path) -> None:
    """In the place of its cube, to the last digit of coordinates far away."""
    mesh = make_mesh(*torus_knot(n_along=32, n_around=6))
    placement = Placement((1 / 3, -2.0, 1e9), 0.1 + 1e-17)
    config = SdfConfig().replace(log2_hashmap_size=10, n_levels=4, seed=5, pool=1024, batch=256, steps=3, device="cpu")
    task = Sdf(config, Shape(Path("knot.obj"), "knot.obj", placement, dataclasses.replace(mesh, placement=placement)))
    task.begin()
    trainer = Trainer(task)
    trainer.train()
    trainer.save(tmp_path / "checkpoint.safetensors")
    raw = [parameter.clone() for parameter in task.model.parameters()]
    trainer.take_averages()
    before = torch.random.get_rng_state()
    loaded, place = load_field(tmp_path / "checkpoint.safetensors")
    assert torch.equal(before, torch.random.get_rng_state())
    for ours, theirs, trained in zip(task.model.parameters(), loaded.parameters(), raw, strict=True):
        assert torch.equal(ours, theirs) and not torch.equal(ours, trained)
    assert place == placement


def test_run_limited_by_time_goes_on_with_the_samples_it_had(tmp_path) -> None:
    """Those that had been replaced, and then the next ones of the sequence."""
    mesh = make_mesh(*torus_knot(n_along=32, n_around=6))
    config = SdfConfig().replace(log2_hashmap_size=8, n_levels=2, batch=64, time_limit=1000.0, device="cpu")
    config = config.replace(pool=2 * CHUNK, refresh_share=1.0, seed=3)

    def begun() -> Trainer:
        task = Sdf(config, Shape.of(mesh))
        task.begin()
        return Trainer(task)

    def step_until(trainer: Trainer, n_chunks: int) -> None:
        deadline = time.monotonic() + 300  # the process that makes samples has the lowest priority
        while trainer.task.samples.n_chunks < n_chunks and time.monotonic() < deadline:
            trainer.step()
            time.sleep(0.02)

    killed = begun()
    step_until(killed, 3)
    killed.save(tmp_path / "checkpoint.safetensors")
    killed.task.close()
    resumed = begun()
    resumed.load(*load_checkpoint(tmp_path / "checkpoint.safetensors"))
    old, new = killed.task.samples, resumed.task.samples
    assert old.n_made == new.n_made == 3 * CHUNK and new.n_chunks == 3
    assert torch.equal(old.points, new.points) and torch.equal(old.distances, new.distances)
    step_until(resumed, 4)
    resumed.task.close()
    expected = make_chunk(mesh, config.distances, CHUNK, 3, seed=3)
    np.testing.assert_array_equal(new.points[CHUNK:], expected[0])
    np.testing.assert_array_equal(new.distances[CHUNK:], expected[1])


def test_foreign_checkpoint_is_refused(tmp_path) -> None:
    save_checkpoint(tmp_path / "nerf.safetensors", {}, {"task": "nerf"})
    with pytest.raises(CheckpointError, match="must be a checkpoint of `hashgrid sdf`, got one of 'nerf'"):
        load_field(tmp_path / "nerf.safetensors")
    with pytest.raises(ValueError, match="no checkpoint at"):
        load_field(tmp_path / "none.safetensors")


PLY_WRITER = """
import sys, numpy as np
from hashgrid.data.mesh_files import write_ply
step = 0
while step < 3000:
    step += 1
    write_ply(sys.argv[1], np.full((100000, 3), float(step)), np.full((50000, 3), step))
"""
CHECKPOINT_WRITER = """
import sys, torch
from hashgrid.train.checkpoint import save_checkpoint
step = 0
while step < 3000:
    step += 1
    save_checkpoint(sys.argv[1], {"a": torch.full((1 << 19,), float(step))}, {"step": step})
"""


def _whole_ply(path: Path) -> bool:
    content = path.read_bytes()
    vertices = np.frombuffer(content.partition(b"end_header\n")[2], "<f4", count=300000)
    mesh = trimesh.load(path, process=False)
    return bool((vertices == vertices[0]).all()) and bool((mesh.faces == int(vertices[0])).all())


def _whole_checkpoint(path: Path) -> bool:
    tensors, metadata = load_checkpoint(path)
    return bool((tensors["a"] == metadata["step"]).all())


@pytest.mark.full
@pytest.mark.parametrize(("script", "whole"), [(PLY_WRITER, _whole_ply), (CHECKPOINT_WRITER, _whole_checkpoint)])
def test_killed_writer_leaves_a_whole_file(script, whole, tmp_path) -> None:
    path = tmp_path / ("mesh.ply" if script is PLY_WRITER else "checkpoint.safetensors")
    process = subprocess.Popen([sys.executable, "-c", script, str(path)])
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(0.05)
    while process.poll() is None:  # in the middle of a write: while the next file is there, half or whole
        if (tmp_path / f".{path.name}.tmp" / path.name).exists():
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert process.returncode == -signal.SIGKILL and whole(path)
    assert len(os.listdir(tmp_path)) <= 2  # and what was begun; the next writer takes it away
