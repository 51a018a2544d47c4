"""The level table of a multiresolution grid: computed once on the host and handed to every backend.

Recomputing ``exp2`` on each device shifts cells where the scale is an exact power, so nothing else in the
package derives a scale or a resolution.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hashgrid.util.choices import as_integer

MAX_LEVELS = 64
MAX_INPUT_DIMS = 7
FEATURE_COUNTS = (1, 2, 4, 8)
CONVENTIONS = ("tcnn", "paper")


@dataclass(frozen=True)
class LevelTable:
    """Geometry of every level; all sequences have length ``n_levels``.

    Attributes:
        n_input_dims: dimensions D of the positions.
        scales: cells per unit length, each exactly representable in fp32.
        resolutions: vertices per axis.
        shift: added to ``scale * x`` (0.5 in tcnn's convention, 0 in the paper's).
        offsets: first table entry of the level.
        sizes: entries of the level.
        hashed: whether the level is hashed; dense levels are row-major with x fastest.
        arguments: all of them but the dimensions, as the compiled ops take them.
    """

    n_input_dims: int
    scales: tuple[float, ...]
    resolutions: tuple[int, ...]
    shift: float
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    hashed: tuple[bool, ...]
    arguments: tuple[Any, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        n = len(self.scales)
        for name in ("resolutions", "offsets", "sizes", "hashed"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"`{name}` must have {n} values, one per level, got {len(getattr(self, name))}")
        if not 1 <= n <= MAX_LEVELS:
            raise ValueError(f"`n_levels` must be in 1..{MAX_LEVELS}, got {n}")
        if not 1 <= self.n_input_dims <= MAX_INPUT_DIMS:
            raise ValueError(f"`n_input_dims` must be in 1..{MAX_INPUT_DIMS}, got {self.n_input_dims}")
        for level, scale in enumerate(self.scales):
            if not math.isfinite(scale) or round_fp32(scale) != scale:
                raise ValueError(f"`scales[{level}]` must be a finite fp32 value, got {scale!r}; round it to fp32")
        if min(self.sizes) < 1 or min(self.offsets) < 0 or min(self.resolutions) < 1:
            raise ValueError("`sizes` and `resolutions` must be positive and `offsets` non-negative")
        if max(self.sizes) >= 2**31 or max(self.resolutions) >= 2**32:
            raise ValueError("`sizes` must be below 2^31 and `resolutions` below 2^32")
        hashed = [int(is_hashed) for is_hashed in self.hashed]
        lists = (list(self.scales), list(self.resolutions), self.shift, list(self.offsets), list(self.sizes), hashed)
        object.__setattr__(self, "arguments", lists)

    @property
    def n_levels(self) -> int:
        return len(self.scales)

    @property
    def n_entries(self) -> int:
        """Rows the feature table must have."""
        return max(offset + size for offset, size in zip(self.offsets, self.sizes, strict=True))


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
    base_resolution: int = 16,
    max_resolution: float | None = 2048,
    per_level_scale: float | None = None,
    convention: str = "tcnn",
) -> LevelTable:
    """Levels of a grid that grows from ``base_resolution`` by ``per_level_scale`` per level.

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
    base_resolution = as_integer("base_resolution", base_resolution)
    if not 1 <= n_input_dims <= MAX_INPUT_DIMS:
        raise ValueError(f"`n_input_dims` must be in 1..{MAX_INPUT_DIMS}, got {n_input_dims}")
    if not 1 <= n_levels <= MAX_LEVELS:
        raise ValueError(f"`n_levels` must be in 1..{MAX_LEVELS}, got {n_levels}")
    if not 0 <= log2_hashmap_size <= 30:
        raise ValueError(f"`log2_hashmap_size` must be in 0..30, got {log2_hashmap_size}")
    if base_resolution < 1:
        raise ValueError(f"`base_resolution` must be at least 1, got {base_resolution}")
    if per_level_scale is None:
        if max_resolution is None:
            raise ValueError("give `max_resolution` or `per_level_scale`, got neither")
        if max_resolution < base_resolution:
            raise ValueError(
                f"`max_resolution` must be at least `base_resolution` {base_resolution}, got {max_resolution}"
            )
        growth = (float(max_resolution) / base_resolution) ** (1 / (n_levels - 1)) if n_levels > 1 else 1.0
    else:
        growth = float(per_level_scale)
        if not growth > 0 or not math.isfinite(growth):
            raise ValueError(f"`per_level_scale` must be positive and finite, got {per_level_scale}")

    scales, resolutions, offsets, sizes, hashed = [], [], [], [], []
    offset = 0
    for level in range(n_levels):
        if convention == "tcnn":
            scale = round_fp32(2.0 ** (level * math.log2(growth)) * base_resolution - 1.0)
            resolution = math.ceil(scale) + 1 if math.isfinite(scale) else 2**32
        else:
            scale = round_fp32(math.floor(base_resolution * growth**level + 1e-9))
            resolution = int(scale) + 1 if math.isfinite(scale) else 2**32
        if resolution >= 2**31:
            raise ValueError(
                f"level {level} would have {resolution} vertices per axis, the limit is 2^31;"
                " lower `per_level_scale`, `max_resolution` or `n_levels`"
            )
        dense_entries = resolution**n_input_dims
        size = min((dense_entries + 7) // 8 * 8, 2**log2_hashmap_size)
        scales.append(scale)
        resolutions.append(resolution)
        offsets.append(offset)
        sizes.append(size)
        hashed.append(dense_entries > size)
        offset += size
    shift = 0.5 if convention == "tcnn" else 0.0
    return LevelTable(
        n_input_dims, tuple(scales), tuple(resolutions), shift, tuple(offsets), tuple(sizes), tuple(hashed)
    )


def as_level_table(levels: LevelTable | Sequence[dict], n_input_dims: int) -> LevelTable:
    """A ``LevelTable`` from itself or from dicts with the keys scale, resolution, shift, offset, size, hashed."""
    if isinstance(levels, LevelTable):
        if levels.n_input_dims != n_input_dims:
            raise ValueError(f"`level_table` is for {levels.n_input_dims} input dims, `n_input_dims` is {n_input_dims}")
        return levels
    shifts = {float(level["shift"]) for level in levels}
    if len(shifts) != 1:
        raise ValueError(f"`level_table` must use one `shift` for all levels, got {sorted(shifts)}")
    return LevelTable(
        n_input_dims,
        tuple(float(level["scale"]) for level in levels),
        tuple(as_integer("resolution", level["resolution"]) for level in levels),
        shifts.pop(),
        tuple(as_integer("offset", level["offset"]) for level in levels),
        tuple(as_integer("size", level["size"]) for level in levels),
        tuple(bool(level["hashed"]) for level in levels),
    )
