"""Distance fields seen as volumes: planes and slopes in closed form, in any box and in contracted space."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hashgrid.fields import RADIANCE_FIELDS
from hashgrid.fields.neus import Neus
from hashgrid.fields.slope_losses import curvature
from hashgrid.fields.surface_color import surface_color_inputs
from hashgrid.geometry.contraction import Contraction
from hashgrid.geometry.rays import At, Rays
from hashgrid.rendering.samplers import StratifiedSampler
from hashgrid.rendering.volume import render

BOX = torch.tensor([-1.0, -2, -1, 2, 1, 0.5])  # no cube, and not around 0
SMALL = {
    "n_levels": 4,
    "log2_hashmap_size": 10,
    "max_resolution": 32,
    "first_levels": 2,
    "eikonal_points": 64,
    "curvature_weight": 0.0,
}
NORMAL = torch.nn.functional.normalize(torch.tensor([0.3, 0.8, -0.2]), dim=0)


def make(name: str = "neus", **changes: Any) -> Neus:
    torch.manual_seed(0)
    kind: Any = RADIANCE_FIELDS[name]
    return kind(kind.Config().replace(**SMALL | changes), BOX)  # type: ignore[no-any-return]


def rays_at_plane(offset: float, n: int = 200) -> tuple[Rays, Tensor]:
    """Rays from one side of the plane ``NORMAL . x = offset`` at many angles, which meet it in the middle of the box,
    and their distances to it."""
    generator = torch.Generator().manual_seed(0)
    hits = 0.4 * torch.rand(n, 3, generator=generator) + torch.tensor([0.3, -0.7, -0.4])
    hits = hits - ((hits @ NORMAL) - offset)[:, None] * NORMAL
    directions = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=1)
    directions = torch.nn.functional.normalize(directions - 1.2 * NORMAL, dim=1)
    facing = directions @ NORMAL < -0.3
    return Rays(hits - 5 * directions, directions)[facing], torch.full((int(facing.sum()),), 5.0)


class Plane(Neus):
    """The distance to a plane, as the field would have it."""

    offset = -0.55

    def surface(self, unit: Tensor, slopes: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        x = unit / self.inverse_extent + self.aabb[:3]
        distance = x @ NORMAL - self.offset
        return distance + 0 * self.log_sharpness, NORMAL.expand_as(x), x.new_zeros(len(x), 15)


@pytest.mark.parametrize("n_samples", [40, 400])
def test_a_plane_is_seen_where_it_is(n_samples: int) -> None:
    """At every angle, within what an interval is long, and in the mean much nearer."""
    sharpness = 60.0
    field = Plane(Neus.Config().replace(**SMALL, start_sharpness=sharpness), BOX)
    field.fade(1.0)
    rays, expected = rays_at_plane(Plane.offset)
    with torch.no_grad():
        out = render(field, StratifiedSampler(n_samples), rays)
    assert len(rays) > 50 and (out.opacities > 0.999).all()
    error = out.depths / out.opacities - expected
    longest = float((out.samples.t_ends - out.samples.t_starts).max())
    assert float(error.abs().max()) < longest  # of middles of intervals
    assert float(error.mean().abs()) < (0.1 * longest if n_samples == 40 else 1e-3)
    deviation = math.pi / (math.sqrt(3) * sharpness)  # of a ray against the normal
    assert n_samples == 40 or float(error.abs().max()) < 0.1 * deviation


def test_rays_that_leave_see_nothing_once_slopes_are_annealed() -> None:
    field = Plane(Neus.Config().replace(**SMALL, start_sharpness=60.0), BOX)
    rays, _ = rays_at_plane(Plane.offset)
    rays = rays[rays.directions @ NORMAL > -0.6]  # of those along the normal the other slope vanishes, too
    away = Rays(rays.origins + 10 * rays.directions, -rays.directions)  # first inside, then outside
    opacities = []
    for share in (0.0, 1.0):
        field.fade(share)
        with torch.no_grad():
            opacities.append(render(field, StratifiedSampler(400), away).opacities)
    assert float(opacities[1].max()) < 1e-4 and float(opacities[0].min()) > 0.5


@pytest.mark.parametrize("contraction", ["none", "cube", "ball"])
def test_opacity_depends_on_distances_alone(contraction: Contraction) -> None:
    """Contracted space has lengths of its own, but an interval is as opaque as the distances at its ends say: those of
    a level set that is flat in the field's own coordinates."""
    field = Plane(Neus.Config().replace(**SMALL, start_sharpness=60.0), BOX)
    field.contraction = contraction
    field.fade(1.0)
    rays, _ = rays_at_plane(Plane.offset)
    t = torch.linspace(3, 9, 401).expand(len(rays), -1)
    samples = StratifiedSampler(400).pack(t)
    middle = field.inside(field.unit(samples.positions(rays.origins, rays.directions)))
    with torch.no_grad():
        sigmas, _ = field.density(At(rays, middle, samples.ray_indices, samples.intervals()))
        places = field.inside(field.unit(rays.origins[:, None] + t[..., None] * rays.directions[:, None]))
        f = field.surface(places.flatten(0, 1))[0].view(t.shape)
    alphas = (sigmas * (samples.t_ends - samples.t_starts)).neg().exp().neg().add(1).view(len(rays), -1)
    phi = torch.sigmoid(60.0 * f.double())
    expected = ((phi[:, :-1] - phi[:, 1:]) / phi[:, :-1]).clamp(0, 1)
    torch.testing.assert_close(alphas.double(), expected, rtol=0, atol=2e-2 if contraction != "none" else 1e-3)


