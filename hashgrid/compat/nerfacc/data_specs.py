"""Samples and intervals along rays, of one number for all rays or one ray behind the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class RaySamples:
    """Distances along rays.

    Args:
        vals: [R, n], or [S] with one of the following.
        packed_info: [R, 2] int64, first sample and number of samples of each ray.
        ray_indices: [S] int64, ray of each sample.
        is_valid: [S] bool, which samples were taken where more were made room for.

    Example:
        >>> RaySamples(torch.rand(5), packed_info=torch.tensor([[0, 2], [2, 3]])).device
        device(type='cpu')
    """

    vals: Tensor
    packed_info: Tensor | None = None
    ray_indices: Tensor | None = None
    is_valid: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the distances are."""
        return self.vals.device


@dataclass
class RayIntervals:
    """Edges of intervals along rays, where neighbours share one.

    Args:
        vals: [R, n + 1], edges of n intervals without a gap, or [E] with one of the following two and ``is_left`` and
            ``is_right``.
        packed_info: [R, 2] int64, first edge and number of edges of each ray.
        ray_indices: [E] int64, ray of each edge.
        is_left: [E] bool, whether an interval begins there.
        is_right: [E] bool, whether one ends there.

    Example:
        >>> RayIntervals(torch.tensor([[0.0, 1.0, 2.0]])).vals.shape
        torch.Size([1, 3])
    """

    vals: Tensor
    packed_info: Tensor | None = None
    ray_indices: Tensor | None = None
    is_left: Tensor | None = None
    is_right: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the edges are."""
        return self.vals.device
