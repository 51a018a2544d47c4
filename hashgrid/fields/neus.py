"""NeuS (Wang et al. 2021): a signed distance field seen as a volume, here over a hash grid whose levels come one after
the other (Li et al. 2023, Neuralangelo)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hashgrid.fields.base import Kept, RadianceField
from hashgrid.fields.coordinate import Activation, CoordinateConfig
from hashgrid.fields.distance import GridDistance, GridDistanceConfig
from hashgrid.geometry.opacity import annealed_cosine, neus_density, neus_thickness
from hashgrid.geometry.rays import At
from hashgrid.nn import FusedMLP, SphericalHarmonics
from hashgrid.nn.hash_grid import keep_gradients, levels_on
from hashgrid.ops._backend import backend_ops
from hashgrid.ops._ngp import Slopes
from hashgrid.util.device import DTYPES

LEAST = 1e-9  # of what is divided by: intervals of rays that miss the box have no length


@dataclass(frozen=True)
class NeusConfig(CoordinateConfig):
    """Sizes of a :class:`Neus` for a few CPU cores. Lengths are in units of the scene, of which its innermost box has
    3 along its longest side."""

    name = "neus"

    n_levels: int = 8  # of the hash grid
    n_features_per_level: int = 4  # of the hash grid: 1, 2, 4 or 8
    log2_hashmap_size: int = 17  # of the hash grid: entries per level
    max_resolution: int = 512  # of the hash grid: cells of the finest level, along the innermost box
    # of the hash grid: its gradients are normals, which have no steps so
    interpolation: Literal["linear", "smoothstep", "nearest"] = "smoothstep"
    n_hidden_layers: int = 1  # of the distance network; that of colours has one more
    activation: Activation = "silu"  # of the distance network
    n_geometry_features: int = 15  # that the distance network tells the colour network
    sh_degree: int = 4  # bands of spherical harmonics of the view direction
    start_radius: float = 0.3  # of the sphere that all begins as, in sides of the box
    start_sharpness: float = 20.0  # of the surface, the inverse of how far light gets into it, per unit; it is learned
    first_levels: int = 4  # of the hash grid, that are there from the start
    levels_share: float = 0.5  # of a run, at which all are there; 0 for all from the start
    cosine_share: float = 0.1  # of a run, until which rays that leave the surface learn, too
    # of the mean square by which slopes differ from 1; with the papers' 0.1 a ball of 1.5 is off by .15 after 150 steps
    # instead of .08: what holds slopes in place holds the surface, too
    eikonal_weight: float = 0.01
    eikonal_points: int = 1024  # anywhere in the box where they are looked at, beside the samples of rays

    def check(self) -> None:
        super().check()
        for name in ("levels_share", "cosine_share", "start_radius"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in 0..1, got {getattr(self, name)}")
        if not self.start_sharpness > 0:
            raise ValueError(f"`start_sharpness` must be positive, got {self.start_sharpness}")
        if self.first_levels < 1 or self.eikonal_points < 0 or self.eikonal_weight < 0:
            got = f"{self.first_levels}, {self.eikonal_points} and {self.eikonal_weight}"
            raise ValueError(f"`first_levels` must be at least 1, `eikonal_points` and `eikonal_weight` 0, got {got}")


class Neus(RadianceField):
    """Distances are positive outside. Of an interval along a ray its opacity is exact for the plane through its middle;
    of a point alone, which has no direction, the density is that of a ray against the normal.

    Args:
        config: sizes of the field.
        aabb: [6] box the field covers, in scene units.
        n_cascades: the box is this many doublings of the innermost one; the finest grid level grows with it.
        backend: ``"native"`` or ``"reference"``.

    Attributes:
        log_sharpness: Parameter [1].
        share: [1], of the run, of which the levels of detail and the slope are.

    Example:
        >>> import torch
        >>> field = Neus(NeusConfig(n_levels=4, first_levels=2), torch.tensor([-1.0, -1, -1, 1, 1, 1]))
        >>> field.distances(torch.tensor([[0.5, 0.5, 0.5], [0.0, 0.0, 0.0]])).detach().sign()
        tensor([-1.,  1.])
    """

    Config = NeusConfig
    recipe = {"learning_rate": 1e-2, "final_learning_rate": 5e-4, "decay_start": 0.3, "target_samples": 1 << 13}
    config: NeusConfig
    share: Tensor
    n_asked: Tensor

    def __init__(self, config: NeusConfig, aabb: Tensor, n_cascades: int = 1, backend: str = "native") -> None:
        super().__init__(aabb)
        self.config, self.backend = config, backend
        sizes = {x.name: getattr(config, x.name) for x in dataclasses.fields(CoordinateConfig)}
        sizes["max_resolution"] = config.max_resolution * 2 ** (n_cascades - 1)
        self.distance = GridDistance(
            GridDistanceConfig().replace(**sizes, from_centre=True), backend, config.n_geometry_features
        )
        keep_gradients(self.distance)
        self.directions = SphericalHarmonics(config.sh_degree, backend=backend)
        n_seen = 6 + self.directions.n_output_dims + config.n_geometry_features
        layers, dtype = config.n_hidden_layers + 1, DTYPES[config.compute_dtype]
        self.color_mlp = FusedMLP(
            n_seen, 3, config.n_neurons, layers, output_activation="sigmoid", compute_dtype=dtype, backend=backend
        )
        self.log_sharpness = nn.Parameter(torch.full((1,), math.log(config.start_sharpness)))
        self.register_buffer("share", torch.zeros(1))
        self.register_buffer("n_asked", torch.zeros((), dtype=torch.int64))
        self._gradients: Tensor | None = None  # of the distances that were last asked for to be trained

    @property
    def sharpness(self) -> Tensor:
        """Per unit of length [1]."""
        return self.log_sharpness.clamp(-10, 14).exp()

    @property
    def side(self) -> Tensor:
        """The longest side of the box [], by which distances are multiplied."""
        return 1 / self.inverse_extent.min()

    def distances(self, unit: Tensor) -> Tensor:
        """Signed distances [S], in units of length of the scene, of points [S, 3] in the unit cube as `At.unit` has
        them."""
        return self.side * (self.distance(unit, self.level_weights) - self.config.start_radius)

    def surface(self, unit: Tensor, slopes: Slopes | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The same with their gradients [S, 3] in the scene, and features [S, G]; ``slopes`` are those of the distance,
        where they are known."""
        slopes = self.distance.slopes(unit, self.level_weights) if slopes is None else slopes
        distance, gradient, features = self.distance.with_features(slopes, unit)
        distance = self.side * (distance - self.config.start_radius)
        return distance, self.side * self.inverse_extent * gradient, features

    def density(self, at: At, slopes: Slopes | None = None) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        if at.intervals is None:  # as grids of occupancy ask, for whom gradients would be two thirds of the work
            return self.density_of(self.distances(at.unit)), None
        distance, gradient, features = self.surface(at.unit, slopes)
        if torch.is_grad_enabled():
            self._gradients = gradient
        chord, (starts, ends) = self.chords(at), at.intervals
        length = chord.norm(dim=-1)
        cosine = (gradient * chord).sum(-1) / length.clamp_min(LEAST)
        return self.thickness(distance, cosine, length) / (ends - starts).clamp_min(LEAST), (gradient, features)

    def sketch(self, at: At, to_train: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        slopes = self.distance.slopes(at.unit, self.level_weights)
        return self.density(at, slopes)[0], (at.unit, *slopes)

    def radiance(self, at: At, kept: Kept | None = None) -> tuple[Tensor, Tensor]:
        slopes = None
        if kept is not None:
            known = Slopes(*(kept.column(1 + i) for i in range(len(Slopes._fields))))
            slopes = self.distance.slopes(at.unit, self.level_weights, known)
        sigmas, carry = self.density(at, slopes)
        return sigmas, self.color(at, carry)

    def chords(self, at: At) -> Tensor:
        """From where samples begin to where they end [S, 3]: in contracted space as the field sees it, in which what
        lies far away is small and near."""
        assert at.intervals is not None
        directions = at.rays.directions.index_select(0, at.ray_indices)
        if self.contraction == "none":
            return (at.intervals[1] - at.intervals[0])[:, None] * directions
        origins = at.rays.origins.index_select(0, at.ray_indices)
        start, end = (self.inside(self.unit(origins + t[:, None] * directions)) for t in at.intervals)
        return (end - start) / self.inverse_extent

    def density_of(self, distance: Tensor) -> Tensor:
        """Densities [S] of points at distances [S] for rays against the normal."""
        return neus_density(distance, self.sharpness)

    def thickness(self, distance: Tensor, cosine: Tensor, length: Tensor) -> Tensor:
        """Optical thickness [S] of intervals of some length [S], from the distances in their middles, and their change
        along the rays per length."""
        share = self.share / self.config.cosine_share if self.config.cosine_share else torch.ones_like(self.share)
        half = length / 2 * annealed_cosine(cosine, share.clamp(max=1))
        return neus_thickness(distance - half, distance + half, self.sharpness)

    def color(self, at: At, carry: tuple[Tensor, Tensor] | None) -> Tensor:
        gradient, features = self.surface(at.unit)[1:] if carry is None else carry
        harmonics = self.directions(at.rays.directions).index_select(0, at.ray_indices)
        normals = nn.functional.normalize(gradient, dim=-1)
        return self.color_mlp(torch.cat((2 * at.unit - 1, normals, harmonics, features), dim=-1))

    def grow(self, progress: float) -> bool:
        self.n_asked += 1
        return super().grow(progress)

    def fade(self, progress: float | None = None) -> None:
        super().fade(progress)
        if progress is not None:
            self.share.fill_(progress)
        config, grid = self.config, self.distance.grid
        share = float(self.share) / config.levels_share if config.levels_share else 1.0
        self.level_weights = levels_on(grid.n_levels, config.first_levels, share, self.aabb.device)

    def penalty(self) -> Tensor | float:
        """The eikonal loss (Gropp et al. 2020) of the samples of the rays before, and of points of the box, others in
        each step."""
        config, seen = self.config, self._gradients
        self._gradients = None
        if not config.eikonal_weight or seen is None:
            return 0.0
        counter = torch.arange(3 * config.eikonal_points, device=self.aabb.device)
        drawn = backend_ops(self.backend).counter_uniform(0, int(self.n_asked), counter).view(-1, 3)
        gradients = torch.cat((seen, self.surface(drawn.to(seen.dtype))[1]))
        return config.eikonal_weight * (gradients.norm(dim=-1) - 1).square().mean()
