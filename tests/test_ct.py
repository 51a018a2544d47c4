"""Tomography: beams, the phantom, scans from files, and `hashgrid ct` from end to end."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hashgrid.cli import main
from hashgrid.data.phantom import Phantom
from hashgrid.data.projections import Projections, load_projections, scan_phantom
from hashgrid.geometry.beams import Beams
from hashgrid.tasks.ct import Ct, CtConfig
from hashgrid.train.loop import Trainer
from hashgrid.train.task import Progress, Report

SMALL = {"device": "cpu", "log2_hashmap_size": 12, "n_levels": 3, "batch": 4096, "samples_per_ray": 32}


# ---- phantom and beams ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_dims", [2, 3])
def test_integrals_of_the_phantom_are_those_of_fine_quadrature(n_dims: int) -> None:
    generator = torch.Generator().manual_seed(0)
    middles = 0.3 + 0.4 * torch.rand(30, 3, generator=generator, dtype=torch.float64)
    directions = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    directions[:, 2] *= n_dims == 3
    directions = torch.nn.functional.normalize(directions, dim=-1)
    phantom, n = Phantom(n_dims=n_dims), 1000
    t = 2 * (torch.arange(n, dtype=torch.float64) + 0.5) / n - 1
    points = middles[:, None] + t[:, None] * directions[:, None]
    expected = phantom.values(points[..., :n_dims]).sum(1) * 2 / n
    actual = phantom.line_integrals(middles - 3 * directions, directions)
    torch.testing.assert_close(actual, expected, rtol=0, atol=20 * 2 / n)  # up to 20 surfaces, a step off each
    assert float(actual.max()) > 0.1


@pytest.mark.parametrize("n_dims", [2, 3])
def test_voxels_are_means_of_the_phantom(n_dims: int) -> None:
    phantom = Phantom(n_dims=n_dims)
    axis = (torch.arange(12) + 0.5) / 12
    points = torch.stack(torch.meshgrid(*[axis] * n_dims, indexing="ij")[::-1], dim=-1)
    assert torch.equal(phantom.volume(12, 1), phantom.values(points))
    coarse, fine = phantom.volume(6, 2), phantom.values(points)
    pooled = torch.nn.functional.avg_pool3d(fine.view(1, -1, 12, 12), (2 if n_dims == 3 else 1, 2, 2))[0]
    torch.testing.assert_close(coarse.view_as(pooled), pooled)


@pytest.mark.parametrize("beam", ["parallel", "cone"])
def test_a_ball_is_seen_where_it_is(beam: str) -> None:
    """By hand: at 30 degrees a ball at (x, y, z) throws its shadow on x cos + y sin, magnified by a cone."""
    x, y, z, radius = 0.3, -0.2, 0.25, 0.1
    ball = Phantom(((2.0, radius, radius, radius, x, y, z, 0.0),))
    beams = Beams(beam=beam, angles=(0.0, 30.0), volume=2.0, pixel=(0.02, 0.01), offset=(0.05, -0.1))  # type: ignore[arg-type]
    beams = beams.replace(source=4.0, detector=2.0)
    n_rows, n_columns = 150, 401
    rays = beams.rays(torch.arange(2 * n_rows * n_columns), n_rows, n_columns)
    integrals = 2.0 * ball.line_integrals(rays.origins, rays.directions).view(2, n_rows, n_columns)[1]
    assert float(integrals.max()) == pytest.approx(2 * 2 * radius, rel=0.01)
    cos, sin = math.cos(math.pi / 6), math.sin(math.pi / 6)
    scale = 6 / (4 - x * sin + y * cos) if beam == "cone" else 1.0
    mass = integrals.sum()
    column = float((integrals.sum(0) * (torch.arange(n_columns) - 200)).sum() / mass) * 0.01 - 0.1
    row = float((integrals.sum(1) * (torch.arange(n_rows) - 74.5)).sum() / mass) * 0.02 + 0.05
    assert (column, row) == pytest.approx((scale * (x * cos + y * sin), scale * z), abs=0.01)


@pytest.mark.parametrize(("beam", "n_dims"), [("parallel", 3), ("cone", 3), ("cone", 2)])
def test_projections_of_the_true_field_are_the_scan(beam: str, n_dims: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beams, samples and their sums together, with the phantom in place of a field."""
    scan = scan_phantom(3, 8, n_dims, beam)
    task = Ct(CtConfig().replace(device="cpu", samples_per_ray=300), scan)
    phantom = Phantom(n_dims=n_dims)

    def exact(x: Tensor) -> Tensor:
        return 2.0 * phantom.values(x)[..., None] / task.unit

    monkeypatch.setattr(task, "attenuation", exact)
    assert task.residual() < 0.02
    assert task.residual() > 1e-5
    torch.testing.assert_close(task.volume(), scan.truth, rtol=0, atol=0.35)  # means of other points


