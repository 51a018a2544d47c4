"""Lenses: against COLMAP's own cameras, closed forms, and what they make of a scene."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hashgrid.data.scene import load_scene
from hashgrid.geometry.cameras import Cameras
from hashgrid.geometry.lenses import KINDS, coefficients, project, unproject

# kind, numbers of COLMAP's model behind fx fy cx cy, and which coefficients they are
COLMAP = {
    "OPENCV": ("perspective", {"k1": 0.05, "k2": -0.02, "p1": 3e-3, "p2": -2e-3}),
    "FULL_OPENCV": (
        "perspective",
        {"k1": 0.05, "k2": -0.02, "p1": 3e-3, "p2": -2e-3, "k3": 0.01, "q1": 0.02, "q2": 0.03, "q3": 4e-3},
    ),
    "OPENCV_FISHEYE": ("fisheye", {"k1": 0.05, "k2": -0.02, "k3": 3e-3, "k4": -2e-3}),
    "FISHEYE": ("fisheye", {}),
    "FOV": ("fov", {"k1": 0.9}),
    "DIVISION": ("division", {"k1": -0.1}),
    "EUCM": ("eucm", {"k1": 0.6, "k2": 1.1}),
    "THIN_PRISM_FISHEYE": (
        "fisheye",
        {"k1": 0.05, "k2": -0.02, "p1": 3e-3, "p2": -2e-3, "k3": 4e-3, "k4": 2e-3, "s1": 1e-3, "s3": -2e-3},
    ),
    "RAD_TAN_THIN_PRISM_FISHEYE": (
        "fisheye",
        {
            **{"k1": 0.05, "k2": -0.02, "k3": 3e-3, "k4": -2e-3, "k5": 1e-3, "k6": 5e-4, "p2": 3e-3, "p1": -2e-3},
            **{"s1": 1e-3, "s2": 2e-3, "s3": -1e-3, "s4": 5e-4},
        },
    ),
}


def lens(late: bool = False, **values: float) -> torch.Tensor:
    return torch.tensor(coefficients(**values, late=late), dtype=torch.float64)


@pytest.mark.parametrize("model", COLMAP)
def test_lenses_are_those_of_colmap(model: str) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    kind, values = COLMAP[model]
    camera = pycolmap.Camera(model=model, width=640, height=480, params=[500, 510, 320, 240, *values.values()])
    pixels = np.random.default_rng(0).uniform([0, 0], [640, 480], (200, 2))
    points = torch.from_numpy((pixels - [320, 240]) / [500, 510])
    row = lens(late=model.startswith("RAD_TAN"), **values)
    directions, residual = unproject(points, kind, row)
    theirs = np.array([camera.cam_from_img(pixel) for pixel in pixels])
    np.testing.assert_allclose((directions[:, :2] / directions[:, 2:]).numpy(), theirs, atol=1e-9)
    assert float(residual.max()) < 1e-12
    places, seen = project(directions * 3, kind, row)
    assert seen.all()
    image = np.array([camera.img_from_cam(direction) for direction in directions.numpy()])
    np.testing.assert_allclose(places.numpy() * [500, 510] + [320, 240], image, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_directions_come_back(kind: str) -> None:
    """Also of lenses that see behind them; what they do not see is said."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(500, 3, generator=generator, dtype=torch.float64), dim=-1)
    row = {"fov": lens(k1=0.9), "division": lens(k1=-0.2), "eucm": lens(k1=0.6, k2=1.2)}.get(kind, lens())
    points, seen = project(directions, kind, row)
    back, residual = unproject(points[seen], kind, row)
    torch.testing.assert_close(back, directions[seen], atol=1e-9, rtol=0)
    assert bool((residual < 1e-9).all())
    sees_behind = bool(seen[directions[:, 2] < -0.1].any())
    assert sees_behind == (kind in ("fisheye", "division", "eucm", "equirectangular", "equal_area"))
    assert sees_behind or bool(seen[directions[:, 2] > 0.1].all())


