"""The tri-plane of EG3D (Chan et al. 2022): the mean of what three planes say, and a small network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hashgrid.fields.ngp import Ngp, NgpConfig
from hashgrid.nn.planes import PlanesMean


@dataclass(frozen=True)
class TriplaneConfig(NgpConfig):
    """Sizes of a :class:`Triplane`; those of the hash grid are not looked at."""

    name = "triplane"

    plane_resolutions: tuple[int, ...] = (128,)  # vertices along a side
    n_plane_features: int = 32  # per resolution: 1, 2, 4 or a multiple of 8


class Triplane(Ngp):
    """Density and colour from the mean of three planes' features."""

    Config = TriplaneConfig
    recipe = {"learning_rate": 1e-2, "final_learning_rate": 3e-4}

    def make_grid(self, config: NgpConfig, n_cascades: int) -> Any:
        return PlanesMean(3, config.plane_resolutions, config.n_plane_features, init=(-0.5, 0.5), backend=self.backend)
