"""Poses of photos: sharp frames, what is written of a model, and what is said where nothing fits."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hashgrid.cli import main
from hashgrid.data.errors import SceneError
from hashgrid.data.frames import sharp_frames
from hashgrid.data.reconstruct import (
    Recipe,
    _refine,
    _Work,
    agree,
    image_pairs,
    reconstruct,
    write_transforms,
)
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
    for lost in ("torn.mp4", "absent.mp4"):
        (tmp_path / "torn.mp4").write_bytes((tmp_path / "v.mp4").read_bytes()[:300])
        with pytest.raises(SceneError, match="holds none|cannot be read as a video|does not exist"):
            sharp_frames(tmp_path / lost, tmp_path / "out", 4)
    with pytest.raises(ValueError, match="`frames` must be at least 3"):
        sharp_frames(tmp_path / "v.mp4", tmp_path / "out", 2)


def corner_of_a_room(
    views: int = 6, size: tuple[int, int] = (160, 120), focal: float = 150.0
) -> tuple[list, np.ndarray]:
    """Images [H, W, 3] of three walls with smooth noise on them, and camera-to-world poses [V, 3, 4], y down."""
    rng, (width, height) = np.random.default_rng(0), size
    walls = sum(
        np.kron(rng.normal(size=(3, 256 // k, 256 // k, 3)), np.ones((1, k, k, 1))) * k**0.5 for k in (4, 8, 16)
    )
    walls = np.clip(128 + 18 * np.asarray(walls), 0, 255)
    x, y = np.meshgrid(np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2)
    rays, images, poses = np.stack((x / focal, y / focal, np.ones_like(x)), axis=-1), [], []
    for view in range(views):
        turn = 0.25 + 0.13 * view
        place = np.array([3.4 * np.cos(turn), 3.4 * np.sin(turn), 1.5 + 0.15 * (view % 3)])
        ahead = np.array([0.9, 0.9, 0.7]) - place
        ahead /= np.linalg.norm(ahead)
        right = np.cross(ahead, [0, 0, 1.0])
        right /= np.linalg.norm(right)
        pose = np.stack((right, np.cross(ahead, right), ahead, place), axis=1)
        d = rays @ pose[:, :3].T
        t = np.where(d < 0, -place / np.minimum(d, -1e-9), np.inf)  # to the planes x = 0, y = 0, z = 0
        wall = t.argmin(-1)
        hit = place + d * t.min(-1, keepdims=True)
        across = np.stack([np.delete(hit, axis, -1) for axis in range(3)])  # [3, H, W, 2]
        at = np.take_along_axis(across, wall[None, ..., None], 0)[0] / 3.0 * 256
        at = np.clip(at, 0, 254)
        low, part = at.astype(int), at % 1
        image = sum(
            walls[wall, low[..., 0] + i, low[..., 1] + j]
            * (np.abs(1 - i - part[..., :1]) * np.abs(1 - j - part[..., 1:]))
            for i in (0, 1)
            for j in (0, 1)
        )
        images.append(image.astype(np.uint8))
        poses.append(pose)
    return images, np.stack(poses)


def test_poses_are_found_and_what_has_none_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Six views of a room, and three files that are none: one command, twice."""
    rng, (images, poses) = np.random.default_rng(1), corner_of_a_room()
    for i, image in enumerate(images):
        iio.imwrite(tmp_path / f"view_{i}.png", image)
    iio.imwrite(tmp_path / "blank.png", np.full_like(images[0], 90))
    other = np.kron(rng.integers(0, 255, (30, 40, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    iio.imwrite(tmp_path / "other.png", other)
    (tmp_path / "torn.png").write_bytes((tmp_path / "other.png").read_bytes()[:2000])
    out = tmp_path / "scene"
    assert main(["data", "images", str(tmp_path), str(out), "--camera-model", "OPENCV"]) == 0
    said = capsys.readouterr().out
    assert "6 of 9 images have a pose" in said
    left_out = json.loads((out / "reconstruction.json").read_text())["left_out"]
    assert "only 0 features" in left_out["blank.png"] and "too little overlap" in left_out["other.png"]
    assert "cannot be read as an image" in left_out["torn.png"]
    assert all(f"{name}: {why}" in said for name, why in left_out.items())

    scene = json.loads((out / "transforms.json").read_text())
    found = np.array([frame["transform_matrix"] for frame in scene["frames"]])[:, :3]
    found[:, :, 1:3] *= -1
    # What no similarity changes: turns between cameras, and ratios of their distances.
    turn, truth = (p[:, None, :, :3].swapaxes(-1, -2) @ p[None, :, :, :3] for p in (found, poses))
    cosine = (np.einsum("abij,abij->ab", turn, truth) - 1) / 2
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 1.5
    away, far = (np.linalg.norm(p[:, None, :, 3] - p[None, :, :, 3], axis=-1) for p in (found, poses))
    pair = far > 0.2
    np.testing.assert_allclose(away[pair] / far[pair] / np.median(away[pair] / far[pair]), 1, atol=0.05)
    lens = [scene["frames"][0][key] for key in ("fl_x", "fl_y", "cx", "cy")]
    assert lens == pytest.approx([150, 150, 80, 60], rel=0.05)
    assert len(load_scene(out).train) + len(load_scene(out).test) == 6

    before, database = (out / "transforms.json").read_bytes(), out / "reconstruction" / "database.db"
    with sqlite3.connect(database) as opened:  # what a second run would have to look for again
        opened.execute("CREATE TABLE kept (x)")
    assert main(["data", "images", str(tmp_path), str(out), "--camera-model", "OPENCV"]) == 0
    assert (out / "transforms.json").read_bytes() == before
    assert sqlite3.connect(database).execute("SELECT count(*) FROM kept").fetchone() == (0,)
    capsys.readouterr()

    (out / "reconstruction" / "recipe.json").unlink()  # as if others had made it
    assert main(["data", "images", str(tmp_path), str(out)]) == 1
    assert "holds a scene (transforms.json) that was made by other means" in capsys.readouterr().err
    assert (out / "transforms.json").read_bytes() == before


def test_no_features_where_an_image_is_transparent(tmp_path: Path) -> None:
    images, _ = corner_of_a_room(3)
    for i, image in enumerate(images):
        alpha = np.zeros_like(image[..., :1])
        alpha[:, :80] = 255
        iio.imwrite(tmp_path / f"photo {i}.png", np.concatenate((image, alpha), axis=2))
    work = tmp_path / "out"
    with contextlib.suppress(SceneError):
        reconstruct(tmp_path, work, Recipe(affine=False), None)
    with contextlib.closing(pycolmap.Database.open(work / "reconstruction" / "database.db")) as opened:
        places = np.concatenate([opened.read_keypoints(image.image_id) for image in opened.read_all_images()])
        assert opened.num_matched_image_pairs() == 3  # whatever their names are
    assert len(places) > 50 and places[:, 0].max() < 81


def test_an_absurd_lens_is_not_kept(tmp_path: Path) -> None:
    """Where the lens that was asked for comes out absurd, the first one is there again, to the bit."""
    made, values = pycolmap.Reconstruction(), [50.0, 32.0, 24.0, 0.03]
    made.add_camera_with_trivial_rig(
        pycolmap.Camera(model="SIMPLE_RADIAL", width=64, height=48, params=values, camera_id=1)
    )

    class Colmap:
        def __getattr__(self, name: str) -> Any:
            return getattr(pycolmap, name)

        def bundle_adjustment(self, model: Any, options: Any) -> None:
            if model.cameras[1].model_name == "OPENCV":
                assert model.cameras[1].params.tolist() == [50, 50, 32, 24, 0.03, 0, 0, 0]
                model.cameras[1].params = [50, 50, 32, 24, 9, 9, 9, 9]

    said: list[str] = []
    _refine(_Work(Colmap(), tmp_path, tmp_path, [], Recipe(camera_model="OPENCV"), said.append), made)
    assert made.cameras[1].model_name == "SIMPLE_RADIAL" and made.cameras[1].params.tolist() == values
    assert "SIMPLE_RADIAL it stays" in said[0]


def test_models_agree() -> None:
    """Two models are one if a rotation of the world makes them so."""
    rng = np.random.default_rng(0)

    def model(turns: list[np.ndarray]) -> Any:
        made = pycolmap.Reconstruction()
        camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=64, height=48, params=[40, 32, 24], camera_id=1)
        made.add_camera_with_trivial_rig(camera)
        for i, turn in enumerate(turns):
            pose = pycolmap.Rigid3d(pycolmap.Rotation3d(turn), rng.normal(size=3))
            made.add_image_with_trivial_frame(pycolmap.Image(name=f"{i}", camera_id=1, image_id=i + 1), pose)
        return made

    turns = [np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(10)]
    turns = [turn * np.linalg.det(turn) for turn in turns]
    world = turns[3]
    assert agree(model(turns), model([turn @ world for turn in turns]))
    assert not agree(model(turns), model([turn @ world for turn in turns[:7]] + turns[:3]))
    assert not agree(model(turns), model(turns[:2]))


def test_images_that_do_not_fit_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(SceneError, match=r"must hold at least 3 images .*, got 0"):
        reconstruct(tmp_path, tmp_path / "out", Recipe())
    for i in range(3):
        shade = np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((12, 12, 1))).astype(np.uint8)
        iio.imwrite(tmp_path / f"{i}.png", shade)
    assert main(["data", "images", str(tmp_path), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "no images fit together" in error and "take more images, with more overlap" in error
    assert not (tmp_path / "out" / "transforms.json").exists()
    assert main(["data", "images", str(tmp_path), str(tmp_path / "out"), "--camera-model", "FOV"]) == 1
    assert "`camera_model` must be of" in capsys.readouterr().err


def test_pairs_of_a_path_that_returns() -> None:
    """Neighbours are compared, the end with the beginning, and far fewer pairs than all."""
    pairs = image_pairs(200, "sequential")
    assert {(0, 1), (57, 67), (100, 116), (0, 192)} <= set(pairs) and len(pairs) < 3500
    assert all(0 <= a < b < 200 for a, b in pairs) and len(set(pairs)) == len(pairs)
    assert len(image_pairs(10, "sequential")) == len(image_pairs(10, "exhaustive")) == 45
