"""Implicit neural representations for PyTorch: encodings, fused networks, ray marching, compositing.

Modules live here, the functions behind them in :mod:`hashgrid.ops`, and plain-PyTorch twins of the functions in
:mod:`hashgrid.reference`.
"""

from hashgrid import ops, optim, reference
from hashgrid.levels import LevelTable, make_level_table
from hashgrid.nn import (
    MLP,
    Bacon,
    CoordX,
    Frequency,
    FusedMLP,
    HashGrid,
    IntegratedFrequency,
    LearnedFourier,
    Lines,
    MultiplicativeFilterNetwork,
    NetworkWithInputEncoding,
    OccupancyGrid,
    OneBlob,
    Permutohedral,
    Planes,
    PlanesAndLines,
    RandomFourier,
    RaySamples,
    Siren,
    SphericalHarmonics,
    TriangleWave,
    Wire,
    curl,
    derivatives_along,
    divergence,
    gradient,
    jacobian,
    laplacian,
    value_and_jacobian,
    value_and_laplacian,
)
from hashgrid.rendering.composite import composite
from hashgrid.util.threads import follow_environment, own_threads
from hashgrid.version import __version__

follow_environment()

__all__ = [
    "Bacon",
    "CoordX",
    "Frequency",
    "FusedMLP",
    "HashGrid",
    "IntegratedFrequency",
    "LearnedFourier",
    "LevelTable",
    "Lines",
    "MLP",
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
    "__version__",
    "composite",
    "curl",
    "derivatives_along",
    "divergence",
    "gradient",
    "jacobian",
    "laplacian",
    "make_level_table",
    "ops",
    "optim",
    "own_threads",
    "reference",
    "value_and_jacobian",
    "value_and_laplacian",
]
