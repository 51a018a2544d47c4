"""What a run leaves behind: every file can be read back and says what it should."""

from __future__ import annotations

import csv
import math
import os

import pytest
import torch

iio = pytest.importorskip("imageio.v3")
pytest.importorskip("PIL")

from hashgrid.data.scene import Scene, Views  # noqa: E402
from hashgrid.geometry.cameras import look_at  # noqa: E402
from hashgrid.nerf import report  # noqa: E402
from hashgrid.util import pictures  # noqa: E402


def make_scene(origins, size=(30, 20)) -> Scene:
    target, up = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.0, 0.0, 1.0])
    c2w = torch.stack([look_at(torch.tensor(origin) + target, target, up) for origin in origins])
    n = len(c2w)
    sizes = torch.tensor([size] * n)
    intrinsics = torch.tensor([[40.0, 40.0, size[0] / 2, size[1] / 2]] * n)
    data = torch.zeros(n * size[0] * size[1], 3, dtype=torch.uint8)
    views = Views(c2w, intrinsics, sizes, data=data, names=tuple(map(str, range(n))))
    aabb = torch.tensor([-1.0, -1, -1, 1, 1, 1])
    return Scene(views, views, aabb, 1, True, 0.0, up, path=report.Path("scene"))


def test_comparison_shows_truth_render_and_error(tmp_path):
    truth = torch.full((40, 30, 3), 0.25)
    render = truth.clone()
    render[:20] += 0.5
    path = tmp_path / "strips" / "strip.png"
    report.write_comparison(path, [(truth, render), (truth, truth)], ["a 1.0 dB", "Größe \u2603"], error_scale=0.49)
    image = torch.from_numpy(iio.imread(path))
    row, column = report.HEADER + 10, 30 + report.GAP
    assert image.shape[0] == 2 * (40 + report.HEADER)
    assert image[row, 10].tolist() == [64] * 3
    assert image[row, column + 10].tolist() == [191] * 3
    brightest, darkest = (report.to_uint8(pictures.COLOR_MAP[i]).tolist() for i in (-1, 0))
    assert image[row, 2 * column + 10].tolist() == brightest
    assert image[row + 25, 2 * column + 10].tolist() == darkest
    assert image[row + 40 + report.HEADER, 2 * column + 10].tolist() == darkest
    scale = image[report.HEADER : report.HEADER + 40, 3 * column + 5]
    assert scale[0].tolist() == brightest and scale[-1].tolist() == darkest
    assert os.listdir(path.parent) == ["strip.png"]
    with pytest.raises(ValueError, match=r"`pairs\[0\]` must be two images .* \[40, 30, 3\] and \[20, 30, 3\]"):
        report.write_comparison(path, [(truth, render[:20])])
    with pytest.raises(ValueError, match="at least one"):
        report.write_comparison(path, [])


def test_color_map_gets_brighter():
    colors = pictures.colorize(torch.linspace(0, 1, 50)[None])[0]
    luminance = colors @ torch.tensor([0.2126, 0.7152, 0.0722])
    assert bool((luminance[1:] > luminance[:-1]).all())
    assert bool(pictures.colorize(torch.tensor([[math.nan, math.inf, -math.inf]])).isfinite().all())


def test_depth(tmp_path):
    depth = torch.linspace(1, 3, 50).expand(10, 50).clone()
    opacity = torch.ones(10, 50)
    opacity[:, :10], depth[:, :10] = 0, math.nan
    report.write_depth(tmp_path / "depth.png", depth, opacity)
    image = torch.from_numpy(iio.imread(tmp_path / "depth.png")).float().sum(-1)
    assert bool((image[:, 10] > image[:, 30]).all()) and bool((image[:, 30] > image[:, 49]).all())
    assert float(image[:, :10].max()) == 0
    report.write_depth(tmp_path / "empty.png", depth, torch.zeros(10, 50))  # nothing there


def test_scores(tmp_path):
    path = tmp_path / "views.csv"
    report.write_scores(path, [("./test/r_0", 30.12345, 0.9), ('odd, "name"', math.inf, 1.0)])
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["view", "psnr", "ssim"], ["./test/r_0", "30.1234", "0.90000"], ['odd, "name"', "inf", "1.00000"]]


@pytest.mark.parametrize("test_psnr", [None, 25.0, math.nan])
def test_training_plot(tmp_path, test_psnr):
    pytest.importorskip("matplotlib")
    curve = [
        {"seconds": 0.0, "step": 1, "train_psnr": 10.0},
        {"seconds": 1.0, "step": 2, "train_psnr": math.inf, "test_psnr": 20.0},
        {"seconds": 2.0, "step": 3, "train_psnr": 21.0},
    ]
    report.plot_training(tmp_path / "psnr.png", curve, test_psnr, "chair")
    image = iio.imread(tmp_path / "psnr.png")
    assert image.shape[0] == 600 and image.std() > 10
    report.plot_training(tmp_path / "empty.png", [], test_psnr)


def test_view(tmp_path):
    truth, color = torch.rand(20, 30, 3), torch.rand(20, 30, 3)
    opacity = torch.full((20, 30), 0.5)
    report.write_view(tmp_path, "r_0", truth, color, opacity, 2 * opacity)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")) == [
        "comparisons/r_0.png", "depth/r_0.png", "renders/r_0.png",
    ]  # fmt: skip
    stored = torch.from_numpy(iio.imread(tmp_path / "renders/r_0.png")) / 255
    assert float((stored - color).abs().max()) <= 0.5 / 255 + 1e-6


def test_orbit_circles_what_the_cameras_look_at():
    angles = [2 * math.pi * i / 9 for i in range(9)]
    scene = make_scene([(3 * math.cos(a), 3 * math.sin(a), 1.0) for a in angles])
    cameras = report.orbit(scene, 16, max_size=15)
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
    cameras = report.orbit(make_scene([(3 * math.cos(a), 3 * math.sin(a), 1.0) for a in angles]), 24)
    offsets = cameras.origins - torch.tensor([0.1, 0.2, 0.3])
    azimuth = torch.atan2(offsets[:, 1], offsets[:, 0]).rad2deg()
    assert float(azimuth.min()) > -61 and float(azimuth.max()) < 61
    assert float(azimuth.max() - azimuth.min()) > 60
    assert bool(report.orbit(make_scene([(0.0, 0.0, 3.0)]), 3).c2w.isfinite().all())


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
    with pytest.raises(ImportError, match=r"`imageio_ffmpeg` is needed here.*pip install 'torch-hashgrid\[nerf\]'"):
        optional_import("imageio_ffmpeg")
