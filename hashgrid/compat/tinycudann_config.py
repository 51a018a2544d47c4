"""Encodings and networks by the names and keys of tiny-cuda-nn's JSON dictionaries, with its defaults."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from hashgrid.compat.tinycudann_layout import (
    Composite,
    Empty,
    Formula,
    Grid,
    Part,
    Simplices,
    grid_levels,
)
from hashgrid.compat.tinycudann_network import NETWORK_MULTIPLE, Layers
from hashgrid.compat.tinycudann_options import Options, warn
from hashgrid.levels import FEATURE_COUNTS, MAX_INPUT_DIMS, MAX_LEVELS
from hashgrid.nn.encodings import Frequency, OneBlob, SphericalHarmonics, TriangleWave
from hashgrid.util.choices import as_integer

ACTIVATIONS = {
    "None": "none",
    "ReLU": "relu",
    "LeakyReLU": "leaky_relu",
    "SiLU": "silu",
    "Exponential": "exp",
    "Sigmoid": "sigmoid",
    "Sine": "sine",
    "Squareplus": "squareplus",
    "Softplus": "softplus",
    "Tanh": "tanh",
}
NETWORKS = ("FullyFusedMLP", "MegakernelMLP", "CutlassMLP", "MLP")
_GRIDS = {"Grid": "Hash", "HashGrid": "Hash", "TiledGrid": "Tiled", "DenseGrid": "Dense"}
_GRID_TYPES = {"Hash": "hash", "Dense": "dense", "Tiled": "tiled", "Tile": "tiled"}
_REST = "n_dims_to_encode"


def read_encoding(n_input_dims: int, options: Options, backend: str) -> Part:
    """The encoding that a dictionary describes, without padding.

    Raises:
        ValueError: a value is out of range or unknown.
    """
    otype = options.choice("otype", "OneBlob", ENCODINGS)
    part = ENCODINGS[otype](_count("n_input_dims", n_input_dims), options, backend)
    options.warn_of_unknown()
    return part


def read_network(encoding: Part, n_output_dims: int, options: Options, backend: str) -> Layers:
    """The network that a dictionary describes, behind an encoding that is then padded.

    Raises:
        ValueError: a value is out of range or unknown.
    """
    otype = options.choice("otype", "MLP", NETWORKS)
    for key in ("n_input_dims", "n_output_dims"):
        options.get(key)  # which the module's arguments overrule
    encoding.pad_to(NETWORK_MULTIPLE)
    layers = Layers(
        encoding.width,
        _count("n_output_dims", n_output_dims),
        options.integer("n_neurons", 128, least=1),
        options.integer("n_hidden_layers", 5, least=1 if otype in NETWORKS[:2] else 0),
        ACTIVATIONS[options.choice("activation", "ReLU", ACTIVATIONS)],
        ACTIVATIONS[options.choice("output_activation", "None", ACTIVATIONS)],
        backend,
    )
    options.warn_of_unknown()
    return layers


def _count(name: str, value: Any) -> int:
    count = as_integer(name, value)
    if count < 1:
        raise ValueError(f"`{name}` must be at least 1, got {count}")
    return count


def _grid(n_input_dims: int, options: Options, backend: str) -> Part:
    name = options.choice("otype", "Grid", _GRIDS)
    kind = _GRID_TYPES[options.choice("type", _GRIDS[name], _GRID_TYPES)]
    n_features_per_level = options.integer("n_features_per_level", 2)
    if n_features_per_level not in FEATURE_COUNTS:
        key = options.called("n_features_per_level")
        raise ValueError(f"`{key}` must be one of {FEATURE_COUNTS}, got {n_features_per_level}")
    if not 1 <= n_input_dims <= MAX_INPUT_DIMS:
        raise ValueError(f"`n_input_dims` of a grid must be in 1..{MAX_INPUT_DIMS}, got {n_input_dims}")
    n_levels = _n_levels(options, n_features_per_level)
    base_resolution = options.integer("base_resolution", 16, least=1)
    growth = options.number("per_level_scale", _default_growth(kind, base_resolution, n_levels))
    if growth <= 0:
        raise ValueError(f"`{options.called('per_level_scale')}` must be positive, got {growth}")
    options.choice("hash", "CoherentPrime", ("CoherentPrime",))
    if options.flag("fixed_point_pos"):
        raise ValueError(f"`{options.called('fixed_point_pos')}` must be False, got True: positions are floating point")
    if options.flag("stochastic_interpolation"):
        warn(f"`{options.called('stochastic_interpolation')}` has no effect: all corners of a cell are interpolated")
    levels, n_entries = grid_levels(
        n_input_dims, kind, n_levels, options.integer("log2_hashmap_size", 19, most=30), base_resolution, growth
    )
    interpolation = options.choice("interpolation", "Linear", ("Nearest", "Linear", "Smoothstep")).lower()
    return Grid(levels, n_entries, n_features_per_level, interpolation, backend)


def _n_levels(options: Options, n_features_per_level: int) -> int:
    given = [key for key in ("n_features", "n_grid_features") if key in options]
    if not given:
        return options.integer("n_levels", 16, least=1, most=MAX_LEVELS)
    n_features = options.integer(given[0], 0, least=1)
    if "n_levels" in options or n_features % n_features_per_level:
        raise ValueError(
            f"`{options.called(given[0])}` must be a multiple of `n_features_per_level`, and without `n_levels`,"
            f" got {n_features}"
        )
    return n_features // n_features_per_level


def _default_growth(kind: str, base_resolution: int, n_levels: int) -> float:
    """2, or of dense grids what leads to 256 vertices along a side."""
    if kind != "dense" or n_levels == 1:
        return 2.0
    return math.exp(math.log(256 / base_resolution) / (n_levels - 1))


def _spherical_harmonics(n_input_dims: int, options: Options, backend: str) -> Part:
    if n_input_dims != 3:
        raise ValueError(f"`n_input_dims` of spherical harmonics must be 3, got {n_input_dims}")
    module = SphericalHarmonics(options.integer("degree", 4, least=1, most=8), backend)
    return Formula(module, 3, module.n_output_dims, 2.0, -1.0, padding_first=True)


def _frequency(n_input_dims: int, options: Options, backend: str) -> Part:
    module = Frequency(n_input_dims, options.integer("n_frequencies", 12, least=1, most=64), backend)
    return Formula(module, n_input_dims, module.n_output_dims)


def _triangle_wave(n_input_dims: int, options: Options, backend: str) -> Part:
    module = TriangleWave(n_input_dims, options.integer("n_frequencies", 12, least=1, most=64))
    return Formula(module, n_input_dims, module.n_output_dims)


def _one_blob(n_input_dims: int, options: Options, backend: str) -> Part:
    n_bins = options.integer("n_bins", 16, least=1)
    if n_bins & (n_bins - 1):
        raise ValueError(f"`{options.called('n_bins')}` must be a power of two, got {n_bins}")
    module = OneBlob(n_input_dims, n_bins)
    return Formula(module, n_input_dims, module.n_output_dims)


def _identity(n_input_dims: int, options: Options, backend: str) -> Part:
    return Formula(None, n_input_dims, n_input_dims, options.number("scale", 1.0), options.number("offset", 0.0))


def _composite(n_input_dims: int, options: Options, backend: str) -> Part:
    reductions = ("Concatenation", "Sum", "Product")
    reduction = options.choice("reduction", "Concatenation", reductions).lower()
    nested = options.nested("nested")
    places = any("dims_to_encode_begin" in part for part in nested)
    rest = n_input_dims - sum(part.integer(_REST, 0) for part in nested)
    if rest < 0 and not places:
        raise ValueError(
            f"`{options.called('nested')}` must encode {n_input_dims} dimensions at most, got {n_input_dims - rest}"
        )
    parts, begin, has_rest = [], 0, False
    for part in nested:
        if _REST in part:
            begin = part.integer("dims_to_encode_begin", begin)
            n = part.integer(_REST, 0)
        else:
            if places or has_rest:
                raise ValueError(
                    f"`{part.called(_REST)}` must be given, as another encoding has `dims_to_encode_begin` or leaves it"
                    " out, too; got none"
                )
            n, has_rest = rest, True
        if begin + n > n_input_dims:
            raise ValueError(f"`{part.name}` must end at dimension {n_input_dims}, got {n} dimensions from {begin} on")
        if n > 0:
            parts.append((read_encoding(n, part, backend), begin))
        begin += n
    if not parts:
        raise ValueError(f"`{options.called('nested')}` must encode at least one dimension, got none")
    return Composite(n_input_dims, parts, reduction)


def _permutohedral(n_input_dims: int, options: Options, backend: str) -> Part:
    """An encoding of ours, with the keys of a hash grid."""
    n_levels, n_features = options.integer("n_levels", 16, least=1), options.integer("n_features_per_level", 2, least=1)
    base_resolution = options.number("base_resolution", 16)
    growth = options.number("per_level_scale", 2.0)
    if min(base_resolution, growth) <= 0:
        raise ValueError(
            f"`{options.called('base_resolution')}` and `per_level_scale` must be positive, got {base_resolution} and"
            f" {growth}"
        )
    n_entries = n_levels << options.integer("log2_hashmap_size", 18, most=30)
    resolutions = [base_resolution * growth**level for level in range(n_levels)]
    return Simplices(n_input_dims, resolutions, n_entries, n_features)


def _radiance_cache(n_input_dims: int, options: Options, backend: str) -> Part:
    """What Neural Radiance Caching takes: position, then angles and roughness, then the rest."""
    nested = [
        {"n_dims_to_encode": 3, "otype": "TriangleWave", "n_frequencies": options.integer("n_frequencies", 12)},
        {"n_dims_to_encode": 5, "otype": "OneBlob", "n_bins": options.integer("n_bins", 4)},
        {"otype": "Identity"},
    ]
    return _composite(n_input_dims, Options({"nested": nested}, options.name), backend)


ENCODINGS: dict[str, Callable[[int, Options, str], Part]] = {
    **dict.fromkeys(_GRIDS, _grid),
    "Frequency": _frequency,
    "SphericalHarmonics": _spherical_harmonics,
    "OneBlob": _one_blob,
    "TriangleWave": _triangle_wave,
    "Identity": _identity,
    "Empty": lambda n_input_dims, options, backend: Empty(n_input_dims),
    "Permutohedral": _permutohedral,
    "Composite": _composite,
    "OneBlobFrequency": _radiance_cache,
    "NRC": _radiance_cache,
}
