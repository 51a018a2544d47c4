"""CoordX (Liang et al. 2022), a SIREN whose first layers see one coordinate each: for any signal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hashgrid.fields.base import NetworkField
from hashgrid.fields.siren import frequency_for
from hashgrid.nn import CoordX
from hashgrid.util.config import Config


@dataclass(frozen=True)
class CoordXConfig(Config):
    """Sizes of a :class:`CoordXField`."""

    name = "coordx"

    n_neurons: int = 128  # of a hidden layer
    n_hidden_layers: int = 4  # of the network, layers of sines
    n_split_layers: int = 2  # of them, those of single coordinates
    fusion: Literal["product", "sum", "concat"] = "product"  # of what they say
    w0: float = 0.0  # frequency of the first layer; 0: 30, or more for many samples along the longest side


class CoordXField(NetworkField):
    """Values of a signal by sines of one coordinate each, multiplied. Its ``network.grid`` is cheaper than that many
    points: see :meth:`hashgrid.CoordX.grid`.

    Args:
        config: sizes of the field.
        n_input_dims: D.
        n_output_dims: C.
        backend: ``"native"`` or ``"reference"``.
    """

    Config = CoordXConfig
    recipe = {"learning_rate": 1e-3, "final_learning_rate": 1e-5, "batch": 1 << 12}

    def __init__(self, config: CoordXConfig, n_input_dims: int, n_output_dims: int, backend: str = "native") -> None:
        super().__init__(config, n_input_dims, n_output_dims, backend)
        sizes = config.n_neurons, config.n_hidden_layers, config.n_split_layers, config.fusion
        self.network = CoordX(n_input_dims, n_output_dims, *sizes, w0=config.w0 or 30.0, backend=backend)

    @classmethod
    def configured(cls, config: CoordXConfig, shape: Sequence[int]) -> CoordXConfig:
        return config if config.w0 > 0 else config.replace(w0=frequency_for(shape))
