"""Signed distance fields: meshes in, meshes out, and what is wrong with a mesh said in one line."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from hashgrid.cli import main
from hashgrid.data.distances import CHUNK
from hashgrid.data.errors import MeshError, MeshWarning
from hashgrid.data.mesh import (
    euler_characteristic,
    is_watertight,
    load_mesh,
    make_mesh,
    signed_volume,
)
from hashgrid.data.mesh_files import write_ply
from hashgrid.data.shape import Shape
from hashgrid.fields.distance import GridDistance
from hashgrid.rendering.extract import to_mesh
from hashgrid.rendering.measure import compare_meshes
from hashgrid.tasks.sdf import Sdf, SdfConfig
from hashgrid.train.loop import Trainer
from hashgrid.train.task import Progress

igl = pytest.importorskip("igl")
trimesh = pytest.importorskip("trimesh")
pytest.importorskip("skimage")

CUBE = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=np.float64)
CUBE_FACES = np.array(
    [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4],
     [1, 5, 7], [1, 7, 3]]
)  # fmt: skip
TINY = SdfConfig(device="cpu").replace(
    n_levels=2, log2_hashmap_size=5, base_resolution=2, max_resolution=4, n_neurons=16
)


def torus(points: torch.Tensor) -> torch.Tensor:
    """Signed distance to a torus of radii 0.3 and 0.1 around the cube's centre."""
    p = points - 0.5
    return torch.hypot(torch.hypot(p[..., 0], p[..., 1]) - 0.3, p[..., 2]) - 0.1


# ---- meshes in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.03, 1.0, 16.0])
def test_mesh_fills_the_cube_and_finds_back(scale: float) -> None:
    vertices = CUBE * np.array([scale, scale / 2, scale / 4]) + np.array([5.0, -3.0, 100.0])
    mesh = make_mesh(vertices, CUBE_FACES, margin=0.1)
    assert mesh.watertight
    np.testing.assert_allclose(mesh.vertices.min(0), [0.1, 0.3, 0.4], atol=1e-12)
    np.testing.assert_allclose(mesh.vertices.max(0), [0.9, 0.7, 0.6], atol=1e-12)
    back = mesh.placement.to_file(torch.from_numpy(mesh.vertices)).numpy()
    np.testing.assert_allclose(np.sort(back, axis=0), np.sort(vertices, axis=0), atol=1e-9)


