"""The procedural scene: geometry that is what it says, images that agree with it, a folder that loads."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from hashgrid import ops
from hashgrid.data import procedural
from hashgrid.data.procedural import orbit_cameras, render, signed_distance, write_scene


@pytest.fixture(autouse=True)
def one_thread():
    """Small operations: a second thread only costs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_signed_distance_is_known():
    floor = procedural.FLOOR
    points = torch.tensor(
        [
            [-0.36, 0.36, floor + 0.40],  # centre of the sphere
            [-0.36, 0.36, floor + 0.95],  # 0.15 above it
            [0.42, -0.45, floor + 0.66],  # centre of the ball
            [procedural.BEAD_RING, 0.0, floor + procedural.BEAD_RADIUS],  # centre of the first bead
            [0.0, 0.0, floor + 0.05],  # above the floor, away from the shapes
            [0.0, 0.0, floor - 0.04],  # inside the disc
            [0.0, 0.0, 3.0],
        ]
    )
    expected = [-0.40, 0.15, -0.16, -procedural.BEAD_RADIUS, 0.05, -0.04]
    assert signed_distance(points)[:6].tolist() == pytest.approx(expected, abs=1e-5)
    assert signed_distance(points.view(7, 1, 3)).shape == (7, 1)


def test_signed_distance_is_lipschitz_and_inside_the_box():
    """Sphere tracing needs a distance that grows by at most 1 per unit; the scene must fit into +-1.5."""
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(20000, 3, generator=generator) * 3 - 1.5
    b = a + 0.05 * torch.randn(20000, 3, generator=generator)
    slope = (signed_distance(a) - signed_distance(b)).abs() / (a - b).norm(dim=-1)
    assert float(slope.max()) < 1.001
    shell = torch.nn.functional.normalize(torch.randn(20000, 3, generator=generator), dim=-1)
    on_box = 1.5 * shell / shell.abs().amax(-1, keepdim=True)
    assert float(signed_distance(on_box).min()) > 0.05


def test_render_agrees_with_single_rays():
    """Cones and blocks skip nothing: alpha is the coverage that the op finds, which traces every sample on its own."""
    size = 36  # no multiple of the block
    cameras = orbit_cameras(4, size, 1)
    samples = orbit_cameras(4, 2 * size, 1)
    for view in (0, 3):
        image = render(cameras, view)
        assert image.shape == (size, size, 4) and bool(image.isfinite().all())
        assert float(image.min()) >= 0 and float(image.max()) <= 1 + 1e-6
        rays = samples.view_rays(view)
        limits = torch.full((2, len(rays)), 2.0) * torch.tensor([[1.0], [3.5]])
        hit = (
            ops.sphere_trace(signed_distance, rays.origins, rays.directions, *limits, 256)
            .hit.view(size, 2, size, 2)
            .float()
            .mean((1, 3))
        )
        wrong = (hit - image[..., 3]).abs() > 1e-6
        assert float(wrong.float().mean()) < 0.01  # rays that graze a silhouette


def test_colors_depend_on_the_view():
    """The polished ball: one surface point, two directions."""
    top = torch.tensor([0.42, -0.45, procedural.FLOOR + 0.66 + 0.16])
    light = procedural.LIGHT
    mirrored = light * torch.tensor([-1.0, -1.0, 1.0])  # sees the highlight; the normal is +z
    colors = []
    for towards_camera in (mirrored, light):
        direction = -torch.nn.functional.normalize(towards_camera, dim=0)
        colors.append(procedural._shade(top[:, None], direction[:, None])[0])
    assert bool((colors[0] > colors[1] + 0.02).all()) and float((colors[0] - colors[1]).max()) > 0.1


def test_write_scene(tmp_path, capsys):
    pytest.importorskip("imageio.v3")
    from hashgrid.data.scene import load_scene

    folder = write_scene(tmp_path / "a", 4, 2, 24, bar=True)
    assert "6/6" in capsys.readouterr().err
    scene = load_scene(folder)
    assert (len(scene.train), len(scene.test)) == (4, 2)
    assert scene.train.has_alpha and scene.bounded and scene.aabb.tolist() == [-1.5] * 3 + [1.5] * 3
    cameras = orbit_cameras(4, 24, 0)
    torch.testing.assert_close(scene.train.c2w, cameras.c2w, rtol=0, atol=1e-6)
    torch.testing.assert_close(scene.train.intrinsics, cameras.intrinsics)
    expected = render(cameras, 2)
    stored = scene.train.image(2).float() / 255
    assert float((stored - expected).abs().max()) <= 0.5 / 255 + 1e-6

    write_scene(tmp_path / "b", 4, 2, 24)
    for file in sorted(p.relative_to(folder) for p in folder.rglob("*.*")):
        assert (folder / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    frames = json.loads((write_scene(tmp_path / "c", 4, 0, 24, seed=1) / "transforms_train.json").read_text())["frames"]
    assert not np.allclose(frames[0]["transform_matrix"], cameras.c2w[0].tolist() + [[0, 0, 0, 1]])
    with pytest.raises(ValueError, match="got 0, 2 and 24"):
        write_scene(tmp_path / "d", 0, 2, 24)
