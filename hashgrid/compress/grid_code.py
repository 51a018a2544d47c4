"""A photo as a quantised hash grid: its integers, their bytes, and its pixels.

The levels of the grid lie on the pixels: level ``k`` has a vertex on every ``2^k``-th of them, so that the weights of
bilinear interpolation are multiples of ``2^-2k``. At the sizes of compressed photos every level is dense; that most of
its entries are zeros costs little, and collisions would cost more. One channel goes down to fine levels, two further
ones to coarser levels: mostly brightness, and mostly colour. A small network of ReLUs, and a linear map beside it, make
colours of the features.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hashgrid.compress.contexts import LARGEST_SEEN, MARGIN, N_CLASSES, N_SIGNS, bordered, mean_of, orders, passes
from hashgrid.compress.entropy import EVEN, LARGEST, CodecError, Decoder, Distribution, Encoder, fit
from hashgrid.compress.fixed_point import product
from hashgrid.levels import LevelTable

FEATURE_BITS = 12  # of the fraction of features and activations
STEP_BITS = 16  # of the fraction of steps
BIAS_BITS = 10  # of the fraction of biases
LARGEST_ACTIVATION = float(1 << 22)  # activations saturate there: 1024
MAX_NEURONS, MAX_HIDDEN, MAX_LEVEL = 128, 4, 16
N_GROUPS = 2  # of channels with distributions of their own
_SIZES, _PAIR, _MASK = struct.Struct("<6B2H"), struct.Struct("<2B"), struct.Struct("<I")


@dataclass(frozen=True)
class GridSizes:
    """Sizes of a grid and its network, as the file says them."""

    width: int  # of the photo, in pixels
    height: int
    finest: int  # level of the first channel
    finest_color: int  # level of the two other channels
    coarsest: int  # level of all
    n_neurons: int
    n_hidden_layers: int
    fraction_bits: int  # of weights

    def shape(self, level: int) -> tuple[int, int]:
        """Vertices of a level, down and across; the last ones lie on the picture's border or beyond."""
        return ((self.height - 1) >> level) + 2, ((self.width - 1) >> level) + 2

    def level_table(self, first: int) -> LevelTable:
        """Levels ``first`` to the coarsest one as ops take them, of positions in pixels over ``2^16``."""
        shapes = [self.shape(level) for level in range(first, self.coarsest + 1)]
        counts = [height * width for height, width in shapes]
        offsets = tuple(sum(counts[:i]) for i in range(len(counts)))
        resolutions = tuple((width, height) for height, width in shapes)
        scales = tuple((2.0 ** (16 - first - i),) * 2 for i in range(len(counts)))
        return LevelTable(2, scales, resolutions, 0.0, offsets, tuple(counts), (False,) * len(counts))

    @property
    def channels(self) -> list[tuple[int, int]]:
        """Level and channel of every feature, in the order in which the network takes them."""
        first = [(level, 0) for level in range(self.finest, self.coarsest + 1)]
        return first + [(level, i) for level in range(self.finest_color, self.coarsest + 1) for i in (1, 2)]

    @property
    def coding_order(self) -> list[tuple[int, int]]:
        """The same in the order in which they are coded: coarse levels first."""
        return sorted(self.channels, key=lambda feature: (-feature[0], feature[1]))

    @property
    def layers(self) -> list[tuple[int, int]]:
        """Outputs and inputs of the network's layers, and of the linear map beside it."""
        n = len(self.channels)
        widths = [n, *[self.n_neurons] * self.n_hidden_layers, 3]
        return [*zip(widths[1:], widths, strict=False), (3, n)]

    @property
    def tensors(self) -> list[tuple[int, ...]]:
        """Shapes of the network's parameters: weights, then biases of all layers but the linear map."""
        return [*self.layers, *((n_out,) for n_out, _ in self.layers[:-1])]

    def check(self) -> None:
        """Raises CodecError where a size is none of a grid that this program writes."""
        if not (0 <= self.finest <= self.finest_color <= self.coarsest <= MAX_LEVEL):
            raise CodecError(f"levels {self.finest}, {self.finest_color}..{self.coarsest} are none of a grid")
        if not (1 <= self.n_neurons <= MAX_NEURONS and 0 <= self.n_hidden_layers <= MAX_HIDDEN):
            raise CodecError(f"{self.n_hidden_layers} layers of {self.n_neurons} neurons are none of a grid")
        if not 0 <= self.fraction_bits <= 12:
            raise CodecError(f"weights with {self.fraction_bits} bits of fraction are none of a grid")