@pytest.mark.parametrize("name", ["neus", "volsdf"])
def test_gradients_are_those_of_the_distances(name: str) -> None:
    """In the scene, in whose units distances are; against differences, for a table that is not nearly empty."""
    field = make(name).double()
    torch.nn.init.uniform_(field.distance.grid.table, -0.5, 0.5)
    unit = 0.1 + 0.8 * torch.rand(50, 3, dtype=torch.float64)
    distance, gradient, features = field.surface(unit)
    torch.testing.assert_close(distance, field.distances(unit))
    assert features.shape == (50, 15)
    for axis in range(3):
        step = 1e-6 * torch.eye(3, dtype=torch.float64)[axis]
        in_unit = step * field.inverse_extent.double()
        slope = (field.distances(unit + in_unit) - field.distances(unit - in_unit)) / 2e-6
        torch.testing.assert_close(gradient[:, axis], slope, rtol=1e-4, atol=1e-4)


def test_slopes_leave_no_gradient_behind() -> None:
    """The table's buffer of gradients is added to by steps of training alone, not by asking for normals."""
    field, (rays, _) = make(), rays_at_plane(0.0)
    out = render(field, StratifiedSampler(10), rays)
    with torch.no_grad():
        render(field, StratifiedSampler(10), rays)
    table = field.distance.grid.table
    assert table.grad is None or not table.grad.any()
    out.colors.sum().backward()
    assert table.grad is not None and table.grad.any()


