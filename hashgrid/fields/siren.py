"""The classic alternative to a hash grid: an MLP with sine activations."""

from __future__ import annotations

from torch import Tensor

from hashgrid.fields.distance import _DTYPES, Field
from hashgrid.nn import FusedMLP
from hashgrid.sdf.config import SdfConfig


class SirenField(Field):
    """SIREN (Sitzmann et al. 2020): sines of frequency 30, with the paper's initialisation, over [-1, 1]^3.

    The frequency omega_0 = 30 is part of the weights, not a factor beside them: steps are larger in the same units, so
    the learning rates are its own.

    Args:
        config: sizes and learning rates, the fields ``siren_*``.
    """

    def __init__(self, config: SdfConfig | None = None) -> None:
        super().__init__()
        config = SdfConfig() if config is None else config
        self.learning_rates = config.siren_learning_rate, config.siren_final_learning_rate
        self.mlp = FusedMLP(
            3,
            1,
            n_neurons=config.siren_neurons,
            n_hidden_layers=config.siren_hidden_layers,
            activation="sine",
            bias=True,
            compute_dtype=_DTYPES[config.compute_dtype],
            backend=config.backend,
        )

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Distances [...] of points [..., 3] in [0, 1]^3; there are no levels to weigh."""
        return 0.5 * self.mlp(2 * x - 1).squeeze(-1)
