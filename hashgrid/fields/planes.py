"""K-Planes (Fridovich-Keil et al. 2023): three planes, six with time; behind them networks, or next to none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import mul
from typing import Any

import torch
from torch import Tensor, nn

from hashgrid.fields.base import Kept, RadianceField
from hashgrid.fields.ngp import Ngp, NgpConfig
from hashgrid.fields.ngp_time import MOVING
from hashgrid.geometry.rays import At
from hashgrid.maths import density_of
from hashgrid.nn import FusedMLP, SphericalHarmonics
from hashgrid.nn.planes import Planes
from hashgrid.util.device import DTYPES, fast_dtype


@dataclass(frozen=True)
class PlanesConfig(NgpConfig):
    """Sizes of a :class:`PlanesField`; those of the hash grid are not looked at."""

    name = "planes"

    plane_axes: tuple[float, float, float] = (1.0, 1.0, 1.0)  # times the resolution, along x, y and z


class PlanesField(Ngp):
    """Density and colour from the product of three planes' features."""

    Config = PlanesConfig
    recipe = {"learning_rate": 1e-2, "final_learning_rate": 3e-4}

    def make_grid(self, config: NgpConfig, n_cascades: int) -> Any:
        assert isinstance(config, PlanesConfig)
        return Planes(3, _sides(config), config.n_plane_features, backend=self.backend)


def _sides(config: PlanesConfig) -> list[list[int]]:
    """Vertices along the axes for each resolution."""
    return [[max(2, round(size * axis)) for axis in config.plane_axes] for size in config.plane_resolutions]


@dataclass(frozen=True)
class PlanesExplicitConfig(PlanesConfig):
    """Sizes of a :class:`PlanesExplicit`."""

    name = "planes_explicit"


class PlanesExplicit(RadianceField):
    """Density and colour are linear in the product of three planes' features; for colour, in a basis that a network
    makes of the view direction, once for a whole ray.

    Args:
        config: sizes of the field.
        aabb: [6] box the field covers.
        n_cascades: not looked at.
        backend: ``"native"`` or ``"reference"``.
    """

    Config = PlanesExplicitConfig
    recipe = PlanesField.recipe

    def __init__(
        self, config: PlanesExplicitConfig, aabb: Tensor, n_cascades: int = 1, backend: str = "native"
    ) -> None:
        super().__init__(aabb)
        dtype = DTYPES[fast_dtype(config.compute_dtype, backend, aabb.device)]
        self.grid = Planes(3, _sides(config), config.n_plane_features, backend=backend)
        n = self.grid.n_output_dims
        self.density_basis = nn.Linear(n, 1)
        self.directions = SphericalHarmonics(config.sh_degree, backend=backend)
        network = FusedMLP(
            self.directions.n_output_dims, 3 * n, config.n_neurons, 2, compute_dtype=dtype, backend=backend
        )
        self.color_basis = network

    def density(self, at: At) -> tuple[Tensor, Tensor]:
        features = self.grid(at.unit)
        return self.thinned(density_of(self.density_basis(features))), features

    def color(self, at: At, carry: Tensor) -> Tensor:
        basis = self.color_basis(self.directions(at.rays.directions)).index_select(0, at.ray_indices)
        return torch.sigmoid(torch.einsum("sf,scf->sc", carry, basis.unflatten(1, (3, -1))))


@dataclass(frozen=True)
class PlanesTimeConfig(PlanesConfig):
    """Sizes of a :class:`PlanesTime`."""

    name = "planes_time"

    plane_resolutions: tuple[int, ...] = (32, 64, 128)  # vertices along a side
    n_times: int = 16  # vertices along time: about half as many as there are pictures
    sh_degree: int = 1  # with more bands a moment that one view has seen could be a direction as well
    space_variation: float = 1e-4  # weight of the mean square of differences along space
    time_variation: float = 1e-2  # and of second differences along time
    time_weight: float = 1e-4  # of the mean size of what planes of time differ from 1


class MovingPlanes(Planes):
    """Planes of space, times 1 and what planes of each axis and time say beside: 1 where nothing moves.

    Args:
        resolutions: vertices along x, y and z, for each resolution.
        n_times: vertices along time, for all of them.
        n_features: per resolution: 1, 2, 4 or a multiple of 8.
        backend: ``"native"`` or ``"reference"``.
    """

    def __init__(self, resolutions: list[list[int]], n_times: int, n_features: int, backend: str = "native") -> None:
        axes = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
        super().__init__(4, [(*sides, n_times) for sides in resolutions], n_features, axes, backend=backend)
        for plane in self.planes[3:]:
            nn.init.zeros_(plane.table)  # type: ignore[arg-type]

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Features [..., n_output_dims] of points and times [..., 4]."""
        parts = self.parts(x)
        return reduce(lambda y, part: y * (1 + part), parts[3:], reduce(mul, parts[:3]))

    def mean(self, measure: Callable[[Tensor], Tensor], of_time: bool) -> Tensor:
        """The mean of a ``measure`` of the planes [n_b, n_a, F], of space or of time."""
        which = range(3, 6) if of_time else range(3)
        values = [measure(picture).mean() for i in which for picture in self.pictures(i)]
        return torch.stack(values).mean()


class PlanesTime(Ngp):
    """Density and colour from the product of six planes' features, three of which know the time."""

    Config = PlanesTimeConfig
    recipe = {**PlanesField.recipe, **MOVING}
    needs = ("time",)

    def make_grid(self, config: NgpConfig, n_cascades: int) -> Any:
        assert isinstance(config, PlanesTimeConfig)
        self.weights = config.space_variation, config.time_variation, config.time_weight
        return MovingPlanes(_sides(config), config.n_times, config.n_plane_features, self.backend)

    def density(self, at: At) -> tuple[Tensor, Tensor]:
        geometry = self.density_mlp(self.grid(at.unit_and_time))
        return self.thinned(density_of(geometry)), geometry

    def sketch(self, at: At, to_train: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        return RadianceField.sketch(self, at, to_train)

    def radiance(self, at: At, kept: Kept | None = None) -> tuple[Tensor, Tensor]:
        return RadianceField.radiance(self, at, kept)

    def penalty(self) -> Tensor | float:
        terms: list[tuple[float, Callable[[Tensor], Tensor], bool]] = [
            (self.weights[0], lambda y: y.diff(dim=0).square(), False),
            (self.weights[0], lambda y: y.diff(dim=1).square(), False),
            (self.weights[1], lambda y: y.diff(n=2, dim=0).square(), True),
            (self.weights[2], lambda y: y.abs(), True),
        ]
        grid = self.grid
        return sum(weight * grid.mean(measure, of_time) for weight, measure, of_time in terms if weight)
