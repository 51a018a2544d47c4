"""WIRE (Saragadam et al. 2023): complex Gabor wavelets, for any signal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hashgrid.fields.base import NetworkField
from hashgrid.fields.siren import frequency_for
from hashgrid.nn import Wire
from hashgrid.util.config import Config


@dataclass(frozen=True)
class WireConfig(Config):
    """Sizes of a :class:`WireField`."""

    name = "wire"

    n_neurons: int = 128  # of a real network with as many parameters
    n_hidden_layers: int = 3  # of the network, layers of wavelets
    w0: float = 10.0  # frequency
    s0: float = 10.0  # inverse width; not far below w0, or training diverges
    windows: int = 1  # 2 for wavelets in two dimensions
    w0_first: float = 0.0  # of the first layer; 0: w0, or more for many samples along the longest side


class WireField(NetworkField):
    """Values of a signal by wavelets. The paper has 256 neurons, all samples in every step, and w0 = 20 and s0 = 30 for
    pictures, which begin slower.

    Args:
        config: sizes of the field.
        n_input_dims: D.
        n_output_dims: C.
        backend: both are PyTorch.
    """

    Config = WireConfig
    recipe = {"learning_rate": 5e-3, "final_learning_rate": 5e-4, "batch": 1 << 12}

    def __init__(self, config: WireConfig, n_input_dims: int, n_output_dims: int, backend: str = "native") -> None:
        super().__init__(config, n_input_dims, n_output_dims, backend)
        sizes = config.n_neurons, config.n_hidden_layers, config.w0, config.s0, config.windows
        self.network = Wire(n_input_dims, n_output_dims, *sizes, w0_first=config.w0_first or None)

    @classmethod
    def configured(cls, config: WireConfig, shape: Sequence[int]) -> WireConfig:
        return config if config.w0_first > 0 else config.replace(w0_first=frequency_for(shape, config.w0))
