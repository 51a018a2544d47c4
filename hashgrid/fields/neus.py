"""NeuS (Wang et al. 2021): a signed distance field seen as a volume whose weights along a ray peak at the surface."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hashgrid.fields.surface_field import SurfaceField, SurfaceFieldConfig
from hashgrid.geometry.opacity import annealed_cosine, neus_density, neus_thickness


@dataclass(frozen=True)
class NeusConfig(SurfaceFieldConfig):
    """Sizes of a :class:`Neus`."""

    name = "neus"

    cosine_share: float = 0.1  # of a run, until which rays that leave the surface learn, too

    def check(self) -> None:
        super().check()
        if not 0 <= self.cosine_share <= 1:
            raise ValueError(f"`cosine_share` must be in 0..1, got {self.cosine_share}")


class Neus(SurfaceField):
    """Of an interval along a ray its opacity is exact for the plane through its middle; of a point alone, which has no
    direction, the density is that of a ray against the normal. Arguments are those of :class:`SurfaceField`.

    Example:
        >>> import torch
        >>> field = Neus(NeusConfig(n_levels=4, first_levels=2), torch.tensor([-1.0, -1, -1, 1, 1, 1]))
        >>> field.distances(torch.tensor([[0.5, 0.5, 0.5], [0.0, 0.0, 0.0]])).detach().sign()
        tensor([-1.,  1.])
    """

    Config = NeusConfig
    config: NeusConfig

    def density_of(self, distance: Tensor) -> Tensor:
        return neus_density(distance, self.sharpness)

    def thickness(self, distance: Tensor, cosine: Tensor, length: Tensor) -> Tensor:
        share = self.share / self.config.cosine_share if self.config.cosine_share else torch.ones_like(self.share)
        half = length / 2 * annealed_cosine(cosine, share.clamp(max=1))
        return neus_thickness(distance - half, distance + half, self.sharpness)
