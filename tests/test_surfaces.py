"""Surfaces of radiance fields and their textures against balls of known colours, and against trimesh."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hashgrid.data.mesh import is_watertight
from hashgrid.data.mesh_colors import read_colors
from hashgrid.data.mesh_files import write_mesh
from hashgrid.data.procedural import orbit_cameras
from hashgrid.fields.base import RadianceField
from hashgrid.geometry.cameras import Cameras
from hashgrid.nn import OccupancyGrid
from hashgrid.rendering.density import density_surface
from hashgrid.rendering.fusion import fuse
from hashgrid.rendering.mesh_facts import largest_parts, mesh_facts, simplified, vertex_normals
from hashgrid.rendering.near_surface import surface_colors
from hashgrid.rendering.oriented import poisson_surface, seen_points
from hashgrid.rendering.samplers import OccupancySampler, StratifiedSampler
from hashgrid.rendering.texture import bake
from hashgrid.rendering.volume import render_image

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("skimage")
RADIUS, MIDDLE = 0.6, torch.tensor([0.1, -0.2, 0.05])
BOX = torch.tensor([-1.0, -1, -1, 1, 1, 1])
STEEPNESS = 60.0  # of the density: it is 1 at the surface


class Ball(RadianceField):
    """Density exp(60 (radius - r)), a cavity in the middle, colours of the direction from there."""

    def __init__(self) -> None:
        super().__init__(BOX)

    def density(self, at) -> tuple[Tensor, Tensor]:
        offset = at.unit * 2 - 1 - MIDDLE
        r = offset.norm(dim=-1)
        return (STEEPNESS * torch.minimum(RADIUS - r, r - 0.3)).exp(), offset

    def color(self, at, carry: Tensor) -> Tensor:
        return color_of(carry)


def color_of(offset: Tensor) -> Tensor:
    return 0.5 + 0.5 * torch.nn.functional.normalize(offset, dim=-1)


def radii(vertices: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vertices - np.asarray(MIDDLE), axis=1)


def all_around(n: int = 10, size: int = 48) -> Cameras:
    """Cameras above the ball, and as many below."""
    above, below = orbit_cameras(n, size, 1), orbit_cameras(n, size, 2)
    below.c2w[:, 2] *= -1  # a mirror: z and the third axis of the camera; one column more makes it a rotation again
    below.c2w[:, :, 0] *= -1
    pairs = zip(*((x.c2w, x.intrinsics, x.sizes) for x in (above, below)), strict=True)
    return Cameras(*(torch.cat(pair) for pair in pairs))


def look(cameras: Cameras):
    """What renders a view of the ball."""
    field, sampler = Ball(), StratifiedSampler(96)

    def show(view: int) -> tuple[Tensor, Tensor, Tensor]:
        color, opacity, depth = render_image(field, sampler, cameras, view, torch.zeros(3))
        return color / opacity.clamp_min(1e-3)[..., None], opacity, depth

    return show


@pytest.mark.parametrize("threshold", [1.0, 20.0])
def test_density_surface(threshold: float) -> None:
    """Where the formula has it, closed, looking outwards; the cavity is nobody's business."""
    vertices, faces = density_surface(Ball(), StratifiedSampler(8), BOX, 48, threshold)
    expected = RADIUS - np.log(threshold) / STEEPNESS
    assert np.abs(radii(vertices) - expected).max() < 1e-3  # linear in the logarithm: exact but for the curvature
    assert is_watertight(faces) and mesh_facts(vertices, faces)["components"] == 1
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * expected**3, rel=0.01)


