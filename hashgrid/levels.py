"""The level table of a multiresolution grid: computed once on the host and handed to every backend.

Recomputing ``exp2`` on each device shifts cells where the scale is an exact power, so nothing else in the
package derives a scale or a resolution.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from hashgrid.util.choices import as_integer, as_integers

MAX_LEVELS = 64
MAX_INPUT_DIMS = 7
MAX_AXES = 192  # levels times dimensions where axes differ; kMaxAxes of the kernels
FEATURE_COUNTS = (1, 2, 4, 8)
CONVENTIONS = ("tcnn", "paper")


@dataclass(frozen=True)
class LevelTable:
    """Geometry of every level; all sequences have length ``n_levels``.

    Attributes:
        n_input_dims: dimensions D of the positions.
        scales: cells per unit length, D of each level, each exactly representable in fp32. One number stands for D.
        resolutions: vertices per axis, D of each level or one that stands for D.
        shift: added to ``scale * x`` (0.5 in tcnn's convention, 0 in the paper's).
        offsets: first table entry of the level.
        sizes: entries of the level.
        hashed: whether the level is hashed; dense levels are row-major with x fastest, ``x + y r_x + z r_x r_y + ...``.
        arguments: what ops take: the scales with the shift last, and a row per level of D resolutions, offset, size and
            hashed.
        per_axis: whether axes of a level differ.
    """

    n_input_dims: int
    scales: tuple[tuple[float, ...], ...]
    resolutions: tuple[tuple[int, ...], ...]
    shift: float
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    hashed: tuple[bool, ...]
    arguments: tuple[tuple[float, ...], tuple[int, ...]] = field(init=False, repr=False, compare=False)
    per_axis: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        n = len(self.scales)
        for name in ("resolutions", "offsets", "sizes", "hashed"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"`{name}` must have {n} values, one per level, got {len(getattr(self, name))}")
        if not 1 <= n <= MAX_LEVELS:
            raise ValueError(f"`n_levels` must be in 1..{MAX_LEVELS}, got {n}")
        if not 1 <= self.n_input_dims <= MAX_INPUT_DIMS:
            raise ValueError(f"`n_input_dims` must be in 1..{MAX_INPUT_DIMS}, got {self.n_input_dims}")
        for name in ("scales", "resolutions"):
            rows = (_per_axis(f"{name}[{i}]", row, self.n_input_dims) for i, row in enumerate(getattr(self, name)))
            object.__setattr__(self, name, tuple(rows))
        for level, row in enumerate(self.scales):
            for scale in row:
                if not math.isfinite(scale) or round_fp32(scale) != scale:
                    raise ValueError(f"`scales[{level}]` must be a finite fp32 value, got {scale!r}; round it to fp32")
        if min(self.sizes) < 1 or min(self.offsets) < 0 or min(map(min, self.resolutions)) < 1:
            raise ValueError("`sizes` and `resolutions` must be positive and `offsets` non-negative")
        if max(self.sizes) >= 2**31 or max(map(max, self.resolutions)) >= 2**32:
            raise ValueError("`sizes` must be below 2^31 and `resolutions` below 2^32")
        per_axis = any(len(set(row)) > 1 for row in (*self.scales, *self.resolutions))
        object.__setattr__(self, "per_axis", per_axis)
        if per_axis and n * self.n_input_dims > MAX_AXES:
            raise ValueError(
                f"axes may differ in grids of up to {MAX_AXES} levels times dimensions, got {n} levels of"
                f" {self.n_input_dims} dimensions; use fewer levels"
            )
        levels = zip(self.resolutions, self.offsets, self.sizes, self.hashed, strict=True)
        geometry = tuple(value for row, offset, size, hashed in levels for value in (*row, offset, size, int(hashed)))
        scales = tuple(scale for row in self.scales for scale in row)
        object.__setattr__(self, "arguments", ((*scales, self.shift), geometry))

    @property
    def n_levels(self) -> int:
        return len(self.scales)

    @property
    def n_entries(self) -> int:
        """Rows the feature table must have."""
        return max(offset + size for offset, size in zip(self.offsets, self.sizes, strict=True))


def _per_axis(name: str, value: Any, n: int) -> tuple[Any, ...]:
    """Return the ``n`` numbers of ``value``, a single one as so many of it."""
    is_one = not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0  # arrays of no dimension are numbers
    row = (value,) * n if is_one else tuple(value)
    if len(row) != n:
        raise ValueError(f"`{name}` must be a number or {n} of them, one per axis, got {value!r}")
    return row


def round_fp32(value: float) -> float:
    """``value`` rounded to the nearest fp32 number (inf where it overflows)."""
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.inf


def make_level_table(
    n_input_dims: int = 3,
    n_levels: int = 16,
    log2_hashmap_size: int = 19,
    base_resolution: int | Sequence[int] = 16,
    max_resolution: float | Sequence[float] | None = 2048,
    per_level_scale: float | Sequence[float] | None = None,
    convention: str = "tcnn",
) -> LevelTable:
    """Levels of a grid that grows from ``base_resolution`` by ``per_level_scale`` per level.

    Each of the three is one number, or one per axis: ``make_level_table(base_resolution=(16, 16, 8),
    max_resolution=(512, 512, 64))``. A level is dense where the product of its resolutions fits.

    ``per_level_scale``, when given, wins over ``max_resolution``; otherwise it is
    ``(max_resolution / base_resolution) ** (1 / (n_levels - 1))`` (Müller et al. 2022, eq. 3). Scales are evaluated in
    float64 and rounded to fp32: ``2^(l log2 b) N0 - 1`` for ``convention="tcnn"``, ``floor(N0 b^l + 1e-9)`` for
    ``convention="paper"``.

    Raises:
        ValueError: an argument is out of range, or a level would exceed fp32 or 2^31 vertices per axis.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"`convention` must be one of {CONVENTIONS}, got {convention!r}")
    n_input_dims, n_levels = as_integer("n_input_dims", n_input_dims), as_integer("n_levels", n_levels)
    log2_hashmap_size = as_integer("log2_hashmap_size", log2_hashmap_size)
    if not 1 <= n_input_dims <= MAX_INPUT_DIMS:
        raise ValueError(f"`n_input_dims` must be in 1..{MAX_INPUT_DIMS}, got {n_input_dims}")
    if not 1 <= n_levels <= MAX_LEVELS:
        raise ValueError(f"`n_levels` must be in 1..{MAX_LEVELS}, got {n_levels}")
    if not 0 <= log2_hashmap_size <= 30:
        raise ValueError(f"`log2_hashmap_size` must be in 0..30, got {log2_hashmap_size}")
    bases = as_integers("base_resolution", base_resolution, n_input_dims)
    if min(bases) < 1:
        raise ValueError(f"`base_resolution` must be at least 1, got {base_resolution}")
    growths = _growths(bases, n_levels, max_resolution, per_level_scale)

    scales, resolutions, offsets, sizes, hashed = [], [], [], [], []
    offset = 0
    for level in range(n_levels):
        axes = [
            _scale_and_resolution(base, growth, level, convention) for base, growth in zip(bases, growths, strict=True)
        ]
        if max(resolution for _, resolution in axes) >= 2**31:
            raise ValueError(
                f"level {level} would have {max(resolution for _, resolution in axes)} vertices per axis, the limit is"
                " 2^31; lower `per_level_scale`, `max_resolution` or `n_levels`"
            )
        dense_entries = math.prod(resolution for _, resolution in axes)
        size = min((dense_entries + 7) // 8 * 8, 2**log2_hashmap_size)
        scales.append(tuple(scale for scale, _ in axes))
        resolutions.append(tuple(resolution for _, resolution in axes))
        offsets.append(offset)
        sizes.append(size)
        hashed.append(dense_entries > size)
        offset += size
    shift = 0.5 if convention == "tcnn" else 0.0
    return LevelTable(
        n_input_dims, tuple(scales), tuple(resolutions), shift, tuple(offsets), tuple(sizes), tuple(hashed)
    )


def dense_level_table(resolutions: Sequence[Sequence[int]]) -> LevelTable:
    """Dense levels over the unit cube whose outermost vertices lie on its sides, one after the other: of each level the
    vertices along every axis, at least 1, as in ``[(16, 16), (32, 24)]``.

    Raises:
        ValueError: a level has no vertices, or more than 2^31.
    """
    sizes = [math.prod(row) for row in resolutions]
    return LevelTable(
        n_input_dims=len(resolutions[0]),
        scales=tuple(tuple(n - 1.0 for n in row) for row in resolutions),
        resolutions=tuple(tuple(row) for row in resolutions),
        shift=0.0,
        offsets=tuple(accumulate(sizes[:-1], initial=0)),
        sizes=tuple(sizes),
        hashed=(False,) * len(sizes),
    )


def _growths(
    bases: Sequence[int],
    n_levels: int,
    max_resolution: float | Sequence[float] | None,
    per_level_scale: float | Sequence[float] | None,
) -> list[float]:
    """Return the factor from level to level of every axis."""
    n = len(bases)
    if per_level_scale is not None:
        growths = [float(growth) for growth in _per_axis("per_level_scale", per_level_scale, n)]
        if not all(growth > 0 and math.isfinite(growth) for growth in growths):
            raise ValueError(f"`per_level_scale` must be positive and finite, got {per_level_scale}")
        return growths
    if max_resolution is None:
        raise ValueError("give `max_resolution` or `per_level_scale`, got neither")
    ends = _per_axis("max_resolution", max_resolution, n)
    for base, end in zip(bases, ends, strict=True):
        if end < base:
            raise ValueError(f"`max_resolution` must be at least `base_resolution` {base}, got {end}")
    if n_levels == 1:
        return [1.0] * n
    return [(float(end) / base) ** (1 / (n_levels - 1)) for base, end in zip(bases, ends, strict=True)]


def _scale_and_resolution(base: int, growth: float, level: int, convention: str) -> tuple[float, int]:
    """Return the fp32 scale of a level along one axis and its vertices, 2^32 where the scale overflows."""
    if convention == "tcnn":
        scale = round_fp32(2.0 ** (level * math.log2(growth)) * base - 1.0)
        return scale, math.ceil(scale) + 1 if math.isfinite(scale) else 2**32
    scale = round_fp32(math.floor(base * growth**level + 1e-9))
    return scale, int(scale) + 1 if math.isfinite(scale) else 2**32


def as_level_table(levels: LevelTable | Sequence[dict], n_input_dims: int) -> LevelTable:
    """A ``LevelTable`` from itself or from dicts with the keys scale, resolution, shift, offset, size, hashed, of which
    the first two are numbers or lists of one per axis."""
    if isinstance(levels, LevelTable):
        if levels.n_input_dims != n_input_dims:
            raise ValueError(f"`level_table` is for {levels.n_input_dims} input dims, `n_input_dims` is {n_input_dims}")
        return levels
    shifts = {float(level["shift"]) for level in levels}
    if len(shifts) != 1:
        raise ValueError(f"`level_table` must use one `shift` for all levels, got {sorted(shifts)}")
    return LevelTable(
        n_input_dims,
        tuple(tuple(map(float, _per_axis("scale", level["scale"], n_input_dims))) for level in levels),
        tuple(as_integers("resolution", level["resolution"], n_input_dims) for level in levels),
        shifts.pop(),
        tuple(as_integer("offset", level["offset"]) for level in levels),
        tuple(as_integer("size", level["size"]) for level in levels),
        tuple(bool(level["hashed"]) for level in levels),
    )
