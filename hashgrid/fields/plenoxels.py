"""Plenoxels (Fridovich-Keil et al. 2022): densities and spherical harmonics of colours in voxels, and no network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hashgrid.fields.growing import GrowingConfig, GrowingField
from hashgrid.geometry.rays import At
from hashgrid.nn import SphericalHarmonics
from hashgrid.nn.planes import Planes
from hashgrid.ops._backend import backend_ops


@dataclass(frozen=True)
class PlenoxelsConfig(GrowingConfig):
    """Sizes of a :class:`Plenoxels` for a few CPU cores."""

    name = "plenoxels"

    grow_at: tuple[float, ...] = (0.15, 0.4)  # progress of training at which the next resolution comes
    sh_degree: int = 3  # bands of spherical harmonics of the view direction
    initial_density: float = 0.1  # per unit of length
    density_step: float = 200.0  # by how much densities learn faster than colours
    density_variation: float = 1e-5  # weight of the total variation of densities
    color_variation: float = 1e-3  # and of that of the harmonics
    variation_vertices: int = 1024  # at which it is looked at in each step


class Plenoxels(GrowingField):
    """``relu`` of densities, harmonics around grey, both interpolated before they are anything.

    Args:
        config: sizes of the field.
        aabb: [6] box the field covers.
        n_cascades: not looked at: the voxels of all of the box are alike.
        backend: ``"native"`` or ``"reference"``.
    """

    Config = PlenoxelsConfig
    recipe = {"learning_rate": 2e-2, "final_learning_rate": 1e-3, "decay_start": 0.0}
    config: PlenoxelsConfig
    n_asked: Tensor

    def __init__(self, config: PlenoxelsConfig, aabb: Tensor, n_cascades: int = 1, backend: str = "native") -> None:
        super().__init__(config, aabb)
        self.backend, voxels = backend, [(0, 1, 2)]
        self.directions = SphericalHarmonics(config.sh_degree, backend=backend)
        self.n_harmonics = 3 * self.directions.n_output_dims
        n = 4 if self.n_harmonics < 4 else -(-self.n_harmonics // 8) * 8  # as many as a table has, at least
        start = config.initial_density / config.density_step
        self.densities = Planes(3, [self.sides()], 1, voxels, (start, start), backend)
        self.harmonics = Planes(3, [self.sides()], n, voxels, (0.0, 0.0), backend)
        self.register_buffer("n_asked", torch.zeros((), dtype=torch.int64))
        self.made()

    def density(self, at: At) -> tuple[Tensor, None]:
        return torch.relu(self.densities(at.unit)[:, 0]) * self.config.density_step, None

    def color(self, at: At, carry: None) -> Tensor:
        bands = self.directions(at.rays.directions).index_select(0, at.ray_indices)  # [S, B]
        harmonics = self.harmonics(at.unit)[:, : self.n_harmonics].unflatten(1, (3, -1))
        return torch.relu(torch.einsum("scb,sb->sc", harmonics, bands) + 0.5)

    def grow(self, progress: float) -> bool:
        self.n_asked += 1
        return super().grow(progress)

    def penalty(self) -> Tensor | float:
        """Total variation at some vertices, others in each step."""
        config, n = self.config, self.config.variation_vertices
        if n == 0 or not (config.density_variation or config.color_variation):
            return 0.0
        sides = torch.tensor(self.sides(), device=self.aabb.device)
        counter = torch.arange(3 * n, device=self.aabb.device)
        drawn = backend_ops(self.backend).counter_uniform(0, int(self.n_asked), counter).view(n, 3)
        vertex = (drawn * (sides - 1)).long()[:, None] + torch.eye(4, 3, dtype=torch.int64, device=sides.device).flip(0)
        points = (vertex / (sides - 1)).flatten(0, 1).to(self.aabb)
        loss = self.aabb.new_zeros(())
        for grid, weight in ((self.densities, config.density_variation), (self.harmonics, config.color_variation)):
            if weight:
                y = grid(points).unflatten(0, (n, 4))
                loss = loss + weight * ((y[:, 1:] - y[:, :1]).square().sum(1) + 1e-9).sqrt().mean()
        return loss
