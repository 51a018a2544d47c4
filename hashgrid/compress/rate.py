"""What entries of a grid cost, and how to make them cost less."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hashgrid.compress.contexts import N_CLASSES, N_SIGNS
from hashgrid.compress.entropy import CodecError, code_lengths
from hashgrid.compress.grid_code import N_GROUPS, GridSizes, contexts, fit_entries, group_of

LEAST_PRICE, LARGEST_PRICE = 0.2, 14.0  # bits
FIRST, FINENESS = 0.01, 1e-6  # of bounds of rounding: many numbers lie very close to the middle between two integers
MOST_UP = 0.2  # that a fraction may lie below a half and be rounded up
FULL = 0.999  # share of the bytes with which a search ends

Planes = list[np.ndarray]


def expected_error(photo: np.ndarray, bits_per_pixel: float) -> float:
    """Mean squared error in 0..1 of a photo [H, W, 3] uint8 at some rate, about: a share of what is lost when each four
    by four pixels become one (at .3 bits per pixel JPEG leaves .36 to .75 of that on six photos)."""
    height, width = (n // 4 * 4 for n in photo.shape[:2])
    if min(height, width) < 4:
        return 1e-3
    lost = 0.0
    for rows in np.split(photo[:height, :width], height // 4):
        lost += float((rows / np.float32(255)).reshape(4, width // 4, 4, 3).var(axis=(0, 2)).mean())
    return max(0.45 * lost / (height // 4) * (0.3 / bits_per_pixel) ** 1.2, 1e-6)


def prices(sizes: GridSizes, planes: Sequence[np.ndarray]) -> tuple[float, Planes]:
    """Bytes that integers take, with their distributions, and of each entry the bits that it would save if it were one
    less, or of a zero those that it would cost to be one."""
    known = contexts(sizes, planes)
    entries = fit_entries(sizes, planes, known)
    lengths = np.zeros((N_GROUPS * N_CLASSES, N_SIGNS, 2 * entries.largest + 1))
    for i in entries.classes:
        group, of_class = divmod(i, N_CLASSES)
        for of_sign in range(N_SIGNS):
            lengths[i, of_sign] = code_lengths(entries.distribution(group, of_class * N_SIGNS + of_sign))
    bits, found = 0.0, []
    for (_, channel), plane, context in zip(sizes.channels, planes, known, strict=True):
        classes = context.classes + N_CLASSES * group_of(channel)
        signed = plane * context.expected
        other = np.where(plane == 0, 1, signed - np.sign(signed))
        now, then = (lengths[classes, context.signs, value + entries.largest] for value in (signed, other))
        bits += float(now.sum())
        found.append(np.abs(now - then).clip(LEAST_PRICE, LARGEST_PRICE).astype(np.float32))
    return bits / 8 + len(entries.to_bytes()), found


def round_with(values: np.ndarray, bound: np.ndarray | float) -> np.ndarray:
    """Integers int32 near ``values``: a magnitude becomes the next larger integer from a fraction of 0.5 + bound on."""
    return (np.sign(values) * np.floor(np.maximum(np.abs(values) + (0.5 - bound), 0))).astype(np.int32)


def round_to_fit(
    planes: Sequence[np.ndarray], weights: Sequence[np.ndarray], n_bytes: int, encode: Callable[[Planes], bytes]
) -> tuple[Planes, bytes]:
    """Integers near real numbers so that they take at most ``n_bytes``, and those bytes. A number ``y`` that costs so
    many bits more for each unit becomes the integer that makes the sum of its error and the price of its bits least:
    what is nearest to ``|y|`` less a bound, which is proportional to the bits over the weight of its error. The price
    is the least that will do, and less than nothing where bytes are left.

    Args:
        planes: the numbers.
        weights: bits over the weight of the error of each, in any unit.
        n_bytes: most bytes.
        encode: makes bytes of integers.

    Raises:
        CodecError: it does not fit with zeros alone.
    """
    unit = sum(float(weight.sum()) for weight in weights) / sum(weight.size for weight in weights)

    def attempt(price: float) -> tuple[Planes, bytes]:
        bounds = (np.maximum(weight * np.float32(price / unit), -MOST_UP) for weight in weights)
        rounded = [round_with(plane, bound) for plane, bound in zip(planes, bounds, strict=True)]
        return rounded, encode(rounded)

    low, high, found = -MOST_UP, 0.0, attempt(0.0)
    while len(found[1]) > n_bytes:
        if not any(plane.any() for plane in found[0]):
            raise CodecError(f"network and steps alone take {len(found[1])} bytes, {n_bytes} are asked for")
        low, high = high, max(2 * high, FIRST)
        found = attempt(high)
    while high - low > FINENESS * max(1.0, high) and len(found[1]) < FULL * n_bytes - 4:  # words of 4
        tried = attempt(middle := (low + high) / 2)
        if len(tried[1]) <= n_bytes:
            found, high = tried, middle
        else:
            low = middle
    return found
