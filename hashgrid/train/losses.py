"""Losses of distance fields. Each takes what it is about per point and returns a scalar, the mean."""

from __future__ import annotations

import torch
from torch import Tensor


def mape(distance: Tensor, target: Tensor, offset: float) -> Tensor:
    """Mean absolute percentage error ``|d - t| / (|t| + offset)`` (Müller et al. 2022, section 5.2).

    Args:
        distance: [N], of the field.
        target: [N], true distances.
        offset: keeps it finite at the surface, in units of the cube.
    """
    return ((distance - target).abs() / (target.abs() + offset)).mean()


def truncated_l1(distance: Tensor, target: Tensor, truncation: float) -> Tensor:
    """``|clamp(d) - clamp(t)|`` with both distances [N] clamped to +-``truncation`` (Park et al. 2019, eq. 4)."""
    return (distance.clamp(-truncation, truncation) - target.clamp(-truncation, truncation)).abs().mean()


def on_surface(distance: Tensor) -> Tensor:
    """``|d|`` of distances [N] at points of the surface (Gropp et al. 2020, eq. 1; Sitzmann et al. 2020, eq. 6)."""
    return distance.abs().mean()


def off_surface(distance: Tensor, sharpness: float) -> Tensor:
    """``exp(-sharpness |d|)`` of distances [N] at points off the surface: there is no second surface (Sitzmann et al.
    2020, eq. 6)."""
    return torch.exp(-sharpness * distance.abs()).mean()


def wrong_side(distance: Tensor, signs: Tensor) -> Tensor:
    """``max(0, -s d)``: how far distances [N] have to go to get the signs [N], -1 inside, 1 outside, 0 unknown."""
    return torch.relu(-signs * distance).mean()


def eikonal(gradient: Tensor) -> Tensor:
    """``(|g| - 1)^2`` of gradients [N, 3]: distances grow by one per unit of length (Gropp et al. 2020, eq. 2)."""
    return (gradient.norm(dim=-1) - 1).square().mean()


def eikonal_l1(gradient: Tensor) -> Tensor:
    """``||g| - 1|`` of gradients [N, 3] (Sitzmann et al. 2020, eq. 6)."""
    return (gradient.norm(dim=-1) - 1).abs().mean()


def normal_difference(gradient: Tensor, normals: Tensor) -> Tensor:
    """``|g - n|`` of gradients and unit normals [N, 3] at points of the surface (Gropp et al. 2020, eq. 1)."""
    return (gradient - normals).norm(dim=-1).mean()


def normal_cosine(gradient: Tensor, normals: Tensor) -> Tensor:
    """``1 - cos(g, n)`` of gradients and unit normals [N, 3] at points of the surface (Sitzmann et al. 2020, eq. 6)."""
    return (1 - torch.nn.functional.cosine_similarity(gradient, normals, dim=-1)).mean()
