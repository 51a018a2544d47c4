"""VolSDF (Yariv et al. 2021): a signed distance field seen as a volume of Laplace density."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hashgrid.fields.surface_field import SurfaceField, SurfaceFieldConfig
from hashgrid.geometry.opacity import laplace_density, laplace_thickness


@dataclass(frozen=True)
class VolsdfConfig(SurfaceFieldConfig):
    """Sizes of a :class:`Volsdf`; the sharpness is the inverse of the paper's ``beta``."""

    name = "volsdf"

    start_sharpness: float = 10.0  # of the surface, the inverse of how far light gets into it, per unit; it is learned


class Volsdf(SurfaceField):
    """The density of a place does not depend on the ray: rays see a plane before or behind itself, by their angle. The
    opacity of an interval is exact for the plane through its middle."""

    Config = VolsdfConfig

    def density_of(self, distance: Tensor) -> Tensor:
        return laplace_density(distance, 1 / self.sharpness)

    def thickness(self, distance: Tensor, cosine: Tensor, length: Tensor) -> Tensor:
        half = length / 2 * cosine
        return laplace_thickness(distance - half, distance + half, length, 1 / self.sharpness)
