"""IDR (Yariv et al. 2020): a signed distance field of which a ray sees the first point alone, here over a hash grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from hashgrid.fields.surface_field import LEAST, SurfaceField, SurfaceFieldConfig
from hashgrid.geometry.opacity import neus_density
from hashgrid.geometry.rays import At
from hashgrid.ops._ngp import Slopes

TOUCH = 3e-4  # sides of the box: distance up to which a sample is on the surface
GRAZING = 0.05  # cosine between ray and surface that is the least to be divided by
OPAQUE = 30.0  # optical thickness of a surface: what goes through is nothing in fp32
COVERED = 0.99  # share of a pixel from which it says nothing of what is behind


@dataclass(frozen=True)
class IdrConfig(SurfaceFieldConfig):
    """Sizes of an :class:`Idr`."""

    name = "idr"

    start_sharpness: float = 50.0  # of silhouettes, the paper's alpha, per unit; it is doubled, not learned
    # of the mean square by which slopes differ from 1, the paper's: after 60 steps on a matte ball slopes are 1.4 with
    # 0.01, and after 120 they are 1 with 0.1
    eikonal_weight: float = 0.1
    eikonal_points: int = 1024  # anywhere in the box where they are looked at, beside those that rays see
    curvature_weight: float = 0.0  # of the mean size of the Laplacian
    reflected: bool = False  # colours see the view direction mirrored at the normal (Verbin et al. 2022, eq. 4)
    sharpness_doublings: int = 5  # of it, in equal steps
    doublings_share: float = 0.625  # of a run, at which all have been; 0 for all from the start
    mask_weight: float = 10.0  # of the cross-entropy between silhouettes and how pixels are covered, over alpha
    n_coarse: int = 64  # parts of a ray that is looked along where sphere tracing finds nothing

    def check(self) -> None:
        super().check()
        if not 0 <= self.doublings_share <= 1:
            raise ValueError(f"`doublings_share` must be in 0..1, got {self.doublings_share}")
        if self.sharpness_doublings < 0 or not self.mask_weight >= 0:
            got = f"{self.sharpness_doublings} and {self.mask_weight}"
            raise ValueError(f"`sharpness_doublings` and `mask_weight` must be at least 0, got {got}")
        if self.n_coarse < 2:
            raise ValueError(f"`n_coarse` must be at least 2, got {self.n_coarse}")


class Idr(SurfaceField):
    """A sample is opaque where it is on the surface, and else as ``sigmoid(-alpha f)`` says of its distance ``f``,
    however long it is: made for the one sample per ray of :class:`hashgrid.rendering.first_hit.FirstHitSampler`. Points
    on the surface move along their rays as the parameters do."""

    Config = IdrConfig
    sampler = "first_hit"
    needs = ("coverage",)
    recipe = {**SurfaceField.recipe, "target_samples": 1 << 11, "learning_rate": 1e-2}
    config: IdrConfig

    def __init__(self, config: IdrConfig, aabb: Tensor, n_cascades: int = 1, backend: str = "native") -> None:
        super().__init__(config, aabb, n_cascades, backend)
        del self.log_sharpness
        self.n_coarse = config.n_coarse
        self._mask_loss: Tensor | float = 0.0  # of the rays that were last seen to be trained

    @property
    def sharpness(self) -> Tensor:
        """Per unit of length [1]: the paper's alpha."""
        config = self.config
        share = self.share / config.doublings_share if config.doublings_share else torch.ones_like(self.share)
        doublings = (config.sharpness_doublings * share.clamp(max=1)).floor()
        return config.start_sharpness * 2**doublings

    def density(self, at: At, slopes: Slopes | None = None) -> tuple[Tensor, Any]:
        if at.intervals is None:
            return super().density(at)
        unit, coverage = at.unit, self.coverage(at)
        if slopes is None and self._remembers:
            slopes = self.distance.slopes(unit, self.level_weights)
        distance, gradient, features = self.surface(unit, slopes)
        touches = distance.detach().abs() <= TOUCH * self.side
        if coverage is not None:
            touches &= coverage >= COVERED
        if torch.is_grad_enabled():
            # gradients where points stay: of those that move, slopes would pull at the surface, and a matte ball is off
            # by .0085 instead of .0062 of its radius
            self._seen, self._mask_loss = (unit, gradient), self.mask_loss(at, distance)
            unit = torch.where(touches[:, None], self.intersections(at, distance, gradient), unit)
            if slopes is not None:  # the values are those of before, but normals and features follow the points
                known = Slopes(*(tensor.detach() for tensor in slopes))
                slopes = self.distance.slopes(unit, self.level_weights, known)
            _, gradient, features = self.surface(unit, slopes)
        thickness = torch.where(touches, OPAQUE, softplus(-self.sharpness * distance))
        starts, ends = at.intervals
        return thickness / (ends - starts).clamp_min(LEAST), (unit, gradient, features)

    def density_of(self, distance: Tensor) -> Tensor:
        return neus_density(distance, self.sharpness)

    def intersections(self, at: At, distance: Tensor, gradient: Tensor) -> Tensor:
        """Points of the unit cube [S, 3] where they are, that move along their rays as the surface does through them
        (Yariv et al. 2020, eq. 3).

        Args:
            at: the points, which lie on the surface.
            distance: [S], of the points, with its derivative.
            gradient: [S, 3], of the distance, in the scene.
        """
        directions = nn.functional.normalize(self.chords(at), dim=-1)
        cosine = (gradient.detach() * directions).sum(-1)
        cosine = torch.where(cosine.abs() < GRAZING, torch.copysign(torch.full_like(cosine, GRAZING), cosine), cosine)
        step = (distance - distance.detach()) / cosine
        return at.unit - step[:, None] * self.unit_direction(directions)

    def coverage(self, at: At) -> Tensor | None:
        """How much of the pixel of each sample is covered [S]; None where nobody says."""
        coverage = at.rays.coverage
        return None if coverage is None else coverage.index_select(0, at.ray_indices)

    def mask_loss(self, at: At, distance: Tensor) -> Tensor | float:
        """The loss of silhouettes (Yariv et al. 2020, eq. 7 and 8) of samples at distances [S]: of all rays but those
        that meet the surface where a pixel is covered; none where nobody says which are."""
        coverage, n_rays = at.rays.coverage, len(at.rays)
        if coverage is None or not self.config.mask_weight:
            return 0.0
        least = distance.new_full((n_rays,), torch.inf).scatter_reduce(0, at.ray_indices, distance, "amin")
        counts = least.isfinite() & ~((coverage >= COVERED) & (least <= TOUCH * self.side))
        logits, target = -self.sharpness * least[counts], coverage[counts].to(least.dtype)
        loss = binary_cross_entropy_with_logits(logits, target, reduction="sum")
        return self.config.mask_weight / self.sharpness[0] * loss / max(n_rays, 1)

    def color(self, at: At, carry: Any) -> Tensor:
        if carry is None:
            return super().color(at, None)
        unit, *known = carry
        colors, coverage = super().color(At(at.rays, unit, at.ray_indices), tuple(known)), self.coverage(at)  # type: ignore[arg-type]
        if coverage is None:
            return colors
        # what is behind a pixel is no colour of the surface
        return torch.where((coverage >= COVERED)[:, None], colors, colors.detach())

    def penalty(self) -> Tensor | float:
        """The eikonal loss as :class:`SurfaceField` has it, and that of silhouettes."""
        mask_loss, self._mask_loss = self._mask_loss, 0.0
        return super().penalty() + mask_loss
