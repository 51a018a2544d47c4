"""Contraction of space: all of it in a box (Barron et al. 2022, section 4; the cube as in nerfacto)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Contraction = Literal["none", "cube", "ball"]


def contract(x: Tensor, norm: Literal["cube", "ball"] = "ball") -> Tensor:
    """Points [..., 3] inside of radius 2: those inside of radius 1 stay, others move to ``(2 - 1 / r) x / r`` (Barron
    et al. 2022, eq. 10).

    Args:
        x: [..., 3].
        norm: ``"ball"``: r is the length; ``"cube"``: the largest coordinate, so that the whole cube [-2, 2]^3 is used.

    Example:
        >>> import torch
        >>> contract(torch.tensor([[0.5, 0.0, 0.0], [4.0, 0.0, 0.0]]))
        tensor([[0.5000, 0.0000, 0.0000],
                [1.7500, 0.0000, 0.0000]])
    """
    r = _radius(x, norm).clamp_min(1)
    return x * ((2 - 1 / r) / r)  # with 1 for r it is x itself, to the bit, and its gradient


def expand(z: Tensor, norm: Literal["cube", "ball"] = "ball") -> Tensor:
    """Points [..., 3] that :func:`contract` moves to ``z`` [..., 3], inside of radius 2."""
    r = _radius(z, norm).clamp_min(1)
    return z / (r * (2 - r))


def contract_gaussians(means: Tensor, covariances: Tensor) -> tuple[Tensor, Tensor]:
    """Gaussians after :func:`contract` of a ball, linearised at their means: ``J Sigma J'`` (Barron et al. 2022,
    eq. 9).

    Args:
        means: [..., 3].
        covariances: [..., 3, 3].
    """
    r = _radius(means, "ball").clamp_min(1)
    # J = a I + b x x' with a = (2 - 1 / r) / r and b = a'(r) / r; a' is 0 inside, where r is 1
    a = (2 - 1 / r) / r
    b = torch.where(r > 1, (2 / r - 2) / r**3, 0.0)
    eye = torch.eye(3, dtype=means.dtype, device=means.device)
    jacobian = a[..., None] * eye + b[..., None] * means[..., :, None] * means[..., None, :]
    return means * a, jacobian @ covariances @ jacobian.mT


def shrinking(x: Tensor, norm: Literal["cube", "ball"] = "ball") -> Tensor:
    """By how much :func:`contract` shrinks lengths around points [..., 3]: the cube root of its volume's factor,
    ``(2 r - 1)^(2/3) / r^2`` [...]."""
    r = _radius(x, norm).clamp_min(1).squeeze(-1)
    return (2 * r - 1) ** (2 / 3) / r.square()


def _radius(x: Tensor, norm: str) -> Tensor:
    """[..., 1]; with a gradient of 0 at the origin, not NaN."""
    if norm == "cube":
        return x.abs().amax(-1, keepdim=True)
    return x.square().sum(-1, keepdim=True).clamp_min(1e-12).sqrt()