# ---- reconstruction --------------------------------------------------------------------------------------------------


def test_filtered_back_projection_of_many_views_is_the_phantom() -> None:
    """Turned, mirrored or shifted by a voxel it is not."""
    pytest.importorskip("skimage")
    from hashgrid.data.backprojection import filtered_back_projection

    for n in (24, 25):
        scan = scan_phantom(60, n, 2)
        assert scan.truth is not None
        image = filtered_back_projection(scan, n)
        error = (image - scan.truth).square().mean()
        for other in (image.flip(0), image.roll(1, 0), image.roll(1, 1), image.roll(-1, 0), image.roll(-1, 1)):
            assert (other - scan.truth).square().mean() > 1.5 * error
    values = torch.nn.functional.interpolate(scan.values, scale_factor=(1.0,), mode="linear")
    finer = Projections(values, scan.beams.replace(offset=(0.0, scan.beams.pixel[1])), 2)
    moved = filtered_back_projection(finer, n)  # every shadow one pixel further: no volume has such, but it is not ours
    assert (moved - scan.truth).square().mean() > 2 * error
    with pytest.raises(ValueError, match="of parallel beams, got a cone"):
        filtered_back_projection(scan_phantom(2, 8, 2, "cone"), 8)


def test_field_beats_filtered_back_projection(tmp_path: Path) -> None:
    """Of a disk with a hole, whose border is longer than a voxel of so few."""
    pytest.importorskip("skimage")
    rows = ((1.0, 0.7, 0.6, 0.6, 0.0, 0.1, 0.0, 0.0), (-0.6, 0.2, 0.3, 0.3, 0.2, 0.1, 0.0, 20.0))
    sizes = SMALL | {"steps": 180, "samples_per_ray": 48, "max_resolution": 32}
    task = Ct(CtConfig().replace(**sizes), scan_phantom(12, 32, 2, rows=rows))
    trainer = Trainer(task)
    trainer.train()
    figures = task.evaluate(Report(tmp_path, trainer.progress))
    assert figures["psnr"] > figures["fbp"]["psnr"] + 1
    volume = np.load(tmp_path / "volume.npy")
    assert volume.shape == (32, 32) and volume.min() >= 0 and (tmp_path / "slices.png").is_file()


