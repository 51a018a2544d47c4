"""Marching cubes: closed at every resolution and for every field, nothing thin is lost, no triangle is degenerate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hashgrid.data.mesh import euler_characteristic, is_watertight, signed_volume
from hashgrid.rendering.extract import n_components, to_mesh

pytest.importorskip("skimage")


def torus(points: torch.Tensor) -> torch.Tensor:
    """Signed distance to a torus of radii 0.3 and 0.1 around the cube's centre."""
    p = points - 0.5
    return torch.hypot(torch.hypot(p[..., 0], p[..., 1]) - 0.3, p[..., 2]) - 0.1


def plate(points: torch.Tensor, half: float, z: float = 0.5031) -> torch.Tensor:
    """Signed distance to a square plate of side 0.6 and thickness ``2 * half``."""
    outside = torch.stack([(points[:, 0] - 0.5).abs() - 0.3, (points[:, 1] - 0.5).abs() - 0.3], dim=-1)
    outside = torch.cat([outside, ((points[:, 2] - z).abs() - half)[:, None]], dim=-1)
    return outside.clamp(min=0).norm(dim=-1) + outside.amax(-1).clamp(max=0)


def wild(points: torch.Tensor) -> torch.Tensor:
    """No distance at all: a hash of the position."""
    x = torch.sin(points.double() @ torch.tensor([127.1, 311.7, 74.7], dtype=torch.float64)) * 43758.5453
    return (x - x.floor() - 0.3).float()


def smallest_angle_sine(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = vertices.astype(np.float64)[faces].transpose(1, 0, 2)
    longest = np.max([np.linalg.norm(e, axis=-1) for e in (b - a, c - b, a - c)], axis=0)
    return float((np.linalg.norm(np.cross(b - a, c - a), axis=-1) / longest**2).min())


@pytest.mark.parametrize("resolution", [7, 31, 32, 33, 64, 97, 128])
def test_extracted_torus_is_closed_at_every_resolution(resolution: int) -> None:
    vertices, faces = (x.numpy() for x in to_mesh(torus, resolution))
    assert vertices.dtype == np.float32 and faces.dtype == np.int64
    assert is_watertight(faces) and euler_characteristic(faces) == 0 and n_components(faces) == 1
    assert np.unique(faces).tolist() == list(range(len(vertices)))  # every vertex is used
    assert len(np.unique(vertices, axis=0)) == len(vertices) and smallest_angle_sine(vertices, faces) > 0
    if resolution > 60:
        assert math.isclose(signed_volume(vertices, faces), 2 * math.pi**2 * 0.3 * 0.1**2, rel_tol=0.02)
        assert float(torus(torch.from_numpy(vertices)).abs().max()) < 0.2 / resolution


@pytest.mark.parametrize("resolution", [9, 40])
def test_no_field_opens_the_mesh(resolution: int) -> None:
    trimesh = pytest.importorskip("trimesh")
    for lipschitz in (0.0, 2.0):
        vertices, faces = (x.numpy() for x in to_mesh(wild, resolution, lipschitz=lipschitz))
        assert len(faces) > 1000 and is_watertight(faces)
        mesh = trimesh.Trimesh(vertices, faces, process=False)
        assert mesh.is_watertight and mesh.is_winding_consistent  # two faces at each edge


def test_values_of_exactly_the_level_do_no_harm() -> None:
    vertices, faces = (x.numpy() for x in to_mesh(lambda p: (p - 0.5).abs().amax(-1) - 0.25, 32))  # on lattice points
    assert is_watertight(faces) and euler_characteristic(faces) == 2 and smallest_angle_sine(vertices, faces) > 0
    assert math.isclose(signed_volume(vertices, faces), 0.5**3, rel_tol=0.03)  # edges are cut at half a cell
    constant = to_mesh(lambda p: torch.zeros(len(p)), 32)
    assert len(constant[1]) == 0  # zero counts as outside


@pytest.mark.parametrize("resolution", [96, 512])
def test_thin_plate_is_found_whole(resolution: int) -> None:
    half = 0.75 / resolution  # one and a half cells thick: far thinner than what is looked at first
    asked = []

    def field(points: torch.Tensor) -> torch.Tensor:
        asked.append(len(points))
        return plate(points, half)

    vertices, faces = (x.numpy() for x in to_mesh(field, resolution))
    assert is_watertight(faces) and euler_characteristic(faces) == 2
    assert math.isclose(signed_volume(vertices, faces), 0.6**2 * 2 * half, rel_tol=0.05)
    if resolution == 512:
        assert sum(asked) < 0.1 * 513**3  # what is far away is left out


def test_slope_is_measured_where_the_field_is_no_distance() -> None:
    fine, faces = to_mesh(lambda p: 30 * torus(p), 96, lipschitz=0.0)
    torch.testing.assert_close(fine, to_mesh(torus, 96)[0], rtol=0, atol=1e-5)
    assert is_watertight(faces.numpy())


@pytest.mark.parametrize("resolution", [32, 250])
def test_sides_of_a_box_are_where_they_are(resolution: int) -> None:
    """Most slopes along an axis are next to zero beside a box, which says nothing of how far values reach."""

    def box(points: torch.Tensor) -> torch.Tensor:
        p = points - 0.5
        wavy = 1 + 0.05 * torch.sin(7 * p[:, 0] + 5 * p[:, 1] + 3 * p[:, 2])
        return ((p.abs() - torch.tensor([0.4, 0.303, 0.2])).amax(-1)) * wavy

    vertices, faces = to_mesh(box, resolution)
    side = ((vertices - 0.5).abs() - torch.tensor([0.4, 0.303, 0.2])).topk(2, dim=-1).values[:, 1] < -1 / resolution
    assert is_watertight(faces.numpy()) and side.sum() > len(side) / 2
    assert float(box(vertices[side]).abs().max()) * resolution < 0.02


def test_each_point_is_asked_once() -> None:
    seen = []

    def field(points: torch.Tensor) -> torch.Tensor:
        seen.append(points)
        return torus(points)

    to_mesh(field, 64)
    points = torch.cat(seen)
    lattice = (points * 64).round().long()
    off = (lattice % 4 != 0).any(-1)  # the others belong to the first look, too
    assert len(torch.unique(lattice[off], dim=0)) == int(off.sum())


def test_level_moves_the_surface_and_parts_are_counted() -> None:
    vertices, faces = (x.numpy() for x in to_mesh(torus, 64, level=0.05))
    assert math.isclose(signed_volume(vertices, faces), 2 * math.pi**2 * 0.3 * 0.15**2, rel_tol=0.02)

    def two(p: torch.Tensor) -> torch.Tensor:
        centres = torch.tensor([[0.25, 0.5, 0.5], [0.75, 0.5, 0.5]])
        return torch.cdist(p, centres).amin(-1) - 0.15

    assert n_components(to_mesh(two, 40)[1].numpy()) == 2
    assert n_components(np.zeros((0, 3), np.int64)) == 0


def test_wrong_resolutions_and_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="`resolution` must be at least 1, got 0"):
        to_mesh(torus, 0)
    with pytest.raises(ValueError, match="the field must be finite"):
        to_mesh(lambda p: torus(p) / 0, 16)
    assert to_mesh(torus, 1)[0].shape == (0, 3)
