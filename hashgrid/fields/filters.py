"""Multiplicative filter networks (Fathony et al. 2021) and BACON (Lindell et al. 2022), for any signal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from hashgrid.fields.base import NetworkField
from hashgrid.nn import Bacon, MultiplicativeFilterNetwork
from hashgrid.util.config import Config


@dataclass(frozen=True)
class FiltersConfig(Config):
    """Sizes of a :class:`FiltersField`."""

    name = "mfn"

    n_neurons: int = 128  # of a layer
    n_hidden_layers: int = 3  # of the network, products
    filters: Literal["fourier", "gabor"] = "gabor"  # sines, or sines within Gaussians
    input_scale: float = 0.0  # of frequencies; 0: 256, or more for many samples along the longest side
    weight_scale: float = 1.0  # of the layers between the filters; the paper's lose power, 6 keeps it


class FiltersField(NetworkField):
    """Values of a signal by products of filters.

    Args:
        config: sizes of the field.
        n_input_dims: D.
        n_output_dims: C.
        backend: ``"native"`` or ``"reference"``.
    """

    Config = FiltersConfig
    recipe = {"learning_rate": 1e-2, "final_learning_rate": 1e-4, "batch": 1 << 12}

    def __init__(self, config: FiltersConfig, n_input_dims: int, n_output_dims: int, backend: str = "native") -> None:
        super().__init__(config, n_input_dims, n_output_dims, backend)
        self.network = MultiplicativeFilterNetwork(
            n_input_dims,
            n_output_dims,
            config.n_neurons,
            config.n_hidden_layers,
            config.filters,
            config.input_scale or 256.0,
            config.weight_scale,
            backend=backend,
        )

    @classmethod
    def configured(cls, config: FiltersConfig, shape: Sequence[int]) -> FiltersConfig:
        scale = max(256.0, max(shape) / (4 if len(shape) == 1 else 2))
        return config if config.input_scale > 0 else config.replace(input_scale=scale)


@dataclass(frozen=True)
class BaconConfig(Config):
    """Sizes of a :class:`BaconField`."""

    name = "bacon"

    n_neurons: int = 128  # of a layer
    scales: tuple[float, ...] = (1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 4)  # of each filter, shares of the band
    output_layers: tuple[int, ...] = (1, 2, 4)  # products behind which there is an output
    band_resolution: float = 0.0  # samples along a side whose band it has; 0: those along the longest side


class BaconField(NetworkField):
    """Values of a signal by a network of known bands. All outputs learn the same values, and each keeps of them what is
    in its band; the cube's opposite sides are one and the same.

    Args:
        config: sizes of the field.
        n_input_dims: D.
        n_output_dims: C.
        backend: ``"native"`` or ``"reference"``.
    """

    Config = BaconConfig
    recipe = {"learning_rate": 2e-2, "final_learning_rate": 2e-4, "batch": 1 << 12}
    network: Bacon
    side = 1.0  # one period

    def __init__(self, config: BaconConfig, n_input_dims: int, n_output_dims: int, backend: str = "native") -> None:
        super().__init__(config, n_input_dims, n_output_dims, backend)
        self.network = Bacon(
            n_input_dims,
            n_output_dims,
            config.n_neurons,
            len(config.scales) - 1,
            config.band_resolution or 256.0,
            config.scales,
            config.output_layers,
            backend,
        )

    @classmethod
    def configured(cls, config: BaconConfig, shape: Sequence[int]) -> BaconConfig:
        return config if config.band_resolution > 0 else config.replace(band_resolution=float(max(shape)))

    def outputs(self, x: Tensor) -> Sequence[Tensor]:
        return [0.5 + 0.5 * output for output in self.network.outputs(self.side * (x - 0.5))]
