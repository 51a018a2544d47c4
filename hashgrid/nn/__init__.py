"""The modules; each takes ``backend="native"`` or ``"reference"``."""

from hashgrid.geometry.rays import RaySamples
from hashgrid.nn.coordx import CoordX
from hashgrid.nn.derivatives import (
    curl,
    derivatives_along,
    divergence,
    gradient,
    jacobian,
    laplacian,
    value_and_jacobian,
    value_and_laplacian,
)
from hashgrid.nn.encodings import Frequency, IntegratedFrequency, OneBlob, SphericalHarmonics, TriangleWave
from hashgrid.nn.filters import Bacon, MultiplicativeFilterNetwork
from hashgrid.nn.fourier import LearnedFourier, RandomFourier
from hashgrid.nn.fused_mlp import FusedMLP
from hashgrid.nn.hash_grid import HashGrid
from hashgrid.nn.mlp import MLP, Siren
from hashgrid.nn.network_with_input_encoding import NetworkWithInputEncoding
from hashgrid.nn.occupancy_grid import OccupancyGrid
from hashgrid.nn.permutohedral import Permutohedral
from hashgrid.nn.planes import Lines, Planes, PlanesAndLines
from hashgrid.nn.wire import Wire

__all__ = [
    "MLP",
    "Bacon",
    "CoordX",
    "Frequency",
    "FusedMLP",
    "HashGrid",
    "IntegratedFrequency",
    "LearnedFourier",
    "Lines",
    "MultiplicativeFilterNetwork",
    "NetworkWithInputEncoding",
    "OccupancyGrid",
    "OneBlob",
    "Permutohedral",
    "Planes",
    "PlanesAndLines",
    "RandomFourier",
    "RaySamples",
    "Siren",
    "SphericalHarmonics",
    "TriangleWave",
    "Wire",
    "curl",
    "derivatives_along",
    "divergence",
    "gradient",
    "jacobian",
    "laplacian",
    "value_and_jacobian",
    "value_and_laplacian",
]
