"""Real spherical harmonics of a direction, in tcnn's order and signs, in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hashgrid.precision import at_least_fp32

MAX_DEGREE = 8


def sh_encode(directions: Tensor, degree: int = 4) -> Tensor:
    """Real spherical harmonics of the bands ``l < degree``.

    Orthonormal on the sphere, with the Condon-Shortley phase: the band l = 1 is (-y, z, -x) times sqrt(3 / (4 pi)).
    ``Y_lm = N_lm P_lm(z) Re|Im (x + i y)^|m|`` is evaluated as this polynomial, also off the unit sphere.

    Args:
        directions: [..., 3], unit vectors (half precision is read as fp32).
        degree: number of bands, 1..8.

    Returns:
        [..., degree^2], channel ``l^2 + l + m`` for m in -l..l.

    Raises:
        ValueError: a shape or the degree does not fit.
    """
    if directions.dim() < 1 or directions.shape[-1] != 3:
        raise ValueError(f"`directions` must have shape [..., 3], got {list(directions.shape)}")
    if not 1 <= degree <= MAX_DEGREE:
        raise ValueError(f"`degree` must be in 1..{MAX_DEGREE}, got {degree}")
    x, y, z = at_least_fp32(directions).unbind(-1)
    channels: dict[int, Tensor] = {}
    cosine, sine = torch.ones_like(x), torch.zeros_like(x)  # Re, Im of (x + i y)^m
    for m in range(degree):
        for band, legendre in enumerate(_legendre(z, m, degree), start=m):
            norm = _norm(band, m)
            channels[band * band + band + m] = norm * legendre * cosine
            if m > 0:
                channels[band * band + band - m] = norm * legendre * sine
        cosine, sine = x * cosine - y * sine, x * sine + y * cosine
    return torch.stack([channels[c] for c in range(degree * degree)], dim=-1)


def _legendre(z: Tensor, m: int, degree: int) -> list[Tensor]:
    """``P_lm(z) / (1 - z^2)^(m/2)`` for l in m..degree-1, without the phase (DLMF 14.10.3)."""
    values = [torch.full_like(z, math.prod(range(1, 2 * m, 2)))]
    for band in range(m + 1, degree):
        previous = (band + m - 1) * values[-2] if band > m + 1 else 0
        values.append(((2 * band - 1) * z * values[-1] - previous) / (band - m))
    return values


def _norm(band: int, m: int) -> float:
    """Norm of the real harmonic, with the phase (-1)^m."""
    norm = math.sqrt((2 * band + 1) / (4 * math.pi) * math.factorial(band - m) / math.factorial(band + m))
    return norm if m == 0 else (-1) ** m * math.sqrt(2) * norm