@dataclass(frozen=True)
class GridCode:
    """A photo in integers.

    Attributes:
        planes: int32 [H, W] of each of ``sizes.channels``: table entries, in steps.
        steps: uint16 [channels], the steps in 2^-16.
        weights: int32 [out, in] of each of ``sizes.layers``, in 2^-fraction_bits.
        biases: int32 [out] of the layers but the last, in 2^-10.
    """

    sizes: GridSizes
    planes: list[np.ndarray]
    steps: np.ndarray
    weights: list[np.ndarray]
    biases: list[np.ndarray]

    @property
    def tensors(self) -> list[np.ndarray]:
        """Parameters of the network, in the order in which they are coded."""
        return [*self.weights, *self.biases]


class Context(NamedTuple):
    """What is known of every entry of a plane before it is read."""

    classes: np.ndarray  # uint8 [H, W]: of magnitudes
    signs: np.ndarray  # uint8 [H, W]: of how sure a sign is
    expected: np.ndarray  # int16 [H, W]: that sign


def contexts(sizes: GridSizes, planes: Sequence[np.ndarray]) -> list[Context]:
    """The contexts of planes [H, W] in the order of ``sizes.channels``."""
    found: dict[tuple[int, int], Context] = {}
    known: dict[tuple[int, int], np.ndarray] = {}
    of_feature = dict(zip(sizes.channels, planes, strict=True))
    for level, channel in sizes.coding_order:
        plane = of_feature[level, channel]
        own = known[level, channel] = bordered(plane)
        context = Context(*(np.empty(plane.shape, kind) for kind in (np.uint8, np.uint8, np.int16)))
        for where, *values in passes(own, mean_of(plane), known.get((level + 1, channel))):
            for whole, part in zip(context, values, strict=True):
                whole[where] = part
        found[level, channel] = context
    return [found[feature] for feature in sizes.channels]


def group_of(channel: int) -> int:
    """Which distributions a channel has: the first its own, the two others theirs."""
    return min(channel, 1)


def fit_entries(sizes: GridSizes, planes: Sequence[np.ndarray], known: Sequence[Context]) -> Entries:
    """The distributions that code the entries of planes in few bits."""
    largest, classes, signs = _largest(planes), {}, {}
    for group in range(N_GROUPS):
        chosen = [i for i, (_, channel) in enumerate(sizes.channels) if group_of(channel) == group]
        symbols = np.concatenate([(planes[i] * known[i].expected).reshape(-1) for i in chosen])
        of_class = np.concatenate([known[i].classes.reshape(-1) for i in chosen])
        of_sign = np.concatenate([known[i].signs.reshape(-1) for i in chosen])[symbols != 0]
        for i in np.unique(of_class):
            classes[group * N_CLASSES + int(i)] = fit(symbols[of_class == i], largest)
        positive = symbols[symbols != 0] > 0
        for i in range(1, N_SIGNS):
            n = int((of_sign == i).sum())
            share = (int(positive[of_sign == i].sum()) + 1) / (n + 2)
            signs[group * N_SIGNS + i] = min(max(round(256 * share), 1), 255)
    return Entries(largest, [mean_of(plane) for plane in planes], classes, signs)


