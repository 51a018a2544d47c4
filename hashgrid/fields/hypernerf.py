"""HyperNeRF (Park et al. 2021) over a hash grid: rigid motions point by point into a template that has a further
dimension, of which each place and time sees a slice, so that things can part and join."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hashgrid.fields.ngp import Ngp, NgpConfig
from hashgrid.fields.ngp_time import MOVING, grid_over
from hashgrid.geometry.motions import screw
from hashgrid.geometry.rays import At
from hashgrid.levels import dense_level_table
from hashgrid.nn import Frequency, FusedMLP, HashGrid


@dataclass(frozen=True)
class HypernerfConfig(NgpConfig):
    """Sizes of a :class:`Hypernerf`."""

    name = "hypernerf"

    interpolation: Literal["linear", "smoothstep", "nearest"] = "smoothstep"  # motions follow slopes
    max_resolution: int = 256  # vertices along the box
    sh_degree: int = 1  # with more bands a moment that one view has seen could be a direction as well
    n_times: int = 24  # codes, evenly in time, between which others are interpolated
    code_size: int = 8  # numbers of a code
    place_frequencies: int = 4  # octaves of a place that the networks know
    motion_neurons: int = 64  # of a hidden layer of the network of motions
    motion_layers: int = 4  # its hidden layers
    ambient_dims: int = 1  # further dimensions of the template: 0 for motions alone (Nerfies, Park et al. 2021)
    ambient_cells: int = 4  # of the finest level along each of them
    # progress from which slices begin to differ, and at which they do in full. From the start they say of what moves
    # what a motion should: 21.2 instead of 25.5 dB of the procedural scene that moves after 800 steps
    ambient_begin: float = 0.2
    ambient_full: float = 0.5


class Hypernerf(Ngp):
    """Density and colour of a template, at the place and slice that a point and the code of its time are moved to.

    Args:
        config: sizes of the field.
        aabb: [6] box the field covers.
        n_cascades: as of :class:`Ngp`.
        backend: ``"native"`` or ``"reference"``.
    """

    Config = HypernerfConfig
    ambient_share: Tensor
    recipe = {"learning_rate": 5e-3, **MOVING}
    needs = ("time",)

    def __init__(self, config: HypernerfConfig, aabb: Tensor, n_cascades: int = 1, backend: str = "native") -> None:
        super().__init__(config, aabb, n_cascades, backend)
        times = dense_level_table([(config.n_times,)] * (config.code_size // 8))
        self.codes = HashGrid(1, n_features_per_level=8, level_table=times, backend=backend)
        nn.init.normal_(self.codes.table, std=0.05)
        self.place = Frequency(3, config.place_frequencies, backend, identity=True)
        n = self.place.n_output_dims + self.codes.n_output_dims
        sizes = config.motion_neurons, config.motion_layers
        self.motion = _still(FusedMLP(n, 6, *sizes, bias=True, backend=backend), 1e-4)
        self.slice, self.opening = None, (config.ambient_begin, config.ambient_full)
        self.register_buffer("ambient_share", torch.ones(()))
        if config.ambient_dims:
            self.slice = _still(FusedMLP(n, config.ambient_dims, *sizes, bias=True, backend=backend), 1e-5)

    def make_grid(self, config: NgpConfig, n_cascades: int) -> Any:
        assert isinstance(config, HypernerfConfig)
        return grid_over(self, config, n_cascades, [(1, config.ambient_cells)] * config.ambient_dims)

    def grow(self, progress: float) -> bool:
        begin, full = self.opening
        self.ambient_share.fill_(min(1.0, max(0.0, (progress - begin) / max(full - begin, 1e-6))))
        return super().grow(progress)

    def where(self, at: At) -> Tensor:
        x, time = at.unit_and_time.split((3, 1), dim=1)
        seen = torch.cat((self.place(x), self.codes(time)), dim=1)
        moved = screw(self.motion(seen), x - 0.5) + 0.5
        return moved if self.slice is None else torch.cat((moved, self.ambient_share * self.slice(seen) + 0.5), dim=1)


def _still(network: FusedMLP, deviation: float) -> FusedMLP:
    """The network with outputs next to zero."""
    nn.init.normal_(network.weights[-1], std=deviation)
    nn.init.zeros_(network.biases[-1])
    return network
