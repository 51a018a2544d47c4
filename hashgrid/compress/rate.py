"""What entries of a grid cost, and how to make them cost less."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hashgrid.compress.contexts import N_CLASSES, N_SIGNS
from hashgrid.compress.entropy import CodecError, code_lengths
from hashgrid.compress.grid_code import N_GROUPS, GridSizes, contexts, fit_entries, group_of

LEAST_PRICE, LARGEST_PRICE = 0.2, 14.0  # bits
FINENESS = 1e-6  # of the bound of rounding: many entries lie very close to the middle between two integers
FULL = 0.999  # share of the bytes with which a search ends

Planes = list[np.ndarray]
Attempt = tuple[Planes, bytes]


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


def round_with(values: np.ndarray, bound: float) -> np.ndarray:
    """Integers int32 near ``values``: a magnitude becomes the next larger integer from a fraction of 0.5 + bound on."""
    return (np.sign(values) * np.floor(np.maximum(np.abs(values) + (0.5 - bound), 0))).astype(np.int32)


def round_to_fit(
    sizes: GridSizes, planes: Sequence[np.ndarray], n_bytes: int, encode: Callable[[Planes], bytes], to_fill: bool
) -> Attempt:
    """Integers near real numbers so that they take at most ``n_bytes``, and those bytes. Values between two integers
    become the smaller one more or less often; where that does not do, integers become zero, on fine levels first and
    those first that have the least around them. An entry of a coarse level is seen by more pixels.

    Args:
        encode: makes bytes of integers.
        to_fill: whether bytes that are left may be used by rounding up more often.

    Raises:
        CodecError: it does not fit with zeros alone.
    """

    def rounded(bound: float) -> Planes:
        return [
            round_with(plane, bound / 2 ** (level - sizes.finest))
            for (level, _), plane in zip(sizes.channels, planes, strict=True)
        ]

    def search(low: float, high: float, step: float, make: Callable[[float], Planes]) -> Attempt | None:
        """With the least number that makes few enough bytes: the larger it is, the fewer they are."""
        tried = make(high)
        found = tried, encode(tried)
        if len(found[1]) > n_bytes:
            return None
        while high - low > step and len(found[1]) < FULL * n_bytes:
            tried = make(middle := (low + high) / 2)
            if len(payload := encode(tried)) <= n_bytes:
                found, high = (tried, payload), middle
            else:
                low = middle
        return found

    found = search(-0.2 if to_fill else 0.0, 0.0, FINENESS, rounded) or search(0.0, 0.5, FINENESS, rounded)
    if found is not None:
        return found
    least = rounded(0.5)
    flat = np.concatenate([plane.reshape(-1) for plane in least])
    known = contexts(sizes, least)
    keys = [
        N_CLASSES * level + context.classes.reshape(-1).astype(np.int32)
        for (level, _), context in zip(sizes.channels, known, strict=True)
    ]
    order = np.argsort(np.concatenate(keys), kind="stable")
    order = order[flat[order] != 0]
    ends = np.cumsum([plane.size for plane in planes])[:-1]

    def without(n: float) -> Planes:
        kept = flat.copy()
        kept[order[: int(n)]] = 0
        return [part.reshape(plane.shape) for part, plane in zip(np.split(kept, ends), planes, strict=True)]

    found = search(0, len(order), max(1.0, len(order) / 1000), without)
    if found is None:
        n_least = len(encode(without(len(order))))
        raise CodecError(f"network and steps alone take {n_least} bytes, {n_bytes} are asked for")
    return found
