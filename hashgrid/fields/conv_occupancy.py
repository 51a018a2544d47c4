"""Convolutional occupancy networks (Peng et al. 2020): clouds become features on planes and in a volume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from hashgrid.fields.latent import LatentField
from hashgrid.fields.occupancy import logit
from hashgrid.nn.conditional import ResBlock
from hashgrid.nn.point_encoders import PLANES, LocalPointNet, UNet, sample_grid
from hashgrid.util.config import Config

GRIDS: dict[str, tuple[tuple[int, ...], ...]] = {
    "planes": PLANES,
    "volume": ((0, 1, 2),),
    "both": (*PLANES, (0, 1, 2)),
}


@dataclass(frozen=True)
class ConvOccupancyConfig(Config):
    """Sizes and learning rates of a :class:`ConvOccupancy` that a CPU trains; the paper has planes of 64 vertices per
    side, U-Nets with 32 channels, and a rate of 1e-4 that stays."""

    name = "conv_occupancy"

    features: Literal["planes", "volume", "both"] = "planes"  # where they lie
    plane_resolution: int = 32  # vertices along the sides of planes,
    volume_resolution: int = 32  # and of the volume
    n_features: int = 32  # of a vertex
    n_neurons: int = 32  # of a layer
    n_blocks: int = 5
    unet_depth: int = 4  # resolutions of a U-Net
    unet_features: int = 16  # channels at its finest resolution
    threshold: float = 0.5  # probability of the surface
    learning_rate: float = 1e-3  # after the first steps
    final_learning_rate: float = 5e-5  # at the end of a run

    def check(self) -> None:
        super().check()
        if not 0 < self.threshold < 1:
            raise ValueError(f"`threshold` must be in (0, 1), got {self.threshold}")
        coarsest = 2 ** (self.unet_depth - 1)
        if self.unet_depth < 1 or min(self.plane_resolution, self.volume_resolution) < coarsest:
            got = f"{self.unet_depth}, {self.plane_resolution} and {self.volume_resolution}"
            raise ValueError(f"`unet_depth` must be 1 or more and fit the resolutions, got {got}")


class ConvOccupancy(LatentField):
    """Logits of being inside from residual blocks, each of which gets the features at the point.

    Args:
        config: sizes of the field.
        backend: ``"native"`` or ``"reference"``, which are the same here: PyTorch's layers.
    """

    Config = ConvOccupancyConfig
    target = "occupancy"
    recipe = {"batch": 1 << 13}

    def __init__(self, config: ConvOccupancyConfig | None = None, backend: str = "native") -> None:
        super().__init__()
        config = self.Config() if config is None else config
        self.level, self.axes = logit(config.threshold), GRIDS[config.features]
        sides = [config.plane_resolution if len(axes) == 2 else config.volume_resolution for axes in self.axes]
        n, width = config.n_features, config.n_neurons
        self.encoder = LocalPointNet(self.axes, sides, n, width)
        kinds = sorted({len(axes) for axes in self.axes})  # one network for all planes
        self.unets = nn.ModuleDict(
            {str(dims): UNet(n, n, dims, config.unet_depth, config.unet_features) for dims in kinds}
        )
        self.position = nn.Linear(3, width)
        self.inject = nn.ModuleList([nn.Linear(n, width) for _ in range(config.n_blocks)])
        self.blocks = nn.ModuleList([ResBlock(width, width) for _ in range(config.n_blocks)])
        self.output = nn.Linear(width, 1)

    def encode(self, points: Tensor) -> tuple[Tensor, ...]:
        """Features [B, C, R, ...] on each plane and in the volume of clouds [B, P, 3]."""
        return tuple(self.unets[str(grid.dim() - 2)](grid) for grid in self.encoder(points))

    def forward(self, x: Tensor, latent: tuple[Tensor, ...]) -> Tensor:
        """Logits [B, N] of points [B, N, 3] in [0, 1]^3."""
        sampled = [sample_grid(grid, axes, x) for grid, axes in zip(latent, self.axes, strict=True)]
        features = sum(sampled[1:], sampled[0])
        y = self.position(2 * x - 1)
        for inject, block in zip(self.inject, self.blocks, strict=True):
            y = block(y + inject(features))
        logits: Tensor = self.output(y.relu()).squeeze(-1)
        return logits
