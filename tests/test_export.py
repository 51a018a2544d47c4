"""Surfaces from depths against a ball of known colours; files against other readers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from problems.nerf import OPTIONS
from torch import Tensor

from hashgrid.cli import main
from hashgrid.data.mesh import is_watertight
from hashgrid.data.mesh_files import write_mesh
from hashgrid.data.procedural import orbit_cameras, write_scene
from hashgrid.data.scene import load_scene
from hashgrid.geometry.lenses import COEFFICIENTS, KINDS
from hashgrid.rendering.fusion import fuse
from hashgrid.tasks.export import write_cameras

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("skimage")
RADIUS, MIDDLE = 0.6, torch.tensor([0.1, -0.2, 0.05])


def ball(cameras, view: int) -> tuple[Tensor, Tensor, Tensor]:
    """A ball whose colour is its outward normal, halved and moved to 0..1."""
    rays = cameras.view_rays(view)
    offset = rays.origins - MIDDLE
    b, c = (offset * rays.directions).sum(-1), offset.square().sum(-1) - RADIUS**2
    hit = (b * b - c) > 0
    depth = torch.where(hit, -b - (b * b - c).clamp_min(0).sqrt(), 0.0)
    normal = (rays.origins + depth[:, None] * rays.directions - MIDDLE) / RADIUS
    width, height = cameras.size(view)
    color = torch.where(hit[:, None], 0.5 + 0.5 * normal, 0.0)
    return color.view(height, width, 3), hit.float().view(height, width), depth.view(height, width)


def test_fused_ball() -> None:
    """Vertices lie a fifth of a voxel from it in the mean, faces close it and look outwards, colours are those seen."""
    cameras = orbit_cameras(40, 120, 1)
    below = orbit_cameras(40, 120, 2)
    below.c2w[:, 2] *= -1  # a mirror: z and the third axis of the camera; one column more makes it a rotation again
    below.c2w[:, :, 0] *= -1
    both = type(below)(
        *(torch.cat(pair) for pair in zip(*((x.c2w, x.intrinsics, x.sizes) for x in (cameras, below)), strict=True))
    )
    fused = fuse(lambda view: ball(both, view), both, torch.tensor([-1.0, -1, -1, 1, 1, 1]), 64)
    offset = fused.vertices - MIDDLE.numpy()
    assert np.abs(np.linalg.norm(offset, axis=1) - RADIUS).max() < 0.5 * 2 / 64
    assert np.abs(np.linalg.norm(offset, axis=1) - RADIUS).mean() < 0.2 * 2 / 64
    assert is_watertight(fused.faces)
    mesh = trimesh.Trimesh(fused.vertices, fused.faces, process=False)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.02)  # negative if inside out
    assert np.abs(fused.colors - (0.5 + 0.5 * offset / RADIUS)).mean() < 0.02


def test_what_nobody_saw_stays_open() -> None:
    """One view: a cap, and no wall behind it."""
    camera = orbit_cameras(1, 160, 1)
    fused = fuse(lambda view: ball(camera, view), camera, torch.tensor([-1.0, -1, -1, 1, 1, 1]), 48)
    towards = torch.nn.functional.normalize(camera.origins[0] - MIDDLE, dim=0).numpy()
    assert len(fused.faces) > 100 and not is_watertight(fused.faces)
    assert ((fused.vertices - MIDDLE.numpy()) @ towards).min() > -0.2


@pytest.mark.parametrize("suffix", ["ply", "obj", "glb"])
def test_coloured_meshes_are_read_by_trimesh(suffix: str, tmp_path: Path) -> None:
    """Also far from the origin, where float32 would move vertices."""
    box = trimesh.creation.box()
    vertices = np.asarray(box.vertices) + [500_000.125, -30.5, 7.25]
    colors = np.random.default_rng(0).random((8, 3))
    write_mesh(tmp_path / f"box.{suffix}", vertices, np.asarray(box.faces), None, colors)
    read = trimesh.load(tmp_path / f"box.{suffix}", force="mesh", process=False)
    np.testing.assert_allclose(read.vertices, vertices, atol=1e-6)
    assert np.array_equal(read.faces, box.faces)
    assert np.abs(np.asarray(read.visual.vertex_colors)[:, :3] / 255 - colors).max() <= 0.5 / 255 + 1e-6


def test_export_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the coordinates of the scene's file, which lie elsewhere here; cameras come back to the digit."""
    pytest.importorskip("imageio.v3")
    folder, move, unit = write_scene(tmp_path / "scene", 12, 2, 32), np.array([30.0, -5.0, 2.0]), 10.0
    for file in folder.glob("transforms_*.json"):
        meta = json.loads(file.read_text())
        for frame in meta["frames"]:
            matrix = np.array(frame["transform_matrix"])
            matrix[:3, 3] = matrix[:3, 3] * unit + move
            frame["transform_matrix"] = matrix.tolist()
        file.write_text(json.dumps({**meta, "aabb": [*(move - 1.5 * unit).tolist(), *(move + 1.5 * unit).tolist()]}))
    run = tmp_path / "run"
    assert main(["nerf", str(folder), "--steps", "120", "--no-video", "--views", "0", "--out", str(run), *OPTIONS]) == 0
    options = ["--resolution", "40", "--views", "8", "--device", "cpu"]
    assert main(["export", str(run), str(tmp_path / "mesh.glb"), *options]) == 0
    mesh = trimesh.load(tmp_path / "mesh.glb", force="mesh", process=False)
    low, high = mesh.bounds
    assert (low > move - 1.6 * unit).all() and (high < move + 1.6 * unit).all() and (high - low).max() > unit
    facts = json.loads((tmp_path / "mesh.json").read_text())
    assert facts["vertices"] == len(mesh.vertices) and facts["faces"] == len(mesh.faces)

    crop = [str(x) for x in (*(move - 0.5 * unit), *(move + 0.5 * unit))]
    assert main(["export", str(run), str(tmp_path / "points.ply"), *options, "--points", "500", "--crop", *crop]) == 0
    points = trimesh.load(tmp_path / "points.ply").vertices
    assert 0 < len(points) <= 500 and (np.abs(points - move) <= 0.5 * unit + 1e-4).all()

    assert main(["export", str(run), str(tmp_path / "cameras.json"), "--device", "cpu"]) == 0
    frames = json.loads((tmp_path / "cameras.json").read_text())["frames"]
    scene = load_scene(folder)
    expected = torch.cat((scene.train.c2w, scene.test.c2w))
    found = torch.tensor([frame["transform_matrix"] for frame in frames])[:, :3]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert main(["export", str(run), str(tmp_path / "mesh.stl"), *options]) == 1
    assert "written as ply, obj or glb" in capsys.readouterr().err


def test_cameras_say_their_lens_and_time(tmp_path: Path) -> None:
    """A fisheye is one for nerfstudio, too, which looks for it beside the frames; what it cannot have is refused."""
    scene = load_scene("procedural:train=2,test=1,resolution=8")
    for views in (scene.train, scene.test):
        views.lens[:] = KINDS.index("fisheye")
        views.times = torch.linspace(0.25, 0.75, len(views))
    task, out = SimpleNamespace(scene=scene), tmp_path / "cameras.json"
    write_cameras(task, out)  # type: ignore[arg-type]
    meta = json.loads(out.read_text())
    assert meta["camera_model"] == "OPENCV_FISHEYE" and [f["time"] for f in meta["frames"]] == [0.25, 0.75, 0.25]
    scene.train.distortion[1, COEFFICIENTS.index("s1")] = 1e-3
    with pytest.raises(ValueError, match="k1, k2, k3, k4, p1 and p2 only, .* has s1, too"):
        write_cameras(task, out)  # type: ignore[arg-type]
