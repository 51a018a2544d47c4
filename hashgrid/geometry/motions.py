"""Rigid motions by their logarithms, and the similarity between two sets of points."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SERIES_BELOW = 0.25  # of squared angles: seven terms are then exact in float64
TERMS = 7


def _series(squared: Tensor, first: int) -> Tensor:
    """``sum_k (-x)^k / (2 k + first)!`` of squared angles x that are small: its gradient at 0 is finite."""
    total, term = torch.zeros_like(squared), torch.ones_like(squared)
    for i in range(1, first + 1):
        term = term / i
    for k in range(TERMS):
        total = total + term
        term = -term * squared / ((2 * k + first + 1) * (2 * k + first + 2))
    return total


def _factors(squared: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``sin a / a``, ``(1 - cos a) / a^2`` and ``(a - sin a) / a^3`` of squared angles [...]."""
    is_small = squared < SERIES_BELOW
    small = torch.where(is_small, squared, torch.zeros_like(squared))
    large = torch.where(is_small, torch.ones_like(squared), squared)  # no root at 0, whose gradient is infinite
    angle = large.sqrt()
    exact = angle.sin() / angle, (1 - angle.cos()) / large, (angle - angle.sin()) / (large * angle)
    return tuple(torch.where(is_small, _series(small, i + 1), x) for i, x in enumerate(exact))  # type: ignore[return-value]


def cross_matrix(v: Tensor) -> Tensor:
    """Matrices [..., 3, 3] whose product with a vector is the cross product with ``v`` [..., 3]."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack((o, -z, y, z, o, -x, -y, x, o), dim=-1).unflatten(-1, (3, 3))


def so3_exp(rotation: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] about axes ``rotation`` [..., 3], by their length in radians (Rodrigues' formula).

    Differentiable everywhere, at 0 too.

    Example:
        >>> import math
        >>> import torch
        >>> so3_exp(torch.tensor([0.0, 0.0, math.pi / 2])).round()
        tensor([[ 0., -1.,  0.],
                [ 1.,  0.,  0.],
                [ 0.,  0.,  1.]])
    """
    a, b, _ = (x[..., None, None] for x in _factors(rotation.square().sum(-1)))
    cross = cross_matrix(rotation)
    return torch.eye(3, dtype=rotation.dtype, device=rotation.device) + a * cross + b * (cross @ cross)


def se3_exp(twist: Tensor) -> tuple[Tensor, Tensor]:
    """Rotations [..., 3, 3] and translations [..., 3] of screw motions ``twist`` [..., 6]: translation, then rotation.

    ``exp([[w]_x v; 0 0]) = [R V v; 0 1]`` of ``twist = (v, w)`` with ``V = I + b [w]_x + c [w]_x^2``. Differentiable
    everywhere, at 0 too.
    """
    v, w = twist.split(3, dim=-1)
    a, b, c = (x[..., None, None] for x in _factors(w.square().sum(-1)))
    cross = cross_matrix(w)
    eye, squared = torch.eye(3, dtype=twist.dtype, device=twist.device), cross @ cross
    return eye + a * cross + b * squared, ((eye + b * cross + c * squared) @ v[..., None])[..., 0]


def screw(twist: Tensor, points: Tensor) -> Tensor:
    """Where points [..., 3] go by screw motions ``twist`` [..., 6], each by its own: ``R x + t`` of :func:`se3_exp`,
    without the matrices."""
    v, w = twist.split(3, dim=-1)
    a, b, c = (factor[..., None] for factor in _factors(w.square().sum(-1)))
    turned = torch.linalg.cross(w, points)
    moved = torch.linalg.cross(w, v)
    return points + v + a * turned + b * (torch.linalg.cross(w, turned) + moved) + c * torch.linalg.cross(w, moved)


def angle_between(a: Tensor, b: Tensor) -> Tensor:
    """Angles [...] in radians between rotation matrices [..., 3, 3]; exact where they are small, too."""
    relative = a @ b.mT
    turned = relative - relative.mT
    sine = torch.stack((turned[..., 2, 1], turned[..., 0, 2], turned[..., 1, 0]), dim=-1).norm(dim=-1) / 2
    return torch.atan2(sine, (relative.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2)


class Similarity(NamedTuple):
    """``x -> scale * rotation @ x + translation``."""

    scale: Tensor  # []
    rotation: Tensor  # [3, 3]
    translation: Tensor  # [3]

    def points(self, x: Tensor) -> Tensor:
        """Where points [..., 3] go."""
        return self.scale * x @ self.rotation.T + self.translation

    def poses(self, c2w: Tensor) -> Tensor:
        """Where cameras of poses [..., 3, 4] go: they turn and move, and see as before."""
        turned = self.rotation @ c2w[..., :3]
        return torch.cat((turned, self.points(c2w[..., 3])[..., None]), dim=-1)


def umeyama(source: Tensor, target: Tensor) -> Similarity:
    """The similarity that takes points ``source`` [N, 3] nearest to ``target`` [N, 3], by least squares, and is no
    reflection (Umeyama 1991, eq. 40 to 42). In float64.

    Raises:
        ValueError: shapes differ, or the points lie on a line, about which they could turn.

    Example:
        >>> import torch
        >>> points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
        >>> round(float(umeyama(points, 2 * points + 1).scale), 6)
        2.0
    """
    if source.shape != target.shape or source.dim() != 2 or source.shape[1] != 3:
        raise ValueError(
            f"`source` and `target` must both have shape [N, 3], got {list(source.shape)} and {list(target.shape)}"
        )
    x, y = source.double(), target.double()
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    u, values, vh = torch.linalg.svd(centred_y.T @ centred_x / len(x))
    if len(x) < 3 or float(values[1]) <= 1e-9 * float(values[0].clamp_min(1e-300)):
        raise ValueError(f"`source` must be at least 3 points that are not on one line, got {len(x)}")
    sign = torch.ones(3, dtype=x.dtype, device=x.device)
    sign[2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vh))
    rotation = u @ torch.diag(sign) @ vh
    scale = (values * sign).sum() / centred_x.square().sum(-1).mean()
    return Similarity(scale, rotation, y.mean(0) - scale * rotation @ x.mean(0))
