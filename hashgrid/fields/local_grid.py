"""Local implicit grids (Jiang et al. 2020): a code at each vertex of a grid says what the surroundings look like."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from hashgrid.fields.latent import LatentField
from hashgrid.nn.fused_mlp import FusedMLP
from hashgrid.util.config import Config


@dataclass(frozen=True)
class LocalGridConfig(Config):
    """Sizes and learning rates of a :class:`LocalGrid`."""

    name = "local_grid"

    n_vertices: int = 8  # along each side of the cube
    n_latent: int = 16  # numbers of a vertex's code
    n_neurons: int = 64  # of a hidden layer
    n_hidden_layers: int = 4
    learning_rate: float = 2e-3  # after the first steps; twice as much for codes
    final_learning_rate: float = 1e-4  # at the end of a run

    def check(self) -> None:
        super().check()
        if self.n_vertices < 2:
            raise ValueError(f"`n_vertices` must be at least 2, got {self.n_vertices}")


class LocalGrid(LatentField):
    """Logits of being inside: one small network is asked once for each of the eight vertices around a point, with the
    vertex's code and the point's place relative to it, and its answers are blended by trilinear weights. Trained are
    the blends, not each answer beside them.

    Args:
        config: sizes of the field.
        backend: ``"native"`` or ``"reference"``.
    """

    Config = LocalGridConfig
    target = "occupancy"

    def __init__(self, config: LocalGridConfig | None = None, backend: str = "native") -> None:
        super().__init__()
        config = LocalGridConfig() if config is None else config
        self.n_vertices, n = config.n_vertices, config.n_latent
        self.code_shape = (self.n_vertices**3, n)
        sizes = (config.n_neurons, config.n_hidden_layers, "leaky_relu")
        self.mlp = FusedMLP(3 + n, 1, *sizes, bias=True, backend=backend)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        """Logits [B, N] of points [B, N, 3] in [0, 1]^3 of shapes with codes [B, V^3, Z]."""
        place = x.clamp(0, 1) * (self.n_vertices - 1)
        low = place.detach().floor().clamp(max=self.n_vertices - 2)
        corners = torch.tensor(list(product((0, 1), repeat=3)), device=x.device)
        vertices = low.long()[:, :, None] + corners  # [B, N, 8, 3]
        index = (vertices[..., 0] * self.n_vertices + vertices[..., 1]) * self.n_vertices + vertices[..., 2]
        rows = index.flatten(1)[..., None].expand(-1, -1, latent.shape[-1])
        codes = latent.gather(1, rows).view(*index.shape, latent.shape[-1])
        relative = place[:, :, None] - vertices.to(x.dtype)  # -1..1
        values = self.mlp(torch.cat([relative, codes], dim=-1)).squeeze(-1)
        return (values * (1 - relative.abs()).prod(-1)).sum(-1)
