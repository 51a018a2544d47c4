"""Surfaces from depths against a ball of known colours; files against other readers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from problems.nerf import OPTIONS, nerf_trainer
from torch import Tensor

from hashgrid.cli import main
from hashgrid.data.mesh import is_watertight
from hashgrid.data.mesh_colors import read_colors
from hashgrid.data.mesh_files import Texture, write_mesh
from hashgrid.data.procedural import orbit_cameras, write_scene
from hashgrid.data.scene import load_scene
from hashgrid.data.shape import load_shape
from hashgrid.geometry.lenses import COEFFICIENTS, KINDS
from hashgrid.rendering.fusion import fuse
from hashgrid.tasks.export import write_cameras
from hashgrid.tasks.sdf import Sdf, SdfConfig
from hashgrid.train.loop import Trainer
from hashgrid.train.run import CHECKPOINT

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("skimage")
BRICK = trimesh.creation.box((2.0, 1.0, 1.0))
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
    """Vertices lie a fifth of a voxel from it in the mean, faces close it and look outwards."""
    cameras = orbit_cameras(40, 120, 1)
    below = orbit_cameras(40, 120, 2)
    below.c2w[:, 2] *= -1  # a mirror: z and the third axis of the camera; one column more makes it a rotation again
    below.c2w[:, :, 0] *= -1
    both = type(below)(
        *(torch.cat(pair) for pair in zip(*((x.c2w, x.intrinsics, x.sizes) for x in (cameras, below)), strict=True))
    )
    vertices, faces = fuse(lambda view: ball(both, view), both, torch.tensor([-1.0, -1, -1, 1, 1, 1]), 64)
    offset = vertices - np.asarray(MIDDLE)
    assert np.abs(np.linalg.norm(offset, axis=1) - RADIUS).max() < 0.5 * 2 / 64
    assert np.abs(np.linalg.norm(offset, axis=1) - RADIUS).mean() < 0.2 * 2 / 64
    assert is_watertight(faces)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.02)  # negative if inside out


def test_what_nobody_saw_stays_open() -> None:
    """One view: a cap, and no wall behind it."""
    camera = orbit_cameras(1, 160, 1)
    vertices, faces = fuse(lambda view: ball(camera, view), camera, torch.tensor([-1.0, -1, -1, 1, 1, 1]), 48)
    towards = torch.nn.functional.normalize(camera.origins[0] - MIDDLE, dim=0).numpy()
    assert len(faces) > 100 and not is_watertight(faces)
    assert ((vertices - np.asarray(MIDDLE)) @ towards).min() > -0.2


@pytest.mark.parametrize("suffix", ["ply", "obj", "glb"])
def test_coloured_meshes_are_read_by_trimesh(suffix: str, tmp_path: Path) -> None:
    """Also far from the origin, where float32 would move vertices."""
    box = trimesh.creation.box()
    vertices = np.asarray(box.vertices) + [500_000.125, -30.5, 7.25]
    colors = np.random.default_rng(0).random((8, 3))
    write_mesh(tmp_path / f"box.{suffix}", vertices, np.asarray(box.faces), None, colors)
    read_scene = trimesh.load_scene(tmp_path / f"box.{suffix}", process=False)
    (read,) = read_scene.geometry.values()
    np.testing.assert_allclose(read_scene.dump()[0].vertices, vertices, atol=1e-6)
    assert np.array_equal(read.faces, box.faces)
    if suffix == "glb":  # of which trimesh makes no colours of its own
        found, light = np.asarray(read.visual.vertex_attributes["color"])[:, :3] / 65535, (colors + 0.055) / 1.055
        np.testing.assert_allclose(found, np.where(colors > 0.04045, light**2.4, colors / 12.92), atol=1e-4)
    else:
        assert np.abs(np.asarray(read.visual.vertex_colors)[:, :3] / 255 - colors).max() <= 0.5 / 255 + 1e-6
    known = read_colors(tmp_path / f"box.{suffix}")
    assert known is not None
    np.testing.assert_allclose(known(vertices), colors, atol=0.51 / 255)


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
    views = ["--views", "8", "--device", "cpu"]
    options = ["--resolution", "40", *views]
    assert main(["export", str(run), str(tmp_path / "mesh.glb"), *options]) == 0
    mesh = trimesh.load(tmp_path / "mesh.glb", force="mesh", process=False)
    low, high = mesh.bounds
    assert (low > move - 1.6 * unit).all() and (high < move + 1.6 * unit).all() and (high - low).max() > unit
    facts = json.loads((tmp_path / "export.json").read_text())["mesh.glb"]
    assert facts["vertices"] == len(mesh.vertices) and facts["faces"] == len(mesh.faces)
    np.testing.assert_allclose([facts["low"], facts["high"]], mesh.bounds, rtol=1e-6)
    assert facts["area"] == pytest.approx(mesh.area, rel=1e-4) and facts["kind"] == "tsdf"

    crop = [str(x) for x in (*(move - 0.5 * unit), *(move + 0.5 * unit))]
    assert main(["export", str(run), str(tmp_path / "points.ply"), *views, "--points", "500", "--crop", *crop]) == 0
    points = trimesh.load(tmp_path / "points.ply").vertices
    assert 0 < len(points) <= 500 and (np.abs(points - move) <= 0.5 * unit + 1e-4).all()
    assert set(json.loads((tmp_path / "export.json").read_text())) == {"mesh.glb", "points.ply"}

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


@pytest.fixture(scope="module")
def run_of_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of some steps on a small scene."""
    pytest.importorskip("imageio.v3")
    folder = tmp_path_factory.mktemp("scene")
    trainer = nerf_trainer(load_scene(write_scene(folder / "scene", 8, 1, 24)), steps=60)
    trainer.train()
    trainer.save(folder / CHECKPOINT)
    return folder


