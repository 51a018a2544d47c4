"""DeepSDF (Park et al. 2019): signed distances of a point and a code."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hashgrid.fields.latent import LatentField
from hashgrid.nn.latent_mlp import LatentMLP
from hashgrid.util.config import Config


@dataclass(frozen=True)
class DeepSdfConfig(Config):
    """Sizes and learning rates of a :class:`DeepSdf` that a CPU trains."""

    name = "deepsdf"

    n_latent: int = 32  # numbers of a shape's code
    n_neurons: int = 128  # of a hidden layer
    n_hidden_layers: int = 8
    weight_norm: bool = True
    dropout: float = 0.0  # share of hidden values that a step leaves out; the fused kernels need none
    learning_rate: float = 3e-3  # after the first steps; twice as much for codes
    final_learning_rate: float = 1e-4  # at the end of a run


@dataclass(frozen=True)
class DeepSdfPaperConfig(DeepSdfConfig):
    """The network of the paper; a GPU trains it."""

    name = "deepsdf_paper"

    n_latent: int = 256
    n_neurons: int = 512
    dropout: float = 0.2
    learning_rate: float = 5e-4


class DeepSdf(LatentField):
    """Distances from a ReLU network with weight norm that gets point and code twice, behind a tanh.

    Args:
        config: sizes of the field.
        backend: ``"native"`` or ``"reference"``.
    """

    Config = DeepSdfConfig

    def __init__(self, config: DeepSdfConfig | None = None, backend: str = "native") -> None:
        super().__init__()
        config = self.Config() if config is None else config
        self.code_shape = (config.n_latent,)
        sizes = (config.n_neurons, config.n_hidden_layers, config.weight_norm, config.dropout)
        self.mlp = LatentMLP(3, config.n_latent, 1, *sizes, "tanh", backend)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        """Distances [B, N] of points [B, N, 3] in [0, 1]^3; the network sees [-1, 1]^3, and lengths of it."""
        return 0.5 * self.mlp(2 * x - 1, latent).squeeze(-1)


class DeepSdfPaper(DeepSdf):
    """Of the paper's size."""

    Config = DeepSdfPaperConfig
