"""Pictures of fields whose pictures are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hashgrid.geometry.cameras import UP, framing
from hashgrid.rendering.shape_views import level_lines, slice_image, turntable, write_views
from hashgrid.rendering.surface import render, trace

pytest.importorskip("PIL")

RADIUS = 0.3
CORNERS = 0.5 + RADIUS * torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
CUBE = torch.tensor([0.0, 0, 0, 1, 1, 1])


def sphere(points: torch.Tensor) -> torch.Tensor:
    return (points - 0.5).norm(dim=-1) - RADIUS


def truth(points: torch.Tensor) -> torch.Tensor:
    return sphere(points.double()).abs()


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("up", ["x", "y", "z"])
def test_sphere_is_met_where_it_is(backend: str, up: str) -> None:
    camera = framing(CORNERS, (60, 40), up=up)
    rays = camera.view_rays(0)
    rays_o, rays_d = rays.origins, rays.directions
    hits = trace(sphere, rays_o, rays_d, CUBE, backend=backend)
    to_centre = 0.5 - rays_o.double()
    along = (to_centre * rays_d).sum(-1)
    off = (to_centre.square().sum(-1) - along.square()).clamp(min=0).sqrt()  # of the ray from the centre
    clear = (off - RADIUS).abs() > 1e-3
    assert (hits.hit == (off < RADIUS))[clear].all() and 200 < int(hits.hit.sum()) < 1200
    expected = along - (RADIUS**2 - off.square()).clamp(min=0).sqrt()
    inner = off < 0.95 * RADIUS
    assert float((hits.t - expected).abs()[inner].max()) < 2e-5
    outward = torch.nn.functional.normalize(hits.points - 0.5, dim=-1)
    assert float((hits.normals * outward).sum(-1).min()) > 1 - 1e-5


@pytest.mark.parametrize("turn", [False, True])
def test_camera_has_the_points_in_the_picture_and_up_is_up(turn: bool) -> None:
    points = torch.rand(50, 3) * torch.tensor([0.8, 0.3, 0.1]) + 0.1
    for up in UP:
        for azimuth in (0.0, 100.0, 250.0):
            camera = framing(points, (64, 48), azimuth=azimuth, up=up, turn=turn, fill=0.8)
            c2w = camera.c2w[0]
            local = (points - c2w[:, 3]) @ c2w[:, :3]
            tangent = math.tan(math.radians(28) / 2)
            image = local[:, :2] / -local[:, 2:] / torch.tensor([tangent * 64 / 48, tangent])
            assert float(image.abs().max()) < 0.801 and (turn or float(image.abs().max()) > 0.799)
            assert float(c2w[:, 1] @ torch.tensor(UP[up])) > 0.5
            assert math.isclose(float(torch.linalg.det(c2w[:, :3])), 1, abs_tol=1e-5)


def test_four_rays_per_pixel_lie_around_its_middle() -> None:
    camera = framing(CORNERS, (6, 4), fov=90.0)
    rays = camera.scaled(2).view_rays(0)
    rays_o, rays_d = rays.origins, rays.directions
    y, x = np.mgrid[:8, :12]
    local = np.stack([(x + 0.5) / 2 - 3, 2 - (y + 0.5) / 2, np.full(x.shape, -2.0)], axis=-1).reshape(-1, 3)
    expected = local @ camera.c2w[0, :, :3].double().numpy().T / np.linalg.norm(local, axis=-1, keepdims=True)
    np.testing.assert_allclose(rays_d, expected, atol=1e-6)
    assert torch.equal(rays_o, camera.origins.expand(96, 3))


def test_pictures_of_a_sphere() -> None:
    size = 64
    camera = framing(CORNERS, (size, size))
    picture = render(sphere, camera, up="y", floor=0.2, truth=truth)
    assert picture.shading.shape == picture.normals.shape == picture.error.shape == (size, size, 3)
    centre = picture.normals[size // 2, size // 2]
    torch.testing.assert_close(centre, torch.tensor([0.5, 0.5, 1.0]), rtol=0, atol=0.02)  # towards the camera
    distance = float((camera.origins[0] - 0.5).norm())
    radius = (
        math.tan(math.asin(RADIUS / distance)) / math.tan(math.radians(28) / 2) * size / 2
    )  # of the silhouette, in pixels
    disc = (picture.normals[:, :, 2] < 0.9) | (picture.normals[:, :, :2] - 0.5).abs().amax(-1).lt(0.3)
    assert math.isclose(math.sqrt(float(disc.sum()) / math.pi), radius, rel_tol=0.03)
    row = picture.normals[size // 2]
    assert row[size // 2 + 8, 0] > 0.55 > 0.45 > row[size // 2 - 8, 0]  # red to the right
    assert picture.normals[size // 2 - 8, size // 2, 1] > 0.55  # green upwards
    left, right = picture.shading[size // 3, size // 3], picture.shading[2 * size // 3, 2 * size // 3]
    assert left.sum() > 1.2 * right.sum()  # the key light stands at the upper left
    shadow = picture.shading[:, :, 0] / render(sphere, camera, up="y", truth=None).shading[:, :, 0]
    assert float(shadow.min()) < 0.8 and float(shadow[0].min()) > 0.99  # on the floor, not above


def test_error_of_the_exact_field_is_clean_and_of_another_one_is_not() -> None:
    camera = framing(CORNERS, (40, 40))
    exact = render(sphere, camera, truth=truth, shadows=False)
    assert exact.error_scale <= 1e-4  # grazing rays end within epsilon
    larger = render(lambda p: sphere(p) - 0.004, camera, truth=truth, shadows=False)
    assert larger.error_scale == 0.005
    middle = (slice(18, 22), slice(18, 22))
    assert larger.error[middle].mean() < 0.6 * exact.error[middle].mean()  # darker


def test_files_of_the_views(tmp_path) -> None:
    iio = pytest.importorskip("imageio.v3")
    scale = write_views(tmp_path, sphere, CORNERS, size=32, truth=truth)
    assert scale <= 1e-4
    for name, width in {"render": 32, "normals": 32, "error": 32, "strip": 96}.items():
        assert iio.imread(tmp_path / f"{name}.png").shape == (32, width, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["error.png", "normals.png", "render.png", "strip.png"]
    frames = list(turntable(sphere, CORNERS, n_frames=3, size=24))
    assert len(frames) == 3 and frames[0].shape == (24, 24, 3)
    assert float((frames[0] - frames[1]).abs().max()) < 0.05  # a sphere looks the same from all around


def test_slices_show_the_distance() -> None:
    picture = slice_image(lambda p: (p - 0.5).norm(dim=-1) - 0.275 + 0 * p[:, 0], 128)
    assert picture.shape == (128, 3 * 128 + 4, 3)
    for begin in (0, 130, 260):
        panel = picture[:, begin : begin + 128]
        assert panel[64, 64, 2] > panel[64, 64, 0] and panel[2, 64, 0] > panel[2, 64, 2]  # blue inside, ochre outside
        dark = panel[64].amax(-1) < 0.2
        assert bool(dark[28:31].any()) and bool(dark[97:101].any())  # the surface, at 0.5 +- 0.275
    plane = level_lines((torch.arange(100) / 100 - 0.52).expand(100, 100))
    lightness = plane.mean(-1)[50]
    assert lightness[52] < 0.15 and lightness[57] < lightness[59] - 0.1 and lightness[62] < lightness[60] - 0.1
