"""Multiresolution hash encoding (Müller et al. 2022, section 3) in plain PyTorch."""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor

from hashgrid.levels import LevelTable
from hashgrid.maths import straight_through
from hashgrid.ops._tensors import at_least_fp32, maths_dtype
from hashgrid.util.choices import BOUNDS, INTERPOLATIONS, check_option

HASH_FACTORS = (1, 2654435761, 805459861, 3674653429, 2097192037, 1434869437, 2165219737)
UINT32_MASK = 0xFFFFFFFF


def hash_encode(
    positions: Tensor,
    table: Tensor,
    levels: LevelTable,
    interpolation: str = "linear",
    bounds: str = "clamp",
    level_weights: Tensor | None = None,
) -> Tensor:
    """Features of ``positions``, interpolated in every level of the grid.

    Twice differentiable to ``positions``, ``table`` and ``level_weights``. The maths runs in the dtype of ``positions``
    and ``table``, half precision being read as fp32.

    Args:
        positions: [..., D], the grid covers [0, 1]^D. A row with NaN or inf gives NaN features and no gradient.
        table: [n_entries, F], all levels one after the other.
        levels: geometry of the levels.
        interpolation: "linear", "smoothstep" f^2 (3 - 2 f), or "nearest" (no position gradient).
        bounds: outside [0, 1]^D, "clamp" moves positions to the border (no position gradient along the clamped axes),
            "zero" returns zeros without gradients, "none" continues the grid, its cells wrapped to uint32 as in tcnn.
        level_weights: [L], multiplies the features of each level (a soft coarse-to-fine mask).

    Returns:
        [..., L * F] with channel ``l * F + f``, in the dtype of ``table``, at least fp32.

    Raises:
        ValueError: a shape, a dtype or an option does not fit.
    """
    return _encode(positions, table, levels, interpolation, bounds, level_weights, None)


def hash_encode_into(
    positions: Tensor,
    table: Tensor,
    levels: LevelTable,
    interpolation: str = "linear",
    bounds: str = "clamp",
    level_weights: Tensor | None = None,
    half_table: Tensor | None = None,
    precomputed: Tensor | None = None,
    grad_buffer: Tensor | None = None,
) -> Tensor:
    """See :func:`hashgrid.ops._ngp.hash_encode_into`; autograd passes the gradient of ``table`` on, nothing is added to
    ``grad_buffer``."""
    y = _encode(positions, table, levels, interpolation, bounds, level_weights, half_table)
    return y if precomputed is None else straight_through(precomputed, y)


def _encode(
    positions: Tensor,
    table: Tensor,
    levels: LevelTable,
    interpolation: str,
    bounds: str,
    level_weights: Tensor | None,
    half_table: Tensor | None,
) -> Tensor:
    _check_arguments(positions, table, levels, interpolation, bounds, level_weights, half_table)
    x = positions.reshape(-1, levels.n_input_dims)  # [N, D]
    x, table = at_least_fp32(x), at_least_fp32(table)

    finite = x.isfinite().all(-1, keepdim=True)  # [N, 1]
    inside = ((x >= 0) & (x <= 1)).all(-1, keepdim=True)  # [N, 1]
    x = torch.where(finite, x, 0)
    if bounds != "none":
        x = x.clamp(0, 1)

    features = []
    for level, entries in enumerate(_split_levels(table, levels)):
        index, weight = _cell_corners(x, levels, level, interpolation)  # [N, 2^D] each
        values = _gather(entries, index)  # [N, 2^D, F]
        if half_table is not None:
            values = straight_through(_gather(_split_levels(half_table, levels)[level], index), values)
        features.append((weight.unsqueeze(-1) * values).sum(-2))
    y = torch.stack(features, dim=-2)  # [N, L, F]

    if level_weights is not None:
        y = y * level_weights.to(y.dtype).unsqueeze(-1)
    y = y.flatten(-2)  # [N, L * F]
    # masks come last, so that not even a NaN cotangent of a masked row passes
    if bounds == "zero":
        y = torch.where(inside, y, 0)
    y = torch.where(finite, y, torch.nan)
    return y.to(table.dtype).reshape(*positions.shape[:-1], y.shape[-1])


