"""Reference spherical harmonics against Legendre polynomials, quadrature and tcnn's polynomials of degree 4."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from hashgrid.reference import sh_encode

# tcnn's order and signs, rounded to five digits
DEGREE_4 = (
    lambda x, y, z: 0.28209,
    lambda x, y, z: -0.48860 * y,
    lambda x, y, z: 0.48860 * z,
    lambda x, y, z: -0.48860 * x,
    lambda x, y, z: 1.09255 * x * y,
    lambda x, y, z: -1.09255 * y * z,
    lambda x, y, z: 0.94617 * z * z - 0.31539,
    lambda x, y, z: -1.09255 * x * z,
    lambda x, y, z: 0.54627 * (x * x - y * y),
    lambda x, y, z: 0.59004 * y * (y * y - 3 * x * x),
    lambda x, y, z: 2.89061 * x * y * z,
    lambda x, y, z: 0.45705 * y * (1 - 5 * z * z),
    lambda x, y, z: 0.37318 * z * (5 * z * z - 3),
    lambda x, y, z: 0.45705 * x * (1 - 5 * z * z),
    lambda x, y, z: 1.44531 * z * (x * x - y * y),
    lambda x, y, z: 0.59004 * x * (3 * y * y - x * x),
)


def random_directions(n: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, 3, dtype=torch.float64), dim=-1)


def test_degree_4_matches_tcnn_polynomials() -> None:
    directions = random_directions(20)
    expected = [[polynomial(*d) for polynomial in DEGREE_4] for d in directions.tolist()]
    torch.testing.assert_close(sh_encode(directions), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=2e-5)


def test_matches_legendre_definition() -> None:
    directions = random_directions(10)
    expected = []
    for x, y, z in directions.tolist():
        row = []
        for band in range(8):
            for m in range(-band, band + 1):
                polynomial = np.polynomial.legendre.Legendre.basis(band).deriv(abs(m))(z)  # P_l^m / sin^m
                azimuth = complex(x, y) ** abs(m)
                ratio = math.factorial(band - abs(m)) / math.factorial(band + abs(m))
                norm = math.sqrt((2 * band + 1) / (4 * math.pi) * ratio * (2 if m else 1)) * (-1) ** m
                row.append(norm * polynomial * (azimuth.imag if m < 0 else azimuth.real))
        expected.append(row)
    torch.testing.assert_close(
        sh_encode(directions, 8), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-13
    )


def test_orthonormal_on_the_sphere() -> None:
    # exact for polynomials up to degree 15: Gauss-Legendre in z, equidistant in the azimuth
    z, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(8))
    azimuth = torch.arange(16, dtype=torch.float64) * (2 * math.pi / 16)
    radius = (1 - z * z).sqrt().unsqueeze(-1)
    directions = torch.stack([radius * azimuth.cos(), radius * azimuth.sin(), z.unsqueeze(-1).expand(8, 16)], dim=-1)
    y = sh_encode(directions, 8)  # [8, 16, 64]
    gram = torch.einsum("ijk,ijl,i->kl", y, y, weight) * (2 * math.pi / 16)
    torch.testing.assert_close(gram, torch.eye(64, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("degree", [2, 5, 8])
def test_gradients_match_finite_differences(degree: int) -> None:
    directions = random_directions(2).requires_grad_()
    assert gradcheck(lambda d: sh_encode(d, degree), (directions,))
    assert gradgradcheck(lambda d: sh_encode(d, degree), (directions,))


@pytest.mark.parametrize("degree", range(1, 9))
def test_lower_degree_is_a_prefix(degree: int) -> None:
    directions = random_directions(6).view(2, 3, 3)
    y = sh_encode(directions, degree)
    assert y.shape == (2, 3, degree**2)
    assert torch.equal(y, sh_encode(directions, 8)[..., : degree**2])


def test_empty_batch() -> None:
    assert sh_encode(torch.zeros(0, 3)).shape == (0, 16)


def test_errors_name_contract_and_actual() -> None:
    with pytest.raises(ValueError, match=r"`directions` must have shape \[\.\.\., 3\], got \[5, 2\]"):
        sh_encode(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="`degree` must be in 1..8, got 9"):
        sh_encode(torch.zeros(5, 3), 9)
