"""Oriented points: loading, normals where there are none, losses, and fields fitted without distances."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from hashgrid.data.errors import MeshError, MeshWarning
from hashgrid.data.mesh import load_mesh
from hashgrid.data.mesh_files import write_ply
from hashgrid.data.normals import estimate_normals
from hashgrid.data.points import PointCloud, load_points, make_points
from hashgrid.data.pools import signs, spread
from hashgrid.data.shape import Shape
from hashgrid.fields.distance import DistanceField, GridDistance, GridDistanceConfig
from hashgrid.fields.siren import SirenDistance, SirenDistanceConfig
from hashgrid.geometry.boxes import Placement
from hashgrid.tasks.sdf import Sdf, SdfConfig
from hashgrid.train import losses
from hashgrid.train.loop import Trainer
from hashgrid.train.task import Progress

pytest.importorskip("trimesh")
pytest.importorskip("scipy")
pytest.importorskip("igl")
CPU = torch.device("cpu")


def sphere_points(n: int, seed: int = 0) -> np.ndarray:
    """Unit vectors [n, 3]."""
    points = np.random.default_rng(seed).normal(size=(n, 3))
    return points / np.linalg.norm(points, axis=-1, keepdims=True)


def torus_points(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [n, 3] of a torus of radii 3 and 1, and its normals."""
    u, v = 2 * np.pi * np.random.default_rng(0).random((2, n))
    normals = np.stack([np.cos(u) * np.cos(v), np.sin(u) * np.cos(v), np.sin(v)], axis=-1)
    return 3 * np.stack([np.cos(u), np.sin(u), 0 * u], axis=-1) + normals, normals


