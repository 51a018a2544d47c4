"""Opacities of distances against their bound, and samples by it against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hashgrid.cli import main
from hashgrid.data.procedural import procedural_scene
from hashgrid.fields import RADIANCE_FIELDS
from hashgrid.fields.volsdf import Volsdf
from hashgrid.geometry.rays import At, Rays
from hashgrid.rendering.choices import make_field, make_sampler
from hashgrid.rendering.error_bounded import (
    ErrorBoundedSampler,
    chords,
    nearest_distances,
    opacity_bound,
    sufficient_scale,
)
from hashgrid.rendering.samplers import Sampler, SamplerConfig, StratifiedSampler
from hashgrid.tasks.surface import Surface

BOX = torch.tensor([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5])
SMALL = {"n_levels": 4, "log2_hashmap_size": 10, "max_resolution": 32, "first_levels": 2}
NORMAL = torch.nn.functional.normalize(torch.tensor([0.3, 0.8, -0.2]), dim=0)
OFFSET = -0.1
N_WITHIN = 64  # points of the truth within an interval


class Plane(Volsdf):
    """The distance to a plane, as the field would have it."""

    def distances(self, unit: Tensor) -> Tensor:
        return (unit / self.inverse_extent + self.aabb[:3]) @ NORMAL - OFFSET

    def surface(self, unit: Tensor, slopes: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        return self.distances(unit), NORMAL.expand_as(unit), unit.new_zeros(len(unit), 15)


class Ball(Volsdf):
    """The distance to a ball, as the field would have it."""

    radius = 0.7

    def distances(self, unit: Tensor) -> Tensor:
        return (unit / self.inverse_extent + self.aabb[:3]).norm(dim=-1) - self.radius

    def surface(self, unit: Tensor, slopes: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        normals = torch.nn.functional.normalize(unit - 0.5, dim=-1)
        return self.distances(unit), normals, unit.new_zeros(len(unit), 15)


def make(kind: type[Volsdf], scale: float) -> Volsdf:
    return kind(Volsdf.Config().replace(**SMALL, start_sharpness=1 / scale), BOX)


def rays_at_plane(n: int = 80) -> tuple[Rays, Tensor]:
    """Rays that meet the plane in the middle of the box at a distance of 4, and the cosines of their angles."""
    generator = torch.Generator().manual_seed(0)
    hits = 0.6 * torch.rand(n, 3, generator=generator) - 0.3
    hits = hits - ((hits @ NORMAL) - OFFSET)[:, None] * NORMAL
    directions = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator) - NORMAL, dim=1)
    cosines = -directions @ NORMAL
    facing = cosines > 0.3
    return Rays(hits - 4 * directions, directions)[facing], cosines[facing]


# ---- the bound -------------------------------------------------------------------------------------------------------


def density(distance: Tensor, scale: float) -> Tensor:
    """The Laplace density, by its two branches."""
    tail = (-distance.abs() / scale).exp() / 2
    return torch.where(distance > 0, tail, 1 - tail) / scale


def plane_along(cosine: float) -> Callable[[Tensor], Tensor]:
    return lambda t: -cosine * (t - 2.2)


def ball_along(miss: float) -> Callable[[Tensor], Tensor]:
    """Of a ray that passes its centre at a distance."""
    return lambda t: torch.hypot(t - 2.2, torch.full_like(t, miss)) - 0.7


def largest_errors(f: Callable[[Tensor], Tensor], edges: Tensor, scale: float) -> Tensor:
    """Of the opacity anywhere within intervals [n] between edges [n + 1] whose densities are taken where they begin."""
    part = torch.linspace(0, 1, N_WITHIN + 1, dtype=torch.float64)
    t = edges[:-1, None] + (edges[1:] - edges[:-1])[:, None] * part
    sigma, step = density(f(t), scale), (edges[1:] - edges[:-1])[:, None] / N_WITHIN
    # trapezoids, small beside the error: their own falls by the square of the number within
    true = torch.nn.functional.pad(((sigma[:, 1:] + sigma[:, :-1]) / 2 * step).cumsum(1), (1, 0))
    taken = sigma[:, :1] * (t - edges[:-1, None])
    before = [x[:, -1].cumsum(0) - x[:, -1] for x in (true, taken)]
    return ((-(true + before[0][:, None])).exp() - (-(taken + before[1][:, None])).exp()).abs().amax(1)


RAYS = {
    **{f"plane {c}": plane_along(c) for c in (1.0, 0.6, 0.2, -0.8)},
    **{f"ball {m}": ball_along(m) for m in (0.0, 0.4, 0.65, 0.72, 1.0)},
}


@pytest.mark.parametrize("name", RAYS)
def test_opacities_are_wrong_by_no_more_than_the_bound(name: str) -> None:
    """In each interval, of even partitions and of others; and a bound of half as much would be wrong for a plane."""
    f, tightest = RAYS[name], 0.0
    generator = torch.Generator().manual_seed(0)
    for n in (16, 128, 700):
        even = torch.linspace(0, 5, n + 1, dtype=torch.float64)
        other = 5 * torch.rand(n + 1, generator=generator, dtype=torch.float64).sort().values
        for edges in (even, other):
            distance, length = f(edges)[None], edges.diff()[None]
            nearest = nearest_distances(distance, length)
            for scale in (0.5, 0.1, 0.02, 0.005):
                bound = opacity_bound(distance, length, nearest, torch.full((1, 1), scale, dtype=torch.float64))[0]
                error = largest_errors(f, edges, scale)
                assert bool((error <= bound * (1 + 1e-3) + 1e-6).all()), (n, scale, float((error - bound).max()))
                tightest = max(tightest, float((error / bound).where(error > 1e-3, 0).max()))
    assert tightest > 0.6 or name not in ("plane 1.0", "plane 0.6"), tightest


@pytest.mark.parametrize("name", RAYS)
def test_distances_within_an_interval_are_no_less_than_those_at_its_ends_say(name: str) -> None:
    """Against the distances of many points within; where a surface is between them they say nothing."""
    edges = torch.linspace(0, 5, 41, dtype=torch.float64)
    f, part = RAYS[name], torch.linspace(0, 1, N_WITHIN + 1, dtype=torch.float64)
    nearest = nearest_distances(f(edges)[None], edges.diff()[None])[0]
    least = f(edges[:-1, None] + edges.diff()[:, None] * part).abs().amin(1)
    assert bool((nearest <= least + 1e-9).all()) and bool((nearest > 0.5 * least)[least > 0.5].all())


def test_the_scale_at_the_start() -> None:
    """That of 128 points over a way of 6, and it does what it is for, whatever the distances are."""
    points = torch.zeros(1, 128, 5)
    points[0, :, 3] = torch.linspace(-3, 3, 128)
    length = chords(points)
    scale = sufficient_scale(length, 0.1)
    assert float(scale) == pytest.approx(math.sqrt(36 / 127 / (4 * math.log(1.1)))) == pytest.approx(0.862, abs=5e-4)
    distance = torch.zeros(1, 128)
    bound = opacity_bound(distance, length, nearest_distances(distance, length), scale)
    assert float(bound.max()) <= 0.1
    worst = (length / (2 * scale)).square().sum().expm1()  # of rays through nothing, up to what is before the last
    assert float(worst) == pytest.approx(0.1, rel=1e-4)


# ---- the sampler -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def thickness_up_to(field: Volsdf, sampler: Sampler, rays: Rays, t: Tensor) -> tuple[Tensor, int]:
    """Optical thickness [R] up to distances [R], as compositing takes it, with one density for each sample; and how
    many each ray has."""
    samples = sampler(rays, field, None).samples
    unit = field.unit(samples.positions(rays.origins, rays.directions))
    sigmas, _ = field.density(At(rays, unit, samples.ray_indices, samples.intervals()))
    upto = torch.minimum(samples.t_ends, t[samples.ray_indices]) - samples.t_starts
    return (sigmas * upto.clamp(min=0)).view(len(rays), -1).sum(1), samples.n_samples // len(rays)


@pytest.mark.parametrize("scale", [0.05, 0.01, 0.002])
def test_light_at_a_plane(scale: float) -> None:
    """``exp(-1 / (2 cos))`` of it arrives, at any scale; as many even samples do not see that of a sharp one."""
    field, (rays, cosines) = make(Plane, scale), rays_at_plane()
    assert len(rays) > 40
    there, expected = torch.full_like(cosines, 4.0), torch.exp(-1 / (2 * cosines))
    thickness, n = thickness_up_to(field, ErrorBoundedSampler(), rays, there)
    torch.testing.assert_close(torch.exp(-thickness), expected, rtol=0.02, atol=0)
    even, same = thickness_up_to(field, StratifiedSampler(96), rays, there)
    assert n == same == 96
    assert scale > 0.002 or float((torch.exp(-even) / expected - 1).abs().median()) > 0.2


@pytest.mark.parametrize("scale", [0.05, 0.01, 0.002])
def test_light_past_a_ball(scale: float) -> None:
    """Of rays that pass it nearby or go through it, against the integral of the density in many steps."""
    field, t = make(Ball, scale), torch.linspace(2.5, 5.5, 30001, dtype=torch.float64)
    miss = torch.tensor([0.0, 0.5, 0.65, 0.69, 0.7, 0.7 + scale, 0.7 + 3 * scale])
    origins = torch.stack((torch.full_like(miss, -4), miss, torch.zeros_like(miss)), dim=1)
    rays = Rays(origins, torch.tensor([1.0, 0, 0]).expand_as(origins).contiguous())
    sigma = density(torch.hypot(t[None] - 4, miss.double()[:, None]) - 0.7, scale)
    expected = torch.exp(-torch.trapezoid(sigma, t, dim=1)).float()
    thickness, _ = thickness_up_to(field, ErrorBoundedSampler(), rays, torch.full_like(miss, 9.0))
    torch.testing.assert_close(torch.exp(-thickness), expected, rtol=0, atol=0.01)


def test_a_ray_does_not_depend_on_others() -> None:
    """Nor on what is random, unless it is asked for; rays that miss the box have samples of no length."""
    field, (rays, _), sampler = make(Plane, 0.01), rays_at_plane(), ErrorBoundedSampler()
    together = sampler(rays, field, None).samples.t_starts.view(len(rays), 96)
    assert torch.equal(together[7:8], sampler(rays[7:8], field, None).samples.t_starts.view(1, 96))
    jittered, again, other = (sampler(rays, field, (1, step)).samples for step in (5, 5, 6))
    assert torch.equal(jittered.t_starts, again.t_starts) and not torch.equal(jittered.t_starts, other.t_starts)
    assert bool((jittered.t_ends >= jittered.t_starts).all())
    away = sampler(Rays(rays.origins, -rays.directions), field, None).samples
    assert torch.equal(away.t_starts, away.t_ends)
    assert sampler(rays[:0], field, None).samples.n_samples == 0


# ---- the choice ------------------------------------------------------------------------------------------------------

MESSAGE = (
    "`sampler` error_bounded must be of a field of Laplace density, volsdf, got {!r}; "
    "choose `--field volsdf` or another `--sampler`"
)


@pytest.mark.parametrize("name", ["neus", "ngp", "classic"])
def test_other_fields_are_refused(name: str) -> None:
    scene = procedural_scene(n_train=2, n_test=1, resolution=8).normalized()
    config = RADIANCE_FIELDS[name].Config()
    config = config.replace(**{"log2_hashmap_size": 8} if config.knows("log2_hashmap_size") else {})
    sampling = SamplerConfig(sampler="error_bounded")
    field = make_field(RADIANCE_FIELDS[name], config, sampling, scene)
    with pytest.raises(ValueError) as error:
        make_sampler(sampling, field, scene)
    assert str(error.value) == MESSAGE.format(name)


def test_it_is_chosen_by_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of `volsdf` alone."""
    words = ["surface", "procedural:train=2,test=1,resolution=8", "--sampler", "error_bounded", "--device", "cpu"]
    words += ["--steps", "0", "--no-video", "--log2-hashmap-size", "8"]
    assert main([*words, "--field", "neus", "--out", str(tmp_path / "neus")]) == 1
    assert capsys.readouterr().err == f"hashgrid: error: {MESSAGE.format('neus')}\n"
    config = Surface.Config().replace(field=Volsdf.Config().replace(**SMALL), sampler="error_bounded", device="cpu")
    scene = procedural_scene(n_train=2, n_test=1, resolution=8).normalized()
    assert isinstance(Surface(config, scene).sampler, ErrorBoundedSampler)
