"""The modules; each takes ``backend="native"`` or ``"reference"``."""

from hashgrid.geometry.rays import RaySamples
from hashgrid.nn.derivatives import derivatives_along, value_and_laplacian
from hashgrid.nn.encodings import Frequency, SphericalHarmonics
from hashgrid.nn.fused_mlp import FusedMLP
from hashgrid.nn.hash_grid import HashGrid
from hashgrid.nn.network_with_input_encoding import NetworkWithInputEncoding
from hashgrid.nn.occupancy_grid import OccupancyGrid

__all__ = [
    "Frequency",
    "FusedMLP",
    "HashGrid",
    "NetworkWithInputEncoding",
    "OccupancyGrid",
    "RaySamples",
    "SphericalHarmonics",
    "derivatives_along",
    "value_and_laplacian",
]
