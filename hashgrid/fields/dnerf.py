"""D-NeRF (Pumarola et al. 2021) over a hash grid: what is there at a time is the first moment, deformed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hashgrid.fields.ngp import Ngp, NgpConfig
from hashgrid.fields.ngp_time import MOVING
from hashgrid.geometry.rays import At
from hashgrid.nn import Frequency, FusedMLP


@dataclass(frozen=True)
class DnerfConfig(NgpConfig):
    """Sizes of a :class:`Dnerf`."""

    name = "dnerf"

    interpolation: Literal["linear", "smoothstep", "nearest"] = "smoothstep"  # a deformation follows slopes
    max_resolution: int = 256  # vertices along the box
    sh_degree: int = 1  # with more bands a moment that one view has seen could be a direction as well
    place_frequencies: int = 4  # octaves of a place that the deformation knows
    time_frequencies: int = 4  # octaves of a time that it knows
    deformation_neurons: int = 64  # of one of its hidden layers
    deformation_layers: int = 4  # hidden layers of the deformation


class Deformation(nn.Module):
    """Where points of a time were at time 0: ``x + d(x, t)``, a network's displacement, that is 0 at time 0.

    Args:
        n_neurons, n_hidden_layers: of the network.
        place_frequencies, time_frequencies: octaves it knows of places and times.
        backend: ``"native"`` or ``"reference"``.
    """

    def __init__(
        self,
        n_neurons: int = 64,
        n_hidden_layers: int = 4,
        place_frequencies: int = 4,
        time_frequencies: int = 4,
        backend: str = "native",
    ) -> None:
        super().__init__()
        self.place = Frequency(3, place_frequencies, backend, identity=True)
        self.time = Frequency(1, time_frequencies, backend, identity=True)
        n = self.place.n_output_dims + self.time.n_output_dims
        self.network = FusedMLP(n, 3, n_neurons, n_hidden_layers, bias=True, backend=backend)
        nn.init.uniform_(self.network.weights[-1], -1e-4, 1e-4)
        nn.init.zeros_(self.network.biases[-1])

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Displacements [S, 3] of points [S, 3] of the unit cube at times [S, 1]."""
        seen = torch.cat((self.place(x), self.time(time)), dim=1)
        return self.network(seen) * (time != 0)


class Dnerf(Ngp):
    """Density and colour of the place at time 0 that a point was at, as a network says.

    Args:
        config: sizes of the field.
        aabb: [6] box the field covers.
        n_cascades: as of :class:`Ngp`.
        backend: ``"native"`` or ``"reference"``.
    """

    Config = DnerfConfig
    recipe = {"learning_rate": 5e-3, **MOVING}
    needs = ("time",)

    def __init__(self, config: DnerfConfig, aabb: Tensor, n_cascades: int = 1, backend: str = "native") -> None:
        super().__init__(config, aabb, n_cascades, backend)
        sizes = config.deformation_neurons, config.deformation_layers
        self.deformation = Deformation(*sizes, config.place_frequencies, config.time_frequencies, backend)

    def where(self, at: At) -> Tensor:
        x, time = at.unit_and_time.split((3, 1), dim=1)
        return x + self.deformation(x, time)
