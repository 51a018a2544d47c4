"""What is known of a grid's entry before it is read: how large those around it are, and of which sign.

Entries of a level are read in passes: first every eighth of every eighth row, then those in the middle of four known
ones, then those between two pairs of known ones, and so on with half the distance; a pass is read at once. Entries are
zeros where the picture is smooth and large at edges, and neighbours mostly have the same sign. So a weighted sum of the
magnitudes around an entry puts it into one of `N_CLASSES`, which has a distribution of magnitudes, and a sum of the
values around it into one of `N_SIGNS`, which says how likely it has the sign of that sum. All of it is integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

THRESHOLDS = (1, 2, 3, 5, 7, 10, 14, 20, 28, 40, 56, 80, 112, 160, 224)  # sums in 1/64 at which the next class begins
N_CLASSES = len(THRESHOLDS) + 1
N_SIGNS = 6  # of the sum of values around: none, then 1, 2, 3, 4..6, 7 and more
LARGEST_SEEN = 31  # larger ones around an entry say no more
COARSEST = 8  # distance of the entries of the first pass
MARGIN = COARSEST  # zeros around a plane, so that each entry has neighbours

# What a pass makes of the mean of the level (in 1/64, of 8 shares), of each near neighbour, of each diagonal one (in
# 1/64), and of the nine entries around the one above it in the coarser level (in 1/512).
_WEIGHTS = {"first": (3, 0, 0, 5), "middle": (1, 0, 14, 3), "between": (1, 14, 0, 2), "last": (0, 10, 5, 1)}
_CLASS_OF_SUM = np.searchsorted(np.array(THRESHOLDS), np.arange(4096), side="right").astype(np.uint8)
_SIGN_OF_SUM = np.searchsorted(np.array((1, 2, 3, 4, 7)), np.arange(8 * LARGEST_SEEN + 1), side="right").astype(
    np.uint8
)


class Pass(NamedTuple):
    """Entries that are read at once."""

    where: tuple[slice, slice]  # of the plane
    classes: np.ndarray  # uint8, 0..N_CLASSES - 1
    signs: np.ndarray  # uint8, 0..N_SIGNS - 1
    expected: np.ndarray  # int16, -1 or 1: the sign of the sum around, 1 where it is 0


def bordered(plane: np.ndarray) -> np.ndarray:
    """A plane [H, W] as far as it is looked at, int16 [H + 16, W + 16] with a border of zeros."""
    return np.pad(np.clip(plane, -LARGEST_SEEN, LARGEST_SEEN).astype(np.int16), MARGIN)


def mean_of(plane: np.ndarray) -> int:
    """Mean magnitude in 1/64, 0..255: what the file says of a plane besides its entries."""
    return min(255, int(np.abs(plane).astype(np.int64).sum()) * 64 // max(1, plane.size))


def passes(own: np.ndarray, mean: int, above: np.ndarray | None) -> Iterator[Pass]:
    """The passes over a plane. They look at entries of passes before them only, so that ``own`` may be filled in as
    they go.

    Args:
        own: the plane, :func:`bordered`.
        mean: its :func:`mean_of`.
        above: the same channel one level coarser, bordered, whose entry [i, j] lies at [2 i, 2 j]; None for none.
    """
    height, width = own.shape[0] - 2 * MARGIN, own.shape[1] - 2 * MARGIN
    coarser = None if above is None else _nine(above)
    for (kind, first, stride, distance), where in _slices(height, width):
        shape = tuple(len(range(*part.indices(n))) for part, n in zip(where, (height, width), strict=True))

        def at(dy: int, dx: int, first=first, stride=stride, shape=shape) -> np.ndarray:
            y, x = first[0] + MARGIN + dy, first[1] + MARGIN + dx
            return own[y : y + stride * (shape[0] - 1) + 1 : stride, x : x + stride * (shape[1] - 1) + 1 : stride]

        of_mean, of_near, of_far, of_above = _WEIGHTS[kind]
        size, values = np.full(shape, of_mean * mean >> 3, np.int32), np.zeros(shape, np.int16)
        for weight, factor, offsets in ((of_near, 2 if of_far else 1, _NEAR), (of_far, 1, _FAR)):
            for dy, dx in offsets if weight else ():
                value = at(dy * distance, dx * distance)
                size += weight * np.abs(value)
                values += factor * value
        if coarser is not None:
            y, x = (np.arange(start, n, stride) + 1 >> 1 for start, n in zip(first, (height, width), strict=True))
            size += (of_above * coarser[np.minimum(y, len(coarser) - 1)][:, np.minimum(x, coarser.shape[1] - 1)]) >> 3
        expected = np.where(values < 0, -1, 1).astype(np.int16)
        sign = _SIGN_OF_SUM[np.minimum(np.abs(values), len(_SIGN_OF_SUM) - 1)]
        yield Pass(where, _CLASS_OF_SUM[np.minimum(size, len(_CLASS_OF_SUM) - 1)], sign, expected)


_NEAR = ((0, 1), (1, 0), (0, -1), (-1, 0))
_FAR = ((1, 1), (1, -1), (-1, 1), (-1, -1))


def _order() -> Iterator[tuple[str, tuple[int, int], int, int]]:
    """Kind, first row and column, stride, and distance of the neighbours that are known, of each pass."""
    yield "first", (0, 0), COARSEST, COARSEST
    distance = COARSEST // 2
    while distance:
        yield "middle", (distance, distance), 2 * distance, distance
        yield "between", (0, distance), 2 * distance, distance
        yield "last", (distance, 0), 2 * distance, distance
        distance //= 2


def _slices(height: int, width: int) -> Iterator[tuple[Any, tuple[slice, slice]]]:
    """Each of :func:`_order` that has entries in a plane, and where."""
    for step in _order():
        _, (y, x), stride, _ = step
        if y < height and x < width:
            yield step, (slice(y, height, stride), slice(x, width, stride))


def orders(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """The entries of each of :func:`passes` over a plane [H, W]."""
    return (where for _, where in _slices(height, width))


def _nine(plane: np.ndarray) -> np.ndarray:
    """Sums [H, W] of the nine magnitudes around each entry of a bordered plane."""
    size = np.abs(plane).astype(np.int32)
    rows = size[:-2] + size[1:-1] + size[2:]
    sums = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return sums[MARGIN - 1 : 1 - MARGIN, MARGIN - 1 : 1 - MARGIN]