def test_vertices_that_agree_are_merged() -> None:
    soup = CUBE[CUBE_FACES].reshape(-1, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mesh = make_mesh(soup, np.arange(36).reshape(12, 3))
    assert len(mesh.vertices) == 8 and mesh.watertight and euler_characteristic(mesh.faces) == 2


def test_faces_that_look_inwards_are_turned_around() -> None:
    with pytest.warns(MeshWarning, match="look inwards"):
        mesh = make_mesh(CUBE, CUBE_FACES[:, ::-1])
    assert signed_volume(mesh.vertices, mesh.faces) > 0 and mesh.signed_distance(np.full((1, 3), 0.5))[0] < 0


def test_signed_distance_of_a_cube() -> None:
    mesh = make_mesh(CUBE, CUBE_FACES, margin=0.25)
    points = torch.rand(500, 3, dtype=torch.float64)
    outside = (points - 0.5).abs() - 0.25
    expected = outside.clamp(min=0).norm(dim=-1) + outside.amax(-1).clamp(max=0)
    np.testing.assert_allclose(mesh.signed_distance(points.numpy()), expected.numpy(), atol=1e-9)
    assert (mesh.inside(points.numpy()) == (expected < 0).numpy()).all()


def test_open_mesh_is_used_with_a_warning() -> None:
    with pytest.warns(MeshWarning, match="not watertight"):
        mesh = make_mesh(CUBE, CUBE_FACES[2:])
    assert not mesh.watertight and mesh.signed_distance(np.full((1, 3), 0.5))[0] < 0


def test_runs_limited_by_steps_repeat() -> None:
    mesh, config = make_mesh(CUBE, CUBE_FACES), TINY.replace(pool=CHUNK, batch=512, steps=5)
    tasks = [Sdf(config, Shape.of(mesh)) for _ in range(2)]
    for task in tasks:
        task.begin()
        Trainer(task).train()
    first, second = (task.model.state_dict() for task in tasks)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("loss", ["mape", "truncated_l1"])
def test_loss_of_samples_is_the_papers(loss: str) -> None:
    mesh = make_mesh(CUBE, CUBE_FACES)
    config = TINY.replace(
        pool=CHUNK, batch=1000, steps=1, loss=loss, eikonal_weight=0.5, eikonal_share=1.0, interpolation="smoothstep"
    )
    task = Sdf(config, Shape.of(mesh))
    task.begin()
    field = task.model
    points, target = task.samples.sample(1000, 0)
    x = points.requires_grad_()
    distance = field(x)
    (gradient,) = torch.autograd.grad(distance.sum(), x)
    if loss == "mape":
        expected = ((distance - target).abs() / (target.abs() + 0.01)).mean()
    else:
        expected = (distance.clamp(-0.1, 0.1) - target.clamp(-0.1, 0.1)).abs().mean()
    expected = expected + 0.5 * (gradient.square().sum(-1).sqrt() - 1).square().mean()
    value, _, counts = task.loss(Progress())
    assert counts == {"samples": 1000} and torch.allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"v 0 0 0\nv 1 0 0\nv 0 1 0\n", "has no faces"),
        (b"v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n", "must be finite, 1 of 3 are not"),
        (b"v 2 2 2\nv 2 2 2\nv 2 2 2\nf 1 2 3\n", "must have an extent"),
        (b"v 0 0 0\nv 1 0 0\nv 1 0 0\nf 1 2 3\n", "faces with an area"),
    ],
)
def test_unusable_mesh_is_refused_in_one_line(content: bytes, message: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "mesh.obj"
    path.write_bytes(content)
    with pytest.raises(MeshError, match=message):
        load_mesh(path)
    assert main(["sdf", str(path), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("hashgrid: error: ") and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_missing_and_unknown_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="does not exist"):
        load_mesh(tmp_path / "none.ply")
    with pytest.raises(MeshError, match="must be one of .obj, .ply, .stl, .off, .glb"):
        load_mesh(tmp_path / "mesh.blend")


# ---- meshes out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [50, 128, 150])
def test_extracted_torus_is_closed_across_blocks(resolution: int) -> None:
    vertices, faces = (x.numpy() for x in to_mesh(torus, resolution))
    assert is_watertight(faces) and euler_characteristic(faces) == 0
    assert math.isclose(
        signed_volume(vertices, faces), 2 * math.pi**2 * 0.3 * 0.1**2, rel_tol=0.02
    )  # outwards: positive
    assert float(torus(torch.from_numpy(vertices)).abs().max()) < 0.2 / resolution


def test_surface_that_leaves_the_cube_is_closed_there() -> None:
    vertices, faces = (x.numpy() for x in to_mesh(lambda p: p[:, 0] - 0.5, 40))
    assert is_watertight(faces) and euler_characteristic(faces) == 2
    assert 0.5 * (1 - 2 / 40) ** 3 < signed_volume(vertices, faces) < 0.5  # up to a layer of cells


def test_field_without_a_surface_gives_an_empty_mesh() -> None:
    vertices, faces = to_mesh(lambda p: torch.ones(len(p)), 40)
    assert vertices.shape == (0, 3) and faces.shape == (0, 3)
    assert compare_meshes(vertices.numpy(), faces.numpy(), make_mesh(CUBE, CUBE_FACES))["chamfer"] is None


def test_a_mesh_compared_with_itself_agrees() -> None:
    mesh = make_mesh(CUBE, CUBE_FACES)
    result = compare_meshes(mesh.vertices, mesh.faces, mesh, n=2000)
    assert result["chamfer"] < 1e-7 and result["normal_consistency"] > 1 - 1e-9
    moved = compare_meshes(mesh.vertices + [0.01, 0, 0], mesh.faces, mesh, n=20000)
    assert math.isclose(moved["chamfer"], 0.01 / 3, rel_tol=0.15)  # a third of the area moves along its normal


def test_ply_is_read_back(tmp_path: Path) -> None:
    normals = np.random.default_rng(0).random((8, 3))
    write_ply(tmp_path / "cube.ply", CUBE, CUBE_FACES, normals)
    mesh = trimesh.load(tmp_path / "cube.ply", process=False)
    np.testing.assert_allclose(mesh.vertices, CUBE)
    np.testing.assert_array_equal(mesh.faces, CUBE_FACES)
    assert mesh.is_watertight and not list(tmp_path.glob("*.tmp"))


# ---- the field -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gradient_of_the_field_is_differentiable(backend: str) -> None:
    field = GridDistance(TINY.field.replace(interpolation="smoothstep"), backend).double()
    with torch.no_grad():
        field.grid.table.mul_(1e3)
    x = (0.1 + 0.8 * torch.rand(3, 3, dtype=torch.float64)).requires_grad_()

    def eikonal(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return (field.gradient(x)[1].norm(dim=-1) - 1).square()

    assert torch.autograd.gradcheck(eikonal, (x, *field.parameters()))
    assert field.normals(x).norm(dim=-1).sub(1).abs().max() < 1e-6


@pytest.mark.full
def test_command_fits_a_mesh(tmp_path: Path) -> None:
    vertices, faces = (x.numpy() for x in to_mesh(torus, 40))
    write_ply(tmp_path / "torus.ply", vertices * 3 - 7, faces)
    out = tmp_path / "out"
    settings = ["log2-hashmap-size=14", "max-resolution=128", "pool=65536", "batch=8192", "resolution=80"]
    arguments = [f"--{setting}" for setting in ("device=cpu", *settings)]
    assert (
        main(["sdf", str(tmp_path / "torus.ply"), "--out", str(out), "--steps", "250", "--no-video", *arguments]) == 0
    )
    results = json.loads((out / "results.json").read_text())
    assert results["iou"] > 0.97 and results["chamfer"] < 2e-3 and results["normal_consistency"] > 0.98
    assert results["watertight"] and results["euler"] == results["euler_input"] == 0
    assert results["train"]["steps"] == 250 and results["train"]["seconds"] > 0
    mesh = trimesh.load(results["mesh"], process=False)
    np.testing.assert_allclose(mesh.bounds, np.array([[0.1, 0.1, 0.4], [0.9, 0.9, 0.6]]) * 3 - 7, atol=0.03)
    assert (out / "slice.png").stat().st_size > 1000
