"""The hash encoding in plain PyTorch, as one would write it for speed; the device decides which one is fastest.

Each takes positions [N, 3] in the unit cube and a table [n_entries, F]; the benchmark times all of them and compares
with the fastest, eager and compiled. Levels whose vertices fit are dense in each, as in :mod:`hashgrid.reference`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hashgrid import reference
from hashgrid.levels import LevelTable
from hashgrid.reference.hash_encode import HASH_FACTORS, UINT32_MASK, _cell_corners


def level_by_level(positions: Tensor, table: Tensor, levels: LevelTable) -> Tensor:
    """``hashgrid.reference``: per level, rows of eight corners by ``index_select`` and their weighted sum."""
    return reference.hash_encode(positions, table, levels)


def embedding_bags(positions: Tensor, table: Tensor, levels: LevelTable) -> Tensor:
    """Per level, ``embedding_bag`` of eight corners with their weights: no [N, 8, F] in memory."""
    features = []
    for level, (offset, size) in enumerate(zip(levels.offsets, levels.sizes, strict=True)):
        index, weight = _cell_corners(positions, levels, level, "linear")
        rows = table[offset : offset + size]
        features.append(torch.nn.functional.embedding_bag(index, rows, mode="sum", per_sample_weights=weight))
    return torch.cat(features, dim=1)


def all_levels_at_once(positions: Tensor, table: Tensor, levels: LevelTable) -> Tensor:
    """[N, L, 8] indices into the whole table and one gather, as most PyTorch code bases have it."""
    device = positions.device
    scales = torch.tensor(levels.scales, dtype=positions.dtype, device=device)
    offsets, sizes = (torch.tensor(values, device=device) for values in (levels.offsets, levels.sizes))
    place = positions.unsqueeze(1) * scales + levels.shift  # [N, L, 3]
    cell = place.floor()
    fraction, cell = place - cell, cell.long()
    n_dense = sum(not hashed for hashed in levels.hashed)  # the coarse ones, which come first
    strides = (
        torch.tensor([(1, x, x * y) for x, y, _ in levels.resolutions[:n_dense]], device=device).long().view(-1, 3)
    )
    dense = hashed = torch.zeros(1, 1, 1, dtype=torch.int64, device=device)
    weight = torch.ones(1, 1, 1, dtype=positions.dtype, device=device)
    for axis in range(3):
        ends = torch.stack([cell[..., axis], cell[..., axis] + 1], dim=-1).unsqueeze(-1)  # [N, L, 2, 1]
        factors = torch.stack([1 - fraction[..., axis], fraction[..., axis]], dim=-1).unsqueeze(-1)
        dense = (dense.unsqueeze(-2) + ends[:, :n_dense] * strides[:, axis].view(-1, 1, 1)).flatten(-2)
        hashed = (hashed.unsqueeze(-2) ^ ends[:, n_dense:] * HASH_FACTORS[axis]).flatten(-2)
        weight = (weight.unsqueeze(-2) * factors).flatten(-2)
    index = torch.cat([dense, hashed & UINT32_MASK], dim=1) % sizes.view(-1, 1) + offsets.view(-1, 1)  # [N, L, 8]
    rows = table.index_select(0, index.flatten()).view(*index.shape, table.shape[1])
    return (weight.unsqueeze(-1) * rows).sum(-2).flatten(1)


HASH_ENCODE: dict[str, Callable[..., Tensor]] = {
    "level by level": level_by_level,
    "embedding bags": embedding_bags,
    "all levels at once": all_levels_at_once,
}
