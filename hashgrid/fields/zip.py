"""Zip-NeRF (Barron et al. 2023): the features of a hash grid, averaged over what a pixel sees of an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hashgrid.fields.base import Kept, RadianceField
from hashgrid.fields.ngp import Ngp, NgpConfig
from hashgrid.geometry.frustums import multisamples
from hashgrid.geometry.rays import At
from hashgrid.maths import density_of


@dataclass(frozen=True)
class ZipConfig(NgpConfig):
    """Sizes of a :class:`Zip`."""

    name = "zip"


class Zip(Ngp):
    """Each interval is asked at six points that have its mean and its spread, and levels whose cells are smaller than
    what a point stands for fade: with the probability that a Gaussian of that size stays in a cell."""

    Config = ZipConfig
    sampler = "proposal"
    needs = ("radii",)

    def encode(self, at: At) -> Tensor:
        """Features [S, L * F]."""
        if at.intervals is None or at.rays.radii is None:  # a point, of no size
            return self.grid(at.unit, self.level_weights)
        of_ray = at.ray_indices
        directions, origins = at.rays.directions.index_select(0, of_ray), at.rays.origins.index_select(0, of_ray)
        t, offsets, deviations = multisamples(*at.intervals, at.rays.radii.index_select(0, of_ray), directions)
        unit = self.unit(origins[:, None] + t[..., None] * directions[:, None] + offsets)  # [S, 6, 3]
        sizes = deviations * self.inverse_extent.mean() * self.shrinking(unit)
        places = self.inside(unit).flatten(0, 1)
        features = self.grid(places, self.level_weights).unflatten(0, t.shape)
        features = features.unflatten(-1, (self.grid.n_levels, -1))  # [S, 6, L, F]
        cells = torch.tensor([scales[0] for scales in self.grid.levels.scales], dtype=t.dtype, device=t.device)
        fading = torch.erf(1 / (math.sqrt(8) * sizes[..., None] * cells).clamp_min(1e-9))
        return (features * fading[..., None]).mean(1).flatten(1)

    def density(self, at: At) -> tuple[Tensor, Tensor]:
        geometry = self.density_mlp(self.encode(at))
        return self.thinned(density_of(geometry)), geometry

    def sketch(self, at: At, to_train: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        return RadianceField.sketch(self, at, to_train)

    def radiance(self, at: At, kept: Kept | None = None) -> tuple[Tensor, Tensor]:
        return RadianceField.radiance(self, at, kept)

    def fused(self) -> Any:
        return None
