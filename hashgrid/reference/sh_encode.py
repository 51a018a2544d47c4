"""Real spherical harmonics of a direction, in tcnn's order and signs, in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from hashgrid.maths import spherical_harmonics
from hashgrid.ops._tensors import at_least_fp32

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
    return spherical_harmonics(at_least_fp32(directions), degree)
