"""Voxels, factors and planes as radiance fields: against formulas, and against what a simpler one cannot do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hashgrid.data.scene import Scene
from hashgrid.fields import RADIANCE_FIELDS, RadianceField
from hashgrid.fields.growing import GrowingField
from hashgrid.fields.planes import PlanesField, PlanesTime
from hashgrid.fields.plenoxels import Plenoxels
from hashgrid.geometry.rays import At, Rays
from hashgrid.nn.planes import Lines, PlanesAndLines
from hashgrid.rendering.volume import render_image
from hashgrid.tasks.nerf import Nerf
from hashgrid.train.loop import Trainer
from hashgrid.util.metrics import psnr

BOX = torch.tensor([-1.5, -1.0, -1.5, 1.5, 1.0, 1.5])
GROWING = [name for name, kind in RADIANCE_FIELDS.items() if issubclass(kind, GrowingField)]


def make(name: str, **changes) -> RadianceField:
    kind = RADIANCE_FIELDS[name]
    config = kind.Config()
    changes = {key: value for key, value in {"compute_dtype": "float32", **changes}.items() if config.knows(key)}
    return kind(config.replace(**changes), BOX)  # type: ignore[call-arg,arg-type]


def asked(n: int = 200, times: bool = False, dtype: torch.dtype = torch.float32) -> At:
    """Places in the box, each on a ray of its own."""
    directions = nn.functional.normalize(torch.randn(n, 3, dtype=dtype), dim=-1)
    rays = Rays(torch.zeros(n, 3, dtype=dtype), directions, time=torch.rand(n) if times else None)
    return At(rays, torch.rand(n, 3, dtype=dtype), torch.arange(n))


def harmonics_of_two_bands(d: Tensor) -> Tensor:
    """[N, 9], as Fridovich-Keil et al. write them."""
    x, y, z = d.unbind(-1)
    c1, c2 = 0.4886025119029199, (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
    first = [torch.full_like(x, 0.28209479177387814), -c1 * y, c1 * z, -c1 * x]
    second = [c2[0] * x * y, -c2[0] * y * z, c2[1] * (3 * z * z - 1), -c2[0] * x * z, c2[2] * (x * x - y * y)]
    return torch.stack(first + second, dim=-1)


def some_voxels() -> Plenoxels:
    field = make("plenoxels", resolutions=(6, 9), density_step=2.0).double()
    assert isinstance(field, Plenoxels)
    for param in field.parameters():
        nn.init.uniform_(param, -0.3, 1.0)
    return field


def test_voxels_say_what_trilinear_interpolation_and_harmonics_say() -> None:
    field, at = some_voxels(), asked(dtype=torch.float64)
    sigmas, carry = field.density(at)
    colors = field.color(at, carry)
    image = torch.cat((field.densities.pictures(0)[0], *field.harmonics.pictures(0)), dim=-1)  # [z, y, x, 1 + 32]
    assert image.shape == (6, 4, 6, 33)  # 5 cells along 3, 3 along 2
    grid = (2 * at.unit - 1)[None, None, None]
    y = nn.functional.grid_sample(image.permute(3, 0, 1, 2)[None], grid, align_corners=True)[0, :, 0, 0].T
    bands = harmonics_of_two_bands(at.rays.directions)
    torch.testing.assert_close(sigmas, 2 * y[:, 0].clamp(min=0))
    torch.testing.assert_close(colors, ((y[:, 1:28].view(-1, 3, 9) * bands[:, None]).sum(-1) + 0.5).clamp(min=0))


def test_voxel_gradients_by_finite_differences() -> None:
    field, at = some_voxels(), asked(dtype=torch.float64)
    weights = torch.randn(200, 4, dtype=torch.float64)

    def total() -> Tensor:
        sigmas, carry = field.density(at)
        return (weights[:, 0] * sigmas).sum() + (weights[:, 1:] * field.color(at, carry)).sum()

    total().backward()
    for param in field.parameters():
        direction, before = torch.randn_like(param), param.detach().clone()
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                param.copy_(before + sign * 1e-6 * direction)
                ends.append(float(total()))
                param.copy_(before)
        assert param.grad is not None and param.grad.any()
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((param.grad * direction).sum()), rel=1e-5)


def test_harmonics_explain_a_lobe_that_a_colour_cannot() -> None:
    """A sphere that is bright where it is seen along one axis: three bands are 3 dB and more above one, which is no
    better than the best constant."""
    n = 1500
    normals = nn.functional.normalize(torch.randn(n, 3), dim=-1)
    directions = nn.functional.normalize(torch.randn(n, 3), dim=-1)
    directions = torch.where((directions * normals).sum(-1, keepdim=True) > 0, -directions, directions)
    axis = nn.functional.normalize(torch.tensor([1.0, 2.0, -1.0]), dim=0)
    lobe = 0.2 + 0.7 * (directions @ axis).clamp(min=0)[:, None] ** 2 * torch.tensor([1.0, 0.8, 0.5])
    scores = {}
    for degree in (1, 3):
        field = make("plenoxels", resolutions=(12,), grow_at=(), sh_degree=degree)
        at = At(Rays(torch.zeros(n, 3), directions), field.unit(0.6 * normals), torch.arange(n))
        optimizer = torch.optim.Adam(field.harmonics.parameters(), 0.05)  # type: ignore[attr-defined]
        for _ in range(60):
            optimizer.zero_grad()
            loss = (field.color(at, None) - lobe).square().mean()
            loss.backward()
            optimizer.step()
        scores[degree] = -10 * math.log10(float(loss.detach()))
    constant = -10 * math.log10(float((lobe - lobe.mean(0)).square().mean()))
    assert scores[3] > scores[1] + 3 and scores[1] < constant + 2.5, (scores, constant)


def test_total_variation_is_that_of_a_ramp() -> None:
    """Densities that rise by so much from vertex to vertex, along x and z."""
    field = make("plenoxels", resolutions=(9,), grow_at=(), density_variation=0.5, color_variation=0.0)
    assert float(field.penalty()) == pytest.approx(0.5 * 1e-9**0.5, rel=1e-2)  # nothing but the rounding of the root
    n_z, n_y, n_x, _ = field.densities.pictures(0)[0].shape  # type: ignore[attr-defined]
    ramp = 0.3 * torch.arange(n_x)[None, None] + 0.4 * torch.arange(n_z)[:, None, None] + torch.zeros(n_z, n_y, n_x)
    with torch.no_grad():
        next(field.densities.parameters()).copy_(ramp.reshape(-1, 1))  # type: ignore[attr-defined]
    assert float(field.penalty()) == pytest.approx(0.5 * 0.5, rel=1e-4)
    with torch.no_grad():
        next(field.densities.parameters()).uniform_()  # type: ignore[attr-defined]
    before = float(field.penalty())
    assert float(field.penalty()) == before
    field.grow(0.0)
    assert float(field.penalty()) != before  # at other vertices in each step


# ---- factors ---------------------------------------------------------------------------------------------------------


def misfit(kind: type[Lines] | type[PlanesAndLines], target: Tensor) -> float:
    """Of the best volume that a single product of each kind makes, relative to the target's size."""
    n = len(target)
    factors = kind(3, (n,), 1, init=(0.4, 0.6)).double()
    vertices = torch.cartesian_prod(*[torch.linspace(0, 1, n, dtype=torch.float64)] * 3)
    optimizer = torch.optim.LBFGS(
        factors.parameters(), max_iter=300, tolerance_grad=1e-14, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (factors(vertices).sum(-1) - target.flatten()).square().sum() / target.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return float(loss().detach().sqrt())


def test_a_product_of_lines_is_exact_for_what_is_separable_only() -> None:
    """Chen et al. 2022: rank 1 of CP is a product along the axes; a bar across two of them needs a plane (VM)."""
    t = torch.linspace(0, 1, 10, dtype=torch.float64)
    x, y, z = (1 + t).sqrt(), torch.cos(2 * t), torch.exp(-3 * (t - 0.4) ** 2)
    assert misfit(Lines, torch.einsum("i,j,k->ijk", x, y, z)) < 1e-6
    bar = ((t[:, None] - t).abs() < 0.15)[:, :, None] * ((t - 0.5).abs() < 0.3).double()
    assert misfit(Lines, bar) > 0.5
    assert misfit(PlanesAndLines, bar) < 1e-2


# ---- growing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GROWING)
def test_grown_field_says_the_same(name: str) -> None:
    """With a vertex between any two, exactly; and a state makes room for itself."""
    small = {"n_density_features": 8, "n_color_features": 8, "n_neurons": 16}
    field = make(name, resolutions=(7, 13), grow_at=(0.5,), shrink=False, density_shift=0.0, **small)
    assert isinstance(field, GrowingField)
    for grid in field.grids():
        for param in grid.parameters():
            nn.init.uniform_(param, -0.5, 1.0)
    at = asked(times="time" in field.needs)
    with torch.no_grad():
        before = field.radiance(at)
        assert not field.grow(0.4) and field.grow(0.5) and not field.grow(0.9)
        assert field.sides()[:3] == (13, 9, 13)
        for y, expected in zip(field.radiance(at), before, strict=True):
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        other = make(name, resolutions=(7, 13), grow_at=(0.5,), shrink=False, density_shift=0.0, **small)
        other.load_state_dict(field.state_dict())
        for y, expected in zip(other.radiance(at), field.radiance(at), strict=True):
            assert torch.equal(y, expected)


def test_box_shrinks_to_what_there_is() -> None:
    field = make("plenoxels", resolutions=(31, 41), grow_at=(0.5,), density_step=1.0)
    assert isinstance(field, Plenoxels)
    lattice = torch.cartesian_prod(*[torch.linspace(0, 1, n) for n in reversed(field.sides())]).flip(1)  # x is fastest
    there = ((lattice - torch.tensor([0.4, 0.5, 0.6])).abs() < 0.15).all(-1)
    with torch.no_grad():
        next(field.densities.parameters()).copy_(20.0 * there[:, None])
    at = asked(2000)
    points = field.aabb[:3] + at.unit * (field.aabb[3:] - field.aabb[:3])
    before = field.density(at)[0]
    field.grow(0.5)
    low, high = (
        BOX[:3] + torch.tensor(part) * (BOX[3:] - BOX[:3]) for part in ([0.25, 0.35, 0.45], [0.55, 0.65, 0.75])
    )
    assert (field.aabb[:3] < low).all() and (field.aabb[3:] > high).all()
    assert ((field.aabb[3:] - field.aabb[:3]) < 0.5 * (BOX[3:] - BOX[:3])).all()
    after = field.density(At(at.rays, field.unit(points), at.ray_indices))[0]
    outside = ((points < field.aabb[:3]) | (points > field.aabb[3:])).any(-1)
    assert not after[outside].any() and not before[outside].any()
    assert float((after - before).abs().mean() / before.mean()) < 0.1  # vertices lie elsewhere now
    other = make("plenoxels", resolutions=(31, 41), grow_at=(0.5,), density_step=1.0)
    other.load_state_dict(field.state_dict())
    assert torch.equal(other.unit(points), field.unit(points))


@pytest.mark.parametrize("name", ["plenoxels", "tensorf"])
def test_pictures_are_those_before_growing(name: str, scene: Scene) -> None:
    """Trained for a moment, then finer and in a smaller box: to 0.1 dB."""
    sizes = {"n_density_features": 8, "n_color_features": 8, "n_neurons": 16}
    config = Nerf.defaults(name, torch.device("cpu"), set())
    sizes = {key: value for key, value in sizes.items() if config.knows(key)}
    config = config.replace(steps=60, device="cpu", resolutions=(32, 48), grow_at=(1.0,), target_samples=4096, **sizes)
    task = Nerf(config.replace(occupancy_resolution=32, steps_per_diagonal=128), scene)
    Trainer(task).train()
    truth, box = scene.test.image_rgb(0, torch.ones(3)), task.model.aabb.clone()
    pictures = []
    for progress in (0.9, 1.0):
        assert task.model.grow(progress) == (progress == 1.0)
        pictures.append(render_image(task.model, task.sampler, task.scene.test, 0, torch.ones(3))[0])
    before, after = (psnr(picture, truth) for picture in pictures)
    assert pictures[0].std() > 0.05 and abs(after - before) < 0.1, (before, after)
    assert not torch.equal(task.model.aabb, box) or not torch.equal(*pictures)


# ---- planes and time -------------------------------------------------------------------------------------------------


def test_planes_of_time_that_are_one_are_not_there() -> None:
    """The moving field is bit for bit the one that stands still, and another one where a plane of time says so."""
    sizes = {"plane_resolutions": (8, 16), "n_plane_features": 8, "plane_axes": (1.0, 1.5, 0.5), "sh_degree": 1}
    still, moving = make("planes", **sizes), make("planes_time", n_times=5, **sizes)
    assert isinstance(still, PlanesField) and isinstance(moving, PlanesTime)
    state = {**moving.state_dict(), **still.state_dict()}
    moving.load_state_dict(state)
    at = asked(times=True)
    with torch.no_grad():
        for y, expected in zip(moving.radiance(at), RadianceField.radiance(still, at), strict=True):
            assert torch.equal(y, expected)
        assert float(moving.penalty()) == pytest.approx(1e-4 * 2 * 0.4**2 / 6, rel=0.2)  # of uniform numbers in space
        nn.init.uniform_(moving.grid.planes[4].table, -0.5, 0.5)
        assert not torch.equal(moving.radiance(at)[0], still.density(at)[0])
        assert float(moving.penalty()) > 1e-4


@pytest.mark.parametrize("name", ["planes_time", "hexplane"])
def test_time_reaches_the_field(name: str) -> None:
    """What is said of a time is learned from it alone."""
    field, at = make(name, density_shift=0.0, plane_resolutions=(8,), resolutions=(8,), grow_at=()), asked()
    early = At(Rays(at.rays.origins, at.rays.directions, time=torch.zeros(200)), at.unit, at.ray_indices)
    field.density(early)[0].sum().backward()
    grids = [module for module in field.modules() if hasattr(module, "pictures")]
    for grid in grids:
        for group, plane in zip(grid.axes, grid.planes, strict=True):
            if group[1] == 3 and plane.table.grad is not None:
                rows = plane.table.grad[: plane.levels.sizes[0]].view(16, -1)
                assert rows[0].any() and not rows[1:].any()
