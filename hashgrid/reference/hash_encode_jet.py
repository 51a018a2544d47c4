"""Multiresolution hash encoding with derivatives along directions, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid.levels import LevelTable
from hashgrid.ops._tensors import at_least_fp32
from hashgrid.reference.hash_encode import _cell_corners, _check_arguments, _gather, _split_levels
from hashgrid.reference.mlp_jet import along_each

Jet = tuple[Tensor, Tensor, Tensor]  # value [N, 1], first and second derivative [N, K]


def hash_encode_jet(
    positions: Tensor,
    directions: Tensor,
    table: Tensor,
    levels: LevelTable,
    interpolation: str = "linear",
    bounds: str = "clamp",
    level_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Features of `hash_encode` with their first and second derivatives along directions.

    Args:
        positions: [..., D], the grid covers [0, 1]^D. A row with NaN or inf gives NaN and no gradient.
        directions: [K, D], or [..., K, D] for directions of each position.
        table: [n_entries, F], all levels one after the other.
        levels: geometry of the levels.
        interpolation: as in `hash_encode`. Within a cell "linear" bends only between axes, "nearest" not at all.
        bounds: as in `hash_encode`. Derivatives along an axis on which a position is outside are zero.
        level_weights: [L], multiplies the features of each level.

    Returns:
        Features [..., L * F], first and second derivatives [..., K, L * F].

    Raises:
        ValueError: a shape, a dtype or an option does not fit.
    """
    _check_arguments(positions, table, levels, interpolation, bounds, level_weights, None)
    batch, n_dims = positions.shape[:-1], levels.n_input_dims
    v = at_least_fp32(along_each(directions, positions, "directions"))
    v = v.reshape(batch.numel(), v.shape[-2], n_dims)  # [N, K, D]
    x, table = at_least_fp32(positions.reshape(-1, n_dims)), at_least_fp32(table)

    finite = x.isfinite().all(-1, keepdim=True)  # [N, 1]
    inside = ((x >= 0) & (x <= 1)).all(-1, keepdim=True)  # [N, 1]
    x = torch.where(finite, x, 0)
    if bounds != "none":
        v = torch.where(((x >= 0) & (x <= 1)).unsqueeze(1), v, 0)
        x = x.clamp(0, 1)

    results: list[list[Tensor]] = [[], [], []]
    for level, entries in enumerate(_split_levels(table, levels)):
        index, _ = _cell_corners(x, levels, level, interpolation)  # [N, 2^D]
        values = _gather(entries, index).unsqueeze(1)  # [N, 1, 2^D, F]
        weights = _corner_jets(x, v.to(x.dtype), levels, level, interpolation)
        for result, weight in zip(results, weights, strict=True):
            result.append((weight.unsqueeze(-1) * values).sum(-2))  # [N, 1 or K, F]

    stacked = [torch.stack(result, dim=-2) for result in results]  # [N, 1 or K, L, F]
    if level_weights is not None:
        stacked = [result * level_weights.to(result.dtype).unsqueeze(-1) for result in stacked]
    rows = [result.flatten(-2) for result in stacked]
    # masks come last, so that not even a NaN cotangent of a masked row passes
    if bounds == "zero":
        rows = [torch.where(inside.unsqueeze(-1), row, 0) for row in rows]
    y, first, second = (torch.where(finite.unsqueeze(-1), row, torch.nan) for row in rows)
    shape = *batch, *first.shape[1:]
    return y.reshape(*batch, y.shape[-1]), first.reshape(shape), second.reshape(shape)


def _corner_jets(x: Tensor, v: Tensor, levels: LevelTable, level: int, interpolation: str) -> Jet:
    """Weights of the corners around ``x`` [N, D] in the order of `_cell_corners`, value [N, 1, 2^D], and their
    derivatives along ``v`` [N, K, D], [N, K, 2^D] each."""
    scales = torch.tensor(levels.scales[level], dtype=torch.float64, device=x.device)
    p = (x.double() * scales + levels.shift).to(x.dtype)
    f = p - p.detach().floor()  # [N, D]
    slope = scales.to(v.dtype) * v
    one, zero = torch.ones_like(f[:, :1]), torch.zeros_like(v[..., 0])
    corners: list[Jet] = [(one, zero, zero)]
    for axis in range(levels.n_input_dims):
        if interpolation == "nearest":
            continue
        g, s = f[:, axis : axis + 1], slope[..., axis]
        upper = (g, s, torch.zeros_like(s))
        if interpolation == "smoothstep":
            upper = (g * g * (3 - 2 * g), 6 * g * (1 - g) * s, (6 - 12 * g) * s * s)
        lower = (1 - upper[0], -upper[1], -upper[2])
        corners = [_product(corner, end) for end in (lower, upper) for corner in corners]
    value, first, second = (torch.stack(part, dim=-1) for part in zip(*corners, strict=True))
    return value, first, second


def _product(a: Jet, b: Jet) -> Jet:
    return a[0] * b[0], a[1] * b[0] + a[0] * b[1], a[2] * b[0] + 2 * a[1] * b[1] + a[0] * b[2]
