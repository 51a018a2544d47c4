"""`hashgrid shape`: networks of many shapes, what they are made of, and the command from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from problems.shapes import SIZES, octahedron
from torch import Tensor, nn

from hashgrid.cli import main
from hashgrid.data.errors import MeshError, MeshWarning
from hashgrid.data.families import FAMILIES, family_mesh
from hashgrid.data.mesh import make_mesh
from hashgrid.data.mesh_files import write_ply
from hashgrid.data.shape_pool import CloudRecipe, draw_clouds
from hashgrid.data.shape_set import ShapeSetConfig, around, load_shapes, surface_clouds
from hashgrid.fields import LATENT_FIELDS
from hashgrid.fields.latent import OneShape, ShapeModel, between, shapes_of
from hashgrid.fields.local_grid import LocalGrid, LocalGridConfig
from hashgrid.fields.occupancy import Occupancy, OccupancyConfig
from hashgrid.nn.latent_mlp import LatentMLP
from hashgrid.nn.point_encoders import LocalPointNet, PointNet, sample_grid
from hashgrid.rendering.surface_points import surface_points
from hashgrid.tasks.shape_fit import FitRecipe, complete

for package in ("igl", "skimage", "scipy", "imageio.v3", "PIL", "safetensors"):
    pytest.importorskip(package)

# ---- networks --------------------------------------------------------------------------------------------------------


def test_a_code_put_into_biases_is_a_code_put_in() -> None:
    """The network as it is drawn in the paper: [point, code] goes in, and once more before the layer half way."""
    torch.manual_seed(0)
    mlp = LatentMLP(3, 5, 2, n_neurons=24, n_hidden_layers=6, dropout=0.2)
    x, latent = torch.rand(3, 7, 3), torch.randn(3, 5)
    inputs = torch.cat([x, latent[:, None].expand(-1, 7, -1)], dim=-1)
    y = inputs
    for layer, (weight, bias) in enumerate(zip(mlp.weights, mlp.biases, strict=True)):
        if layer < 6:  # not of the last one
            weight = nn.functional.normalize(weight, dim=1) * mlp.gains[layer]
        y = torch.cat([y, inputs], dim=-1) if layer == 3 else y
        y = y @ weight.t() + bias
        y = y.tanh() if layer == len(mlp.weights) - 1 else y.relu()
    assert mlp.weights[2].shape == (24 - 8, 24) and mlp.weights[3].shape == (24, 24)
    dropped = mlp(x, latent)
    torch.testing.assert_close(mlp.eval()(x, latent), y, rtol=1e-4, atol=1e-6)
    assert float((dropped - y).detach().abs().max()) > 1e-3
    for wrong, message in (
        ((x[0], latent), r"\[B, N, 3\], got \[7, 3\]"),
        ((x, latent[:2]), r"\[3, 5\], got \[2, 5\]"),
    ):
        with pytest.raises(ValueError, match=message):
            mlp(*wrong)
    with pytest.raises(ValueError, match="`n_neurons` must be above the 8 inputs"):
        LatentMLP(3, 5, n_neurons=8)


def test_codes_say_nothing_at_first() -> None:
    torch.manual_seed(0)
    field = Occupancy(OccupancyConfig(n_latent=6, n_neurons=16))
    x, codes = torch.rand(1, 50, 3).expand(2, -1, -1), torch.randn(2, 6)
    for mode in (True, False):
        logits = field.train(mode)(x, codes)
        assert torch.equal(logits[0], logits[1]) and logits.std() > 0.01
    nn.init.normal_(field.norm.scale.weight)
    logits = field(x, codes)
    assert not torch.equal(logits[0], logits[1])
    assert field.outside(x, codes).equal(-logits)


def test_auto_decoder_knows_spheres_that_it_has_not_seen() -> None:
    """Radii lie on a line through the space of codes."""
    radii = torch.linspace(0.15, 0.35, 6)
    kind = LATENT_FIELDS["deepsdf"]
    torch.manual_seed(0)
    model = ShapeModel(kind(kind.Config(n_latent=4, n_neurons=32, n_hidden_layers=4)), len(radii), 0.01)  # type: ignore[call-arg]
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)

    def distance(x: Tensor, radius: Tensor) -> Tensor:
        return (x - 0.5).norm(dim=-1) - radius

    def points(n_shapes: int, n: int) -> Tensor:
        direction = nn.functional.normalize(torch.randn(n_shapes, n, 3), dim=-1)
        return 0.5 + direction * (0.1 + 0.35 * torch.rand(n_shapes, n, 1))

    for step in range(170):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / 170)
        x = points(len(radii), 80)
        error = (model.field(x, model.latents()) - distance(x, radii[:, None])).abs().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    codes = model.latents().detach()
    along = torch.linalg.svd(codes - codes.mean(0)).Vh[0]
    places = (codes @ along).diff()
    assert bool((places > 0).all() | (places < 0).all())
    x = points(1, 2000)
    truth = distance(x, torch.tensor(0.264))
    (shape,) = complete(model.field, x, truth, FitRecipe(fit_steps=40, fit_points=200, fit_rate=0.1), trained=codes)
    assert float((shape(x[0]) - truth[0]).abs().mean()) < 0.005
    assert float((OneShape(model.field, codes)(x[0]) - truth[0]).abs().mean()) > 0.05


def test_features_lie_where_points_are() -> None:
    """Grids of coordinates sampled at points give their coordinates; a point's features are at its vertex alone."""
    torch.manual_seed(0)
    axis = torch.linspace(0, 1, 5)
    x = torch.rand(2, 30, 3)
    for axes in ((0, 1), (1, 2), (0, 2), (0, 1, 2)):
        grid = torch.stack(torch.meshgrid(*[axis] * len(axes), indexing="ij")).expand(2, *[-1] * (1 + len(axes)))
        torch.testing.assert_close(sample_grid(grid, axes, x), x[..., list(axes)])
    encoder = LocalPointNet(((0, 2), (0, 1, 2)), (4, 5), 3, 8, 2)
    points = torch.tensor([[[0.3, 0.9, 1.0], [0.35, 0.9, 0.95], [0.9, 0.1, 0.0]]])
    plane, volume = encoder(points)
    assert plane.shape == (1, 3, 4, 4) and volume.shape == (1, 3, 5, 5, 5)
    assert plane[0].any(0).nonzero().tolist() == [[1, 3], [3, 0]]
    assert volume[0].any(0).nonzero().tolist() == [[1, 4, 4], [4, 0, 0]]
    for grid, other in zip(encoder(points[:, [2, 0, 1]]), (plane, volume), strict=True):
        torch.testing.assert_close(grid, other)  # whatever the order
    net = PointNet(4, 8, 3)
    cloud = torch.rand(2, 40, 3)
    torch.testing.assert_close(net(cloud), net(cloud[:, torch.randperm(40)]))


