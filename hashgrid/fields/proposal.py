"""A small density field that says where along a ray a larger one should be asked (Barron et al. 2022, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hashgrid.fields.base import RadianceField
from hashgrid.geometry.rays import At
from hashgrid.maths import density_of
from hashgrid.nn import FusedMLP
from hashgrid.nn.encoding import EncodingConfig, make_encoding
from hashgrid.nn.network_with_input_encoding import encode_and_pass


@dataclass(frozen=True)
class ProposalConfig(EncodingConfig):
    """Sizes of a :class:`Proposal`: a hash grid a few levels deep, as in nerfacto."""

    name = "proposal"

    n_levels: int = 5
    log2_hashmap_size: int = 17
    max_resolution: int = 256
    n_neurons: int = 16


class Proposal(RadianceField):
    """Density alone.

    Args:
        config: sizes of the field.
        aabb: [6] box the field covers.
        backend: ``"native"`` or ``"reference"``.
    """

    Config = ProposalConfig

    def __init__(self, config: ProposalConfig, aabb: Tensor, backend: str = "native") -> None:
        super().__init__(aabb)
        self.grid = make_encoding(3, config, backend, accumulate_grad=True)
        self.mlp = FusedMLP(self.grid.n_output_dims, 1, config.n_neurons, n_hidden_layers=1, backend=backend)

    def density(self, at: At) -> tuple[Tensor, None]:
        return self.thinned(density_of(encode_and_pass(self.grid, self.mlp, at.unit))), None
