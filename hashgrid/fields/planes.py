"""K-Planes (Fridovich-Keil et al. 2023) of a scene that stands still: three planes, and the networks of Instant-NGP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hashgrid.fields.ngp import Ngp, NgpConfig
from hashgrid.nn.planes import Planes


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
        sizes = [[max(2, round(size * axis)) for axis in config.plane_axes] for size in config.plane_resolutions]
        return Planes(3, sizes, config.n_plane_features, backend=self.backend)
