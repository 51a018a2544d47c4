"""Opacities of signed distances against closed forms for a plane, and what they mend of simpler formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hashgrid.geometry.opacity import (
    annealed_cosine,
    laplace_density,
    laplace_thickness,
    neus_alphas,
    neus_density,
    neus_thickness,
)

S, BETA, FAR = 64.0, 0.1, 20.0
COSINES = [1.0, 0.5, 0.25]


def ends(cosine: float, n: int = 4000, reach: float = FAR) -> tuple[Tensor, Tensor, Tensor]:
    """Distances [n + 1] from a plane at the ends of equal intervals of a ray that meets it in the middle, at depth 0,
    their depths [n + 1] and their length."""
    depths = torch.linspace(-reach, reach, n + 1, dtype=torch.float64)
    return -cosine * depths, depths, depths[1] - depths[0]


def weights_of(thickness: Tensor) -> Tensor:
    before = thickness.cumsum(0) - thickness
    return torch.exp(-before) * -torch.expm1(-thickness)


def mean_and_deviation(weights: Tensor, depths: Tensor) -> tuple[float, float]:
    """Of the middles of intervals."""
    middles = (depths[1:] + depths[:-1]) / 2
    mean = (weights * middles).sum() / weights.sum()
    return float(mean), float(((weights * (middles - mean).square()).sum() / weights.sum()).sqrt())


@pytest.mark.parametrize("cosine", COSINES)
def test_neus_sees_a_plane_where_it_is(cosine: float) -> None:
    """At any angle: depths are distributed as the logistic distribution about the plane."""
    f, depths, _ = ends(cosine, n=100_000, reach=4.0)
    alphas = neus_alphas(f[:-1], f[1:], S)
    mean, deviation = mean_and_deviation(weights_of(neus_thickness(f[:-1], f[1:], S)), depths)
    assert mean == pytest.approx(0, abs=1e-6)
    assert deviation == pytest.approx(math.pi / (math.sqrt(3) * S * cosine), abs=1e-6)
    opaque = 1 - float(torch.cumprod(1 - alphas, 0)[-1])
    start, end = (1 / (1 + math.exp(-S * float(x))) for x in (f[0], f[-1]))
    assert opaque == pytest.approx(1 - end / start, abs=1e-6)
    naive = (
        S * torch.sigmoid(S * f) * torch.sigmoid(-S * f)
    )  # the logistic density of the distance, taken for a density
    of_naive = weights_of((naive[1:] + naive[:-1]) / 2 * (depths[1] - depths[0]))
    assert float(of_naive.sum()) == pytest.approx(1 - math.exp(-1 / cosine), abs=1e-6)
    assert mean_and_deviation(of_naive, depths)[0] < -0.4 / S  # what it is biased by


@pytest.mark.parametrize("n", [3, 7, 41])
def test_neus_of_few_intervals_is_that_of_many(n: int) -> None:
    """Linear distances: the opacity up to the end of an interval does not depend on how finely it is cut; also deep
    inside, where ``Phi`` is zero in any precision, and what is left of it is no number."""
    f, _, _ = ends(0.7, n, reach=2.0)
    left = torch.exp(-neus_thickness(f[:-1], f[1:], 20.0).cumsum(0))
    torch.testing.assert_close(left, torch.sigmoid(20 * f[1:]) / torch.sigmoid(20 * f[:1]), rtol=0, atol=1e-12)
    deep = torch.tensor([-50.0, -51.0])
    torch.testing.assert_close(neus_thickness(deep[:1], deep[1:], 100.0), torch.tensor([100.0]))
    assert float(neus_thickness(deep[1:], deep[:1], 100.0)) == 0  # of rays on their way out


def test_neus_density_is_the_limit_of_short_intervals() -> None:
    f = torch.linspace(-0.2, 0.2, 21, dtype=torch.float64)
    h = 1e-6
    torch.testing.assert_close(neus_thickness(f + h / 2, f - h / 2, S) / h, neus_density(f, S), rtol=1e-6, atol=1e-6)


def test_annealed_cosine() -> None:
    cosine = torch.linspace(-1, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(annealed_cosine(cosine, 1.0), cosine.clamp(max=0))
    torch.testing.assert_close(annealed_cosine(cosine, 0.0), (cosine - 1) / 2)  # rays on their way out have a slope
    half = (annealed_cosine(cosine, 1.0) + annealed_cosine(cosine, 0.0)) / 2
    torch.testing.assert_close(annealed_cosine(cosine, 0.5), half)


@pytest.mark.parametrize("n", [2, 40, 4000])  # even: an interval ends at the plane
@pytest.mark.parametrize("cosine", COSINES)
def test_what_arrives_at_a_plane_by_volsdf(cosine: float, n: int) -> None:
    """``exp(-1 / (2 cos))`` whatever the scale, and however few intervals there are."""
    f, _, length = ends(cosine, n)
    for scale in (BETA, BETA / 10):
        left = torch.exp(-laplace_thickness(f[:-1], f[1:], length, scale).cumsum(0))
        assert float(left[n // 2 - 1]) == pytest.approx(math.exp(-1 / (2 * cosine)), abs=1e-6)
    of_middles = laplace_density((f[1:] + f[:-1]) / 2, BETA / 10) * length  # the Riemann sum of the paper
    if n == 40:
        assert abs(float(torch.exp(-of_middles[: n // 2].sum())) - math.exp(-1 / (2 * cosine))) > 0.1


def test_volsdf_sees_a_plane_behind_itself() -> None:
    """Median and peak in closed form; means from a table of other origin, biased to the camera at flat angles."""
    f, depths, length = ends(1.0, n=4_000_000, reach=8.0)
    thickness = laplace_thickness(f[:-1], f[1:], length, BETA)
    peak = depths[int(weights_of(thickness).argmax())]
    golden = (math.sqrt(5) - 1) / 2  # y = (1 - y)^2 with y = exp(-u) / 2
    assert float(peak) / BETA == pytest.approx(-math.log(2 * (1 - golden)), abs=1e-4)
    median = 0.0
    for _ in range(60):  # of u + exp(-u) / 2 = ln 2
        median = math.log(2) - math.exp(-median) / 2
    to_median = torch.tensor([FAR, -median * BETA], dtype=torch.float64)
    left = torch.exp(-laplace_thickness(to_median[0], to_median[1], to_median[0] - to_median[1], BETA))
    assert median == pytest.approx(0.336, abs=5e-4) and float(left) == pytest.approx(0.5, abs=1e-6)
    for cosine, mean in zip(COSINES, (0.343, -1.06, -5.06), strict=True):
        f, depths, length = ends(cosine, n=200_000, reach=16.0)
        found = mean_and_deviation(weights_of(laplace_thickness(f[:-1], f[1:], length, BETA)), depths)[0]
        assert found / BETA == pytest.approx(mean, abs=6e-3)  # of three digits


def test_thickness_adds_up_to_an_integral_and_has_a_limit() -> None:
    """Of a ray that bends away from the surface before it; and of one along it, where the distance is constant."""
    t = torch.linspace(-1, 1, 20_001, dtype=torch.float64)
    f = 0.3 * t.square() - 0.05
    exact = torch.trapezoid(laplace_density(f, BETA), t)
    found = laplace_thickness(f[:-1], f[1:], t.diff(), BETA).sum()
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)
    for distance in (-0.3, 0.0, 0.2):
        level = torch.tensor(distance, dtype=torch.float64)
        for change in (0.0, 1e-9, 0.99e-4, 1.01e-4):  # both sides of where the quotient is replaced
            thickness = laplace_thickness(level - change / 2, level + change / 2, torch.tensor(2.0).double(), BETA)
            torch.testing.assert_close(thickness, 2 * laplace_density(level, BETA), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["neus", "laplace"])
def test_gradients_of_opacities(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = 0.3 * torch.randn(2, 12, generator=generator, dtype=torch.float64)
    before[0] = after[0] = 0.1  # a quotient that has a limit
    scale = torch.tensor(0.2, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (before, after, scale)]
    if name == "neus":
        before.data[0] += 0.01  # at equal distances it has a corner
        assert torch.autograd.gradcheck(lambda a, b, x: neus_alphas(a, b, 1 / x), inputs)
        assert torch.autograd.gradcheck(lambda a, b, x: annealed_cosine(a, 0.3) * neus_density(b, 1 / x), inputs)
    else:
        length = torch.rand(12, generator=generator, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda a, b, x: laplace_thickness(a, b, length, x), inputs, eps=1e-7)
        assert torch.autograd.gradcheck(lambda a, b, x: laplace_density(a + b, x), inputs)