@pytest.mark.parametrize("method", ["density", "poisson"])
def test_methods_stay_in_the_crop(method: str, run_of_scene: Path, tmp_path: Path) -> None:
    pytest.importorskip("pymeshlab")
    pytest.importorskip("xatlas")
    crop = (-0.7, -1.1, -0.6, 0.33, 0.91, 0.5)
    options = ["--method", method, "--resolution", "20", "--crop", *map(str, crop), "--device", "cpu"]
    options += [] if method == "density" else ["--views", "8"]
    command = [
        "export",
        str(run_of_scene),
        str(tmp_path / "a.obj"),
        "--texture",
        "64",
        "--keep",
        "2",
        "--faces",
        "400",
        *options,
    ]
    assert main(command) == 0
    mesh = trimesh.load(tmp_path / "a.obj", force="mesh", process=False)
    assert (mesh.vertices >= np.array(crop[:3])).all() and (mesh.vertices <= np.array(crop[3:])).all()
    facts = json.loads((tmp_path / "export.json").read_text())["a.obj"]
    assert facts["components"] <= 2 and 400 >= facts["faces"] == len(mesh.faces) > 20
    assert facts["watertight"] or method == "poisson"
    assert {path.name for path in tmp_path.iterdir()} == {"a.obj", "a.mtl", "a.png", "export.json"}
    assert mesh.visual.material.image.size == (64, 64)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("a.glb --threshold 3", "`--threshold` is for density; it has no effect on tsdf"),
        ("a.glb --method density --views 3", "`--views` is for tsdf, poisson, points; it has no effect on density"),
        ("points.ply --texture 64", "it has no effect on points"),
        ("cameras.json --crop 0 0 0 1 1 1", "it has no effect on cameras"),
        ("a.ply --texture 64", "a mesh with a texture is written as obj or glb"),
        ("a.glb --keep 0", "`--keep` must be positive, got 0"),
        ("a.glb --method density --resolution 16 --crop 1.2 1.2 1.2 1.3 1.3 1.3", "there is no surface"),
        ("points.obj", "points are written as ply"),
        ("a.glb --semantic", "`--semantic` must be left out: the run has learned no labels"),
        ("points.ply --semantic", "`--semantic` is for tsdf, density, poisson, distance; it has no effect on points"),
        ("export.json --what cameras", "must have another name than export.json"),
    ],
)
def test_export_errors(
    words: str, said: str, run_of_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line each, and nothing is written."""
    name, *options = words.split()
    assert main(["export", str(run_of_scene), str(tmp_path / name), *options, "--device", "cpu"]) == 1
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "package"),
    [("a.obj --texture 64", "xatlas"), ("a.ply --faces 9", "pymeshlab"), ("a.ply --method poisson", "pymeshlab")],
)
def test_missing_packages_are_missed_at_once(
    words: str,
    package: str,
    run_of_scene: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not after views were rendered."""
    monkeypatch.setitem(sys.modules, package, None)
    name, *options = words.split()
    assert main(["export", str(run_of_scene), str(tmp_path / name), *options, "--device", "cpu"]) == 1
    err = capsys.readouterr().err
    assert f"`{package}` is needed here" in err and "[export]" in err and "views" not in err


FAR = np.array([1000.0, -30.0, 5.0])


@pytest.fixture(scope="module")
def run_of_box(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a box, box.glb beside it."""
    pytest.importorskip("igl")
    folder = tmp_path_factory.mktemp("box")
    write_mesh(folder / "box.glb", np.asarray(BRICK.vertices) + FAR, np.asarray(BRICK.faces))
    sizes = {"batch": 2048, "log2_hashmap_size": 12, "pool": 100_000}
    task = Sdf(SdfConfig.defaults().replace(steps=60, device="cpu", **sizes), load_shape(folder / "box.glb"))
    task.begin()
    trainer = Trainer(task)
    trainer.train()
    trainer.save(folder / CHECKPOINT)
    task.close()
    return folder


@pytest.mark.parametrize("kind", ["vertex", "texture", "none"])
def test_meshes_of_distances_keep_the_colours_of_their_source(kind: str, run_of_box: Path, tmp_path: Path) -> None:
    """Far from the origin; cut off at a crop; without colours there are none."""
    vertices, faces = np.asarray(BRICK.vertices), np.asarray(BRICK.faces)
    colors = np.where(vertices[:, :1] < 0, [[1.0, 0, 0]], [[0, 0, 1.0]]) if kind == "vertex" else None
    texture = None
    if kind == "texture":
        image = np.zeros((4, 64, 3), np.uint8)
        image[:, :32, 0] = image[:, 32:, 2] = 255
        uv = np.stack((0.5 + 0.45 * vertices[:, 0], np.full(8, 0.5)), axis=1)
        texture = Texture(uv, faces, np.arange(8), image)
    write_mesh(run_of_box / "box.glb", vertices + FAR, faces, None, colors, texture)
    crop = [str(x) for x in (*(FAR - [2, 2, 2]), *(FAR + [2, 2, 0.1]))]
    assert main(["export", str(run_of_box), str(tmp_path / "out.ply"), "--resolution", "40", "--crop", *crop]) == 0
    mesh = trimesh.load(tmp_path / "out.ply", force="mesh", process=False)
    facts = json.loads((tmp_path / "export.json").read_text())["out.ply"]
    assert facts["watertight"] and facts["kind"] == "sdf"
    assert facts["colors"] == ("no" if kind == "none" else "vertices")
    offset = mesh.vertices - FAR
    assert offset[:, 2].max() == pytest.approx(0.1, abs=1e-4)
    assert facts["volume"] == pytest.approx(2 * 0.6, rel=0.1)
    if kind == "none":
        assert mesh.visual.kind is None
        return
    sides = np.abs(offset[:, 0]) > 0.85
    expected = np.where(offset[:, :1] < 0, [[255, 0, 0]], [[0, 0, 255]])
    assert np.abs(mesh.visual.vertex_colors[sides, :3] - expected[sides].astype(float)).max() < 100  # mixed as light
