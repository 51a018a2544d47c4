"""mip-NeRF (Barron et al. 2021): cones through pixels, their parts as Gaussians, whose frequencies fade where they are
smaller; and with all of space contracted and proposals, the field of mip-NeRF 360 (Barron et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hashgrid.fields.classic import Classic, ClassicConfig
from hashgrid.geometry.contraction import contract_gaussians
from hashgrid.geometry.frustums import conical_frustums, covariances
from hashgrid.geometry.rays import At
from hashgrid.nn import Frequency
from hashgrid.nn.encodings import IntegratedFrequency


@dataclass(frozen=True)
class MipConfig(ClassicConfig):
    """Sizes of a :class:`Mip` for a few CPU cores."""

    name = "mip"

    n_frequencies: int = 12  # octaves of positions: too high ones fade by themselves


@dataclass(frozen=True)
class MipPaperConfig(MipConfig):
    """Sizes of the paper (section 4)."""

    name = "mip_paper"

    n_frequencies: int = 16  # octaves of positions: too high ones fade by themselves
    n_neurons: int = 256  # of a hidden layer
    n_hidden_layers: int = 8  # of the trunk; 5 and more get the encoded position once more after the fourth
    n_coarse: int = 128  # samples per ray of the first look
    n_fine: int = 128  # samples per ray of the second, all of them new


class Mip(Classic):
    """One network for both looks, of which the first counts a tenth."""

    Config = MipConfig
    needs = ("radii",)
    sampler = "twice"
    coarse_weight = 0.1

    def __init__(
        self, config: MipConfig, aabb: Tensor, n_cascades: int = 1, backend: str = "native", is_coarse: bool = True
    ) -> None:
        super().__init__(config, aabb, n_cascades, backend, is_coarse)

    def make_positions(self, n_frequencies: int, backend: str) -> Frequency:
        return IntegratedFrequency(3, n_frequencies, backend)

    def encode(self, at: At) -> Tensor:
        """Encoded Gaussians [S, E]; of points, where no interval is known."""
        if at.intervals is None or at.rays.radii is None:
            return self.positions(2 * at.unit - 1, self.level_weights)
        origins, directions, radii = (
            x.index_select(0, at.ray_indices) for x in (at.rays.origins, at.rays.directions, at.rays.radii)
        )
        gaussians = conical_frustums(*at.intervals, radii)
        scale = 2 * self.inverse_extent
        means = 2 * self.unit(origins + gaussians.t[:, None] * directions) - 1
        spread = covariances(gaussians, directions) * (scale[:, None] * scale)
        if self.contraction != "none":
            means, spread = contract_gaussians(means, spread)
            means, spread = means / 2, spread / 4
        return self.positions(means, self.level_weights, torch.diagonal(spread, dim1=-2, dim2=-1))


class MipPaper(Mip):
    """The same with the sizes and the learning rates of the paper."""

    Config = MipPaperConfig
    recipe = {"learning_rate": 5e-4, "final_learning_rate": 5e-6, "decay_start": 0.0}


@dataclass(frozen=True)
class Mip360Config(MipConfig):
    """Sizes of a :class:`Mip360` for a few CPU cores; the paper's network has 8 layers of 1024."""

    name = "mip360"


class Mip360(Mip):
    """All of space in a ball, samples where proposals, here small hash grids, say that something is."""

    Config = Mip360Config
    sampler = "proposal"
    recipe = {**Classic.recipe, "contraction": "ball", "distortion_weight": 0.01}
