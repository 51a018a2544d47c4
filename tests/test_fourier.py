"""Fourier features: against the kernel they stand for, quadrature, and what they can learn at which scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hashgrid import Frequency, IntegratedFrequency, LearnedFourier, RandomFourier


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_products_of_features_are_the_gaussian_kernel(backend: str) -> None:
    """Tancik et al. 2020: exp(-2 pi^2 s^2 |x - y|^2), .821, .454 and .169 at distances of .01, .02 and .03."""
    m, scale = 4096, 10.0
    encoding = RandomFourier(2, m, scale, backend)
    x = torch.tensor([[0.5, 0.5]])
    for distance, expected in ((0.0, 1.0), (0.01, 0.821), (0.02, 0.454), (0.03, 0.169)):
        assert math.exp(-2 * (math.pi * scale * distance) ** 2) == pytest.approx(expected, abs=6e-4)
        for along in ((1.0, 0.0), (0.6, 0.8)):
            product = (encoding(x) * encoding(x + distance * torch.tensor([along]))).sum() / m
            assert float(product) == pytest.approx(expected, abs=4 / math.sqrt(2 * m))


def test_features_by_numpy() -> None:
    encoding = RandomFourier(3, 8, 2.0).double()
    x = torch.rand(5, 3, dtype=torch.float64)
    angles = 2 * np.pi * x.numpy() @ encoding.frequencies.numpy().T
    np.testing.assert_allclose(encoding(x).numpy(), np.concatenate((np.sin(angles), np.cos(angles)), -1), atol=1e-12)
    assert not list(encoding.parameters()) and "frequencies" in encoding.state_dict()
    learned = LearnedFourier(3, 8, 2.0)
    assert [name for name, _ in learned.named_parameters()] == ["frequencies"]
    learned(torch.rand(5, 3)).square().sum().backward()  # sin^2 + cos^2: the same for all B
    assert learned.frequencies.grad is not None and learned.frequencies.grad.abs().max() < 1e-4


def ridge(fit: Tensor, target: Tensor, at: Tensor) -> Tensor:
    """What least squares with a penalty of 1e-3 on features [N, F] of ``target`` [N] say at features ``at`` [M, F]."""
    gram = fit.T @ fit + 1e-3 * torch.eye(fit.shape[1], dtype=fit.dtype)
    return at @ torch.linalg.solve(gram, fit.T @ target)


def test_scale_makes_an_inverted_u() -> None:
    """30 random cosines of up to 10 periods, between the points they were learned at: too low a scale cannot say them,
    too high a one says something else between. The axes' own waves cannot say products, whatever their frequencies."""
    generator = torch.Generator().manual_seed(0)
    waves = torch.randint(-10, 11, (30, 2), generator=generator).double()
    phases = 2 * math.pi * torch.rand(30, generator=generator).double()
    axis = torch.arange(40).double() / 40
    grid = torch.cartesian_prod(axis, axis)

    def signal(x: Tensor) -> Tensor:
        return (torch.cos(2 * math.pi * x @ waves.T + phases) / waves.norm(dim=1).clamp_min(1)).sum(-1)

    low, high = signal(grid).min(), signal(grid).max()

    def psnr(encode: torch.nn.Module) -> float:
        target, between = ((signal(x) - low) / (high - low) for x in (grid, grid + 0.5 / 40))
        error = ridge(encode(grid), target, encode(grid + 0.5 / 40)) - between
        return -10 * math.log10(float(error.square().mean()))

    scores = {}
    for scale in (0.3, 1.0, 6.0, 20.0):
        torch.manual_seed(0)
        scores[scale] = psnr(RandomFourier(2, 192, scale).double())
    assert scores[0.3] < scores[1.0] < scores[6.0] - 3 and scores[20.0] < scores[0.3] - 5
    assert scores[6.0] > psnr(Frequency(2, 5)) + 5


def test_frequencies_as_in_the_code_of_nerf() -> None:
    x = torch.rand(4, 3, dtype=torch.float64) * 4 - 2
    encoding = Frequency(3, 10, pi=False, identity=True)
    y = encoding(x)
    assert encoding.n_output_dims == 63 and y.shape == (4, 63)
    angles = x.numpy()[..., None] * 2.0 ** np.arange(10)
    expected = np.stack((np.sin(angles), np.cos(angles)), -1).reshape(4, -1)
    np.testing.assert_allclose(y.numpy(), np.concatenate((x.numpy(), expected), -1), atol=1e-11)
    faded = encoding(x, torch.zeros(10))
    assert torch.equal(faded[:, :3], x) and not faded[:, 3:].any()


@pytest.mark.parametrize("pi", [False, True])
def test_integrated_frequencies_are_means_over_gaussians(pi: bool) -> None:
    """Against Gauss-Hermite quadrature in each dimension."""
    encoding, n = IntegratedFrequency(2, 4, pi=pi), 60
    mean = torch.rand(3, 2, dtype=torch.float64)
    variances = 0.05 * torch.rand(3, 2, dtype=torch.float64)
    nodes, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(n))
    points = mean[:, None] + variances.sqrt()[:, None] * nodes[:, None]  # [3, n, 2]
    waves = Frequency(2, 4, pi=pi)(points)
    expected = (weights[:, None] * waves).sum(1) / weights.sum()
    torch.testing.assert_close(encoding(mean, variances=variances), expected, rtol=0, atol=1e-9)
    assert torch.equal(encoding(mean), Frequency(2, 4, pi=pi)(mean))
    wide = IntegratedFrequency(2, 4, deviation=0.1)
    torch.testing.assert_close(wide(mean), wide(mean, variances=torch.full_like(mean, 0.01)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomFourier(2, 0), "`n_input_dims` and `n_features` must be positive, got 2 and 0"),
        (lambda: RandomFourier(2, 8, math.nan), "`scale` must be positive and finite, got nan"),
        (lambda: RandomFourier(2, 8)(torch.rand(5, 3)), r"`x` must have shape \[..., 2\], got \[5, 3\]"),
        (lambda: IntegratedFrequency(2, deviation=-1.0), "`deviation` must be non-negative and finite, got -1.0"),
        (
            lambda: IntegratedFrequency(2)(torch.rand(5, 2), variances=torch.rand(5, 1)),
            r"`variances` must have shape \[5, 2\], got \[5, 1\]",
        ),
    ],
)
def test_bad_input(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
