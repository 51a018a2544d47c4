"""Pictures of meshes against a ball whose normals, depths and errors are known at every pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hashgrid.data.mesh import Mesh
from hashgrid.data.procedural import orbit_cameras
from hashgrid.geometry.boxes import Placement
from hashgrid.rendering.extract import to_mesh
from hashgrid.rendering.surface_pictures import cast, surface_pictures, write_surface_pictures

for package in ("igl", "skimage"):
    pytest.importorskip(package)


def ball(radius: float) -> Mesh:
    vertices, faces = to_mesh(lambda x: (x - 0.5).norm(dim=-1) - radius / 3, 96, lipschitz=1.0)
    return Mesh((vertices.double().numpy() - 0.5) * 3, faces.numpy(), Placement(), True, "ball")


def test_a_ball_is_seen_as_it_is(tmp_path: Path) -> None:
    mesh, cameras = ball(0.8), orbit_cameras(6, 64, 0)
    face, depth, directions = cast(mesh, cameras, 2)
    rays = cameras.view_rays(2)
    o, d = rays.origins.double().numpy(), directions
    b = (o * d).sum(1)
    gap = b**2 - (o**2).sum(1) + 0.8**2
    clear = np.abs(gap) > 0.02  # of the silhouette
    assert ((face >= 0) == (gap > 0))[clear].all() and 0.05 < (face >= 0).mean() < 0.9
    hit = (face >= 0) & clear
    assert np.abs(depth[hit] - (-b - np.sqrt(gap.clip(0)))[hit]).max() < 5e-3
    colors = (mesh.vertices + 1) / 2
    found = surface_pictures(mesh, cameras, 2, colors, ball(0.9), error_scale=0.2)
    assert list(found) == ["shaded", "normals", "depth", "colors", "error"]
    places = (o + depth[:, None] * d)[hit]
    expected = (places / 0.8) @ cameras.c2w[2, :, :3].double().numpy()
    normals = 2 * found["normals"].view(-1, 3).double().numpy()[hit] - 1
    assert np.abs(normals - expected).max() < 0.1
    assert np.abs(found["colors"].view(-1, 3).numpy()[hit] - (places + 1) / 2).max() < 0.05
    facing = -(expected @ cameras.c2w[2, :, :3].double().numpy().T * d[hit]).sum(1)
    assert np.abs(found["shaded"].view(-1, 3).numpy()[hit, 0] - (0.25 + 0.75 * facing)).max() < 0.1
    one = found["error"].view(-1, 3)[torch.from_numpy(hit)]
    assert float((one - one[0]).abs().max()) < 0.05  # a tenth everywhere
    write_surface_pictures(tmp_path / "mesh.png", mesh, cameras, colors, None)
    assert (tmp_path / "mesh.png").stat().st_size > 1000
