"""pixelNeRF (Yu et al. 2021): a radiance field of what pictures show where they see a point."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from hashgrid.fields.source_views import Seen, SourceConfig, SourceField
from hashgrid.geometry.rays import At
from hashgrid.maths import density_of
from hashgrid.nn import Frequency, FusedMLP
from hashgrid.util.device import DTYPES, fast_dtype


@dataclass(frozen=True)
class PixelNerfConfig(SourceConfig):
    """Sizes of a :class:`PixelNerf` for a few CPU cores. The paper has a ResNet34, 512 neurons, 3 and 2 blocks."""

    name = "pixelnerf"

    n_frequencies: int = 6  # octaves of positions
    n_neurons: int = 64  # of a hidden layer
    blocks_of_view: int = 3  # residual blocks of each source view by itself
    blocks_of_all: int = 2  # of their mean
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of MLP products

    def resolved(self, backend: str, device: torch.device) -> PixelNerfConfig:
        """With ``compute_dtype`` decided for this machine."""
        return replace(self, compute_dtype=fast_dtype(self.compute_dtype, backend, device))  # type: ignore[arg-type]


class PixelNerf(SourceField):
    """Density and colour of a point and a direction, each in a source camera's frame, and of the features of that
    source's picture where it sees the point: residual blocks for each source, their mean, and blocks of it (section
    4.2 of the paper). A density depends on the direction it is seen from.

    Sources that do not see a point are no part of the mean; the paper takes the border of their pictures.
    """

    Config = PixelNerfConfig
    recipe = {"learning_rate": 1e-3, "final_learning_rate": 1e-4, "target_samples": 1 << 13}

    def __init__(self, config: PixelNerfConfig, aabb: Tensor, n_cascades: int = 1, backend: str = "native") -> None:
        super().__init__(config, aabb, n_cascades, backend)
        dtype, n = DTYPES[fast_dtype(config.compute_dtype, backend, aabb.device)], config.n_neurons

        def blocks(count: int) -> nn.ModuleList:
            return nn.ModuleList(
                [FusedMLP(n, n, n, 1, bias=True, compute_dtype=dtype, backend=backend) for _ in range(count)]
            )

        self.frequencies = Frequency(3, config.n_frequencies, backend, pi=False, identity=True)
        self.enter = nn.Linear(self.frequencies.n_output_dims + 3, n)
        self.latents = nn.Linear(3 + config.n_features, config.blocks_of_view * n)  # of all blocks together
        self.of_view, self.of_all = blocks(config.blocks_of_view), blocks(config.blocks_of_all)
        self.leave = nn.Linear(n, 4)

    def in_frames(self, x: Tensor) -> Tensor:
        """Vectors [S, 3] of the scene along the axes of each source camera [V, S, 3]."""
        assert self.sources is not None
        return torch.einsum("sk,vkj->vsj", x, self.sources.c2w[:, :, :3].to(x))

    def entered(self, at: At, seen: Seen) -> tuple[Tensor, Tensor]:
        """What each source's blocks see: positions and directions in its frame [V, S, E], of lengths in units of half
        the box's longest side; and its colours and features [V, S, 3 + C]."""
        assert self.sources is not None
        half = (self.aabb[3:] - self.aabb[:3]).amax() / 2
        rotations, origins = self.sources.c2w.to(seen.positions).split((3, 1), dim=-1)
        places = (seen.positions - origins.mT) @ rotations / half
        directions = self.in_frames(self.directions(at))
        return torch.cat((self.frequencies(places), directions), dim=-1), torch.cat((seen.colors, seen.features), -1)

    def density(self, at: At) -> tuple[Tensor, Tensor]:
        seen = self.seen(at)
        inputs, latents = self.entered(at, seen)
        x = self.enter(inputs)
        for block, latent in zip(self.of_view, self.latents(latents).chunk(len(self.of_view), -1), strict=True):
            x = x + latent
            x = x + block(x.relu())
        share = seen.mask / seen.mask.sum(0).clamp_min(1)
        x = (share[..., None].to(x) * x).sum(0)
        for block in self.of_all:
            x = x + block(x.relu())
        raw = self.leave(x.relu())
        return self.thinned(density_of(raw)) * seen.mask.any(0), raw[:, 1:]

    def color(self, at: At, carry: Tensor) -> Tensor:
        return carry.sigmoid()