def test_backends_agree() -> None:
    losses = []
    for backend in ("native", "reference"):
        task = Ct(CtConfig().replace(**SMALL, backend=backend), scan_phantom(3, 8))
        loss = task.loss(Progress()).loss
        losses.append([loss, *torch.autograd.grad(loss, list(task.model.parameters()))])
    for a, b in zip(*losses, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# ---- files and the command -------------------------------------------------------------------------------------------


def write_scan(folder: Path, **changes: object) -> Path:
    """A scan of two views with its geometry and its truth."""
    scan = scan_phantom(4, 8, 3, "cone")
    assert scan.truth is not None
    np.savez(folder / "scan.npz", projections=scan.values.numpy())
    np.save(folder / "truth.npy", scan.truth.numpy())
    (folder / "scan.json").write_text(json.dumps(scan.beams.to_dict() | changes))
    return folder / "scan.npz"


def test_command_on_files_of_ones_own_and_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("skimage", "imageio", "tyro"):
        pytest.importorskip(package)
    source, out = write_scan(tmp_path), tmp_path / "out"
    options = ["--device", "cpu", "--batch", "2048", "--log2-hashmap-size", "8", "--n-levels", "2"]
    words = ["ct", str(source), "--out", str(out), "--truth", str(tmp_path / "truth.npy"), *options]
    assert main([*words, "--steps", "3"]) == 0
    assert {path.name for path in out.iterdir()} == {
        *("results.json", "config.json", "checkpoint.safetensors", "report.html", "volume.npy", "slices.png")
    }
    results = json.loads((out / "results.json").read_text())
    assert results["psnr"] > 3 and "fbp" not in results and results["resolution"] == 8
    assert "4 projections of 15x15 pixels, cone beams, residual" in capsys.readouterr().out
    assert main(["ct", "--resume", "--out", str(out), "--steps", "6"]) == 0
    assert json.loads((out / "results.json").read_text())["train"]["steps"] == 6
    whole = tmp_path / "whole"
    assert main([*words[:2], "--out", str(whole), *words[4:], "--steps", "6"]) == 0
    assert np.array_equal(np.load(whole / "volume.npy"), np.load(out / "volume.npy")) is False  # another schedule
    assert main(["ct", "--eval", str(out / "checkpoint.safetensors"), "--resolution", "5"]) == 0
    assert np.load(out / "volume.npy").shape == (5, 5, 5)


def test_scans_in_two_dimensions_and_in_npy(tmp_path: Path) -> None:
    scan = scan_phantom(4, 8, 2)
    np.save(tmp_path / "a.npy", scan.values[:, 0].double().numpy())
    (tmp_path / "b.json").write_text(json.dumps(scan.beams.to_dict()))
    read = load_projections(tmp_path / "a.npy", tmp_path / "b.json")
    assert read.n_dims == 2 and torch.equal(read.values, scan.values) and read.beams == scan.beams
    assert read.side == 8  # without a truth: pixels are as large as voxels
    assert load_projections(write_scan(tmp_path)).side == 8  # at the axis of a cone


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"angles": [0, 1]}, r"`angles` must be one per projection of .*scan.npz`, 4, got 2"),
        ({"angles": []}, r"scan.json`: `angles` must hold one angle per projection, in degrees, got none"),
        ({"angles": [0, 1, 2, float("nan")]}, "must hold finite numbers only"),
        ({"pixel": [1, -1]}, r"`pixel` must be positive, height and width of a detector pixel, got \(1, -1\)"),
        ({"pixel": 3}, "`pixel` must be tuple"),
        ({"volume": 0}, "`volume` must be positive"),
        ({"source": 1}, "`source` must be outside the volume as it turns, more than 1.414 from the axis, got 1"),
        ({"detector": -4}, "`detector` must be in front of the source"),
        ({"offset": [0, 1000]}, "no ray of the geometry meets the volume of side 2"),
        ({"beam": "fan"}, "`beam` must be one of"),
        ({"anglse": [0]}, "there is no option `anglse`"),
    ],
)
def test_geometry_errors_are_one_line(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_projections(write_scan(tmp_path, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((4, 15, 15)), "must see something, got zeros in all"),
        (np.full((4, 15, 15), np.nan), "must hold finite numbers, got 900 that are NaN"),
        (np.zeros((4, 0, 15)), r"must have shape \[angles, columns\] or .*, none of them 0, got \[4, 0, 15\]"),
        (np.zeros(4), r"got \[4\]"),
        (np.zeros((4, 15, 15), complex), "must hold real numbers, got complex128"),
        (np.array([{}]), "must be a NumPy file"),
    ],
)
def test_errors_of_scans_are_one_line(values: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(write_scan(tmp_path).with_suffix(".npy"), values)
    with pytest.raises(ValueError, match=message) as error:
        load_projections(tmp_path / "scan.npy")
    assert "\n" not in str(error.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = write_scan(tmp_path)
    for broken in (b"", b"no numbers", path.read_bytes()[:-40]):
        (tmp_path / "broken.npz").write_bytes(broken)
        with pytest.raises(ValueError, match="broken.npz` must be a NumPy file"):
            load_projections(tmp_path / "broken.npz", tmp_path / "scan.json")
    np.savez(tmp_path / "two.npz", a=np.ones(3), b=np.ones(3))
    with pytest.raises(ValueError, match="must have an array `projections`, got a, b"):
        load_projections(tmp_path / "two.npz", tmp_path / "scan.json")
    with pytest.raises(ValueError, match="none.npy` does not exist"):
        load_projections(tmp_path / "none.npy")
    with pytest.raises(ValueError, match=r"no geometry at .*two.json`"):
        load_projections((path).rename(tmp_path / "two.npz"))
    (tmp_path / "two.json").write_text("[1]")
    with pytest.raises(ValueError, match="must hold an object, got list"):
        load_projections(tmp_path / "two.npz")
    np.save(tmp_path / "truth.npy", np.ones((3, 4, 3)))
    with pytest.raises(ValueError, match=r"truth.npy` must be a cube, got shape \[3, 4, 3\]"):
        load_projections(tmp_path / "two.npz", tmp_path / "scan.json", tmp_path / "truth.npy")
