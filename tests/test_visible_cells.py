"""Cells of an occupancy grid that are to be evaluated: PyTorch's indices, contracts."""

from __future__ import annotations

import pytest
import torch

from hashgrid.nn import OccupancyGrid
from hashgrid.ops._ngp.visible_cells import visible_cells


@pytest.mark.parametrize("n", [0, 1, 7, 32767, 32768, 32769, 200_001])
def test_has_the_indices_of_nonzero(n: int) -> None:
    density = torch.randn(n)
    density[::5] = 0.0
    density[1::7] = -0.0  # not negative
    density[2::11] = float("nan")  # not at least zero
    for chosen in (None, torch.rand(n) < 0.3, torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)):
        expected = density >= 0 if chosen is None else (density >= 0) & chosen
        assert torch.equal(visible_cells(density, chosen), expected.nonzero().squeeze(-1))


def test_occupied_cells_are_the_bits_that_are_set() -> None:
    grid = OccupancyGrid(torch.tensor([-1.0, -1, -1, 1, 1, 1]), resolution=(5, 3, 7))  # 105 cells, 14 bytes
    for bits in (grid.bits, torch.randint(256, (14,), dtype=torch.uint8), torch.zeros(14, dtype=torch.uint8)):
        grid.bits.copy_(bits)
        expected = [cell for cell in range(105) if int(bits[cell >> 3]) >> (cell & 7) & 1]
        assert grid._occupied_cells().tolist() == expected


def test_bad_input_is_refused() -> None:
    density = torch.zeros(8)
    for arguments, message in (
        ((density.double(),), "`density` must be float32, got float64"),
        ((density.view(2, 4),), r"`density` must have shape \[n_cells\], got \[2, 4\]"),
        ((density, torch.zeros(7, dtype=torch.bool)), r"`chosen` must have shape \[8\], got \[7\]"),
        ((density, torch.zeros(8)), "`chosen` must be bool, got float32"),
    ):
        with pytest.raises(RuntimeError, match=message):
            visible_cells(*arguments)
