"""`hashgrid render`: paths of viewers against formulas of their own, and frames against direct renders."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from problems.nerf import OPTIONS

from hashgrid.cli import main
from hashgrid.data.camera_paths import between, quaternion, read_camera_path, spiral
from hashgrid.data.errors import SceneError
from hashgrid.data.loaders.transforms import NGP, ngp_placement
from hashgrid.data.procedural import orbit_cameras, write_scene
from hashgrid.geometry.boxes import Placement
from hashgrid.geometry.cameras import Cameras, nearest_point_to_axes, orbit
from hashgrid.geometry.lenses import KINDS
from hashgrid.rendering.volume import render_image
from hashgrid.tasks.nerf import Nerf
from hashgrid.tasks.render import make_path
from hashgrid.train.checkpoint import with_prefix
from hashgrid.train.loop import load_model
from hashgrid.train.run import read_checkpoint
from hashgrid.util.files import to_uint8

iio = pytest.importorskip("imageio.v3")
pytest.importorskip("imageio_ffmpeg")


def test_quaternions_are_scipys() -> None:
    rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    halves = [rotation.from_euler("xyz", angles) for angles in ((math.pi, 0, 0), (0, math.pi, 0), (0, 0, math.pi))]
    for turn in [*rotation.random(50, rng=np.random.default_rng(0)), *halves]:
        expected = turn.as_quat(canonical=True)[[3, 0, 1, 2]]
        ours = quaternion(torch.from_numpy(turn.as_matrix())).numpy()
        assert min(np.abs(ours - expected).max(), np.abs(ours + expected).max()) < 1e-9


def test_nerfstudio_paths(tmp_path: Path) -> None:
    """The field of view is over the height; the crop is a box by its middle and extent."""
    views = orbit_cameras(3, 40, 1)
    path = [
        {"camera_to_world": [*pose.reshape(-1).tolist(), 0, 0, 0, 1], "fov": 50.0, "aspect": 1.5, "render_time": i / 2}
        for i, pose in enumerate(views.c2w)
    ]
    crop = {"crop_center": [0.1, 0.2, 0.3], "crop_scale": [1, 2, 4], "crop_bg_color": {"r": 255, "g": 51, "b": 0}}
    meta = {"camera_path": path, "render_width": 30, "render_height": 20, "fps": 24, "crop": crop}
    (tmp_path / "camera_path.json").write_text(json.dumps(meta))
    read = read_camera_path(tmp_path / "camera_path.json")
    torch.testing.assert_close(read.cameras.c2w.float(), views.c2w)
    assert read.cameras.sizes.tolist() == [[30, 20]] * 3 and read.fps == 24
    assert read.cameras.intrinsics[0].tolist() == pytest.approx([10 / math.tan(math.radians(25))] * 2 + [15, 10])
    assert read.crop is not None and read.crop.tolist() == pytest.approx([-0.4, -0.8, -1.7, 0.6, 1.2, 2.3])
    assert read.background == pytest.approx((1, 0.2, 0)) and read.cameras.times is not None
    assert read.cameras.times.tolist() == [0, 0.5, 1]


def keyframes(poses: torch.Tensor, scale: float = 0.33, offset: object = (0.5, 0.6, 0.7)) -> list[dict]:
    """instant-ngp's coordinates of poses in a file: two columns change their sign, the place is scaled and moved, then
    rows go round."""
    rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    path = []
    for pose in poses.double().numpy():
        turned = pose * [1, -1, -1, 1]
        turned[:, 3] = turned[:, 3] * scale + offset
        turned = turned[[1, 2, 0]]
        q, t = rotation.from_matrix(turned[:, :3]).as_quat(), turned[:, 3]
        path.append({"R": q.tolist(), "T": t.tolist(), "fov": 60 + len(path)})
    return path


def test_instant_ngp_paths(tmp_path: Path) -> None:
    """Lines go through keyframes, after equal times, and from the last to the first in a loop."""
    views, file = orbit_cameras(4, 40, 1), tmp_path / "base_cam.json"
    meta = {"path": keyframes(views.c2w), "time": 0.0, "duration_seconds": 1.0, "spline_order": 1, "loop": True}
    file.write_text(json.dumps(meta))
    ngp = Placement(tuple(-x / 0.33 for x in (0.5, 0.6, 0.7)), 1 / 0.33)
    read = read_camera_path(file, (64, 32), 8, ngp)
    torch.testing.assert_close(read.cameras.c2w[::2].float(), views.c2w, rtol=0, atol=1e-5)
    halfway = 0.5 * (views.origins + views.origins.roll(-1, 0))
    torch.testing.assert_close(read.cameras.origins[1::2].float(), halfway, rtol=0, atol=1e-5)
    focals = [16 / math.tan(math.radians(0.5 * angle)) for angle in (60, 60.5, 61, 61.5, 62, 62.5, 63, 61.5)]
    assert read.fps is None and read.cameras.intrinsics[:, 1].tolist() == pytest.approx(focals)


def test_instant_ngp_splines_are_those_of_scipy(tmp_path: Path) -> None:
    """Without a loop the ends count twice; its times are those at which keyframes are over."""
    interpolate = pytest.importorskip("scipy.interpolate")
    views, file = orbit_cameras(6, 40, 1), tmp_path / "base_cam.json"
    path = keyframes(views.c2w, 0.33, 0.5)
    for stamp, camera in zip([1, 2, 4, 5, 7, 8], path, strict=True):
        camera["timestamp"] = stamp
    file.write_text(json.dumps({"path": path, "spline_order": 3}))
    read = read_camera_path(file, None, 14).cameras
    ends = np.concatenate((views.origins[:1], views.origins, views.origins[-1:]))
    spline = interpolate.BSpline(np.arange(-3, 9), ends, 3)
    moments = np.interp(np.arange(14) / 14 * 7, [0, 1, 2, 4, 5, 7], np.arange(6))
    np.testing.assert_allclose(read.origins.numpy(), spline(moments), atol=1e-5)
    rotations = read.c2w[:, :, :3]
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).double().expand(14, 3, 3), atol=1e-9, rtol=0)
    turn = rotations[1:].mT @ rotations[:-1]
    assert float((turn.diagonal(dim1=1, dim2=2).sum(-1)).min()) > 1  # no frame looks away from the one before


def test_instant_ngp_paths_have_the_scale_of_the_scene(tmp_path: Path) -> None:
    views = orbit_cameras(2, 40, 1)
    for i, (keys, scale, offset) in enumerate([
        ({}, 0.33, 0.5),
        ({"scale": 0.5, "offset": [0.1, 0.2, 0.3]}, 0.5, [0.1, 0.2, 0.3]),
        ({"aabb": [[0, 0, 1], [2, 4, 3]], "scale": 9}, 0.25, [0.25, 0, 0]),  # its middle is that of the unit cube
    ]):  # fmt: skip
        scene = write_scene(tmp_path / str(i), 2, 1, 8)
        meta = json.loads((scene / "transforms_train.json").read_text())
        meta.pop("aabb", None)
        (scene / "transforms_train.json").write_text(json.dumps({**meta, **keys}))
        (tmp_path / "base_cam.json").write_text(
            json.dumps({"path": keyframes(views.c2w, scale, offset), "spline_order": 0})
        )
        read = read_camera_path(tmp_path / "base_cam.json", None, 1, ngp_placement(scene))
        torch.testing.assert_close(read.cameras.c2w[0].float(), views.c2w[0], rtol=0, atol=1e-5)
    assert ngp_placement(tmp_path) == NGP  # a folder that is none of its scenes


def test_paths_keep_digits_of_surveys(tmp_path: Path) -> None:
    """Places of metres in UTM, to the tenth of a millimetre, in both kinds of files and in the scene."""
    views, place = orbit_cameras(2, 40, 1), torch.tensor([512345.6789, 5403210.9876, 321.125], dtype=torch.float64)
    poses = views.c2w.double()
    poses[:, :, 3] += place
    file, placement = tmp_path / "path.json", Placement(tuple(place.tolist()), 2.0)
    path = [{"camera_to_world": [*pose.reshape(-1).tolist(), 0, 0, 0, 1], "fov": 50.0} for pose in poses]
    file.write_text(json.dumps({"camera_path": path, "render_width": 4, "render_height": 4}))
    read = read_camera_path(file)
    assert float((read.cameras.origins - poses[:, :, 3]).abs().max()) < 1e-8
    ours = placement.poses_from_file(read.cameras.c2w).float()
    torch.testing.assert_close(ours[:, :, 3], views.origins / 2, atol=1e-6, rtol=0)
    file.write_text(json.dumps({"path": keyframes(poses, 1e-3, -place.numpy() * 1e-3), "spline_order": 0}))
    read = read_camera_path(file, None, 2, Placement(placement.origin, 1e3))
    torch.testing.assert_close(read.cameras.origins[0], poses[0, :, 3], atol=1e-4, rtol=0)


def test_paths_of_wide_lenses_are_those_of_pinholes() -> None:
    """90 degrees over the longer side, at most; a fisheye that is not as wide shows what it sees; pinholes stay."""
    views = orbit_cameras(4, 40, 1)
    sizes = torch.tensor([[60, 40]] * 4)
    for kind, focal, expected in (
        ("perspective", 40.0, 40.0), ("perspective", 10.0, 30.0), ("fisheye", 60 / math.pi, 30.0),
        ("fisheye", 30 / 0.5, 30 / math.tan(0.5)), ("equirectangular", 60 / (2 * math.pi), 30.0),
    ):  # fmt: skip
        rows = torch.tensor([[focal, focal, 30.0, 20.0]] * 4)
        wide = Cameras(views.c2w, rows, sizes, lens=torch.full((4,), KINDS.index(kind)))
        for path in (orbit(wide, torch.tensor([0.0, 0, 1]), 3), spiral(wide, 3), between(wide, 3)):
            assert path.sizes[0].tolist() == [60, 40] and not path.is_distorted
            torch.testing.assert_close(path.intrinsics[:, :2], torch.full((3, 2), expected))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"path": [], "spline_order": 3}', "must have a camera"),
        (
            '{"path": [{"R": [0, 0, 0, 1], "T": [0, 0, 0], "fov": 50}], "spline_order": 4}',
            "`spline_order` must be 0, 1, 2 or 3, got 4",
        ),
        ("[1]", "must have a list `camera_path`"),
        ('{"camera_path": []}', "`render_width` is missing"),
        ('{"path": []}', "must have a camera"),
        ('{"path": [{"R": [0, 0, 0, 0], "T": [0, 0, 0], "fov": 50}]}', "quaternion must be finite and not zero"),
        ('{"path": [{"R": [0, 0, 0, 1], "T": [0, NaN, 0], "fov": 50}]}', "`T` must be finite"),
        ('{"path": [{"R": [0, 0, 0, 1], "T": [0, 0, 0], "fov": 180}]}', r"`fov` must be within \(0, 180\)"),
        ('{"path": [{"R": [0, 0, 0, 1], "T"', "broken JSON"),
    ],
)
def test_wrong_paths_are_one_error(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "path.json").write_text(text)
    with pytest.raises(SceneError, match=why):
        read_camera_path(tmp_path / "path.json")


def test_paths_of_views() -> None:
    """A path between views goes through them; a spiral looks at what they look at, from among them."""
    views = orbit_cameras(5, 40, 1)
    path = between(views, 17)
    torch.testing.assert_close(path.c2w[::4], views.c2w, rtol=0, atol=1e-5)
    steps = (path.origins[1:] - path.origins[:-1]).norm(dim=-1)
    assert float(steps.max() / steps.mean()) < 4
    rotations = path.c2w[:, :, :3].double()
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).double().expand(17, 3, 3), atol=1e-6, rtol=0)
    turn = spiral(views, 20)
    torch.testing.assert_close(nearest_point_to_axes(turn), nearest_point_to_axes(views), atol=0.05, rtol=0)
    middle = views.origins.mean(0)
    assert float((turn.origins - middle).norm(dim=-1).max()) < 2 * float((views.origins - middle).norm(dim=-1).max())


def test_render_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Frames are direct renders; what is there is kept, another path is refused; a crop takes away."""
    scene = write_scene(tmp_path / "scene", 6, 1, 24)
    run = tmp_path / "run"
    words = ["nerf", str(scene), "--steps", "40", "--no-video", "--views", "1", *OPTIONS]
    assert main([*words, "--out", str(run)]) == 0
    assert main(["render", str(run), "--path", "between", "--frames", "3", "--size", "32x24", "--depth"]) == 0
    out = run / "render_between"
    frames = sorted((out / "frames").iterdir())
    assert [f.name for f in frames] == ["00000.png", "00001.png", "00002.png"] and (out / "video.mp4").is_file()
    assert (out / "depth" / "00002.png").is_file()

    stored = read_checkpoint(run / "checkpoint.safetensors", Nerf)
    config = Nerf.Config.from_dict(stored.metadata["config"], "it").replace(video=False)
    task = Nerf.make(config, None, stored.metadata["notes"])  # type: ignore[arg-type]
    load_model(task.model, stored.tensors, averaged=True)
    task.load_state(with_prefix(stored.tensors, "state."))
    cameras = between(task.scene.train, 3, (32, 24))
    color = render_image(task.model, task.sampler, cameras, 1, torch.ones(3))[0]
    assert np.array_equal(iio.imread(frames[1]), to_uint8(color))
    assert len(make_path(task, "orbit", 5, (20, 10)).cameras) == 5

    before = frames[0].stat().st_mtime_ns
    frames[1].unlink()
    (out / "video.mp4").unlink()
    again = ["render", str(run), "--path", "between", "--frames", "3", "--size", "32x24", "--depth"]
    assert main(again) == 0 and frames[0].stat().st_mtime_ns == before and frames[1].is_file()
    assert main([*again[:5], "4", *again[6:]]) == 1 and "frames of another one" in capsys.readouterr().err

    assert main(["nerf", str(scene), "--steps", "41", "--no-video", "--views", "1", *OPTIONS, "--out", str(run)]) == 0
    assert main(again) == 1 and "of the same path and training" in capsys.readouterr().err  # not frames of before

    words = ["render", str(run), "--path", "train", "--no-video", "--crop"]
    assert main([*words, *"-1.5 -1.5 -1.5 1.5 1.5 1.5".split(), "--out", str(tmp_path / "all")]) == 0
    assert main([*words, *"5 5 5 6 6 6".split(), "--out", str(tmp_path / "none")]) == 0
    whole, empty = (iio.imread(tmp_path / name / "frames" / "00000.png") for name in ("all", "none"))
    assert whole.min() < 200 and (empty == 255).all()
    assert main([*words, *"1 1 1 0 2 2".split()]) == 1 and "the lower one first" in capsys.readouterr().err
    assert main(["render", str(run), "--semantic"]) == 1 and "has learned no labels" in capsys.readouterr().err


