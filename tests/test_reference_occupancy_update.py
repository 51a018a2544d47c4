"""The reference occupancy update against plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hashgrid.reference import occupancy_update


def bits_of(bits: Tensor) -> list[bool]:
    return [bool(byte >> bit & 1) for byte in bits.tolist() for bit in range(8)]


@pytest.mark.parametrize("scale", [1e-3, 1.0])  # threshold: the mean, max_threshold
@pytest.mark.parametrize("n_cells", [1, 8, 61])
def test_matches_plain_python(n_cells: int, scale: float) -> None:
    density = torch.rand(n_cells) * scale
    density[3::5] = -1
    cells = torch.randperm(n_cells)[: (n_cells + 1) // 2]
    values = torch.rand(len(cells)) * scale

    expected = [d if d < 0 else d * 0.95 for d in density.tolist()]
    for cell, value in zip(cells.tolist(), values.tolist(), strict=True):
        if expected[cell] >= 0:
            expected[cell] = max(expected[cell], value)
    visible = [d for d in expected if d >= 0]
    threshold = min(0.01, math.fsum(visible) / len(visible))

    bits = torch.full(((n_cells + 7) // 8,), 255, dtype=torch.uint8)
    occupancy_update(density, bits, cells, values)
    assert density.tolist() == pytest.approx(expected, rel=1e-6)
    if n_cells > 1:  # a single cell is its own mean
        padding = [False] * (-n_cells % 8)
        assert bits_of(bits) == [d > threshold for d in expected] + padding
        assert any(bits_of(bits)) and not all(bits_of(bits)[:n_cells])


def test_invisible_cells_stay_empty_and_out_of_the_mean() -> None:
    density = torch.tensor([-1.0, -1.0, 0.004, 0.002])
    bits = torch.zeros(1, dtype=torch.uint8)
    occupancy_update(density, bits, torch.tensor([0, 1]), torch.tensor([5.0, 5.0]), decay=1.0)
    assert density.tolist() == pytest.approx([-1, -1, 0.004, 0.002])
    assert bits.tolist() == [0b0100]


def test_no_visible_cell_and_no_sampled_cell() -> None:
    density, bits = torch.full((8,), -1.0), torch.full((1,), 255, dtype=torch.uint8)
    occupancy_update(density, bits, torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    assert (density == -1).all() and not bits.any()


def test_nan_values_are_ignored() -> None:
    density, bits = torch.tensor([0.5, 0.1]), torch.zeros(1, dtype=torch.uint8)
    occupancy_update(density, bits, torch.tensor([0]), torch.tensor([math.nan]), decay=1.0)
    assert density.tolist() == pytest.approx([0.5, 0.1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"density": torch.zeros(2, 4)}, r"`density` must have shape \[n_cells\], got \[2, 4\]"),
        ({"bits": torch.zeros(2, dtype=torch.uint8)}, r"`bits` must be uint8 of shape \[1\], got torch.uint8 \[2\]"),
        ({"bits": torch.zeros(1)}, r"`bits` must be uint8 of shape \[1\], got torch.float32 \[1\]"),
        ({"values": torch.zeros(3)}, r"`cells` and `values` must have the same shape \[M\], got \[1\] and \[3\]"),
    ],
)
def test_errors_name_contract_and_actual(changes: dict, message: str) -> None:
    arguments = {
        "density": torch.zeros(8),
        "bits": torch.zeros(1, dtype=torch.uint8),
        "cells": torch.zeros(1, dtype=torch.int64),
        "values": torch.zeros(1),
    }
    with pytest.raises(ValueError, match=message):
        occupancy_update(**arguments | changes)