def test_density_is_cut_at_the_box_and_where_nothing_is_occupied() -> None:
    box = torch.tensor([-0.3, -1, -1, 0.47, 0.31, 0.9])
    vertices, faces = density_surface(Ball(), StratifiedSampler(8), box, 40)
    assert is_watertight(faces) and len(faces) > 100
    assert (vertices >= box[:3].numpy()).all() and (vertices <= box[3:].numpy()).all()
    grid = OccupancyGrid(BOX, 16)
    cells = torch.arange(16**3)
    grid.raise_cells(cells, (cells // 256 >= 8).float())  # x > 0
    vertices, _ = density_surface(Ball(), OccupancySampler(grid, step_size=0.1), BOX, 40)
    assert 0 > vertices[:, 0].min() > -2 / 40  # a cell of the lattice at most
    with pytest.raises(ValueError, match="`threshold` must be positive"):
        density_surface(Ball(), StratifiedSampler(8), BOX, 16, 0.0)


def test_occupied_at() -> None:
    """Cell by cell, in nested boxes that are no cubes."""
    aabb = torch.tensor([-1.0, 0, 2, 1, 1, 5])
    grid = OccupancyGrid(aabb, (4, 2, 3), n_cascades=3)
    generator = torch.Generator().manual_seed(0)
    occupied = torch.rand(grid.n_cells, generator=generator) < 0.5
    grid.raise_cells(torch.arange(grid.n_cells), occupied.float())
    centre, half = 0.5 * (aabb[:3] + aabb[3:]), 0.5 * (aabb[3:] - aabb[:3])
    points = centre + half * 5 * (2 * torch.rand(2000, 3, generator=generator) - 1)
    found, expected = grid.occupied_at(points), []
    for point in points:
        cascade = next((c for c in range(3) if ((point - centre).abs() < half * 2**c).all()), None)
        if cascade is None:
            expected.append(False)
            continue
        x, y, z = (((point - centre) / half / 2**cascade + 1) / 2 * torch.tensor([4, 2, 3])).long().tolist()
        expected.append(bool(occupied[cascade * 24 + (x * 2 + y) * 3 + z]))
    assert found.tolist() == expected


def test_fused_in_a_box_that_is_no_cube() -> None:
    """No voxel sticks out of it."""
    cameras, box = all_around(8, 60), torch.tensor([-0.31, -1.0, -1, 0.47, 0.33, 0.97])
    vertices, faces = fuse(look(cameras), cameras, box, 24)
    assert len(faces) > 100
    assert (vertices >= box[:3].double().numpy()).all() and (vertices <= box[3:].double().numpy()).all()
    for axis, side in ((0, 0.47), (1, 0.33)):
        assert vertices[:, axis].max() == pytest.approx(side, abs=1e-6)  # and up to its sides


def test_seen_points_and_the_surface_through_them() -> None:
    cameras = all_around()
    cloud = seen_points(look(cameras), cameras)
    assert len(cloud.points) > 2000
    offset = cloud.points - MIDDLE.numpy()
    assert np.abs(np.linalg.norm(offset, axis=1) - RADIUS).mean() < 0.06  # light goes a little into it
    outwards = offset / np.linalg.norm(offset, axis=1, keepdims=True)
    assert (cloud.normals * outwards).sum(1).mean() > 0.97
    assert np.abs(cloud.colors - (0.5 + 0.5 * outwards)).mean() < 0.02
    inside = seen_points(look(cameras), cameras, torch.tensor([-1.0, -1, -1, 0, 1, 1]))
    assert 0.2 < len(inside.points) / len(cloud.points) < 0.8 and inside.points[:, 0].max() <= 0

    pytest.importorskip("pymeshlab")
    box = torch.tensor([-1.0, -1, -1, 0.3, 1, 1])
    vertices, faces = poisson_surface(cloud, box, 16)
    assert len(faces) > 100 and vertices[:, 0].max() <= 0.3 + 1e-12
    assert np.abs(radii(vertices) - RADIUS).mean() < 0.06
    normals = vertex_normals(vertices, faces)
    assert (normals * (vertices - MIDDLE.numpy())).sum(1).mean() > 0.9 * RADIUS  # outwards
    assert poisson_surface(cloud.select(np.arange(0)), box, 16)[1].shape == (0, 3)


def test_surface_colors() -> None:
    """Those of the field in front of the surface, not of the other side of the cavity."""
    direction = torch.nn.functional.normalize(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    found = surface_colors(Ball(), MIDDLE + RADIUS * direction, direction, 0.1)
    torch.testing.assert_close(found, color_of(direction), atol=1e-4, rtol=0)


def test_surface_of_a_moment() -> None:
    """A ball that moves along x is where it is at the time, and has its colours there."""

    class Moving(Ball):
        needs = ("time",)

        def density(self, at) -> tuple[Tensor, Tensor]:
            time = at.unit_and_time[:, 3:]
            offset = at.unit * 2 - 1 - MIDDLE - time * torch.tensor([0.25, 0.0, 0.0])
            return (STEEPNESS * torch.minimum(RADIUS - offset.norm(dim=-1), offset.norm(dim=-1) - 0.3)).exp(), offset

    vertices, _ = density_surface(Moving(), StratifiedSampler(8), BOX, 48, 1.0, 0.8)
    offset = torch.from_numpy(vertices).float() - MIDDLE - torch.tensor([0.2, 0.0, 0.0])
    assert float((offset.norm(dim=1) - RADIUS).abs().max()) < 1e-3
    direction = torch.nn.functional.normalize(offset, dim=-1)
    found = surface_colors(Moving(), torch.from_numpy(vertices), direction, 0.1, time=0.8)
    torch.testing.assert_close(found, color_of(direction), atol=1e-3, rtol=0)


@pytest.mark.parametrize("suffix", ["obj", "glb"])
def test_texture(suffix: str, tmp_path: Path) -> None:
    """Colours of points of the surface, looked up by another reader, far from the origin, too."""
    pytest.importorskip("xatlas")
    ball, far = trimesh.creation.icosphere(subdivisions=3), np.array([700_000.125, -30.5, 7.25])
    vertices, faces = np.asarray(ball.vertices) + far, np.asarray(ball.faces)

    def color(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        assert np.allclose(points - far, normals, atol=0.02)
        return 0.5 + 0.45 * np.sin(3 * (points - far))

    texture = bake(vertices, faces, np.asarray(ball.vertices), color, 512)
    assert np.array_equal(texture.vertex[texture.faces], faces)
    write_mesh(tmp_path / f"my ball.{suffix}", vertices, faces, vertex_normals(vertices, faces), None, texture)
    read = trimesh.load(tmp_path / f"my ball.{suffix}", force="mesh", process=False)
    np.testing.assert_allclose(read.triangles, vertices[faces], atol=1e-6)
    points, face = trimesh.sample.sample_surface(read, 2000, seed=0)
    weights = trimesh.triangles.points_to_barycentric(read.triangles[face], points)
    uv = (weights[:, :, None] * read.visual.uv[read.faces[face]]).sum(1)
    material = read.visual.material
    image = np.asarray((material.image if suffix == "obj" else material.baseColorTexture).convert("RGB"))
    shown = image[((1 - uv[:, 1]) * 512).astype(int), (uv[:, 0] * 512).astype(int)] / 255
    assert np.abs(shown - color(points, points - far)).max() < 0.06  # a texel is a hundredth of the ball
    colors = read_colors(tmp_path / f"my ball.{suffix}")
    assert colors is not None
    assert np.abs(colors(points) - color(points, points - far)).max() < 0.03
    with pytest.raises(ValueError, match="a mesh with a texture is written as obj or glb"):
        write_mesh(tmp_path / "ball.ply", vertices, faces, None, None, texture)


def test_glb_says_what_its_colours_mean(tmp_path: Path) -> None:
    """Colours of vertices are linear in glTF: half of sRGB is 21 % of the light; what has its light gets no other."""
    box = trimesh.creation.box()
    colors = np.repeat(np.array([[0.5, 0.0, 1.0]]), 8, axis=0)
    for lit in (True, False):
        write_mesh(tmp_path / "box.glb", box.vertices, box.faces, None, colors, lit=lit)
        data = (tmp_path / "box.glb").read_bytes()
        size = int.from_bytes(data[12:16], "little")
        tree = json.loads(data[20 : 20 + size])
        accessor = tree["accessors"][tree["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]]
        assert accessor["normalized"] and accessor["componentType"] == 5123
        start = 28 + size + tree["bufferViews"][accessor["bufferView"]].get("byteOffset", 0)
        first = np.frombuffer(data, "<u2", 4, start) / 65535
        np.testing.assert_allclose(first, [0.2140, 0, 1, 1], atol=1e-4)
        material = tree["materials"][tree["meshes"][0]["primitives"][0]["material"]]
        assert material["pbrMetallicRoughness"]["metallicFactor"] == 0
        assert ("KHR_materials_unlit" in material.get("extensions", {})) is not lit
        assert ("KHR_materials_unlit" in tree.get("extensionsUsed", [])) is not lit


def test_mesh_facts() -> None:
    """As trimesh has them."""
    torus, ball = trimesh.creation.torus(1.0, 0.25), trimesh.creation.icosphere(radius=0.2)
    both = trimesh.util.concatenate([ball, torus])
    facts = mesh_facts(np.asarray(both.vertices), np.asarray(both.faces))
    assert facts["area"] == pytest.approx(both.area) and facts["volume"] == pytest.approx(both.volume)
    assert facts["components"] == 2 and facts["watertight"]
    np.testing.assert_allclose([facts["low"], facts["high"]], both.bounds)
    vertices, faces, used = largest_parts(np.asarray(both.vertices), np.asarray(both.faces), 1)
    assert np.array_equal(vertices, np.asarray(both.vertices)[used]) and len(faces) == len(torus.faces)
    np.testing.assert_allclose(vertices[faces], torus.triangles)
    assert mesh_facts(vertices, faces[1:])["volume"] is None
    normals = vertex_normals(np.asarray(ball.vertices), np.asarray(ball.faces))
    np.testing.assert_allclose(normals, np.asarray(ball.vertices) / 0.2, atol=0.02)


def test_simplified() -> None:
    """A ball with a tenth of its faces is still one, at its place, no wider than before."""
    pytest.importorskip("pymeshlab")
    ball = trimesh.creation.icosphere(subdivisions=4, radius=2.0)
    far = np.array([1e6, 0, -3e5])
    vertices, faces = simplified(np.asarray(ball.vertices) + far, np.asarray(ball.faces), 500)
    assert 450 < len(faces) <= 500 and is_watertight(faces)
    r = np.linalg.norm(vertices - far, axis=1)
    assert 1.95 < r.min() and r.max() < 2.02 and np.abs(vertices - far).max() <= 2 + 1e-9
    assert simplified(vertices, faces, 600)[1] is faces


@pytest.mark.parametrize("kind", ["vertex", "face", "material", "none"])
def test_colors_of_files(kind: str, tmp_path: Path) -> None:
    box = trimesh.creation.box()
    if kind == "vertex":
        box.visual.vertex_colors = np.pad((box.vertices + 0.5) * 255, ((0, 0), (0, 1)), constant_values=255)
    if kind == "face":
        box.visual.face_colors = [200, 100, 0, 255]
    path = tmp_path / "box.ply"
    box.export(path)
    if kind == "material":
        path = tmp_path / "box.obj"
        (tmp_path / "box.mtl").write_text("newmtl red\nKd 0.8 0.2 0.4\n")
        path.write_text("mtllib box.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl red\nf 1 2 3\n")
    colors = read_colors(path)
    assert (colors is None) == (kind == "none")
    if colors is None:
        return
    found = colors(np.array([[0.5, 0.25, -0.25], [0.7, 0.1, 0.3]]))
    expected = {
        "vertex": [[1, 0.75, 0.25], [1, 0.6, 0.8]],
        "face": [[200 / 255, 100 / 255, 0]] * 2,
        "material": [[0.8, 0.2, 0.4]] * 2,
    }[kind]
    np.testing.assert_allclose(found, expected, atol=0.01)


@pytest.mark.parametrize("package", ["xatlas", "pymeshlab"])
def test_missing_packages_name_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    cameras = all_around(1, 8)
    cloud = seen_points(look(cameras), cameras)
    box = trimesh.creation.box()
    with pytest.raises(ImportError, match=rf"`{package}` .*torch-hashgrid\[export\]"):
        if package == "xatlas":
            bake(np.asarray(box.vertices), np.asarray(box.faces), np.asarray(box.vertices), lambda p, n: p, 64)
        poisson_surface(cloud, BOX, 16)


def test_density_behind_pores_is_filled() -> None:
    """A shell with a hole of two cells is a ball; with one of a third of its width it is not."""

    class Shell(Ball):
        def __init__(self, hole: float) -> None:
            super().__init__()
            self.hole = hole

        def density(self, at) -> tuple[Tensor, Tensor]:
            offset = at.unit * 2 - 1 - MIDDLE
            r, away = offset.norm(dim=-1), offset[:, :2].norm(dim=-1)
            solid = (r < RADIUS) & (r > 0.4) & ~((away < self.hole) & (offset[:, 2] > 0))
            return torch.where(solid, 100.0, 1e-3), offset

    volumes = []
    for hole in (0.04, 0.2):
        vertices, faces = density_surface(Shell(hole), StratifiedSampler(8), BOX, 50)
        volumes.append(mesh_facts(vertices, faces)["volume"] / (4 / 3 * np.pi * RADIUS**3))
    assert 0.9 < volumes[0] < 1.02  # a step of a cell is not at one place
    assert 0.5 < volumes[1] < 0.75  # 1 - (2 / 3)^3
