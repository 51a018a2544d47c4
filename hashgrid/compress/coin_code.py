"""A photo as the weights of a sine network in half precision: COIN (Dupont et al. 2021)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from hashgrid.compress.container import overhead
from hashgrid.compress.entropy import CodecError
from hashgrid.compress.fixed_point import product, sine_of_turns

BITS = 18  # of the fraction of weights, coordinates and activations
MAX_LAYERS, MAX_NEURONS = 32, 1024
CLOSE = 0.98  # share of the bytes with which no other number of layers is tried
_SIZES = struct.Struct("<BH")


@dataclass(frozen=True)
class CoinSizes:
    """Sizes of the network: layers with a sine, and their width; a linear layer follows.

    Example:
        >>> CoinSizes(10, 28).n_parameters
        7479
    """

    n_layers: int
    n_neurons: int

    @property
    def layers(self) -> list[tuple[int, int]]:
        """Outputs and inputs of every layer."""
        widths = [2, *[self.n_neurons] * self.n_layers, 3]
        return [*zip(widths[1:], widths, strict=False)]

    @property
    def n_parameters(self) -> int:
        """Weights and biases."""
        return sum(n_out * n_in + n_out for n_out, n_in in self.layers)

    @property
    def n_bytes(self) -> int:
        """Bytes of the file, everything counted."""
        return overhead() + _SIZES.size + 2 * self.n_parameters

    def bits_per_pixel(self, width: int, height: int) -> float:
        """Bits of the parameters alone, as the paper counts them, per pixel of a photo."""
        return 16 * self.n_parameters / (width * height)


def coin_sizes(n_bytes: int) -> CoinSizes:
    """A network whose file has ``n_bytes`` or little less, of about as many layers as the paper's of that size.

    Raises:
        CodecError: not even the smallest network fits.
    """
    typical, found = 5 if n_bytes < 11_000 else 10, None
    for n_layers in (typical, typical - 1, typical + 1, typical - 2, typical + 2):
        fitting = [w for w in range(1, MAX_NEURONS + 1) if CoinSizes(n_layers, w).n_bytes <= n_bytes]
        if fitting and (found is None or CoinSizes(n_layers, fitting[-1]).n_bytes > found.n_bytes):
            found = CoinSizes(n_layers, fitting[-1])
        if found is not None and found.n_bytes > CLOSE * n_bytes:
            break
    if found is None:
        raise CodecError(
            f"no network fits into {n_bytes} bytes; the smallest takes {CoinSizes(typical - 1, 1).n_bytes}"
        )
    return found


@dataclass(frozen=True)
class CoinCode:
    """Parameters in half precision: of each layer weights [out, in] and a bias [out], factors of frequencies included,
    as in ``sin(W x + b)``. Positions are those of pixels' middles, zero in the middle of the photo and one at the end
    of its longer side."""

    sizes: CoinSizes
    weights: list[np.ndarray]
    biases: list[np.ndarray]


def encode(code: CoinCode) -> bytes:
    """The bytes of a photo: sizes and parameters.

    Raises:
        CodecError: a parameter is not finite in half precision.
    """
    tensors = [tensor.astype("<f2") for pair in zip(code.weights, code.biases, strict=True) for tensor in pair]
    if not all(np.isfinite(tensor).all() for tensor in tensors):
        raise CodecError("parameters must be finite in half precision; lower the learning rate")
    return _SIZES.pack(code.sizes.n_layers, code.sizes.n_neurons) + b"".join(tensor.tobytes() for tensor in tensors)


def decode(width: int, height: int, payload: bytes) -> CoinCode:
    """The inverse of :func:`encode`.

    Raises:
        CodecError: the bytes are none that it writes.
    """
    if len(payload) < _SIZES.size:
        raise CodecError("it is cut off within its description")
    sizes = CoinSizes(*_SIZES.unpack_from(payload))
    if not (1 <= sizes.n_layers <= MAX_LAYERS and 1 <= sizes.n_neurons <= MAX_NEURONS):
        raise CodecError(f"{sizes.n_layers} layers of {sizes.n_neurons} neurons are none of a sine network")
    if len(payload) != _SIZES.size + 2 * sizes.n_parameters:
        raise CodecError(f"{sizes.n_parameters} parameters take {2 * sizes.n_parameters} bytes, it has {len(payload)}")
    values, at = np.frombuffer(payload, "<f2", offset=_SIZES.size), 0
    weights, biases = [], []
    for n_out, n_in in sizes.layers:
        weights.append(values[at : at + n_out * n_in].reshape(n_out, n_in))
        biases.append(values[at + n_out * n_in : at + n_out * n_in + n_out])
        at += n_out * n_in + n_out
    if not np.isfinite(values).all():
        raise CodecError("a parameter is not finite")
    return CoinCode(sizes, weights, biases)


def positions(width: int, height: int, first: int, last: int) -> np.ndarray:
    """Positions [(last - first) * width, 2] of the pixels' middles of some rows, x first, in 2^-18: integers."""
    x, y = (((2 * np.arange(n) + 1 - n) << BITS) // max(width, height) for n in (width, height))
    rows = y[first:last, None]
    return np.stack(np.broadcast_arrays(x, rows), axis=-1).reshape(-1, 2).astype(np.float64)


def render(code: CoinCode, width: int, height: int, block: int = 1 << 14) -> np.ndarray:
    """The photo [H, W, 3] uint8, the same bits on every machine: see :mod:`hashgrid.compress.fixed_point`.

    Raises:
        CodecError: the network is too large for exact sums.
    """
    unit = 2.0**BITS
    weights = [np.rint(weight.astype(np.float64) * unit) for weight in code.weights]
    biases = [np.rint(bias.astype(np.float64) * unit) * unit for bias in code.biases]
    image = np.empty((height, width, 3), np.uint8)
    rows = max(1, block // width)
    for first in range(0, height, rows):
        x = positions(width, height, first, min(first + rows, height))
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            phase = product(x, weight, bias, unit) * (1 / unit**2)  # of powers of two: exact
            x = np.rint(sine_of_turns(phase * 0.15915494309189535) * unit)
        y = product(x, weights[-1], biases[-1], unit) * (1 / unit**2)
        image[first : first + rows] = np.clip(np.rint(y * 255), 0, 255).astype(np.uint8).reshape(-1, width, 3)
    return image
