"""Pictures, tables and flights that a run leaves behind: every file can be read back and says what it should."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import replace

import pytest
import torch

iio = pytest.importorskip("imageio.v3")
pytest.importorskip("PIL")

from hashgrid.geometry.cameras import Cameras, look_at, orbit  # noqa: E402
from hashgrid.train.report import plot_psnr  # noqa: E402
from hashgrid.util import pictures  # noqa: E402
from hashgrid.util.files import atomic_write_csv, to_uint8  # noqa: E402

UP = torch.tensor([0.0, 0.0, 1.0])


def cameras_at(origins, size=(30, 20)) -> Cameras:
    """Cameras that look at one point."""
    target = torch.tensor([0.1, 0.2, 0.3])
    c2w = torch.stack([look_at(torch.tensor(origin) + target, target, UP) for origin in origins])
    intrinsics = torch.tensor([[40.0, 40.0, size[0] / 2, size[1] / 2]] * len(c2w))
    return Cameras(c2w, intrinsics, torch.tensor([size] * len(c2w)))


def test_comparison_shows_truth_render_and_error(tmp_path):
    truth = torch.full((40, 30, 3), 0.25)
    render = truth.clone()
    render[:20] += 0.5
    path = tmp_path / "strips" / "strip.png"
    pictures.write_comparison(path, [(truth, render), (truth, truth)], ["a 1.0 dB", "Größe \u2603"], error_scale=0.49)
    image = torch.from_numpy(iio.imread(path))
    row, column = pictures.HEADER + 10, 30 + pictures.GAP
    assert image.shape[0] == 2 * (40 + pictures.HEADER)
    assert image[row, 10].tolist() == [64] * 3
    assert image[row, column + 10].tolist() == [191] * 3
    brightest, darkest = (to_uint8(pictures.COLOR_MAP[i]).tolist() for i in (-1, 0))
    assert image[row, 2 * column + 10].tolist() == brightest
    assert image[row + 25, 2 * column + 10].tolist() == darkest
    assert image[row + 40 + pictures.HEADER, 2 * column + 10].tolist() == darkest
    scale = image[pictures.HEADER : pictures.HEADER + 40, 3 * column + 5]
    assert scale[0].tolist() == brightest and scale[-1].tolist() == darkest
    assert os.listdir(path.parent) == ["strip.png"]
    with pytest.raises(ValueError, match=r"`pairs\[0\]` must be two images .* \[40, 30, 3\] and \[20, 30, 3\]"):
        pictures.write_comparison(path, [(truth, render[:20])])
    with pytest.raises(ValueError, match="at least one"):
        pictures.write_comparison(path, [])


def test_color_map_gets_brighter():
    colors = pictures.colorize(torch.linspace(0, 1, 50)[None])[0]
    luminance = colors @ torch.tensor([0.2126, 0.7152, 0.0722])
    assert bool((luminance[1:] > luminance[:-1]).all())
    assert bool(pictures.colorize(torch.tensor([[math.nan, math.inf, -math.inf]])).isfinite().all())


def test_depth(tmp_path):
    depth = torch.linspace(1, 3, 50).expand(10, 50).clone()
    opacity = torch.ones(10, 50)
    opacity[:, :10], depth[:, :10] = 0, math.nan
    pictures.write_depth(tmp_path / "depth.png", depth, opacity)
    image = torch.from_numpy(iio.imread(tmp_path / "depth.png")).float().sum(-1)
    assert bool((image[:, 10] > image[:, 30]).all()) and bool((image[:, 30] > image[:, 49]).all())
    assert float(image[:, :10].max()) == 0
    pictures.write_depth(tmp_path / "empty.png", depth, torch.zeros(10, 50))  # nothing there


def test_error_pictures_have_the_scale_of_their_colours():
    """Errors from 0 at the left to the scale at the right: the bar has the colours of the picture."""
    scale, size = 0.02, 200
    error = torch.linspace(0, scale, size).expand(size, size)
    picture = pictures.colorize(error, 0, scale, pictures.ERROR_MAP)
    lightness = picture[0] @ torch.tensor([0.2126, 0.7152, 0.0722])
    assert bool((lightness.diff() < 0).all())  # from clean to dirty
    drawn = pictures.with_scale(picture, scale, "error")
    assert drawn.dtype == torch.uint8 and drawn.shape == (size, size, 3)
    left, top, bottom = size - round(0.055 * size), round(0.3 * size), round(0.7 * size)
    for row in range(top, bottom):
        value = scale * (bottom - 1 - row) / (bottom - 1 - top)
        expected = pictures.colorize(torch.tensor(value), 0, scale, pictures.ERROR_MAP)
        assert drawn[row, left].tolist() == to_uint8(expected).tolist()
    outside = torch.from_numpy(to_uint8(picture))
    assert torch.equal(drawn[top:bottom, : left - 20], outside[top:bottom, : left - 20])
    assert bool((drawn[bottom:] != outside[bottom:]).any()) and bool((drawn[:top] != outside[:top]).any())  # numbers


@pytest.mark.parametrize(
    ("errors", "scale"),
    [([0.0] * 5, 1e-5), ([], 1e-5), ([0.0017] * 5, 2e-3), ([0.002] * 5, 2e-3), ([4e-4, 4.9], 5.0), ([0.06], 0.1)],
)
def test_scales_are_round(errors, scale):
    assert pictures.round_scale(torch.tensor(errors)) == pytest.approx(scale)


def test_scale_leaves_one_error_in_a_hundred_out():
    assert pictures.round_scale(torch.cat([torch.full((995,), 0.9), torch.full((5,), 90.0)])) == 1.0


def test_table(tmp_path):
    path = tmp_path / "views.csv"
    expected = [["view", "psnr"], ["./test/r_0", "30.1235"], ['odd, "name"', "inf"]]
    atomic_write_csv(path, expected[0], (row for row in expected[1:]))
    with open(path, newline="") as file:
        assert list(csv.reader(file)) == expected
    assert b"\r" not in path.read_bytes()


@pytest.mark.parametrize("final", [None, 25.0, math.nan])
def test_training_plot(tmp_path, final):
    pytest.importorskip("matplotlib")
    plot_psnr(tmp_path / "psnr.png", [(0.0, 10.0), (1.0, math.inf), (2.0, 21.0)], final)
    image = iio.imread(tmp_path / "psnr.png")
    assert image.shape[0] == 600 and image.std() > 10
    plot_psnr(tmp_path / "empty.png", [], final)


def test_view(tmp_path):
    truth, color = torch.rand(20, 30, 3), torch.rand(20, 30, 3)
    opacity = torch.full((20, 30), 0.5)
    pictures.write_view(tmp_path, "r_0", truth, color, opacity, 2 * opacity)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")) == [
        "comparisons/r_0.png", "depth/r_0.png", "renders/r_0.png",
    ]  # fmt: skip
    stored = torch.from_numpy(iio.imread(tmp_path / "renders/r_0.png")) / 255
    assert float((stored - color).abs().max()) <= 0.5 / 255 + 1e-6


def test_orbit_circles_what_the_cameras_look_at():
    angles = [2 * math.pi * i / 9 for i in range(9)]
    cameras = orbit(cameras_at([(3 * math.cos(a), 3 * math.sin(a), 1.0) for a in angles]), UP, 16, max_size=15)
    target = torch.tensor([0.1, 0.2, 0.3])
    offsets = cameras.origins - target
    torch.testing.assert_close(offsets.norm(dim=-1), torch.full((16,), math.sqrt(10)), rtol=0, atol=0.02)
    torch.testing.assert_close(offsets[:, 2], torch.ones(16), rtol=0, atol=0.02)
    torch.testing.assert_close(offsets.mean(0)[:2], torch.zeros(2), rtol=0, atol=0.02)  # all the way round
    for view in range(16):
        pixel, depth = cameras.project(target[None], view)
        assert float(depth) > 0 and pixel[0].tolist() == pytest.approx([7, 5], abs=0.1)
    assert cameras.sizes[0].tolist() == [14, 10]
    # The same field of view as the training cameras, whatever the size.
    assert cameras.intrinsics[0, 0] / 14 == pytest.approx(40 / 30)
    steps = (cameras.origins.roll(-1, 0) - cameras.origins).norm(dim=-1)
    assert float(steps.max() / steps.min()) < 1.05  # the last frame leads on to the first


def test_orbit_stays_on_the_side_the_cameras_know():
    angles = [math.radians(a) for a in (-60, -30, 0, 20, 60)]
    cameras = orbit(cameras_at([(3 * math.cos(a), 3 * math.sin(a), 1.0) for a in angles]), UP, 24)
    offsets = cameras.origins - torch.tensor([0.1, 0.2, 0.3])
    azimuth = torch.atan2(offsets[:, 1], offsets[:, 0]).rad2deg()
    assert float(azimuth.min()) > -61 and float(azimuth.max()) < 61
    assert float(azimuth.max() - azimuth.min()) > 60
    single = cameras_at([(0.0, 0.0, 3.0)])
    assert bool(orbit(single, UP, 3).c2w.isfinite().all()) and orbit(single, UP, 3).times is None
    assert orbit(replace(cameras, times=torch.linspace(2, 4, 24)), UP, 3).times.tolist() == [2, 3, 4]


def test_video(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "turntable.mp4"
    pictures.write_video(path, (torch.full((34, 50, 3), i / 9) for i in range(10)), fps=10)
    frames = iio.imread(path)
    assert frames.shape == (10, 34, 50, 3)
    assert frames.mean((1, 2, 3)).tolist() == pytest.approx([255 * i / 9 for i in range(10)], abs=6)
    before = path.read_bytes()
    for bad, message in (
        ([torch.zeros(33, 50, 3)], r"even H and W, got \[33, 50, 3\]"),
        ([torch.zeros(34, 50, 3), torch.zeros(34, 52, 3)], r"all have shape \[34, 50, 3\], got \[34, 52, 3\]"),
        ([], "at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            pictures.write_video(path, bad)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["turntable.mp4"]


def test_missing_extra_is_named(monkeypatch):
    import sys

    from hashgrid.util.optional import optional_import

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match=r"`imageio_ffmpeg` is needed here.*pip install 'torch-hashgrid\[apps\]'"):
        optional_import("imageio_ffmpeg")
