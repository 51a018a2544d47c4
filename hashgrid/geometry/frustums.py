"""Parts of cones through pixels as Gaussians (Barron et al. 2021, section 3.1) and as points (Barron et al. 2023)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Gaussians(NamedTuple):
    """Along a ray and across it."""

    t: Tensor  # [S], distances of the means
    t_variances: Tensor  # [S]
    r_variances: Tensor  # [S], along each of the two axes across


def conical_frustums(starts: Tensor, ends: Tensor, radii: Tensor) -> Gaussians:
    """Mean and variances of parts of cones, each evenly filled (mip-NeRF, eq. 7, in the form of its appendix, which
    float32 can do).

    Args:
        starts, ends: [S], distances.
        radii: [S], of the cone at a distance of 1.

    Example:
        >>> import torch
        >>> conical_frustums(torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([0.1]))
        Gaussians(t=tensor([1.]), t_variances=tensor([0.]), r_variances=tensor([0.0025]))
    """
    m, h = (starts + ends) / 2, (ends - starts) / 2
    m2, h2 = m.square(), h.square()
    share = h2 / (3 * m2 + h2).clamp_min(1e-20)  # in 0..1; squares of it, not of its parts: they would leave float32
    t = m + 2 * m * share
    t_variances = h2 / 3 - (4 / 15) * share.square() * (12 * m2 - h2)
    r_variances = radii.square() * (m2 / 4 + (5 / 12) * h2 - (4 / 15) * h2 * share)
    return Gaussians(t, t_variances, r_variances)


def covariances(gaussians: Gaussians, directions: Tensor) -> Tensor:
    """Full covariances [S, 3, 3] in space, of rays of unit length [S, 3] (mip-NeRF, eq. 8)."""
    along = directions[:, :, None] * directions[:, None]
    across = torch.eye(3, dtype=directions.dtype, device=directions.device) - along
    return gaussians.t_variances[:, None, None] * along + gaussians.r_variances[:, None, None] * across


def diagonals(gaussians: Gaussians, directions: Tensor) -> Tensor:
    """The diagonals [S, 3] of :func:`covariances` (mip-NeRF, eq. 16)."""
    squares = directions.square()
    return gaussians.t_variances[:, None] * squares + gaussians.r_variances[:, None] * (1 - squares)


# Where the six points of a frustum lie: angles in order along the ray, a third of a turn between neighbours
ANGLES = torch.tensor([0, 2, 4, 3, 5, 1]) * (math.pi / 3)


def multisamples(
    starts: Tensor, ends: Tensor, radii: Tensor, directions: Tensor, turns: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Six points in each part of a cone, with its mean and its covariance (Zip-NeRF, Barron et al. 2023, section 2).

    Args:
        starts, ends: [S], distances.
        radii: [S], of the cone at a distance of 1.
        directions: [S, 3], of unit length.
        turns: [S], angles by which the points are turned around the ray; None for none.

    Returns:
        distances along the ray [S, 6], offsets from it [S, 6, 3], and standard deviations [S, 6] of the Gaussians that
        each point stands for.
    """
    m, h = (starts + ends) / 2, (ends - starts) / 2
    m2, h2 = m.square(), h.square()
    steps = 2 * torch.arange(6, dtype=starts.dtype, device=starts.device) / 5 - 1
    root = ((h2 - m2).square() + 4 * m2.square()).sqrt()
    t = starts[:, None] + (h / (h2 + 3 * m2).clamp_min(1e-20))[:, None] * (
        (ends.square() + 2 * m2)[:, None] + (3 / math.sqrt(7)) * steps * root[:, None]
    )
    rho = math.sqrt(0.5) * radii[:, None] * t
    angles = ANGLES.to(starts) + (0.0 if turns is None else turns[:, None])
    right, up = _basis(directions)
    offsets = rho[..., None] * (angles.cos()[..., None] * right[:, None] + angles.sin()[..., None] * up[:, None])
    return t, offsets, rho / 2


def _basis(directions: Tensor) -> tuple[Tensor, Tensor]:
    """Two unit vectors [S, 3] across directions [S, 3]: without a place where they jump in front of a camera (Duff et
    al. 2017)."""
    x, y, z = directions.unbind(-1)
    sign = torch.where(z < 0, -1.0, 1.0)
    a = -1 / (sign + z)
    b = x * y * a
    right = torch.stack((1 + sign * x * x * a, sign * b, -sign * x), -1)
    return right, torch.stack((b, sign + y * y * a, -y), -1)