@dataclass(frozen=True)
class Entries:
    """What the file says of the distributions of entries."""

    largest: int
    means: list[int]  # of every plane, in 1/64
    classes: dict[int, Distribution]  # of those that occur, by group and class
    signs: dict[int, int]  # share of expected signs in 1/256, by group and class of signs

    def distribution(self, group: int, key: int) -> Distribution:
        """That of entries with ``key = class * N_SIGNS + class of signs``."""
        of_class, of_sign = divmod(key, N_SIGNS)
        try:
            found = self.classes[group * N_CLASSES + of_class]
        except KeyError:
            raise CodecError("an entry has a class of which the file says nothing") from None
        return found._replace(positive=self.signs.get(group * N_SIGNS + of_sign, EVEN))

    def to_bytes(self) -> bytes:
        """All but ``largest``, of which the head tells."""
        pairs = [byte for i in sorted(self.classes) for byte in self.classes[i][:2]]
        return (
            bytes(self.means + list(self.signs.values())) + _MASK.pack(sum(1 << i for i in self.classes)) + bytes(pairs)
        )

    @classmethod
    def read(cls, head: _Head, n_planes: int, largest: int) -> Entries:
        means = list(head.take(n_planes))
        signs = [group * N_SIGNS + i for group in range(N_GROUPS) for i in range(1, N_SIGNS)]
        of_sign = dict(zip(signs, head.take(len(signs)), strict=True))
        (present,) = head.unpack(_MASK)
        found = [i for i in range(N_GROUPS * N_CLASSES) if present >> i & 1]
        return cls(largest, means, {i: head.distribution(largest) for i in found}, of_sign)


def encode(code: GridCode) -> bytes:
    """The bytes of a photo: sizes, distributions, coded integers."""
    sizes, encoder = code.sizes, Encoder()
    known = contexts(sizes, code.planes)
    entries, of_weights = fit_entries(sizes, code.planes, known), _largest(code.tensors)
    head = _SIZES.pack(
        sizes.finest, sizes.finest_color, sizes.coarsest, sizes.n_neurons, sizes.n_hidden_layers, sizes.fraction_bits,
        entries.largest, of_weights,
    )  # fmt: skip
    head += code.steps.astype("<u2").tobytes() + entries.to_bytes()
    for tensor in code.tensors:
        distribution = fit(tensor, of_weights)
        head += _PAIR.pack(*distribution[:2])
        encoder.put(tensor, distribution)
    for feature in sizes.coding_order:
        i, group = sizes.channels.index(feature), group_of(feature[1])
        for where in orders(*code.planes[i].shape):
            keys = known[i].classes[where] * np.uint8(N_SIGNS) + known[i].signs[where]
            symbols = code.planes[i][where] * known[i].expected[where]
            for key in np.unique(keys):
                encoder.put(symbols[keys == key], entries.distribution(group, int(key)))
    return head + encoder.to_bytes()


def decode(width: int, height: int, payload: bytes) -> GridCode:
    """The inverse of :func:`encode`.

    Raises:
        CodecError: the bytes are none that it writes.
    """
    head = _Head(payload)
    *levels, of_entries, of_weights = head.unpack(_SIZES)
    sizes = GridSizes(width, height, *levels)
    sizes.check()
    if not (1 <= of_entries <= LARGEST and 1 <= of_weights <= LARGEST):
        raise CodecError("the largest integer is out of range")
    steps = np.frombuffer(head.take(2 * len(sizes.channels)), "<u2").astype(np.int32)
    entries = Entries.read(head, len(sizes.channels), of_entries)
    shapes = sizes.tensors
    of_tensors = [head.distribution(of_weights) for _ in shapes]
    decoder = Decoder(head.rest())
    tensors = [
        decoder.take(math.prod(shape), distribution).reshape(shape)
        for shape, distribution in zip(shapes, of_tensors, strict=True)
    ]
    planes: dict[tuple[int, int], np.ndarray] = {}
    known: dict[tuple[int, int], np.ndarray] = {}
    for level, channel in sizes.coding_order:
        plane = np.zeros(sizes.shape(level), np.int32)
        own, group = bordered(plane), group_of(channel)
        mean = entries.means[sizes.channels.index((level, channel))]
        for where, of_class, of_sign, expected in passes(own, mean, known.get((level + 1, channel))):
            keys = of_class * np.uint8(N_SIGNS) + of_sign
            symbols = np.empty(keys.shape, np.int32)
            for key in np.unique(keys):
                chosen = keys == key
                symbols[chosen] = decoder.take(int(chosen.sum()), entries.distribution(group, int(key)))
            plane[where] = symbols * expected
            own[MARGIN:-MARGIN, MARGIN:-MARGIN][where] = np.clip(plane[where], -LARGEST_SEEN, LARGEST_SEEN)
        planes[level, channel], known[level, channel] = plane, own
    decoder.finish()
    n = len(sizes.layers)
    return GridCode(sizes, [planes[feature] for feature in sizes.channels], steps, tensors[:n], tensors[n:])