def test_blended_cells_agree_on_their_borders() -> None:
    torch.manual_seed(0)
    field = LocalGrid(LocalGridConfig(n_vertices=3, n_latent=4, n_neurons=16, n_hidden_layers=2))
    codes = torch.randn(1, 27, 4)
    x = torch.rand(1, 40, 3)
    x[..., 1] = 0.5
    step = torch.tensor([0, 1e-5, 0])
    torch.testing.assert_close(field(x - step, codes), field(x + step, codes), rtol=0, atol=1e-3)
    own = field.mlp(torch.cat([torch.zeros(3), codes[0, 3 * 3 + 2 * 3]]))  # at the vertex (1, 2, 0)
    torch.testing.assert_close(field(torch.tensor([[[0.5, 1.0, 0.0]]]), codes)[0], own)


# ---- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_closed_shapes_of_their_own(family: str) -> None:
    first, again, other = (family_mesh(family, index, seed=3, resolution=24) for index in (0, 0, 1))
    assert first.watertight and not first.doubt and not other.doubt
    assert np.array_equal(first.vertices, again.vertices)
    points = np.random.default_rng(0).random((4000, 3))
    assert (first.inside(points) != other.inside(points)).sum() > 10


def test_half_clouds_lie_on_one_side() -> None:
    mesh = make_mesh(*octahedron())
    points, normals = surface_clouds([mesh, mesh], 200, halves=True)
    for cloud in points.double().numpy() - 0.5:
        assert np.linalg.norm(cloud.mean(0)) > 0.1  # of a whole one it is the middle
    x, distance = around(points, normals, 500, reach=0.01)
    exact = mesh.signed_distance(x.view(-1, 3).double().numpy())
    assert np.abs(exact - distance.view(-1).numpy()).mean() < 5e-4  # less beside edges
    pool = surface_clouds([mesh] * 20, 1000)[0]
    torch.manual_seed(0)
    spread = draw_clouds(pool, CloudRecipe(n_points=100, noise=0.0, half_share=0.5)).mean(1).sub(0.5).norm(dim=-1)
    assert 4 < int((spread > 0.1).sum()) < 16


