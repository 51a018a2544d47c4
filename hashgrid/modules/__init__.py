"""The modules; each takes ``backend="native"`` or ``"reference"``."""

from hashgrid.modules.composite import composite
from hashgrid.modules.encodings import Frequency, SphericalHarmonics
from hashgrid.modules.fused_mlp import FusedMLP
from hashgrid.modules.hash_grid import HashGrid
from hashgrid.modules.network_with_input_encoding import NetworkWithInputEncoding
from hashgrid.modules.occupancy_grid import OccupancyGrid
from hashgrid.modules.rays import RaySamples

__all__ = [
    "Frequency",
    "FusedMLP",
    "HashGrid",
    "NetworkWithInputEncoding",
    "OccupancyGrid",
    "RaySamples",
    "SphericalHarmonics",
    "composite",
]
