"""NeuS over one network, as its paper has it (Wang et al. 2021): no grid, nothing but frequencies of positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hashgrid.fields.coordinate import Activation
from hashgrid.fields.distance import DistanceField
from hashgrid.fields.neus import Neus, NeusConfig
from hashgrid.nn import MLP, Frequency

SKIP = 4  # layer that sees the position again


@dataclass(frozen=True)
class NeusMlpConfig(NeusConfig):
    """The sizes of the paper, far more work per step than a grid's."""

    name = "neus_mlp"

    n_neurons: int = 256  # of a hidden layer
    n_hidden_layers: int = 8  # of the distance network
    activation: Activation = "softplus"  # of the distance network, of beta 100
    n_frequencies: int = 6  # octaves of the position
    n_geometry_features: int = 256  # that the distance network tells the colour network
    reflected: bool = False  # colours see that direction mirrored at the normal (Verbin et al. 2022, eq. 4)
    eikonal_weight: float = 0.1  # of the mean square by which slopes differ from 1
    curvature_weight: float = 0.0  # of the mean size of the Laplacian

    def check(self) -> None:
        super().check()
        if self.n_hidden_layers <= SKIP:
            raise ValueError(f"`n_hidden_layers` must be above {SKIP}, got {self.n_hidden_layers}")


class NetworkDistance(DistanceField):
    """Distances in the unit cube, in its sides, that begin as those to a sphere about its middle (Atzmon and Lipman
    2020): softplus layers with weight norm that see the position again half way."""

    def __init__(self, config: NeusMlpConfig, backend: str) -> None:
        super().__init__()
        self.waves = Frequency(3, config.n_frequencies, backend, pi=False, identity=True)
        n_out, sizes = 1 + config.n_geometry_features, (config.n_neurons, config.n_hidden_layers)
        kinds: Any = {"skips": (SKIP,), "skip_scale": 2**-0.5, "narrow_skips": True, "weight_norm": True}
        beta = 100.0 if config.activation == "softplus" else 1.0
        self.mlp = MLP(
            self.waves.n_output_dims, n_out, *sizes, config.activation, softplus_beta=beta, backend=backend, **kinds
        )
        self.mlp.reset_geometric(2 * config.start_radius, n_coordinates=3)

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        return self.outputs(x)[..., 0]

    def outputs(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        y = self.mlp(self.waves(2 * x - 1))  # of a cube of side 2
        return torch.cat((y[..., :1] / 2, y[..., 1:]), dim=-1)


class NeusMlp(Neus):
    """As :class:`Neus`, whose opacities, colours and losses it has."""

    Config = NeusMlpConfig
    config: NeusMlpConfig
    n_color_layers = 4
    recipe = Neus.recipe | {"learning_rate": 1e-3, "final_learning_rate": 5e-5}

    def __init__(self, config: NeusMlpConfig, aabb: Tensor, n_cascades: int = 1, backend: str = "native") -> None:
        super().__init__(config, aabb, n_cascades, backend)
        self.shift = 0.0  # the network knows it

    def make_distance(self) -> DistanceField:
        return NetworkDistance(self.config, self.backend)