class Sphere(DistanceField):
    """The exact distance to a sphere of radius 0.4 about the centre, times a number."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, x: torch.Tensor, level_weights: torch.Tensor | None = None) -> torch.Tensor:
        return self.factor * ((x - 0.5).norm(dim=-1) - 0.4)


# ---- loading ---------------------------------------------------------------------------------------------------------

POINTS = np.array([[5.0, 1.0, 0.0], [9.0, 1.0, 0.0], [5.0, 3.0, 0.0], [5.0, 1.0, 1.0]])
NORMALS = np.array([[-2.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1e-200, 0.0], [0.0, 3e200, 3e200]])


def write_text(path: Path, separator: str = " ") -> None:
    rows = [separator.join(map(repr, map(float, row))) for row in np.concatenate([POINTS, NORMALS], axis=1)]
    path.write_text("# x y z nx ny nz\n\n" + "\n".join(rows[:2]) + "\n// and two more\n" + "\n".join(rows[2:]) + "\n")


def write(path: Path) -> None:
    if path.suffix == ".npz":
        np.savez(path, points=POINTS, normals=NORMALS)
    elif path.suffix == ".ply":
        faces = np.zeros((0 if path.stem == "cloud" else 1, 3), np.int64)
        write_ply(path, POINTS, faces, np.nan_to_num(NORMALS.clip(-1e30, 1e30) * np.array([[1], [1], [1e200], [1]])))
    else:
        write_text(path, "\t" if path.suffix == ".txt" else " ")


@pytest.mark.parametrize("name", ["cloud.ply", "mesh.ply", "a.xyz", "a.txt", "a.npz", "A.XYZ"])
def test_points_and_normals_are_read(name: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cloud = load_points(tmp_path / name, margin=0.2)
    assert isinstance(cloud, PointCloud) and cloud.name == name
    assert cloud.points.shape == cloud.normals.shape == (4, 3) and cloud.points.dtype == np.float64
    np.testing.assert_allclose(cloud.points.min(0), [0.2, 0.35, 0.425], atol=1e-6)
    np.testing.assert_allclose(cloud.placement.to_file(torch.from_numpy(cloud.points)).numpy(), POINTS, atol=1e-6)
    half = math.sqrt(0.5)
    np.testing.assert_allclose(cloud.normals, [[-1, 0, 0], [1, 0, 0], [0, 1, 0], [0, half, half]], atol=1e-6)


@pytest.mark.parametrize("points", ["points", "xyz", "vertices", "positions"])
@pytest.mark.parametrize("normals", ["normals", "normal"])
def test_arrays_may_have_other_names(points: str, normals: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{points: POINTS.astype(np.float32), normals: np.eye(3)[[0, 1, 2, 0]]})
    np.testing.assert_allclose(load_points(tmp_path / "a.npz").normals, np.eye(3)[[0, 1, 2, 0]])


def test_ascii_ply_is_read(tmp_path: Path) -> None:
    header = "ply\nformat ascii 1.0\nelement vertex 2\n" + "".join(
        f"property float {name}\n" for name in ("x", "y", "z", "confidence", "nx", "ny", "nz")
    )
    (tmp_path / "a.ply").write_text(header + "end_header\n0 0 0 7 0 0 -1\n1 1 1 7 0 0 2\n")
    np.testing.assert_allclose(load_points(tmp_path / "a.ply").normals, [[0, 0, -1], [0, 0, 1]])


def test_duplicates_are_left_out_with_their_number() -> None:
    with pytest.warns(MeshWarning, match="^3 duplicates in `scan` are left out$") as record:
        cloud = make_points(POINTS[[0, 1, 1, 2, 3, 0, 0]], np.eye(3)[[0, 1, 2, 0, 1, 2, 2]], name="scan")
    assert len(record) == 1
    np.testing.assert_allclose(cloud.placement.to_file(torch.from_numpy(cloud.points)).numpy(), POINTS)
    np.testing.assert_allclose(cloud.normals, np.eye(3)[[0, 1, 0, 1]])


PLY = "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.las", "1 2 3", "must be one of .ply, .xyz, .txt, .npz, got"),
        ("a.xyz", None, "does not exist"),
        ("a.xyz", "", "is empty"),
        ("a.xyz", "# nothing\n\n", "it has none"),
        ("a.xyz", "1 2\n3 4\n", "columns x y z or x y z nx ny nz, got 2"),
        ("a.xyz", "1 2 3 4\n3 4 5 6\n", "columns x y z or x y z nx ny nz, got 4"),
        ("a.xyz", "1 2 3\n3 4\n", "cannot be read"),
        ("a.xyz", "x y z\n3 4 5\n", "cannot be read"),
        ("a.xyz", "1 2 nan\n3 4 5\n3 inf 5\n", "points of `a.xyz` must be finite, 2 of 3 are not"),
        ("a.xyz", "1 2 3 0 nan 0\n3 4 5 1 0 0\n", "normals of `a.xyz` must be finite, 1 of 2 are not"),
        ("a.xyz", "1 2 3 0 0 0\n3 4 5 1 0 0\n", "must not be zero, 1 of 2 are; leave all of them out"),
        ("a.xyz", "1 2 3 0 0 1\n", "must have an extent"),
        ("a.xyz", "1 2 3\n4 5 6\n", "more than 12 points for normals to be estimated, got 2"),
        ("a.npz", "no archive", "cannot be read"),
        ("a.npz", {"x": POINTS}, r"must have an array `points` .* it has \['x'\]"),
        ("a.npz", {}, "it has none"),
        ("a.npz", {"points": POINTS[:, :2]}, r"numbers of shape \[N, 3\], got \[4, 2\]"),
        ("a.npz", {"points": POINTS.astype(str)}, r"numbers of shape \[N, 3\], got \[4, 3\] of <U"),
        ("a.npz", {"points": POINTS[:0]}, "it has none"),
        ("a.npz", {"points": POINTS, "normals": NORMALS[:3]}, "one normal per point, got 3 for 4 points"),
        ("a.ply", "no header", "cannot be read"),
        ("a.ply", PLY + "end_header\n1\n", "properties x y z, 'y' is missing"),
        ("a.ply", PLY + "property float y\nproperty float z\nend_header\n", "cannot be read|it has none"),
    ],
)
def test_unusable_points_are_refused_in_one_line(name: str, content, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if isinstance(content, dict):
        np.savez(path, **content)
    elif content is not None:
        path.write_text(content)
    with warnings.catch_warnings(), pytest.raises(MeshError, match=message) as error:
        warnings.simplefilter("ignore", MeshWarning)
        load_points(path)
    assert "\n" not in str(error.value)


# ---- normals ---------------------------------------------------------------------------------------------------------


def test_normals_of_a_sphere_and_a_torus_look_outwards() -> None:
    for points, normals in [(p := sphere_points(4000), p), torus_points(8000)]:
        cosine = (estimate_normals(points) * normals).sum(-1)
        assert (cosine > 0).mean() >= 0.99 and np.median(cosine) > 0.999


def test_normals_of_parts_and_thin_walls_look_outwards() -> None:
    flat = sphere_points(20000) * [1, 1, 0.1]  # thickest in the middle, sharp all around
    normals = flat / np.array([1, 1, 0.1]) ** 2
    small = 0.2 * sphere_points(1000, seed=1)
    points = np.concatenate([flat, small + [2, 0, 0]])
    expected = np.concatenate([normals / np.linalg.norm(normals, axis=-1, keepdims=True), small * 5])
    assert ((estimate_normals(points) * expected).sum(-1) > 0).mean() >= 0.99


@pytest.mark.parametrize("name", ["bob/bob_tri.obj", "spot/spot.obj"])
def test_normals_of_scans_look_outwards(name: str, shared: Path) -> None:
    mesh = load_mesh(shared / "data" / "mesh" / name)
    points, face = mesh.sample_surface(20000, np.random.default_rng(0))
    assert ((estimate_normals(points) * mesh.face_normals[face]).sum(-1) > 0).mean() >= 0.99


def test_missing_normals_are_estimated_with_a_warning(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "a.xyz", 7 * sphere_points(500) + 1)
    with pytest.warns(MeshWarning, match="`a.xyz` has no normals: they are estimated"):
        cloud = load_points(tmp_path / "a.xyz")
    outwards = cloud.points - 0.5
    assert ((cloud.normals * outwards).sum(-1) / np.linalg.norm(outwards, axis=-1) > 0.95).all()


def test_spread_is_the_distance_to_a_neighbor() -> None:
    line = np.stack([np.arange(5.0), np.zeros(5), np.zeros(5)], axis=-1)
    np.testing.assert_allclose(spread(line, 2), [2, 1, 1, 1, 2])
    np.testing.assert_allclose(spread(line, 50), [4, 3, 2, 3, 4])  # the farthest of the few there are


# ---- losses ----------------------------------------------------------------------------------------------------------


def test_losses_have_the_values_of_their_definitions() -> None:
    d, t = torch.tensor([0.1, -0.3]), torch.tensor([0.2, -0.1])
    gradient = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.5, 0.0]])
    normals = torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    expected = {
        losses.mape(d, t, 0.1): (0.1 / 0.3 + 0.2 / 0.2) / 2,
        losses.truncated_l1(d, t, 0.15): (0.05 + 0.05) / 2,
        losses.on_surface(d): 0.2,
        losses.wrong_side(d, torch.tensor([-1.0, -1.0])): 0.1 / 2,
        losses.wrong_side(d, torch.tensor([0.0, 1.0])): 0.3 / 2,
        losses.off_surface(d, 10.0): (math.exp(-1) + math.exp(-3)) / 2,
        losses.eikonal(gradient): (16 + 0.25) / 2,
        losses.eikonal_l1(gradient): (4 + 0.5) / 2,
        losses.normal_difference(gradient, normals): (math.sqrt(20) + 1.5) / 2,
        losses.normal_cosine(gradient, normals): (0.4 + 2) / 2,
    }
    for value, wanted in expected.items():
        assert math.isclose(float(value), wanted, rel_tol=1e-5)


def sphere_cloud(n: int = 2000) -> PointCloud:
    """Points of `Sphere`."""
    normals = sphere_points(n)
    return PointCloud(0.5 + 0.4 * normals, normals, Placement(), "sphere")


def started(config: SdfConfig, n: int = 2000) -> Sdf:
    """A task on `Sphere` that is ready to train."""
    task = Sdf(config, Shape.of(sphere_cloud(n)))
    task.begin()
    return task


@pytest.mark.parametrize("point_loss", ["igr", "siren"])
@pytest.mark.parametrize("gradient_step", [0.0, 1e-3])
def test_exact_distance_has_no_loss(point_loss: str, gradient_step: float) -> None:
    config = SdfConfig.defaults(from_points=True).replace(
        device="cpu",
        point_loss=point_loss,
        gradient_step=gradient_step,
        off_surface_weight=0.0,
        point_batch=500,
        uniform_batch=500,
        uniform_pool=2000,
        near_pool=2000,
    )
    task = started(config)

    def loss(factor: float, task: Sdf = task) -> float:
        task.model = Sphere(factor)
        value, _, counts = task.loss(Progress(fraction=1.0))
        assert counts == {"samples": 1500}
        return value.item()

    assert loss(1.0) < 1e-5 + 2.5 * gradient_step  # differences are off by the step times the curvature
    assert loss(-1.0) > 1  # inside out: the normals say so
    assert loss(1.5) > 0.1
    off = started(config.replace(off_surface_weight=1.0, off_surface_sharpness=0.0))
    assert math.isclose(loss(1.0, off), loss(1.0) + 1, rel_tol=1e-5)


def test_loss_of_a_step_is_a_function_of_seed_and_step() -> None:
    config = SdfConfig.defaults(from_points=True).replace(
        device="cpu", point_batch=64, uniform_batch=64, uniform_pool=512, near_pool=512
    )
    task = started(config)
    values = [task.loss(Progress(step=step)).loss.item() for step in (5, 6, 5)]
    assert values[0] == values[2] != values[1]
    other = started(config.replace(seed=1))
    other.model = task.model
    assert other.loss(Progress(step=5)).loss.item() != values[0]


@pytest.mark.parametrize("n", [500, 20000])
def test_points_know_which_side_is_inside(n: int) -> None:
    points, normals = torus_points(n)
    cloud = make_points(points, normals)  # radii 3 and 1 become 0.3 and 0.1
    x = np.random.default_rng(1).random((20000, 3))
    distance = np.hypot(np.hypot(x[:, 0] - 0.5, x[:, 1] - 0.5) - 0.3, x[:, 2] - 0.5) - 0.1
    found = signs(cloud, x)
    assert (found == np.sign(distance))[np.abs(distance) > 0.03].mean() > 0.999
    assert not (found == -np.sign(distance))[np.abs(distance) > 0.03].any()
    turned = make_points(points, -normals)
    assert (signs(turned, x)[distance > 0.03] >= 0).all()


def test_unknown_options_are_named() -> None:
    with pytest.raises(ValueError, match="`point_loss` must be one of .*siren.*igr.*, got 'l2'"):
        SdfConfig().replace(point_loss="l2")
    with pytest.raises(ValueError, match="`field` must be one of .*grid.*siren.*, got 'voxels'"):
        SdfConfig.from_dict({"field": {"name": "voxels"}})


# ---- fields ----------------------------------------------------------------------------------------------------------

TINY = GridDistanceConfig(
    n_levels=2, log2_hashmap_size=5, base_resolution=2, max_resolution=4, n_neurons=4, interpolation="smoothstep"
)
TINY_SIREN = SirenDistanceConfig(n_neurons=4, n_hidden_layers=2)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("activation", ["relu", "silu", "softplus", "sine"])
def test_point_losses_are_differentiable_twice_to_everything(activation: str, backend: str) -> None:
    torch.manual_seed(0)
    if activation == "sine":
        field: DistanceField = SirenDistance(TINY_SIREN, backend).double()
    else:
        field = GridDistance(TINY.replace(activation=activation, from_centre=True), backend).double()
        with torch.no_grad():
            field.grid.table.mul_(1e3)
    names = [name for name, _ in field.named_parameters()]
    x = (0.1 + 0.8 * torch.rand(2, 3, dtype=torch.float64)).requires_grad_()
    normals = torch.nn.functional.normalize(torch.randn(2, 3, dtype=torch.float64), dim=-1)

    def distances(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(field, dict(zip(names, parameters, strict=True)), (x,))

    def loss(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        y = distances(x, *parameters)
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return losses.on_surface(y) + losses.eikonal(gradient) + losses.normal_difference(gradient, normals)

    inputs = (x, *(param.detach().clone().requires_grad_() for param in field.parameters()))
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(distances, inputs, fast_mode=True)


def test_differences_agree_with_the_gradient() -> None:
    field = SirenDistance(TINY_SIREN).double()
    x = 0.1 + 0.8 * torch.rand(50, 3, dtype=torch.float64)
    y, gradient = field.gradient(x)
    y_differences, differences = field.differences(x, 1e-5)
    torch.testing.assert_close(y_differences, y, rtol=0, atol=1e-6)
    torch.testing.assert_close(differences, gradient, rtol=1e-3, atol=1e-3)

    def plane(x: torch.Tensor, level_weights: torch.Tensor | None = None) -> torch.Tensor:
        return x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) - 3

    field.forward = plane
    _, differences = field.differences(x, 0.1)
    torch.testing.assert_close(differences, torch.tensor([1.0, -2.0, 0.5]).double().expand(50, 3))


def test_siren_starts_as_the_paper_says() -> None:
    """Sitzmann et al. 2020, theorem 1.8: arguments of the sines normal with deviation 1, their values arcsine."""
    torch.manual_seed(0)
    field = SirenDistance(SirenDistanceConfig(n_neurons=256))
    first, *hidden, last = field.mlp.weights
    assert first.abs().max() <= 30 / 3 and first.abs().max() > 0.95 * 30 / 3
    for weight in hidden:
        assert 0.95 < weight.abs().max() / math.sqrt(6 / 256) <= 1
    assert 0.9 < last.abs().max() / (math.sqrt(6 / 256) / 30) <= 1
    x = 2 * torch.rand(4096, 3) - 1
    with torch.no_grad():
        for weight, bias in list(zip(field.mlp.weights, field.mlp.biases, strict=True))[:-1]:
            argument = x @ weight.T + bias
            x = torch.sin(argument)
        assert abs(float(x.std()) - math.sqrt(0.5)) < 0.05 and abs(float(x.mean())) < 0.05


def test_field_from_the_centre_is_positive_at_first() -> None:
    field = GridDistance(SdfConfig.defaults(from_points=True).field)
    x = torch.rand(1000, 3)
    distance, gradient = field.gradient(x)
    radius = (x - 0.5).norm(dim=-1)
    torch.testing.assert_close(distance, (radius**2 + 0.01).sqrt(), atol=2e-3, rtol=0)
    torch.testing.assert_close(gradient.norm(dim=-1), radius / (radius**2 + 0.01).sqrt(), atol=0.1, rtol=0)


# ---- training --------------------------------------------------------------------------------------------------------

SMALL = SdfConfig.defaults(from_points=True).replace(
    device="cpu",
    steps=250,
    learning_rate=1e-2,
    log2_hashmap_size=14,
    max_resolution=64,
    point_batch=1024,
    uniform_batch=512,
    near_pool=1 << 14,
    uniform_pool=1 << 14,
)


def test_levels_come_one_after_the_other() -> None:
    config = SMALL.replace(coarse_to_fine=0.5, coarse_levels=2)
    task = Sdf(config, Shape.of(sphere_cloud()))
    sums = []
    for fraction in (0.0, 0.125, 0.25, 0.49):
        weights = task.level_weights(fraction)
        assert weights is not None and weights.shape == (8,) and (weights.diff() <= 0).all()
        sums.append(float(weights.sum()))
    np.testing.assert_allclose(sums, [2, 3.5, 5, 7.88], atol=1e-4)
    assert task.level_weights(0.5) is None
    for other in (config.replace(coarse_to_fine=0.0), config.replace(field=SirenDistanceConfig())):
        assert Sdf(other, Shape.of(sphere_cloud())).level_weights(0.0) is None


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="siren", marks=pytest.mark.full),
        pytest.param({"point_loss": "igr"}, id="igr", marks=pytest.mark.full),
        pytest.param({"gradient_step": 0.0}, id="exact", marks=pytest.mark.full),
    ],
)
def test_points_of_a_sphere_give_a_sphere(changes: dict) -> None:
    config = SMALL.replace(**changes)
    task = started(config, 5000)
    trainer = Trainer(task)
    trainer.train()
    trainer.take_averages()
    x = torch.rand(1 << 16, 3, generator=torch.Generator().manual_seed(0))
    radius = (x - 0.5).norm(dim=-1)
    distance, gradient = task.model.gradient(x)
    inside, truth = distance < 0, radius < 0.4
    assert (inside & truth).sum() > 0.97 * (inside | truth).sum()
    wrong = (inside != truth) & ((radius - 0.4).abs() > 0.03)
    assert wrong.float().mean() < 1e-4  # no second surface anywhere
    near = (radius - 0.4).abs() < 0.01
    assert (gradient[near].norm(dim=-1) - 1).abs().mean() < 0.1