def test_folders_of_shapes(tmp_path: Path) -> None:
    vertices, faces = octahedron()
    with pytest.raises(MeshError, match="`SOURCE` must hold meshes"):
        load_shapes(tmp_path, ShapeSetConfig())
    write_ply(tmp_path / "open.ply", vertices, faces[:-1])
    for source in (tmp_path / "open.ply", tmp_path):
        with pytest.warns(MeshWarning), pytest.raises(MeshError, match="--field udf"):
            load_shapes(source, ShapeSetConfig())
    (tmp_path / "deeper").mkdir()
    write_ply(tmp_path / "deeper" / "closed.ply", vertices, faces)
    with pytest.warns(MeshWarning, match="left out, not closed: open.ply"):
        shapes = load_shapes(tmp_path, ShapeSetConfig())
    assert [mesh.name for mesh in shapes.meshes] == ["closed.ply"] and not shapes.unseen
    with pytest.warns(MeshWarning):
        assert len(load_shapes(tmp_path, ShapeSetConfig(), closed=False).meshes) == 2
        with pytest.raises(ValueError, match="`n_unseen` must leave two of the 1 meshes"):
            load_shapes(tmp_path, ShapeSetConfig(n_unseen=1))
    vertices[0] = np.nan
    write_ply(tmp_path / "wrong.ply", vertices, faces)
    with pytest.raises(MeshError, match="wrong.ply.*must be finite"), pytest.warns(MeshWarning):
        load_shapes(tmp_path, ShapeSetConfig())
    (tmp_path / "wrong.ply").write_bytes(b"ply\nformat")
    with pytest.raises(MeshError, match=r"wrong.ply` cannot be read"), pytest.warns(MeshWarning):
        load_shapes(tmp_path, ShapeSetConfig())
    with pytest.raises(ValueError, match="`family` must be one of"):
        family_mesh("chairs", 0)


def test_points_find_a_surface_with_a_rim() -> None:
    """A disc: distances to it are those to its plane above it, and those to its rim beside it."""

    def disc(x: Tensor) -> Tensor:
        p = x - 0.5
        beside = (torch.hypot(p[:, 0], p[:, 1]) - 0.3).clamp(min=0)
        return torch.hypot(beside, p[:, 2]).clamp(max=0.1)  # farther away it says no more

    points = surface_points(disc, 3000)
    assert points.shape == (3000, 3) and float(disc(points).max()) < 0.005
    assert torch.hypot(points[:, 0] - 0.5, points[:, 1] - 0.5).lt(0.15).float().mean() == pytest.approx(0.25, abs=0.1)
    assert surface_points(lambda x: 0.05 + disc(x), 100).shape == (0, 3)
    with pytest.raises(ValueError, match="the field must be finite"):
        surface_points(lambda x: disc(x) / 0, 100)


# ---- the command -----------------------------------------------------------------------------------------------------

TINY = {
    "batch": 256, "pool": 2000, "least_pool": 500, "resolution": 8, "upsamplings": 1, "image_size": 6, "n_meshes": 1,
    "n_between": 1, "iou_points": 500, "fit_steps": 2, "fit_points": 50, "n_points": 50, "cloud_pool": 100,
    "n_dense": 200, "device": "cpu", "steps": 3,
}  # fmt: skip


@pytest.mark.parametrize("field", ["deepsdf", "conv_occupancy", "udf"])
def test_command_writes_everything(field: str, tmp_path: Path) -> None:
    vertices, faces = octahedron()
    folder, out = tmp_path / "shapes", tmp_path / "out"
    for size in (0.5, 0.8, 1.0):
        write_ply(folder / f"{size}.ply", 10 * vertices * [1, 1, size], faces)
    options = {**TINY, **SIZES[field], "n_unseen": 0 if field == "udf" else 1}
    arguments = [part for key, value in options.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    assert main(["shape", str(folder), "--field", field, "--out", str(out), *arguments]) == 0
    results = json.loads((out / "results.json").read_text())
    names = ["0.5.ply", "0.8.ply"] + ["1.0.ply"] * (field == "udf")
    assert [shape["name"] for shape in results["shapes"]] == names and results["train"]["steps"] == 3
    assert {"shapes.png", "between.png", "meshes"} <= {path.name for path in out.iterdir()}
    if field == "udf":
        assert results["iou"] is None
        return
    assert 0 <= results["iou_min"] <= results["iou"] <= 1 and (out / "completed.png").is_file()
    other = "whole cloud" if field == "conv_occupancy" else "code of another"
    assert set(results["unseen"]) == {"completed", "without the prior", other}
    assert main(["shape", "--eval", str(out / "checkpoint.safetensors"), "--out", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["unseen"] == results["unseen"] and again["iou"] == results["iou"]


def test_latents_of_several_tensors_are_picked_and_blended() -> None:
    field = LATENT_FIELDS["conv_occupancy"]
    model = field(field.Config().replace(**SIZES["conv_occupancy"]))  # type: ignore[call-arg]
    latent = model.encode(torch.rand(3, 20, 3))
    assert [part.shape[0] for part in latent] == [3] * 4 and len(shapes_of(model, latent)) == 3
    x = torch.rand(6, 3)
    both = model(x.expand(3, -1, -1), latent)
    torch.testing.assert_close(OneShape(model, latent, 1)(x), -both[1])
    middle = between(latent, tuple(-part for part in latent), 0.5)
    assert all(float(part.detach().abs().max()) < 1e-6 for part in middle)
