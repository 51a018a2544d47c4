"""Sizes and seeds: every kind of integer is taken for the number it is, everything else is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hashgrid import Frequency, FusedMLP, HashGrid, OccupancyGrid, SphericalHarmonics, ops, reference

AABB = [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]
SIZES: list[tuple[Callable[..., nn.Module], dict[str, int]]] = [
    (HashGrid, {"n_input_dims": 3, "n_levels": 4, "n_features_per_level": 2, "log2_hashmap_size": 8}),
    (HashGrid, {"base_resolution": 4, "max_resolution": 64, "n_levels": 2, "log2_hashmap_size": 8}),
    (HashGrid, {"n_input_dims": 7, "base_resolution": 2048, "n_levels": 1, "log2_hashmap_size": 8}),  # 2048^7 > 2^63
    (FusedMLP, {"n_input_dims": 3, "n_output_dims": 2, "n_neurons": 16, "n_hidden_layers": 2}),
    (SphericalHarmonics, {"degree": 3}),
    (Frequency, {"n_input_dims": 2, "n_frequencies": 3}),
    (lambda **sizes: OccupancyGrid(AABB, **sizes), {"resolution": 8, "n_cascades": 2}),
]


def described(module: nn.Module) -> tuple[Any, ...]:
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    return shapes, getattr(module, "levels", None), getattr(module, "n_output_dims", None)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint16, torch.tensor])
@pytest.mark.parametrize(("make", "sizes"), SIZES)
def test_integers_of_other_libraries_are_integers(make: Any, sizes: dict[str, int], kind: Any) -> None:
    assert described(make(**{name: kind(size) for name, size in sizes.items()})) == described(make(**sizes))


@pytest.mark.parametrize(("make", "sizes"), SIZES)
def test_floats_are_refused_by_name(make: Any, sizes: dict[str, int]) -> None:
    for name in set(sizes) - {"max_resolution"}:
        with pytest.raises(ValueError, match=rf"`{name}` must be an integer.*, got {sizes[name]}\.0"):
            make(**{**sizes, name: float(sizes[name])})


def test_one_integer_per_axis_or_layer() -> None:
    assert OccupancyGrid(AABB, np.array([4, 5, 6])).resolution == (4, 5, 6)
    mlp = FusedMLP(3, 1, np.array([8, 4]), 2)
    assert [tuple(weight.shape) for weight in mlp.weights] == [(8, 3), (4, 8), (1, 4)]
    for resolution in ([8.5, 8, 8], "888"):
        with pytest.raises(ValueError, match="`resolution` must be an integer"):
            OccupancyGrid(AABB, resolution)
    with pytest.raises(ValueError, match=r"`resolution` must be an integer or 3 of them, got \[8, 8\]"):
        OccupancyGrid(AABB, [8, 8])


@pytest.mark.parametrize("kind", [np.int64, np.int32])
@pytest.mark.parametrize("backend", [ops, reference])
def test_seeds_are_integers(backend: Any, kind: Any) -> None:
    index = torch.arange(5)
    for seed, step in ((3, 7), (-2, 2**31 - 1)):
        expected = reference.counter_uniform(seed, step, index)
        assert torch.equal(backend.counter_uniform(kind(seed), kind(step), index), expected)
    with pytest.raises(ValueError, match=r"`seed` must be an integer, got 3\.0"):
        backend.counter_uniform(3.0, 7, index)


def test_ready_made_levels_are_not_rounded() -> None:
    level = {"scale": 3.0, "resolution": 4, "shift": 0.5, "offset": 0, "size": 64, "hashed": False}
    numpy = {**level, "resolution": np.int64(4), "offset": np.int32(0), "size": np.uint16(64)}
    assert HashGrid(level_table=[numpy]).levels == HashGrid(level_table=[level]).levels
    for name, wrong in (("resolution", 4.5), ("offset", 0.5), ("size", 64.5)):
        with pytest.raises(ValueError, match=f"`{name}` must be an integer.*, got {wrong}"):
            HashGrid(level_table=[{**level, name: wrong}])
