"""What fields of signed distances that are seen as volumes have in common: distances over a hash grid whose levels come
one after the other (Li et al. 2023, Neuralangelo), colours, and losses of slopes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hashgrid.fields.base import Kept, RadianceField
from hashgrid.fields.coordinate import Activation, CoordinateConfig
from hashgrid.fields.distance import DistanceField, GridDistance, GridDistanceConfig
from hashgrid.fields.slope_losses import SlopeConfig, slope_losses
from hashgrid.fields.surface_color import surface_color_inputs
from hashgrid.geometry.rays import At
from hashgrid.nn import FusedMLP, SphericalHarmonics
from hashgrid.nn.hash_grid import keep_gradients, levels_on
from hashgrid.ops._ngp import Slopes
from hashgrid.util.device import DTYPES

LEAST = 1e-9  # of what is divided by: intervals of rays that miss the box have no length
# an interval's opacity is exact for a plane however long it is: with 192 steps instead of 512 as many samples are those
# of more than twice as many rays
STEPS = {"target_samples": 1 << 13, "steps_per_diagonal": 192}


@dataclass(frozen=True)
class SurfaceFieldConfig(SlopeConfig):
    """Sizes of a :class:`SurfaceField` for a few CPU cores. Lengths are in units of the scene, of which its innermost
    box has 3 along its longest side."""

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
    reflected: bool = True  # colours see that direction mirrored at the normal (Verbin et al. 2022, eq. 4)
    start_radius: float = 0.3  # of the sphere that all begins as, in sides of the box
    start_sharpness: float = 20.0  # of the surface, the inverse of how far light gets into it, per unit; it is learned
    first_levels: int = 4  # of the hash grid, that are there from the start
    levels_share: float = 0.5  # of a run, at which all are there; 0 for all from the start

    def check(self) -> None:
        super().check()
        for name in ("levels_share", "start_radius"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in 0..1, got {getattr(self, name)}")
        if not self.start_sharpness > 0:
            raise ValueError(f"`start_sharpness` must be positive, got {self.start_sharpness}")
        if self.first_levels < 1:
            raise ValueError(f"`first_levels` must be at least 1, got {self.first_levels}")


class SurfaceField(RadianceField):
    """Distances are positive outside. A method is a subclass that says how opaque they are, with ``density_of`` and
    ``thickness``.

    Args:
        config: sizes of the field.
        aabb: [6] box the field covers, in scene units.
        n_cascades: the box is this many doublings of the innermost one; the finest grid level grows with it.
        backend: ``"native"`` or ``"reference"``.

    Attributes:
        log_sharpness: Parameter [1].
        share: [1], of the run, of which the levels of detail and the slope are.
    """

    Config = SurfaceFieldConfig
    boxed = True
    n_color_layers: int | None = None  # hidden ones; one more than those of distances if none
    recipe = {"learning_rate": 2e-2, "final_learning_rate": 5e-4, "decay_start": 0.3, **STEPS}
    config: SurfaceFieldConfig
    share: Tensor
    n_asked: Tensor

    def __init__(self, config: SurfaceFieldConfig, aabb: Tensor, n_cascades: int = 1, backend: str = "native") -> None:
        super().__init__(aabb)
        self.config, self.backend, self.n_codes = config, backend, 0
        # of distances the shift is, in sides of the cube
        self.finest, self.shift = config.max_resolution * 2 ** (n_cascades - 1), config.start_radius
        self.distance = self.make_distance()
        keep_gradients(self.distance)
        self.directions = SphericalHarmonics(config.sh_degree, backend=backend)
        self.see_codes(0)
        self.log_sharpness = nn.Parameter(torch.full((1,), math.log(config.start_sharpness)))
        self.register_buffer("share", torch.zeros(1))
        self.register_buffer("n_asked", torch.zeros((), dtype=torch.int64))
        self._seen: tuple[Tensor, Tensor] | None = None  # what was last asked for to be trained, with its gradients

    def make_distance(self) -> DistanceField:
        """The field of distances in the unit cube, in its sides."""
        sizes = {x.name: getattr(self.config, x.name) for x in dataclasses.fields(CoordinateConfig)}
        config = GridDistanceConfig().replace(**sizes | {"max_resolution": self.finest}, from_centre=True)
        return GridDistance(config, self.backend, self.config.n_geometry_features)

    def see_codes(self, n: int) -> None:
        config, self.n_codes = self.config, n
        n_seen = 6 + self.directions.n_output_dims + config.n_geometry_features + n
        sizes = n_seen, 3, config.n_neurons, self.n_color_layers or config.n_hidden_layers + 1
        kinds: Any = {"output_activation": "sigmoid", "compute_dtype": DTYPES[config.compute_dtype]}
        self.color_mlp = FusedMLP(*sizes, backend=self.backend, **kinds).to(self.aabb.device)

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
        return self.side * (self.distance(unit, self.level_weights) - self.shift)

    def surface(self, unit: Tensor, slopes: Slopes | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The same with their gradients [S, 3] in the scene, and features [S, G]; ``slopes`` are those of the distance,
        where they are known."""
        if self.config.gradients == "numeric":
            _, gradient, _ = self.distance.central_differences(unit, self.cell, self.level_weights)
            y = self.distance.outputs(unit, self.level_weights)
            distance, features = y[:, 0], y[:, 1:]
        else:
            slopes = self.distance.slopes(unit, self.level_weights) if slopes is None else slopes
            distance, gradient, features = self.distance.with_features(slopes, unit)
        return self.side * (distance - self.shift), self.side * self.inverse_extent * gradient, features

    @property
    def cell(self) -> float:
        """A side of the cells of the finest level that is there, in those of the cube."""
        config, n = self.config, self.distance.n_levels
        if n < 2 or self.level_weights is None:
            return 1 / self.finest
        finer = (float(self.level_weights.sum()) - 1) / (n - 1)
        return 1 / (config.base_resolution * (self.finest / config.base_resolution) ** finer)

    def density(self, at: At, slopes: Slopes | None = None) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        if at.intervals is None:  # as grids of occupancy ask, for whom gradients would be two thirds of the work
            return self.density_of(self.distances(at.unit)), None
        distance, gradient, features = self.surface(at.unit, slopes)
        if torch.is_grad_enabled():
            self._seen = at.unit, gradient
        chord, (starts, ends) = self.chords(at), at.intervals
        length = chord.norm(dim=-1)
        cosine = (gradient * chord).sum(-1) / length.clamp_min(LEAST)
        return self.thickness(distance, cosine, length) / (ends - starts).clamp_min(LEAST), (gradient, features)

    @property
    def _remembers(self) -> bool:
        return self.config.gradients == "analytic" and self.distance.remembers(self.level_weights)

    def sketch(self, at: At, to_train: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        slopes = self.distance.slopes(at.unit, self.level_weights) if self._remembers else None
        return self.density(at, slopes)[0], (at.unit, *(slopes or ()))

    def radiance(self, at: At, kept: Kept | None = None) -> tuple[Tensor, Tensor]:
        slopes = None
        if kept is not None and self._remembers:
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
        """Densities [S] of points at distances [S], for rays against the normal where they depend on that."""
        raise NotImplementedError

    def thickness(self, distance: Tensor, cosine: Tensor, length: Tensor) -> Tensor:
        """Optical thickness [S] of intervals of some length [S], from the distances in their middles, and their change
        along the rays per length."""
        raise NotImplementedError

    def color(self, at: At, carry: tuple[Tensor, Tensor] | None) -> Tensor:
        gradient, features = self.surface(at.unit)[1:] if carry is None else carry
        codes, reflected = self.capture.code(at.rays) if self.n_codes else None, self.config.reflected
        return self.color_mlp(surface_color_inputs(at, gradient, features, self.directions, reflected, codes))

    def grow(self, progress: float) -> bool:
        self.n_asked += 1
        return super().grow(progress)

    def fade(self, progress: float | None = None) -> None:
        super().fade(progress)
        if progress is not None:
            self.share.fill_(progress)
        share = float(self.share) / self.config.levels_share if self.config.levels_share else 1.0
        self.level_weights = levels_on(self.distance.n_levels, self.config.first_levels, share, self.aabb.device)

    def penalty(self) -> Tensor | float:
        """The losses of slopes at the samples of the rays before and elsewhere."""
        seen, self._seen = self._seen, None
        return 0.0 if seen is None else slope_losses(self, *seen, int(self.n_asked))