def _cell_corners(x: Tensor, levels: LevelTable, level: int, interpolation: str) -> tuple[Tensor, Tensor]:
    """Entry index and weight of the corners around ``x`` [N, D], both [N, 2^D]; bit d of the corner steps along axis d.

    ``interpolation="nearest"`` has the lower corner only, [N, 1].
    """
    # through float64, where the product of two fp32 numbers is exact: that is fma(scale, x, shift) in fp32
    scales = torch.tensor(levels.scales[level], dtype=torch.float64, device=x.device)
    p = (x.double() * scales + levels.shift).to(x.dtype)
    corner = p.detach().floor()
    # saturates as in the kernels; the low 32 bits of this int64 are the uint32 cell
    cell = corner.clamp(-(2.0**30), 2.0**30).long()

    if interpolation == "nearest":
        steps = [(0, torch.ones_like(p))]
    else:
        f = p - corner
        if interpolation == "smoothstep":
            f = f * f * (3 - 2 * f)
        steps = [(0, 1 - f), (1, f)]

    # axis by axis 1, 2, 4, ... 2^D corners; a list of [N] tensors, which torch.compile keeps apart until the stack
    hashed, combine = levels.hashed[level], operator.xor if levels.hashed[level] else operator.add
    corners: list[tuple[Tensor, Tensor]] = []
    for axis in range(levels.n_input_dims):
        factor = HASH_FACTORS[axis] if hashed else math.prod(levels.resolutions[level][:axis])
        # |cell| <= 2^30, so that int64 holds the product
        ends = [((cell[:, axis] + step) * factor & UINT32_MASK, weight[:, axis]) for step, weight in steps]
        if axis == 0:
            corners = ends
        else:
            corners = [(combine(i, term), w * weight) for term, weight in ends for i, w in corners]
    index = torch.stack([(i & UINT32_MASK) % levels.sizes[level] for i, _ in corners], dim=-1)
    return index, torch.stack([w for _, w in corners], dim=-1)


def _gather(entries: Tensor, index: Tensor) -> Tensor:
    """Returns ``entries[index]``, by index_select because its gradient, index_add, is the fastest of PyTorch's on the
    CPU."""
    return entries.index_select(0, index.flatten()).unflatten(0, index.shape)


def _split_levels(table: Tensor, levels: LevelTable) -> tuple[Tensor, ...]:
    """The entries of each level, [size, F] each."""
    ends = [offset + size for offset, size in zip(levels.offsets, levels.sizes, strict=True)]
    if list(levels.offsets) == [0, *ends[:-1]]:
        return table.split(levels.sizes)  # one concatenation backward, where slices add up a full table per level
    return tuple(table[offset:end] for offset, end in zip(levels.offsets, ends, strict=True))


def _check_arguments(
    positions: Tensor,
    table: Tensor,
    levels: LevelTable,
    interpolation: str,
    bounds: str,
    level_weights: Tensor | None,
    half_table: Tensor | None,
) -> None:
    if positions.dim() < 1 or positions.shape[-1] != levels.n_input_dims:
        raise ValueError(f"`positions` must have shape [..., {levels.n_input_dims}], got {list(positions.shape)}")
    if table.dim() != 2 or table.shape[0] != levels.n_entries:
        raise ValueError(f"`table` must have shape [{levels.n_entries}, F], got {list(table.shape)}")
    if maths_dtype(table) != maths_dtype(positions):
        raise ValueError(
            f"`table` must be {maths_dtype(positions)} for {positions.dtype} `positions`, got {table.dtype}"
        )
    check_option("interpolation", interpolation, INTERPOLATIONS)
    check_option("bounds", bounds, BOUNDS)
    if level_weights is not None and level_weights.shape != (levels.n_levels,):
        raise ValueError(f"`level_weights` must have shape [{levels.n_levels}], got {list(level_weights.shape)}")
    if half_table is not None and half_table.shape != table.shape:
        raise ValueError(f"`half_table` must have shape {list(table.shape)} like `table`, got {list(half_table.shape)}")
