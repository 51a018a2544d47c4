"""Occupancy networks (Mescheder et al. 2019): inside or not, of a point and a code or a cloud."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from hashgrid.fields.latent import LatentField
from hashgrid.nn.conditional import ConditionalBatchNorm, ConditionalResBlock
from hashgrid.nn.point_encoders import PointNet
from hashgrid.util.config import Config


@dataclass(frozen=True)
class OccupancyConfig(Config):
    """Sizes and learning rates of an :class:`Occupancy` that a CPU trains; the paper has 256 neurons, codes of 512 and
    a rate of 1e-4 that stays."""

    name = "occupancy"

    n_latent: int = 64  # numbers of a shape's code
    n_neurons: int = 64  # of a layer
    n_blocks: int = 5
    threshold: float = 0.5  # probability of the surface; Mescheder et al. use 0.2 where points are encoded
    learning_rate: float = 1e-3  # after the first steps; twice as much for codes
    final_learning_rate: float = 5e-5  # at the end of a run

    def check(self) -> None:
        super().check()
        if not 0 < self.threshold < 1:
            raise ValueError(f"`threshold` must be in (0, 1), got {self.threshold}")


@dataclass(frozen=True)
class OccupancyPointsConfig(OccupancyConfig):
    """The same with an encoder of points instead of codes."""

    name = "occupancy_points"


class Occupancy(LatentField):
    """Logits of being inside from residual blocks, in which the code scales and shifts what batch normalisation gives.

    Args:
        config: sizes of the field.
        backend: ``"native"`` or ``"reference"``, which are the same here: PyTorch's layers.
    """

    Config = OccupancyConfig
    target = "occupancy"
    recipe = {"batch": 1 << 13}

    def __init__(self, config: OccupancyConfig | None = None, backend: str = "native") -> None:
        super().__init__()
        config = self.Config() if config is None else config
        self.level, self.code_shape = logit(config.threshold), (config.n_latent,)
        self.position = nn.Linear(3, config.n_neurons)
        self.blocks = nn.ModuleList(
            [ConditionalResBlock(config.n_latent, config.n_neurons) for _ in range(config.n_blocks)]
        )
        self.norm = ConditionalBatchNorm(config.n_latent, config.n_neurons)
        self.output = nn.Linear(config.n_neurons, 1)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        """Logits [B, N] of points [B, N, 3] in [0, 1]^3."""
        y = self.position(2 * x - 1)
        for block in self.blocks:
            y = block(y, latent)
        logits: Tensor = self.output(self.norm(y, latent).relu()).squeeze(-1)
        return logits


class OccupancyPoints(Occupancy):
    """Of clouds: the code is what a PointNet says of them."""

    Config = OccupancyPointsConfig

    def __init__(self, config: OccupancyPointsConfig | None = None, backend: str = "native") -> None:
        config = self.Config() if config is None else config
        super().__init__(config, backend)
        self.code_shape = None
        self.encoder = PointNet(config.n_latent, config.n_neurons)

    def encode(self, points: Tensor) -> Tensor:
        """Codes [B, Z] of clouds [B, P, 3]."""
        return self.encoder(points)


def logit(probability: float) -> float:
    """Of which the sigmoid is ``probability``."""
    return math.log(probability / (1 - probability))
