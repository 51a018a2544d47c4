"""The first NeRF (Mildenhall et al. 2020): frequencies of positions and directions, a deep network, coarse and fine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from hashgrid.fields.base import RadianceField
from hashgrid.geometry.rays import At
from hashgrid.nn import Frequency, FusedMLP
from hashgrid.util.config import Config
from hashgrid.util.device import DTYPES, fast_dtype


@dataclass(frozen=True)
class ClassicConfig(Config):
    """Sizes of a :class:`Classic` for a few CPU cores; :class:`ClassicPaperConfig` has the paper's."""

    name = "classic"

    n_frequencies: int = 10  # octaves of positions
    n_direction_frequencies: int = 4  # octaves of view directions
    n_neurons: int = 64  # of a hidden layer
    n_hidden_layers: int = 4  # of the trunk; 5 and more get the encoded position once more after the fourth
    n_coarse: int = 32  # samples per ray of the coarse field
    n_fine: int = 32  # further samples per ray of the fine one
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of MLP products

    def resolved(self, backend: str, device: torch.device) -> ClassicConfig:
        """With ``compute_dtype`` decided for this machine."""
        return replace(self, compute_dtype=fast_dtype(self.compute_dtype, backend, device))  # type: ignore[arg-type]


@dataclass(frozen=True)
class ClassicPaperConfig(ClassicConfig):
    """Sizes of the paper (section 5.3 and appendix A)."""

    name = "classic_paper"

    n_neurons: int = 256  # of a hidden layer
    n_hidden_layers: int = 8  # of the trunk; 5 and more get the encoded position once more after the fourth
    n_coarse: int = 64  # samples per ray of the coarse field
    n_fine: int = 128  # further samples per ray of the fine one


class Classic(RadianceField):
    """Density by ``softplus(raw - 1)``, which does not die as a ReLU does on white scenes (Barron et al. 2021).

    Args:
        config: sizes of the field.
        aabb: [6] box the field covers; the networks see it as [-1, 1]^3.
        n_cascades: not needed: frequencies do not end at a box.
        backend: ``"native"`` or ``"reference"``.
        is_coarse: whether it is the one that is asked first.
    """

    Config = ClassicConfig
    # 128 rays per step: the same rays in larger steps teach less (18.0 dB after 61000, 14.8 with four times the size)
    recipe = {"learning_rate": 5e-3, "final_learning_rate": 1e-4, "decay_start": 0.0, "target_samples": 1 << 13}
    sampler = "coarse_to_fine"

    def __init__(
        self,
        config: ClassicConfig,
        aabb: Tensor,
        n_cascades: int = 1,
        backend: str = "native",
        is_coarse: bool = False,
    ) -> None:
        super().__init__(aabb)
        dtype = DTYPES[fast_dtype(config.compute_dtype, backend, aabb.device)]
        n, depth = config.n_neurons, config.n_hidden_layers
        self.n_coarse, self.n_fine = config.n_coarse, config.n_fine

        def mlp(n_in: int, n_out: int, n_hidden_layers: int, output: str = "none") -> FusedMLP:
            return FusedMLP(
                n_in,
                n_out,
                n,
                n_hidden_layers,
                output_activation=output,
                bias=True,
                compute_dtype=dtype,
                backend=backend,
            )

        self.positions = self.make_positions(config.n_frequencies, backend)
        self.directions = Frequency(3, config.n_direction_frequencies, backend)
        n_encoded = self.positions.n_output_dims
        self.trunk = nn.ModuleList([mlp(n_encoded, 1 + n, min(depth, 4))])
        if depth > 4:
            self.trunk.append(mlp(1 + n + n_encoded, 1 + n, depth - 4))
        self.color_mlp = mlp(n + self.directions.n_output_dims, 3, 1, "sigmoid")
        if not is_coarse:
            self.coarse = Classic(config, aabb, n_cascades, backend, is_coarse=True)

    def make_positions(self, n_frequencies: int, backend: str) -> Frequency:
        """The encoding of positions in [-1, 1]^3."""
        return Frequency(3, n_frequencies, backend)

    def encode(self, at: At) -> Tensor:
        """Encoded positions [S, E]."""
        return self.positions(2 * at.unit - 1, self.level_weights)

    def density(self, at: At) -> tuple[Tensor, Tensor]:
        encoded = self.encode(at)
        y = self.trunk[0](encoded)
        for mlp in self.trunk[1:]:
            y = mlp(torch.cat((nn.functional.relu(y), encoded), dim=-1))
        raw, carry = y.split((1, y.shape[1] - 1), dim=-1)  # its gradient is one copy; that of two slices is five passes
        return nn.functional.softplus(raw[:, 0] - 1), carry

    def color(self, at: At, carry: Tensor) -> Tensor:
        directions = self.directions(at.rays.directions)[at.ray_indices]
        return self.color_mlp(torch.cat((carry, directions), dim=-1))


class ClassicPaper(Classic):
    """The same with the sizes and the learning rates of the paper."""

    Config = ClassicPaperConfig
    recipe = {"learning_rate": 5e-4, "final_learning_rate": 5e-5, "decay_start": 0.0}