def test_moments_of_what_moves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A moment, or some time, along a path; fields that stand still have none."""
    run, options = tmp_path / "run", ["--steps", "30", "--no-video", "--views", "1", *OPTIONS]
    scene = "moving:train=6,test=1,resolution=24"
    assert main(["nerf", scene, "--field", "ngp_time", *options, "--out", str(run)]) == 0
    of_time = json.loads((run / "results.json").read_text())["test"]["psnr_of_time"]
    assert [time for time, _ in of_time] == pytest.approx([0.5]) and (run / "psnr_of_time.png").is_file()
    assert (run / "test_views.csv").read_text().startswith("view,time,psnr")
    words = ["render", str(run), "--no-video"]
    paths = {"orbit --frames 3 --size 24x24 --time 0.5": [0.5] * 3, "train --time 0 0.6": [0.12 * i for i in range(6)]}
    for path, moments in paths.items():
        assert main([*words, "--out", str(tmp_path / path[:5]), "--path", *path.split()]) == 0
        assert json.loads((tmp_path / path[:5] / "path.json").read_text())["times"] == pytest.approx(moments)
    assert main([*words, "--time", "1.5"]) == 1
    assert "`--time` must be one or two numbers between 0 and 1, got [1.5]" in capsys.readouterr().err
    export = ["export", str(run), str(tmp_path / "points.ply"), "--device", "cpu"]
    assert main(export) == 1
    assert "`--time` must say which moment of a field that moves, from 0 to 1, got none" in capsys.readouterr().err
    assert main([*export, "--time", "0.5", "--views", "3", "--size", "24"]) == 0
    assert json.loads((tmp_path / "export.json").read_text())["points.ply"]["options"]["time"] == 0.5
    still = tmp_path / "still"
    assert main(["nerf", scene, *options, "--out", str(still)]) == 0
    assert main(["render", str(still), "--time", "0.5"]) == 1
    assert "`--time` is for fields that move, the field 'ngp' stands still" in capsys.readouterr().err