def render(code: GridCode, rows: int = 64) -> np.ndarray:
    """The photo [H, W, 3] uint8, the same bits on every machine: see :mod:`hashgrid.compress.fixed_point`.

    Raises:
        CodecError: the network is too large for exact sums.
    """
    sizes = code.sizes
    image = np.empty((sizes.height, sizes.width, 3), np.uint8)
    planes = [plane * float(step) for plane, step in zip(code.planes, code.steps, strict=True)]
    network = _network(code)
    for first in range(0, sizes.height, rows):
        last = min(first + rows, sizes.height)
        features = np.empty((last - first, sizes.width, len(planes)))
        for i, ((level, _), plane) in enumerate(zip(sizes.channels, planes, strict=True)):
            features[..., i] = interpolate(plane, level, first, last, sizes.width)
        np.rint(features * 2.0 ** (FEATURE_BITS - STEP_BITS), out=features)
        image[first:last] = _colors(features.reshape(-1, len(planes)), *network).reshape(last - first, -1, 3)
    return image


def interpolate(plane: np.ndarray, level: int, first: int, last: int, width: int) -> np.ndarray:
    """Values [last - first, width] between those [H, W] at every ``2^level``-th pixel, of rows first..last."""
    y, x = np.arange(first, last), np.arange(width)
    above, left = y >> level, x >> level
    part_y = (y - (above << level))[:, None] * 2.0**-level
    part_x = (x - (left << level)) * 2.0**-level
    block = plane[above[0] : above[-1] + 2]
    above = above - above[0]
    down = block[above] + part_y * (block[above + 1] - block[above])
    start = down[:, left]
    return start + part_x * (down[:, left + 1] - start)


def _network(code: GridCode) -> tuple[list[np.ndarray], list[np.ndarray], int]:
    """Weights in 2^-fraction_bits and biases in the unit of products, in float64."""
    bits = code.sizes.fraction_bits
    unit = 2.0 ** (FEATURE_BITS + bits - BIAS_BITS)
    return [w.astype(np.float64) for w in code.weights], [b * unit for b in code.biases], bits


def _colors(features: np.ndarray, weights: list[np.ndarray], biases: list[np.ndarray], bits: int) -> np.ndarray:
    """Colours [N, 3] uint8 of features [N, F] in 2^-12."""
    x = np.clip(features, -LARGEST_ACTIVATION, LARGEST_ACTIVATION)
    beside = product(x, weights[-1], np.zeros(3), LARGEST_ACTIVATION)
    for weight, bias in zip(weights[:-2], biases[:-1], strict=True):
        x = np.rint(product(x, weight, bias, LARGEST_ACTIVATION) * 2.0**-bits)
        x = np.clip(x, 0, LARGEST_ACTIVATION)
    y = product(x, weights[-2], biases[-1], LARGEST_ACTIVATION) + beside
    return np.clip(np.rint(y * (255 * 2.0 ** -(FEATURE_BITS + bits))), 0, 255).astype(np.uint8)


def _largest(tensors: Sequence[np.ndarray]) -> int:
    return max(1, *(int(np.abs(tensor).max(initial=0)) for tensor in tensors))


class _Head:
    """Reads the part of a payload that is not coded."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def take(self, n: int) -> bytes:
        part = self._content[self._at : self._at + n]
        if len(part) < n:
            raise CodecError("it is cut off within its description")
        self._at += n
        return part

    def unpack(self, layout: struct.Struct) -> tuple:
        return layout.unpack(self.take(layout.size))

    def distribution(self, largest: int) -> Distribution:
        zero, ratio = self.unpack(_PAIR)
        return Distribution(zero, ratio, largest)

    def rest(self) -> bytes:
        return self._content[self._at :]
