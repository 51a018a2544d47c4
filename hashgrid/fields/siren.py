"""SIREN (Sitzmann et al. 2020), a network of sines without an encoding: of any signal, and of signed distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from hashgrid.fields.base import NetworkField
from hashgrid.fields.distance import DistanceField
from hashgrid.nn import FusedMLP, Siren
from hashgrid.util.config import Config
from hashgrid.util.device import DTYPES


@dataclass(frozen=True)
class SirenConfig(Config):
    """Sizes of a :class:`SirenField`."""

    name = "siren"

    n_neurons: int = 128  # of a hidden layer
    n_hidden_layers: int = 4  # of the network, layers of sines
    w0: float = 0.0  # frequency of the first layer; 0: 30, or more for many samples along the longest side
    w0_hidden: float = 30.0  # of the following ones
    factored: bool = True  # frequencies stand beside the weights, as in the paper, not in them
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of MLP products; sums stay fp32


class SirenField(NetworkField):
    """Values of a signal by sines of frequency ``w0`` and 30. The paper has 256 neurons, all pixels in every step and a
    learning rate of 1e-4; in short runs many small steps of larger rates are ahead.

    Args:
        config: sizes of the field.
        n_input_dims: D.
        n_output_dims: C.
        backend: ``"native"`` or ``"reference"``.
    """

    Config = SirenConfig
    recipe = {"learning_rate": 1e-3, "final_learning_rate": 1e-5, "batch": 1 << 12}

    def __init__(self, config: SirenConfig, n_input_dims: int, n_output_dims: int, backend: str = "native") -> None:
        super().__init__(config, n_input_dims, n_output_dims, backend)
        self.network = Siren(
            n_input_dims,
            n_output_dims,
            config.n_neurons,
            config.n_hidden_layers,
            config.w0 or 30.0,
            config.w0_hidden,
            config.factored,
            compute_dtype=DTYPES[config.compute_dtype],
            backend=backend,
        )

    @classmethod
    def configured(cls, config: SirenConfig, shape: Sequence[int]) -> SirenConfig:
        return config if config.w0 > 0 else config.replace(w0=frequency_for(shape))


def frequency_for(shape: Sequence[int], least: float = 30.0) -> float:
    """Frequency of the first layer that suits a signal of so many samples along each axis: the paper has 30 for
    pictures and 3000 for sounds. Series, whose samples are many and whose spectra do not fall as fast, want more."""
    return max(least, max(shape) / (10 if len(shape) == 1 else 100))


@dataclass(frozen=True)
class SirenDistanceConfig(Config):
    """Sizes and learning rates of a :class:`SirenDistance`. omega_0 = 30 is part of the weights, not a factor beside
    them: steps are larger in the same units, so the learning rates are its own."""

    name = "siren"

    n_neurons: int = 128  # of a hidden layer
    n_hidden_layers: int = 3  # of the network
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of MLP products; sums stay fp32
    learning_rate: float = 1e-2  # after the first steps
    final_learning_rate: float = 5e-5  # at the end of a run


class SirenDistance(DistanceField):
    """Sines of frequency 30, with the paper's initialisation, over [-1, 1]^3. It learns by many small steps on
    distances alone, of which it does not learn relative errors (bob at 12 s: IoU .91 with MAPE and a batch of 2^15, .98
    with this recipe; at 30 s .998).

    Args:
        config: sizes of the field.
        backend: ``"native"`` or ``"reference"``.
    """

    Config = SirenDistanceConfig
    recipe = {"batch": 1 << 12, "loss": "truncated_l1"}
    recipe_for_points = {"learning_rate": 2e-3, "final_learning_rate": 2e-5}

    def __init__(self, config: SirenDistanceConfig | None = None, backend: str = "native") -> None:
        super().__init__()
        config = SirenDistanceConfig() if config is None else config
        self.mlp = FusedMLP(
            3,
            1,
            n_neurons=config.n_neurons,
            n_hidden_layers=config.n_hidden_layers,
            activation="sine",
            bias=True,
            compute_dtype=DTYPES[config.compute_dtype],
            backend=backend,
        )

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Distances [...] of points [..., 3] in [0, 1]^3; there are no levels to weigh."""
        return 0.5 * self.mlp(2 * x - 1).squeeze(-1)
