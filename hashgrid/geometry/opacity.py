"""How much light signed distances let through, of surfaces that are learned from photos: NeuS (Wang et al. 2021) and
VolSDF (Yariv et al. 2021). Distances are negative inside.

An interval of a ray has an optical thickness ``-log(1 - alpha)``, which adds up along the ray. Both are exact where the
distance changes linearly within the interval, whatever its length.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

NEARLY_LEVEL = 1e-3  # of the scale: a change of the distance below which a quotient of differences is its limit


def annealed_cosine(cosine: Tensor, share: float | Tensor) -> Tensor:
    """What is taken for the slope of the distance along rays [...]: ``min(cosine, 0)`` at a ``share`` of 1, and before,
    mixed with ``min(cosine, 1) / 2 - 1 / 2``, so that what a ray leaves learns as well as what it enters (code of Wang
    et al. 2021).

    Args:
        cosine: [...], between the ray and the gradient of the distance.
        share: 0 at the start of training, 1 later.
    """
    return -(torch.relu(0.5 - 0.5 * cosine) * (1 - share) + torch.relu(-cosine) * share)


def neus_thickness(before: Tensor, after: Tensor, sharpness: float | Tensor) -> Tensor:
    """Optical thickness [...] of intervals between distances ``before`` and ``after`` [...]:
    ``max(0, log Phi(before) - log Phi(after))`` with ``Phi(f) = 1 / (1 + exp(-sharpness f))`` (Wang et al. 2021, eq. 10
    and 13). A ray is weighted most where it meets the surface, at any angle.

    Args:
        before, after: distances at the ends of each interval, in any unit.
        sharpness: ``s``, the inverse of the scale of the logistic distribution, per that unit.
    """
    # of logarithms: deep inside both values of Phi vanish, and their quotient with them
    return torch.relu(logsigmoid(sharpness * before) - logsigmoid(sharpness * after))


def neus_alphas(before: Tensor, after: Tensor, sharpness: float | Tensor) -> Tensor:
    """Opacities [...] in 0..1 of intervals; see :func:`neus_thickness`.

    Example:
        >>> import torch
        >>> f = torch.linspace(1, -1, 9)  # a ray through a plane
        >>> alphas = neus_alphas(f[:-1], f[1:], 20.0)
        >>> weights = alphas * torch.cumprod(torch.cat([torch.ones(1), 1 - alphas[:-1]]), 0)
        >>> bool((weights * (f[:-1] + f[1:]) / 2).sum().abs() < 1e-6)  # the mean is on the plane
        True
    """
    return -torch.expm1(-neus_thickness(before, after, sharpness))


def neus_density(distance: Tensor, sharpness: float | Tensor) -> Tensor:
    """Density [...] that :func:`neus_thickness` tends to in short intervals of rays against the gradient, the largest
    one of all directions: ``s / (1 + exp(s f))`` (Wang et al. 2021, eq. 9 and 10)."""
    return sharpness * torch.sigmoid(-sharpness * distance)


def laplace_density(distance: Tensor, scale: float | Tensor) -> Tensor:
    """``Psi(-f) / scale`` [...] with the cumulative Laplace distribution ``Psi`` (Yariv et al. 2021, eq. 2 and 3, for
    the paper's choice ``alpha = 1 / scale``).

    Args:
        distance: [...], in any unit.
        scale: ``beta``, in that unit.
    """
    tail = 0.5 * torch.exp(-distance.abs() / scale)
    return torch.where(distance > 0, tail, 1 - tail) / scale


def laplace_thickness(before: Tensor, after: Tensor, length: Tensor, scale: float | Tensor) -> Tensor:
    """Optical thickness [...] of intervals: the integral of :func:`laplace_density`, of which the paper takes a Riemann
    sum (Yariv et al. 2021, eq. 6 and 11).

    Args:
        before, after: [...], distances at the ends of each interval.
        length: [...], of the intervals.
        scale: ``beta``, all in one unit.

    Example:
        >>> import torch
        >>> far, there = torch.tensor(50.0), torch.tensor(0.0)
        >>> torch.exp(-laplace_thickness(far, there, far, 0.1))  # what arrives at a plane: exp(-1/2) at any scale
        tensor(0.6065)
    """
    change = after - before
    # inside and outside apart: no small difference of two large integrals
    inside = torch.clamp(after, max=0) - torch.clamp(before, max=0)
    outside = torch.exp(-before.abs() / scale) - torch.exp(-after.abs() / scale)
    level = change.abs() < NEARLY_LEVEL * scale
    mean = (inside / scale + outside / 2) / torch.where(level, 1.0, change)
    return torch.where(level, laplace_density((before + after) / 2, scale), mean) * length
