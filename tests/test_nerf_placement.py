"""Scenes in any unit and at any place: the same rays, boxes that hold what the images show."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

iio = pytest.importorskip("imageio.v3")

from hashgrid.data.procedural import procedural_scene  # noqa: E402
from hashgrid.data.scene import Scene, load_scene  # noqa: E402
from hashgrid.geometry.cameras import look_at  # noqa: E402
from hashgrid.tasks.nerf import Nerf, NerfConfig  # noqa: E402
from hashgrid.train.loop import Trainer  # noqa: E402

SIZE, FOCAL = 32, 35.0
LENS = {"w": SIZE, "h": SIZE, "fl_x": FOCAL, "fl_y": FOCAL, "cx": SIZE / 2, "cy": SIZE / 2}
BLENDER = {"camera_angle_x": 2 * math.atan(SIZE / 2 / FOCAL)}
SURVEY = (500123.25, 5400456.5, 321.0)


def poses(n: int = 12) -> Tensor:
    """Cameras [n, 3, 4] float64, 4 away from a ball of radius 1 around 0."""
    angles = torch.arange(n, dtype=torch.float64) * 2 * math.pi / n
    height = 0.6 + 0.4 * torch.sin(3 * angles)
    origins = 4 * torch.stack((angles.cos() * height.cos(), angles.sin() * height.cos(), height.sin()), dim=1)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    return torch.stack([look_at(origin, torch.zeros(3, dtype=torch.float64), up) for origin in origins])


def picture(c2w: Tensor, channels: int) -> np.ndarray:
    """The ball as uint8 [SIZE, SIZE, channels]: RGBA, or RGB before a wall of stripes."""
    x, y = np.meshgrid(np.arange(SIZE) + 0.5 - SIZE / 2, np.arange(SIZE) + 0.5 - SIZE / 2)
    rays = np.stack((x / FOCAL, -y / FOCAL, -np.ones_like(x)), -1) @ c2w[:, :3].numpy().T
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    origin = c2w[:, 3].numpy()
    along = rays @ origin
    root = along**2 - origin @ origin + 1
    hit = root > 0
    point = origin + rays * (-along - np.sqrt(np.maximum(root, 0)))[..., None]
    color = np.where(hit[..., None], 0.5 + 0.5 * np.sin(5 * point), 0.5 + 0.4 * np.sin(6 * rays))
    if channels == 4:
        color = np.concatenate((color * hit[..., None], hit[..., None]), axis=-1)
    return (255 * color + 0.5).astype(np.uint8)


def write(
    folder: Path, channels: int, unit: float = 1.0, shift: tuple[float, ...] = (0, 0, 0), lens: dict = LENS, **meta
) -> Path:
    folder.mkdir(parents=True)
    frames = []
    for i, c2w in enumerate(poses()):
        iio.imwrite(folder / f"{i}.png", picture(c2w, channels))
        matrix = torch.cat((c2w, torch.tensor([[0.0, 0, 0, 1]])))
        matrix[:3, 3] = unit * matrix[:3, 3] + torch.tensor(shift, dtype=torch.float64)
        frames.append({"file_path": f"{i}.png", "transform_matrix": matrix.tolist()})
    (folder / "transforms.json").write_text(json.dumps({**lens, **meta, "frames": frames}))
    return folder


def in_file(scene: Scene) -> tuple[Tensor, Tensor]:
    """Camera centres and corners of the box of a normalised scene, in the coordinates of its file."""
    assert scene.train.c2w.dtype == scene.aabb.dtype == torch.float32
    assert scene.normalized() is scene
    return scene.placement.to_file(scene.train.origins), scene.placement.to_file(scene.aabb.view(2, 3))


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(("unit", "shift"), [(0.01, (0, 0, 0)), (1000.0, (7, 8, 9)), (1.0, SURVEY), (0.01, SURVEY)])
def test_unit_and_origin_do_not_matter(tmp_path, channels, unit, shift) -> None:
    plain = load_scene(write(tmp_path / "plain", channels))
    moved = load_scene(write(tmp_path / "moved", channels, unit, shift))
    shift = torch.tensor(shift, dtype=torch.float64)
    files = unit * poses()[:, :, 3] + shift
    expected = files[[i for i in range(12) if i % 8]]
    # as loaded: the file's numbers, to 1e-5 of how far apart the cameras are
    torch.testing.assert_close(moved.train.origins.double(), expected, rtol=0, atol=8e-5 * unit)
    corners = unit * plain.aabb.double().view(2, 3) + shift
    torch.testing.assert_close(moved.aabb.double().view(2, 3), corners, rtol=0, atol=1e-4 * unit)
    # as trained: one scene
    a, b = plain.normalized(), moved.normalized()
    torch.testing.assert_close(a.train.c2w, b.train.c2w, rtol=0, atol=2e-5)
    torch.testing.assert_close(a.aabb, b.aabb, rtol=0, atol=2e-5)
    assert a.near == pytest.approx(b.near, rel=1e-5) and (a.n_cascades, a.bounded) == (b.n_cascades, b.bounded)
    assert (a.aabb[3:] - a.aabb[:3]).max() == pytest.approx(3.0)
    origins, box = in_file(b)
    torch.testing.assert_close(origins, expected, rtol=0, atol=2e-5 * unit)
    torch.testing.assert_close(box, corners, rtol=0, atol=1e-4 * unit)


@pytest.mark.full
def test_training_of_a_capture_does_not_depend_on_its_unit(tmp_path) -> None:
    config = NerfConfig().replace(
        steps=60, device="cpu", target_samples=2048, n_levels=4, log2_hashmap_size=10, occupancy_resolution=32
    )
    psnr = []
    for unit, shift in ((1.0, (0, 0, 0)), (256.0, (0, 0, 0)), (1.0, (2.0**20, 0, 0))):
        trainer = Trainer(Nerf(config, load_scene(write(tmp_path / f"{unit} {shift[0]}", 3, unit, shift))))
        trainer.train()
        psnr.append(trainer.progress.psnr)
    assert psnr[0] > 12 and max(psnr) - min(psnr) < 0.3


def test_a_box_given_by_the_file_keeps_its_digits(tmp_path) -> None:
    x, y, z = SURVEY
    scene = load_scene(write(tmp_path / "s", 3, 1.0, SURVEY, aabb=[[x - 1, y - 2, z - 1], [x + 1, y + 2, z + 1.125]]))
    assert scene.aabb.tolist() == [x - 1, y - 2, z - 1, x + 1, y + 2, z + 1.125]
    assert "500122.25, 500124.25" in scene.describe() and "500122.25, 500124.25" in scene.normalized().describe()


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(("unit", "shift"), [(10.0, 0.0), (0.5, 0.0), (0.1, 0.0), (1.0, 10.0), (0.001, -3.0)])
def test_box_of_the_blender_dialect_holds_what_the_cameras_look_at(tmp_path, unit, shift, channels) -> None:
    scene = load_scene(write(tmp_path / "s", channels, unit, (shift, 0, 0), lens=BLENDER))
    low, high = scene.aabb[:3], scene.aabb[3:]
    ball = torch.tensor([shift, 0.0, 0.0])
    assert bool((low < ball - unit).all()) and bool((high > ball + unit).all())
    assert float((high - low).max()) < 12 * unit
    assert scene.bounded == (channels == 4)


def test_box_of_a_synthetic_scene_stays_that_of_its_authors(tmp_path) -> None:
    scene = load_scene(write(tmp_path / "s", 4, lens=BLENDER))
    assert scene.aabb.tolist() == [-1.5, -1.5, -1.5, 1.5, 1.5, 1.5]
    assert scene.normalized() is scene


def test_cameras_at_one_place_do_not_give_a_box_of_rounding_noise(tmp_path) -> None:
    folder = write(tmp_path / "s", 3)
    meta = json.loads((folder / "transforms.json").read_text())
    for i, frame in enumerate(meta["frames"]):
        for axis in range(3):
            frame["transform_matrix"][axis][3] = 700.1 + 1e-13 * i
    (folder / "transforms.json").write_text(json.dumps(meta))
    scene = load_scene(folder)
    assert float((scene.aabb[3:] - scene.aabb[:3]).max()) == pytest.approx(2.0, rel=1e-3)
    assert scene.normalized().train.origins.abs().max() < 0.01


def test_a_box_found_in_doubles_is_single_for_a_field() -> None:
    """Also where the coordinates of the file are the field's already."""
    given = procedural_scene(n_train=2, n_test=1, resolution=8)
    scene = replace(given, bounded=False).in_box().normalized()
    assert scene.aabb.dtype == torch.float32 and torch.equal(scene.aabb, given.aabb)
