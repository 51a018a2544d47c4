"""Poses of photos: sharp frames, what is written of a model, and what is said where nothing fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hashgrid.cli import main
from hashgrid.data.errors import SceneError
from hashgrid.data.reconstruct import Recipe, reconstruct, sharp_frames, write_transforms
from hashgrid.data.scene import load_scene
from hashgrid.util.pictures import write_video

iio = pytest.importorskip("imageio.v3")
pycolmap = pytest.importorskip("pycolmap")


def test_a_model_as_transforms(tmp_path: Path) -> None:
    """Both files of one model are the same scene."""
    rng, made = np.random.default_rng(0), pycolmap.Reconstruction()
    values = [40, 42, 33, 23, 0.05, -0.02, 3e-3, -2e-3]
    made.add_camera_with_trivial_rig(pycolmap.Camera(model="OPENCV", width=64, height=48, params=values, camera_id=1))
    for i in range(9):
        turn = rng.normal(size=4)
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(turn / np.linalg.norm(turn)), rng.normal(size=3))
        made.add_image_with_trivial_frame(pycolmap.Image(name=f"{i}.png", camera_id=1, image_id=i + 1), pose)
        (tmp_path / "images").mkdir(exist_ok=True)
        iio.imwrite(tmp_path / "images" / f"{i}.png", rng.integers(0, 255, (48, 64, 3), np.uint8))
    (tmp_path / "sparse" / "0").mkdir(parents=True)
    made.write_binary(tmp_path / "sparse" / "0")
    made.export_PLY(tmp_path / "points.ply")
    assert write_transforms(made, tmp_path) == [f"{i}.png" for i in range(9)]
    theirs, ours = load_scene(tmp_path, format="colmap"), load_scene(tmp_path, format="transforms")
    for a, b in ((theirs.train, ours.train), (theirs.test, ours.test)):
        assert [f"images/{name}" for name in a.names] == list(b.names)
        for name in ("c2w", "intrinsics", "distortion", "lens"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-6, atol=1e-6)


def test_sharp_frames_are_chosen(tmp_path: Path) -> None:
    """Of every four frames one is not blurred."""
    pytest.importorskip("av")
    rng = np.random.default_rng(0)
    sharp = torch.from_numpy(rng.integers(0, 255, (48, 64, 3), np.uint8))
    blurred = sharp.float().mean((0, 1), keepdim=True).byte().expand(48, 64, 3).contiguous()
    frames = [sharp if i % 4 == 2 else blurred for i in range(16)]
    write_video(tmp_path / "v.mp4", iter(frames), n_frames=16)
    assert [f.name for f in sharp_frames(tmp_path / "v.mp4", tmp_path / "out", 4)] == [
        f"frame_{i:05d}.png" for i in (2, 6, 10, 14)
    ]
    (tmp_path / "no.mp4").write_bytes(b"nothing")
    with pytest.raises(SceneError, match="cannot be read as a video"):
        sharp_frames(tmp_path / "no.mp4", tmp_path / "out", 4)
    with pytest.raises(ValueError, match="`frames` must be at least 3"):
        sharp_frames(tmp_path / "v.mp4", tmp_path / "out", 2)


def test_images_that_do_not_fit_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(SceneError, match="must hold at least 3 images, got 0"):
        reconstruct(tmp_path, tmp_path / "out", Recipe())
    for i in range(3):
        shade = np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((12, 12, 1))).astype(np.uint8)
        iio.imwrite(tmp_path / f"{i}.png", shade)
    assert main(["data", "images", str(tmp_path), str(tmp_path / "out")]) == 1
    assert "no two images fit together" in capsys.readouterr().err
    assert main(["data", "images", str(tmp_path), str(tmp_path / "out"), "--camera-model", "FOV"]) == 1
    assert "`camera_model` must be of" in capsys.readouterr().err
