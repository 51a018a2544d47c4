"""`hashgrid image` from end to end: the photo it fits, what ends a run, what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hashgrid.cli import main
from hashgrid.data.images import load_photo
from hashgrid.fields.coordinate import CoordinateField
from hashgrid.tasks.image import Image, ImageConfig
from hashgrid.train.loop import Trainer
from hashgrid.train.run import Options
from hashgrid.train.run import run as run_task
from hashgrid.util.metrics import psnr

imageio = pytest.importorskip("imageio.v3")

SMALL = {"device": "cpu", "batch": 4096, "log2_hashmap_size": 14, "n_levels": 8}


def picture() -> Tensor:
    """Blended patches of colour, four pixels each [40, 60, 3]: a fine grid fits them, a network alone does not."""
    patches = torch.rand(1, 3, 10, 15, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(patches, (40, 60), mode="bilinear")[0].permute(1, 2, 0)
    return image.mul(255).round().div(255)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    imageio.imwrite(path, (picture() * 255).round().byte().numpy())
    return path


def run(photo: Path, out: Path, changes: dict) -> int:
    return run_task(Image, Options(photo, out), ImageConfig().replace(**changes))


def results_of(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def test_picture_is_fitted(photo: Path, tmp_path: Path) -> None:
    """Without the gradient of the finer half of the table it is 31.9 dB, of all of it 7.7, of the network 5.5."""
    assert run(photo, tmp_path / "out", SMALL | {"steps": 160}) == 0
    results = results_of(tmp_path / "out")
    assert results["psnr"] == pytest.approx(35.14, abs=0.3)
    written = torch.from_numpy(imageio.imread(tmp_path / "out" / "reconstruction.png")).float() / 255
    assert math.isclose(float(psnr(written, picture())), results["psnr"], abs_tol=0.1)  # rounded to 8 bits


def test_command_writes_everything(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["image", str(photo), "--out", str(out), "--steps", "3", "--device", "cpu"]) == 0
    assert {path.name for path in out.iterdir()} == {
        *("results.json", "config.json", "checkpoint.safetensors", "report.html"),
        *("reconstruction.png", "error.png", "detail.png"),
    }
    results = results_of(out)
    assert results["train"]["steps"] == 3 and results["train"]["samples"] == 3 * results["config"]["batch"]
    assert (results["width"], results["height"]) == (
        60,
        40,
    ) and "photo.png: 60x40, 3 channels of 8 bits, PSNR" in capsys.readouterr().out


def test_time_limit_ends_a_run(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that the steps themselves turn."""
    steps, step = [0], Trainer.step

    def count(self: Trainer) -> None:
        steps[0] += 1
        step(self)

    monkeypatch.setattr(Trainer, "step", count)
    monkeypatch.setattr("hashgrid.train.ranks.now", lambda: float(steps[0]))
    monkeypatch.setattr("hashgrid.train.run.time.perf_counter", lambda: float(steps[0]))
    assert run(photo, tmp_path / "out", SMALL | {"time_limit": 7.0}) == 0
    assert results_of(tmp_path / "out")["train"]["steps"] == 7
    assert run(photo, tmp_path / "out", SMALL | {"time_limit": 1e6, "steps": 3}) == 0  # whichever comes first
    assert results_of(tmp_path / "out")["train"]["steps"] == 3


def test_loss_that_is_not_finite_is_one_line_and_writes_nothing(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = CoordinateField.forward
    calls = iter(range(100))

    def broken(self: CoordinateField, x: Tensor, weights: Tensor | None = None) -> Tensor:
        return forward(self, x) * (math.nan if next(calls) == 2 else 1.0)

    monkeypatch.setattr(CoordinateField, "forward", broken)
    assert main(["image", str(photo), "--out", str(tmp_path / "out"), "--steps", "5", "--device", "cpu"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]  # behind the progress bar
    assert error == "hashgrid: error: the loss is nan at step 2; lower the learning rate (0.01) or check the data"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json"}


def test_interrupted_run_writes_what_there_is(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = CoordinateField.forward
    calls = iter(range(100))

    def interrupt(self: CoordinateField, x: Tensor, weights: Tensor | None = None) -> Tensor:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return forward(self, x)

    monkeypatch.setattr(CoordinateField, "forward", interrupt)
    assert run(photo, tmp_path / "out", SMALL | {"steps": 50}) == 130
    results = results_of(tmp_path / "out")
    assert results["train"]["steps"] == 4 and (tmp_path / "out" / "reconstruction.png").is_file()


@pytest.mark.parametrize("channels", [0, 1, 2, 3, 4], ids=lambda n: f"{n} channels")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_photos_of_8_and_16_bits_are_read(channels: int, dtype: type, tmp_path: Path) -> None:
    """Grey, with transparency, in colour; what is transparent is white."""
    if dtype == np.uint16 and channels > 1:
        pytest.importorskip("tifffile")
    largest = np.iinfo(dtype).max
    shape = (5, 7, channels) if channels else (5, 7)
    values = np.random.default_rng(0).integers(0, largest + 1, shape).astype(dtype)
    path = tmp_path / ("photo.tif" if dtype == np.uint16 and channels > 1 else "photo.png")
    if path.suffix == ".tif" and channels == 2:  # imageio would write a page for each row
        options = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unassalpha"]}
        pytest.importorskip("tifffile").imwrite(path, values, **options)
    else:
        imageio.imwrite(path, values[..., 0] if channels == 1 else values)
    exact = values.reshape(5, 7, -1).astype(np.float64) / largest
    if channels in (2, 4):
        exact = exact[..., :-1] * exact[..., -1:] + 1 - exact[..., -1:]
    image = load_photo(path)
    assert image.shape == (5, 7, 3) and image.dtype == torch.float32
    torch.testing.assert_close(
        image.double(), torch.from_numpy(np.broadcast_to(exact, (5, 7, 3)).copy()), rtol=0, atol=1e-6
    )


def test_other_files_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("tifffile")
    imageio.imwrite(tmp_path / "float.tif", np.zeros((4, 5, 3), np.float32))
    with pytest.raises(ValueError, match=r"`PHOTO`: .*float.tif` must have 8 or 16 bits per channel, got float32"):
        load_photo(tmp_path / "float.tif")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"`PHOTO`: .*text.png` cannot be read"):
        load_photo(tmp_path / "text.png")
    with pytest.raises(ValueError, match=r"none.png` does not exist"):
        load_photo(tmp_path / "none.png")


def test_backends_fit_alike(photo: Path, tmp_path: Path) -> None:
    for backend in ("native", "reference"):
        assert run(photo, tmp_path / backend, SMALL | {"steps": 12, "backend": backend}) == 0
    native, reference = (results_of(tmp_path / backend)["psnr"] for backend in ("native", "reference"))
    assert math.isclose(native, reference, abs_tol=0.05)
