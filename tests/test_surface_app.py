"""Surfaces from photos, end to end: a ball of a known place and colour, and the command."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems.ball import CENTRE, RADIUS, UNIT, ball_scene, inside_a_ball, shade
from problems.nerf import OPTIONS, TINY

from hashgrid.cli import main
from hashgrid.data.errors import SceneError
from hashgrid.data.mesh_colors import read_colors
from hashgrid.data.mesh_files import write_mesh
from hashgrid.data.procedural import signed_distance
from hashgrid.rendering.mesh_facts import vertex_normals
from hashgrid.tasks.surface import Surface, mesh_of_formulas
from hashgrid.train.loop import Trainer
from hashgrid.train.task import Progress, Report
from hashgrid.viewer import subject_of

for package in ("imageio.v3", "matplotlib", "igl", "skimage", "tyro"):
    pytest.importorskip(package)


def small(**changes: Any) -> dict[str, Any]:
    sizes = {**TINY, "log2_hashmap_size": 12, "n_levels": 6, "max_resolution": 64, "n_neurons": 32}
    sizes |= {"target_samples": 2048, "steps_per_diagonal": 128, "eikonal_points": 256, "video": False, **changes}
    return {key: value for key, value in sizes.items() if Surface.Config().knows(key)}


@pytest.mark.full
def test_a_ball_from_photos(tmp_path: Path) -> None:
    """Its place to a pixel, and its colours, in the unit of the photos. What it begins as is off by two pixels, and a
    mesh in other coordinates than those of the photos by a hundred."""
    scene = ball_scene()
    task = Surface(Surface.Config().replace(**small(steps=140, resolution=64)), scene)
    pixel = float((scene.train.origins - CENTRE).norm(dim=1).mean() / scene.train.intrinsics[0, 0])
    assert 0.3 * 3 * UNIT - RADIUS > 2 * pixel  # of the start
    Trainer(task).train()
    figures = task.evaluate(Report(tmp_path, Progress(140)))
    assert "chamfer" not in figures and figures["extract"]["watertight"] and figures["extract"]["components"] == 1
    vertices, faces = read_ply(Path(figures["mesh"]))
    offsets = torch.from_numpy(vertices) - CENTRE
    radii = offsets.norm(dim=1)
    assert float((radii - RADIUS).abs().mean()) < pixel
    normals = torch.from_numpy(vertex_normals(vertices, faces))
    assert float(((normals * offsets).sum(1) / radii).mean()) > 0.9  # outwards
    known = read_colors(Path(figures["mesh"]))
    assert known is not None
    error = torch.from_numpy(known(vertices)) - shade((offsets / radii[:, None]).float())
    assert "normals" in subject_of(task).modes  # what a page shows of it
    assert float(error.abs().mean()) < 0.05 < float((shade(normals.float()) - 0.5).abs().mean())


@pytest.mark.full
def test_a_ball_in_a_room(tmp_path: Path) -> None:
    """Of opaque pictures: ball and room are seen with a field around the box. Colours of directions alone do not move
    with the camera."""
    scene = inside_a_ball(ball_scene())
    scores = {}
    for kind in ("field", "network"):
        config = Surface.Config().replace(**small(steps=200, resolution=32, background_model=kind))
        task = Surface(config, scene)
        Trainer(task).train()
        scores[kind] = task.evaluate(Report(tmp_path / kind, Progress(200)))["test"]["psnr_mean"]
    assert scores["field"] > scores["network"] + 6


def read_ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """By another reader than the one that wrote it."""
    mesh = pytest.importorskip("trimesh").load(path, process=False)
    return np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)


def test_the_command(scene_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains, writes, is evaluated again, goes on, and is exported; the truth is a file, or known of the scene."""
    monkeypatch.setattr("hashgrid.tasks.surface.FORMULAS_CELLS", 48)
    monkeypatch.setattr("hashgrid.rendering.surface_scores.N_POINTS", 500)
    truth, out = mesh_of_formulas(), tmp_path / "run"
    assert float(signed_distance(torch.from_numpy(truth.vertices).float()).abs().mean()) < 2e-3
    write_mesh(tmp_path / "truth.ply", truth.vertices, truth.faces)
    options = [*OPTIONS, "--no-video", "--resolution", "24", "--views", "1", "--target-samples", "1024"]
    options = [x for x in options if x not in ("--compute-dtype", "float32")]
    words = ["surface", str(scene_path), *options, "--steps", "3", "--truth", str(tmp_path / "truth.ply")]
    assert main([*words, "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["task"] == "surface" and results["train"]["steps"] == 3 and (out / "report.html").is_file()
    assert results["chamfer"] > 0 and results["test"]["psnr_mean"] > 5 and results["sharpness"] > 1
    vertices, faces = read_ply(out / "mesh.ply")
    assert len(faces) == results["extract"]["faces"] > 100
    assert main(["surface", "--eval", str(out / "checkpoint.safetensors"), "--out", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["chamfer"] == results["chamfer"] and again["test"]["psnr_mean"] == results["test"]["psnr_mean"]
    assert main(["export", str(out), str(tmp_path / "mesh.obj"), "--resolution", "24"]) == 0
    facts = json.loads((tmp_path / "export.json").read_text())["mesh.obj"]
    assert facts["kind"] == "distance" and facts["faces"] == len(faces) and facts["colors"] == "vertices"
    assert main(["surface", "--resume", "--steps", "5", "--out", str(out)]) == 0
    assert json.loads((out / "results.json").read_text())["train"]["steps"] == 5
    name = "procedural:train=4,test=1,resolution=16"
    assert main(["surface", name, *options, "--steps", "1", "--out", str(tmp_path / "formulas")]) == 0
    assert json.loads((tmp_path / "formulas" / "results.json").read_text())["f_distance"] == pytest.approx(
        0.0264, rel=0.02
    )


def test_errors_of_surfaces(scene_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, message in (
        (["--field", "ngp"], "`--field` must be one of neus, neus_mlp, volsdf, idr, got 'ngp'"),
        (["--truth", str(tmp_path / "none.ply")], "must be a file, `.*none.ply` does not exist"),
        (["--resolution", "1"], "`resolution` must be at least 2, got 1"),
        (["--levels-share", "2"], "`levels_share` must be in 0..1, got 2"),
        (["--start-sharpness", "0"], "`start_sharpness` must be positive, got 0"),
    ):
        assert main(["surface", str(scene_path), *option, "--steps", "1", "--out", str(tmp_path / "out")]) == 1
        assert re.search(message, capsys.readouterr().err)


def test_photos_of_nothing_are_refused() -> None:
    """Masks that leave nothing: there would be a surface of what nobody saw."""
    scene = ball_scene(4, 16)
    train = replace(scene.train, data=torch.zeros_like(scene.train.data))
    with pytest.raises(SceneError, match="all 4 are transparent everywhere; are their masks inverted"):
        Surface(Surface.Config().replace(**small()), replace(scene, train=train))