def test_pixels_of_a_panorama_look_all_around() -> None:
    """The left half of the picture looks to the left, its upper rows up, its edges back; by nerfstudio's and
    instant-ngp's formulas, (u, v) to angles."""
    c2w = torch.eye(4)[None, :3]
    for kind, over in (("equirectangular", math.pi), ("equal_area", 2.0)):
        intrinsics = torch.tensor([[64 / (2 * math.pi), 32 / over, 32.0, 16.0]])
        cameras = Cameras(c2w, intrinsics, torch.tensor([[64, 32]]), lens=torch.tensor([KINDS.index(kind)]))
        rays = cameras.view_rays(0).directions.view(32, 64, 3)
        torch.testing.assert_close(rays.norm(dim=-1), torch.ones(32, 64))
        for row, column in ((3, 5), (20, 40), (16, 32), (31, 63)):
            longitude, v = ((column + 0.5) / 64 - 0.5) * 2 * math.pi, (row + 0.5) / 32 - 0.5
            height = math.sin(v * math.pi) if kind == "equirectangular" else 2 * v
            level = math.sqrt(1 - height**2)
            expected = [math.sin(longitude) * level, -height, -math.cos(longitude) * level]
            assert rays[row, column].tolist() == pytest.approx(expected, abs=1e-6)
        assert not cameras.rays_are_tabulated  # kernels know points at unit distance


def test_a_fisheye_has_dark_corners(tmp_path: Path) -> None:
    """All directions in the circle of a square picture: its border looks back, its corners nowhere, they do not count;
    half way out rays are at right angles to the axis."""
    iio = pytest.importorskip("imageio.v3")
    frames = []
    for i in range(3):
        iio.imwrite(tmp_path / f"{i}.png", np.full((40, 40, 3), 90 + i, np.uint8))
        frames.append({"file_path": f"{i}.png", "transform_matrix": np.eye(4).tolist()})
    keys = {"camera_model": "OPENCV_FISHEYE", "fl_x": 20 / math.pi, "w": 40, "h": 40, "k1": 0.0}
    (tmp_path / "transforms.json").write_text(json.dumps({**keys, "frames": frames}))
    scene = load_scene(tmp_path, holdout=0, cut_out_backdrop=False)
    mask = scene.train.mask(1)
    middle = torch.arange(40) + 0.5 - 20
    expected = torch.hypot(middle[:, None], middle[None]) <= 20  # r = f pi: straight back
    assert mask is not None and torch.equal(mask, expected)
    direction = scene.train.view_rays(0).directions.view(40, 40, 3)[19:21, 29:31].mean((0, 1))
    assert direction[0] > 0.99 and abs(float(direction[2])) < 1e-2
    rays, _, _ = scene.train.sample_rays(256, seed=1)
    assert torch.allclose(rays.directions.norm(dim=-1), torch.ones(256), atol=1e-5)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("model", ["SIMPLE_RADIAL", *COLMAP])
def test_models_that_colmap_writes(model: str, binary: bool, tmp_path: Path) -> None:
    """Rays through points of a model that COLMAP's own library has written meet the points it projected there."""
    pycolmap, iio = pytest.importorskip("pycolmap"), pytest.importorskip("imageio.v3")
    rng, values = (
        np.random.default_rng(0),
        {"SIMPLE_RADIAL": {"k1": 0.05}, **{k: v for k, (_, v) in COLMAP.items()}}[model],
    )
    focals = [40] if model.startswith("SIMPLE") else [40, 42]
    made = pycolmap.Reconstruction()
    camera = pycolmap.Camera(model=model, width=64, height=48, params=[*focals, 33, 23, *values.values()], camera_id=7)
    made.add_camera_with_trivial_rig(camera)
    for i in range(2):
        turn = rng.normal(size=4)
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(turn / np.linalg.norm(turn)), rng.normal(size=3))
        image = pycolmap.Image(name=f"im {i}.png", camera_id=7, image_id=i + 1)
        made.add_image_with_trivial_frame(image, pose)
        (tmp_path / "images").mkdir(exist_ok=True)
        iio.imwrite(tmp_path / "images" / f"im {i}.png", rng.integers(0, 255, (48, 64, 3), np.uint8))
    folder = tmp_path / "sparse" / "0"
    folder.mkdir(parents=True)
    (made.write_binary if binary else made.write_text)(folder)
    views = load_scene(tmp_path, holdout=0).train
    assert views.names == ("im 0.png", "im 1.png")
    for view in range(2):
        column, row = torch.tensor([3, 30, 60]), torch.tensor([40, 20, 5])
        rays = views.rays(torch.full_like(row, view), column, row)
        points = (rays.origins + 3 * rays.directions).double()
        image = made.image(view + 1)
        theirs = np.array([camera.img_from_cam(image.cam_from_world() * point) for point in points.numpy()])
        np.testing.assert_allclose(theirs, np.stack((column + 0.5, row + 0.5), axis=-1), atol=2e-3)
        ours, depth = views.project(points, view)
        assert (depth > 0).all() and np.abs(ours.numpy() - theirs).max() < 2e-3
