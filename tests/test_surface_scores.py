"""Figures of surfaces against balls that are off by a known distance, and what cameras see of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from hashgrid.data.mesh import Mesh, is_watertight
from hashgrid.data.procedural import orbit_cameras
from hashgrid.geometry.boxes import Placement
from hashgrid.rendering.extract import to_mesh
from hashgrid.rendering.mesh_facts import without_specks
from hashgrid.rendering.surface_scores import Observed, compare_surfaces, dtu_scores, seen, seen_faces, thinned

for package in ("igl", "skimage"):
    pytest.importorskip(package)


def mesh_of(distance: Callable[[Tensor], Tensor], resolution: int = 64, side: float = 3.0) -> Mesh:
    vertices, faces = to_mesh(lambda x: distance((x - 0.5) * side) / side, resolution, lipschitz=1.0)
    found = faces.numpy()
    return Mesh((vertices.double().numpy() - 0.5) * side, found, Placement(), is_watertight(found), "mesh")


def ball(radius: float, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Mesh:
    return mesh_of(lambda x: (x - torch.tensor(centre)).norm(dim=-1) - radius)


def test_what_cameras_see_of_a_ball() -> None:
    """Points whose normals look at one of them; not those behind another ball."""
    cameras, mesh = orbit_cameras(6, 64, 0), ball(0.8)
    points, face = mesh.sample_surface(4000, np.random.default_rng(0))
    towards = cameras.origins.double().numpy()[None] - points[:, None]
    facing = (towards * mesh.face_normals[face][:, None]).sum(-1) / np.linalg.norm(towards, axis=-1)
    clear = (np.abs(facing) > 0.05).all(1)  # of the silhouettes, on which triangles and the ball differ
    found = seen(mesh, points, cameras)
    assert 0.6 < found.mean() < 0.95
    assert (found == (facing > 0).any(1))[clear].all()
    origin = cameras.origins[0].double().numpy()
    two = mesh_of(
        lambda x: torch.minimum(x.norm(dim=-1) - 0.3, (x - torch.from_numpy(origin / 4).float()).norm(dim=-1) - 0.4)
    )
    one = cameras.select([0])
    behind = 0.3 * origin / np.linalg.norm(origin)
    assert seen(ball(0.3), behind[None], one).all() and not seen(two, behind[None], one).any()


def test_figures_of_a_ball_that_is_too_large() -> None:
    cameras, truth = orbit_cameras(6, 64, 0), ball(0.8)
    found = compare_surfaces(ball(0.81), truth, cameras, 4000)
    for name in ("chamfer", "accuracy", "completeness"):
        assert found[name] == pytest.approx(0.01, abs=1e-3) and found["whole"][name] == pytest.approx(0.01, abs=1e-3)
    assert found["f_score"] == 1 and found["f_distance"] == pytest.approx(0.016, rel=1e-2)
    assert found["normal_error_degrees"] < 3
    far = compare_surfaces(ball(0.83), truth, cameras, 4000)
    assert far["f_score"] == 0 and far["chamfer"] == pytest.approx(0.03, abs=1e-3)
    inverted = replace(truth, faces=np.ascontiguousarray(truth.faces[:, ::-1]))
    assert compare_surfaces(inverted, truth, cameras, 1000)["normal_error_degrees"] > 170
    # a ball behind the first, as the only camera sees them, counts in the whole alone
    small, one = ball(0.3), cameras.select([0])
    place = -one.origins[0].float() / 4
    both = mesh_of(lambda x: torch.minimum(x.norm(dim=-1) - 0.3, (x - place).norm(dim=-1) - 0.1))
    hidden = compare_surfaces(both, small, one, 4000)
    assert hidden["precision"] == 1 and hidden["whole"]["precision"] < 0.95


def test_what_nobody_sees_is_left_out() -> None:
    """A ball within a ball, whose inside is a part of its own; from one side, half of the outer one."""
    shell = mesh_of(lambda x: torch.maximum(x.norm(dim=-1) - 0.8, 0.4 - x.norm(dim=-1)))
    outer = np.linalg.norm(shell.vertices[shell.faces].mean(1), axis=1) > 0.6
    assert 0.1 < outer.mean() < 0.9
    assert (seen_faces(shell, orbit_cameras(6, 64, 0), "drop_parts") == outer).all()
    one = orbit_cameras(6, 64, 0).select([0])
    assert (seen_faces(shell, one, "drop_parts") == outer).all()  # whole parts
    facing = seen_faces(shell, one, "drop_faces")
    towards = one.origins[0].double().numpy() - shell.vertices[shell.faces].mean(1)
    expected = outer & ((towards * shell.face_normals).sum(-1) > 0)
    assert (facing != expected).mean() < 0.02 and 0.2 < facing[outer].mean() < 0.5


def test_dtu_protocol() -> None:
    """A plane 1.5 above the scan, with a wall that nobody looked at, a piece far off, and a table under the scan."""

    def square(low: float, high: float, z: float) -> tuple[np.ndarray, np.ndarray]:
        corners = np.array([[low, low, z], [high, low, z], [high, high, z], [low, high, z]])
        return corners, np.array([[0, 1, 2], [0, 2, 3]])

    pieces = [square(0, 10, 1.5), square(0, 10, 60.0), square(30, 40, 3.0)]
    vertices = np.concatenate([piece[0] for piece in pieces])
    faces = np.concatenate([piece[1] + 4 * i for i, piece in enumerate(pieces)])
    mesh = Mesh(vertices, faces, Placement(), False, "planes")
    grid = np.stack(np.meshgrid(np.arange(0, 10.01, 0.25), np.arange(0, 10.01, 0.25)), axis=-1).reshape(-1, 2)
    scan = np.concatenate([np.c_[grid, np.zeros(len(grid))], np.c_[grid, np.full(len(grid), -9.0)]])
    observed = Observed(np.ones((12, 12, 71), bool), np.zeros(3), 1.0, np.array([0.0, 0, 1, 5]))
    found = dtu_scores(mesh, scan, observed, spacing=0.4)
    assert found["accuracy"] == pytest.approx(1.5, abs=0.03)  # 60 is beyond 20, 30 to 40 was not looked at
    assert found["completeness"] == pytest.approx(1.5, abs=0.03)  # what is 9 below is under the plane
    assert found["overall"] == (found["accuracy"] + found["completeness"]) / 2
    below = dtu_scores(mesh, scan, replace(observed, plane=np.array([0.0, 0, 1, 50])), spacing=0.4)
    assert below["completeness"] == pytest.approx((1.5 + 10.5) / 2, abs=0.05)
    nothing = dtu_scores(mesh, scan, replace(observed, mask=np.zeros((12, 12, 71), bool)), spacing=0.4)
    assert np.isnan(nothing["accuracy"])


def test_points_are_thinned_without_gaps() -> None:
    points = np.random.default_rng(0).random((4000, 3))
    kept = thinned(points, 0.1)
    distance = cKDTree(kept).query(kept, k=2)[0][:, 1]
    assert distance.min() >= 0.1 and cKDTree(kept).query(points)[0].max() <= 0.1


def test_specks_are_left_out() -> None:
    """A ball of a hundredth of the area, and one of more."""
    radii, centres = torch.tensor([0.6, 0.05, 0.15]), torch.tensor([[0.0, 0, 0], [1.2, 0, 0], [-1.2, 0, 0]])
    three = mesh_of(lambda x: ((x[:, None] - centres).norm(dim=-1) - radii).amin(dim=1), 128)
    vertices, faces, used = without_specks(three.vertices, three.faces, 0.02)
    assert (vertices == three.vertices[used]).all() and is_watertight(faces)
    assert vertices[:, 0].max() < 0.7 and vertices[:, 0].min() < -1.3
    assert len(without_specks(three.vertices, three.faces, 0.001)[1]) == len(three.faces)