def test_eikonal_loss_is_of_what_rays_saw_and_of_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    field = make(eikonal_weight=0.5)
    assert field.penalty() == 0  # nothing was seen
    steepness = {30: 3.0, 64: 1.5}  # by the number of points: of samples, and of the box

    def surface(unit: Tensor, slopes: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        gradient = torch.zeros_like(unit) + torch.tensor([0.0, steepness[len(unit)], 0.0])
        return unit[:, 0] + 0 * field.log_sharpness, gradient, unit.new_zeros(len(unit), 15)

    monkeypatch.setattr(field, "surface", surface)
    rays, _ = rays_at_plane(0.0)
    render(field, StratifiedSampler(10), rays[:3])
    assert float(field.penalty()) == pytest.approx(0.5 * (30 * 2.0**2 + 64 * 0.5**2) / 94)
    assert field.penalty() == 0  # once
    with torch.no_grad():
        render(field, StratifiedSampler(10), rays[:3])
    assert field.penalty() == 0  # a picture


def test_everything_begins_as_a_sphere_and_becomes_finer() -> None:
    field = make(start_radius=0.25, levels_share=0.5)
    generator = torch.Generator().manual_seed(0)
    out = torch.nn.functional.normalize(torch.randn(100, 3, generator=generator), dim=1)
    for radius in (0.2, 0.25, 0.4):
        found = field.distances(0.5 + radius * out).detach() / 3  # the longest side
        assert float((found - (math.hypot(radius, 0.1) - 0.25)).abs().max()) < 2e-3
    weights = []
    for share in (0.0, 0.25, 0.5):
        field.fade(share)
        weights.append(None if field.level_weights is None else field.level_weights.tolist())
    assert weights == [[1, 1, 0, 0], [1, 1, 1, 0], None]
    field.fade(0.25)
    other = make(start_radius=0.25, levels_share=0.5)
    other.load_state_dict(field.state_dict())
    other.fade()
    assert other.level_weights is not None and other.level_weights.tolist() == weights[1]


def test_numeric_gradients_are_those_of_cells_there_are() -> None:
    """Differences over a cell of the finest level: the slope where the field is smooth, blind to what is below it."""
    field = make(gradients="numeric", max_resolution=64).double()
    exact = make(max_resolution=64).double()
    torch.nn.init.uniform_(exact.distance.grid.table, -0.1, 0.1)
    field.load_state_dict(exact.state_dict())
    unit = 0.2 + 0.6 * torch.rand(400, 3, dtype=torch.float64)
    cells = []
    for share in (0.0, 0.125, 0.25, 0.5):
        field.fade(share)
        cells.append(field.cell)
    resolutions = [1 / cell for cell in cells]
    assert resolutions == pytest.approx([16 * 4 ** (k / 3) for k in (1, 1.5, 2, 3)])
    numeric, analytic = field.surface(unit), exact.surface(unit)
    torch.testing.assert_close(numeric[0], analytic[0])
    torch.testing.assert_close(numeric[2], analytic[2])
    axis = 1
    step = cells[-1] * torch.eye(3, dtype=torch.float64)[axis]
    expected = (exact.distances(unit + step) - exact.distances(unit - step)) / (2 * cells[-1])
    torch.testing.assert_close(numeric[1][:, axis], expected * float(field.inverse_extent[axis]))
    assert (
        float((numeric[1] - analytic[1]).detach().norm(dim=1).mean()) > 0.05
    )  # which is not what the table says of a point


@pytest.mark.parametrize("gradients", ["analytic", "numeric"])
def test_curvature_loss_is_the_laplacian(gradients: str) -> None:
    """Of a field that tells squared radii: 6 everywhere, in the scene's units, in a box that is no cube."""

    class Paraboloid(Neus):
        def make_distance(self) -> Any:
            distance, field = super().make_distance(), self

            def outputs(x: Tensor, level_weights: Tensor | None = None) -> Tensor:
                places = x / field.inverse_extent + field.aabb[:3]
                value = places.square().sum(-1, keepdim=True) / field.side + field.shift
                return torch.cat((value, value.expand(*value.shape[:-1], 15)), dim=-1)

            distance.outputs = outputs  # type: ignore[method-assign]
            return distance

    config = Neus.Config().replace(**SMALL | {"gradients": gradients, "curvature_weight": 2.0, "eikonal_weight": 0.0})
    field = Paraboloid(config, BOX).double()
    field.fade(1.0)
    unit = 0.2 + 0.6 * torch.rand(500, 3, dtype=torch.float64)
    assert float(curvature(field, unit)) == pytest.approx(6.0, rel=1e-4)
    field._seen = unit, torch.zeros_like(unit)
    assert float(field.penalty().detach()) == pytest.approx(
        2.0 * 6.0 * 16 / 32, rel=1e-4
    )  # less than on the coarsest level


def test_the_network_of_the_paper_begins_as_a_sphere() -> None:
    """Inside in the middle and outside at the sides, near its radius in the mean, and gradients are those of values."""
    field: Any = RADIANCE_FIELDS["neus_mlp"](
        RADIANCE_FIELDS["neus_mlp"].Config(), torch.tensor([-1.0, -1, -1, 1, 1, 1])
    )
    out = torch.nn.functional.normalize(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    radius = torch.linspace(0.3, 0.9, 61)
    with torch.no_grad():
        values = field.distances((radius[:, None, None] * out + 1).flatten(0, 1) / 2).view(61, 200)
    crossing = radius[(values < 0).sum(0).clamp(max=60)]  # a box of side 2: a radius of .3 of it
    assert float(crossing.mean()) == pytest.approx(0.6, rel=0.15)
    assert float(field.distances(torch.full((1, 3), 0.5)).detach()) < 0 and (values[-1] > 0).all()
    assert float(((values[40:].mean(1).diff() / radius[40:].diff()) - 1).abs().mean()) < 0.2
    unit = torch.rand(20, 3)
    distance, gradient, features = field.surface(unit)
    assert features.shape == (20, 256)
    step = 1e-3
    for axis in range(3):
        along = step * torch.eye(3)[axis]
        with torch.no_grad():
            slope = (field.distances(unit + along / 2) - field.distances(unit - along / 2)) / (2 * step)
        assert float((gradient[:, axis].detach() - slope).abs().max()) < 0.05
    (distance.sum() + (gradient.norm(dim=1) - 1).square().sum()).backward()
    assert all(p.grad is not None for p in field.distance.parameters())


def test_colours_see_codes() -> None:
    class Capture:
        def code(self, rays: Rays) -> Tensor:
            return rays.origins[:, :2]

    field = make()
    field.see_codes(2)
    field.capture = Capture()
    rays, _ = rays_at_plane(0.0)
    with torch.no_grad():
        samples = StratifiedSampler(8)(rays, field, None).samples
        at = At(rays, torch.rand(samples.n_samples, 3), samples.ray_indices, samples.intervals())
        before = field.color(at, None)  # type: ignore[arg-type]
        assert field.color_mlp.n_input_dims == 6 + 16 + 15 + 2
        other = Rays(rays.origins + torch.tensor([1.0, 0, 0]), rays.directions)
        after = field.color(At(other, at.unit, at.ray_indices, at.intervals), None)  # type: ignore[arg-type]
    assert not torch.allclose(before, after)


def test_mirrored_directions_are_of_what_is_mirrored() -> None:
    """One input changes: the direction that light comes from, by the law of reflection, at either side of a normal."""
    directions = torch.nn.functional.normalize(torch.tensor([[1.0, 0, -1], [0.2, 0.3, -1]]), dim=1)
    rays, index = Rays(torch.zeros(2, 3), directions), torch.tensor([0, 1, 1])
    at = At(rays, torch.rand(3, 3), index)
    gradient, features = torch.tensor([[0, 0, 2.0], [0, 0, 2.0], [0, 0, -0.5]]), torch.rand(3, 4)
    plain, mirrored = (surface_color_inputs(at, gradient, features, lambda x: x, flag) for flag in (False, True))
    torch.testing.assert_close(plain[:, 6:9], directions[index])
    torch.testing.assert_close(mirrored[:, 6:9], directions[index] * torch.tensor([1.0, 1, -1]))
    torch.testing.assert_close(mirrored[:, [*range(6), *range(9, 13)]], plain[:, [*range(6), *range(9, 13)]])


@pytest.mark.parametrize("name", ["neus", "volsdf"])
def test_gradients_of_a_whole_render(name: str) -> None:
    """Colours, opacities and the losses of slopes, to every parameter, against differences in fp64."""
    sizes = {"n_levels": 2, "n_features_per_level": 2, "log2_hashmap_size": 4, "n_neurons": 4, "sh_degree": 2}
    weights = {"eikonal_weight": 0.3, "eikonal_points": 5, "curvature_weight": 0.1}
    field = make(name, **sizes, **weights, n_geometry_features=3, start_sharpness=5.0, reflected=True).double()
    field.fade(1.0)
    grid: Any = field.distance.grid
    grid.accumulate_grad = False  # gradients go through autograd, where they can be compared
    torch.nn.init.uniform_(grid.table, -0.2, 0.2)
    rays = Rays(*(x.double() for x in vars(rays_at_plane(0.0)[0][:3]).values() if isinstance(x, Tensor)))
    names = [key for key, _ in field.named_parameters()]

    def seen(*params: Tensor) -> tuple[Tensor, ...]:
        out = torch.func.functional_call(
            _Rendering(field), dict(zip((f"field.{x}" for x in names), params, strict=True)), (rays,)
        )
        return tuple(out)

    assert torch.autograd.gradcheck(seen, tuple(field.parameters()), eps=1e-6, atol=1e-5, rtol=1e-3, fast_mode=True)


class _Rendering(torch.nn.Module):
    def __init__(self, field: Neus) -> None:
        super().__init__()
        self.field = field

    def forward(self, rays: Rays) -> tuple[Tensor, ...]:
        out = render(self.field, StratifiedSampler(6), rays)
        penalty = self.field.penalty()
        assert isinstance(penalty, Tensor)
        return out.colors, out.opacities, penalty
