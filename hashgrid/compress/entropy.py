"""Entropy coding of integers by distributions that are integers themselves.

An arithmetic coder needs the same probabilities on both sides, to the last bit. Here they are counts made by integer
arithmetic from a few bytes, so that a file says all there is to know of a distribution, and every machine makes the
same counts of it. The coder is asymmetric numeral systems (Duda 2013) of the package ``constriction``: 64-bit integers.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from hashgrid.util.optional import optional_import

TOTAL_BITS = 20  # counts of a distribution sum to 2^20
LARGEST = 1 << 15  # magnitude that can be coded
EVEN = 128  # byte of the share of positive ones when signs are as likely


class CodecError(ValueError):
    """Bytes that are not what they should be."""


class Distribution(NamedTuple):
    """Two-sided geometric distribution of the integers ``-largest..largest`` with a zero of its own, in bytes."""

    zero: int  # a share (31/32)^zero is not zero
    ratio: int  # of each magnitude to the one before, in 1/256
    largest: int
    positive: int = EVEN  # share of those that are not zero, in 1/256


@functools.lru_cache(maxsize=4096)
def counts(distribution: Distribution) -> np.ndarray:
    """Counts [2 * largest + 1] of the integers -largest..largest, made by integer arithmetic; none is 0.

    Example:
        >>> counts(Distribution(zero=22, ratio=128, largest=2)).tolist()
        [130376, 130376, 527072, 130376, 130376]
    """
    zero, ratio, largest, positive = distribution
    not_zero = (31**zero << TOTAL_BITS) >> (5 * zero)
    sides = []
    for left in (not_zero * (256 - positive) >> 8, not_zero * positive >> 8):
        side = np.ones(largest, np.int64)
        for i in range(largest):
            if left == 0:
                break
            share = left if i == largest - 1 else (left * (256 - ratio)) >> 8
            side[i] = max(share, 1)
            left -= share
        sides.append(side)
    return np.concatenate((sides[0][::-1], [max((1 << TOTAL_BITS) - not_zero, 1)], sides[1]))


def fit(symbols: np.ndarray, largest: int) -> Distribution:
    """The distribution, with as many positive as negative ones, that codes integers of any shape in few bits."""
    magnitudes = np.abs(symbols.reshape(-1).astype(np.int64))
    n, n_nonzero, total = len(magnitudes), int((magnitudes > 0).sum()), int(magnitudes.sum())
    zero = np.arange(256)
    share = np.clip((31 / 32) ** zero, 2.0**-TOTAL_BITS, 1 - 2.0**-TOTAL_BITS)
    bits = -n_nonzero * np.log2(share) - (n - n_nonzero) * np.log2(1 - share)
    ratio = round(256 * (1 - n_nonzero / total)) if total else 0
    return Distribution(int(bits.argmin()), min(max(ratio, 0), 255), largest)


def code_lengths(distribution: Distribution) -> np.ndarray:
    """Bits [2 * largest + 1] that each of -largest..largest takes."""
    table = counts(distribution)
    return -np.log2(table / table.sum())


def entropy(symbols: np.ndarray, distribution: Distribution) -> float:
    """Bits of integers: what coding them takes, but for some bytes at the end of the file."""
    return float(code_lengths(distribution)[symbols.reshape(-1) + distribution.largest].sum())


@functools.lru_cache(maxsize=512)
def _model(distribution: Distribution) -> Any:
    """The coder's model of a distribution. Its own rounding of counts, which float64 holds exactly, takes sums and
    products in a fixed order, which IEEE 754 defines to the bit."""
    model = optional_import("constriction").stream.model.Categorical
    return model(counts(distribution).astype(np.float64), perfect=False)


class Encoder:
    """Takes integers in the order in which they will be read.

    Example:
        >>> import numpy as np
        >>> encoder = Encoder()
        >>> distribution = Distribution(zero=22, ratio=128, largest=2)
        >>> encoder.put(np.array([0, 0, -1, 2]), distribution)
        >>> Decoder(encoder.to_bytes()).take(4, distribution).tolist()
        [0, 0, -1, 2]
    """

    def __init__(self) -> None:
        self._written: list[tuple[np.ndarray, Distribution]] = []

    def put(self, symbols: np.ndarray, distribution: Distribution) -> None:
        """Adds integers of any shape, by a distribution.

        Raises:
            ValueError: one is larger.
        """
        largest = distribution.largest
        if not 1 <= largest <= LARGEST:
            raise ValueError(f"`largest` must be in 1..{LARGEST}, got {largest}")
        if symbols.size and np.abs(symbols).max() > largest:
            raise ValueError(f"`symbols` must be in -{largest}..{largest}, got {symbols.min()}..{symbols.max()}")
        if symbols.size:
            self._written.append(((symbols.reshape(-1) + largest).astype(np.int32), distribution))

    def to_bytes(self) -> bytes:
        """Everything that was put, in words of 4 bytes."""
        coder = optional_import("constriction").stream.stack.AnsCoder()
        for symbols, distribution in reversed(self._written):  # a stack: what is read first is written last
            coder.encode_reverse(symbols, _model(distribution))
        return coder.get_compressed().astype("<u4").tobytes()


class Decoder:
    """Reads what :class:`Encoder` wrote.

    Raises:
        CodecError: the bytes cannot be those of an encoder.
    """

    def __init__(self, content: bytes) -> None:
        if len(content) % 4:
            raise CodecError(f"coded symbols must fill words of 4 bytes, got {len(content)} bytes")
        coder = optional_import("constriction").stream.stack.AnsCoder
        try:
            self._coder = coder(np.frombuffer(content, "<u4").astype(np.uint32))
        except ValueError as error:
            raise CodecError(f"coded symbols cannot be read: {error}") from error

    def take(self, n: int, distribution: Distribution) -> np.ndarray:
        """The next ``n`` integers, int32."""
        if n == 0:
            return np.zeros(0, np.int32)
        return self._coder.decode(_model(distribution), n) - np.int32(distribution.largest)

    def finish(self) -> None:
        """Checks that all was read.

        Raises:
            CodecError: something is left, so that what was read is not what was written.
        """
        if not self._coder.is_empty():
            raise CodecError("coded symbols do not end where they should")
