"""A hash grid that is trained for its size in a file: rounded entries, and a loss that counts their bits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hashgrid.compress import grid_code
from hashgrid.compress.entropy import entropy, fit
from hashgrid.compress.grid_code import BIAS_BITS, STEP_BITS, GridCode, GridSizes
from hashgrid.compress.rate import Planes, expected_error, prices, round_to_fit
from hashgrid.nn import FusedMLP
from hashgrid.ops._backend import backend_ops
from hashgrid.util.config import Config

FINE_FROM = 0.7  # bits per pixel: from there on with a vertex on every pixel
NEURONS = ((16_000, 24), (0, 16))  # of a hidden layer, from so many bytes on
FREEZE_AT = 0.9  # of a run
RESERVE = 0.003  # of the bytes, for the network to change after that
ENTRIES_PER_UNIT = 40.0  # of tables: at a learning rate for networks, entries move by a fifth
STEP_PER_ERROR = 1.7  # between steps and the root of the error that is expected
COLORS = ((0.5, -0.25, -0.6), (-0.5, 0.5, -0.5))  # what the two other channels begin as, in RGB


@dataclass(frozen=True)
class CompressedGridConfig(Config):
    """Sizes of a :class:`CompressedGrid`, and how it is trained."""

    name = "grid"

    finest_level: int = -1  # of the first channel: 0 has a vertex on every pixel, 1 on every second one; -1 by the bits
    coarsest_level: int = 6  # of all channels
    n_neurons: int = 0  # of a hidden layer; 0 by the bytes
    n_hidden_layers: int = 1  # of the network
    fraction_bits: int = 6  # of weights
    first_step: float = 0.0  # between two values of an entry, at the beginning; 0 by the photo
    first_price: float = 0.0  # of a bit per pixel, in mean squared error, at the beginning; 0 by the photo
    measure_every: int = 30  # steps: what entries cost

    def sizes(self, width: int, height: int, n_bytes: int) -> GridSizes:
        """Sizes for a photo and the bytes it may have."""
        finest = self.finest_level if self.finest_level >= 0 else int(8 * n_bytes < FINE_FROM * width * height)
        coarsest = max(finest, min(self.coarsest_level, int(math.log2(max(width, height))) - 2))
        n_neurons = self.n_neurons or next(n for least, n in NEURONS if n_bytes >= least)
        levels = (finest, min(finest + 1, coarsest), coarsest)
        return GridSizes(width, height, *levels, n_neurons, self.n_hidden_layers, self.fraction_bits)


class CompressedGrid(nn.Module):
    """Colours [..., 3] of points [..., 2] in the unit square of a photo of known size, from integers and steps.

    Entries are rounded on the way forward, and gradients pass as if they were not; so it is with the network's weights.
    :meth:`penalty` is the price of the entries' bits. A bit's price follows the size that is asked for, and how many
    bits an entry would save if it were one less is asked of the coder itself, every so often.

    Args:
        config: sizes.
        width: of the photo, in pixels.
        height: of the photo, in pixels.
        n_bytes: of the file.
        backend: ``"native"`` or ``"reference"``.
    """

    Config = CompressedGridConfig
    method = "grid"
    rate = 1.0  # factor of learning rates
    price: Tensor
    frozen: Tensor

    def __init__(
        self, config: CompressedGridConfig, width: int, height: int, n_bytes: int, backend: str = "native"
    ) -> None:
        super().__init__()
        self.config, self.sizes, self.backend = config, config.sizes(width, height, n_bytes), backend
        sizes, n = self.sizes, len(self.sizes.channels)
        self.levels = [sizes.level_table(first) for first in (sizes.finest, sizes.finest_color)]
        shapes = [(levels.n_entries, i + 1) for i, levels in enumerate(self.levels)]
        self.tables = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for shape in shapes)
        self.log_steps = nn.Parameter(torch.full((n,), math.log(config.first_step or 0.05)))
        self.mlp = FusedMLP(n, 3, sizes.n_neurons, sizes.n_hidden_layers, bias=True, backend=backend)
        self.beside = nn.Parameter(torch.ones(3, n))  # a linear map, whose outputs are added
        self.bits_per_pixel = 8 * n_bytes / (width * height)
        self.register_buffer("price", torch.tensor(config.first_price))
        self.register_buffer("frozen", torch.tensor(False))  # whether entries stay as they are
        for i, shape in enumerate(shapes):
            self.register_buffer(f"bits_{i}", torch.zeros(shape))  # that an entry would save if it were one less
        with torch.no_grad():
            self.mlp.weights[-1].mul_(0.3)
            n_colors = self.levels[1].n_levels
            self.beside[:, n - 2 * n_colors :] = torch.tensor(COLORS).T.repeat(1, n_colors)

    @torch.no_grad()
    def begin(self, photo: Tensor) -> None:
        """Begins with the mean colour of a photo [H, W, 3] uint8, and with steps and a price for the error that is
        to be expected."""
        self.mlp.biases[-1].copy_(photo.float().mean((0, 1)) / 255)
        expected = expected_error(photo.cpu().numpy(), self.bits_per_pixel)
        self.log_steps.fill_(math.log(self.config.first_step or STEP_PER_ERROR * expected**0.5))
        self.price.fill_(self.config.first_price or 3 * expected * 0.3 / self.bits_per_pixel)

    def forward(self, x: Tensor) -> Tensor:
        """Colours [..., 3], not clipped, of points [..., 2]."""
        unit, ops = 2.0**self.sizes.fraction_bits, backend_ops(self.backend)
        pixels = (x * x.new_tensor([self.sizes.width, self.sizes.height]) - 0.5) / 65536
        entries = [table * ENTRIES_PER_UNIT for table in self.tables]
        entries = [each.detach() if self.frozen else straight_through(each, 1.0) for each in entries]
        steps = self.log_steps.exp().split([levels.n_levels * (i + 1) for i, levels in enumerate(self.levels)])
        parts = []
        for each, of_grid, levels in zip(entries, steps, self.levels, strict=True):  # entries are fewer than features
            of_levels = zip(each.split(levels.sizes), of_grid.view(levels.n_levels, -1), strict=True)
            values = torch.cat([values * step for values, step in of_levels])
            parts.append(ops.hash_encode(pixels, values, levels))
        features, arguments = torch.cat(parts, dim=-1), self.mlp.op_arguments()
        arguments["weights"] = [straight_through(weight, unit) for weight in self.mlp.weights]
        arguments["biases"] = [straight_through(bias, 2.0**BIAS_BITS) for bias in self.mlp.biases]
        return ops.mlp(features, **arguments) + ops.mlp(features, [straight_through(self.beside, unit)])

    def penalty(self) -> Tensor:
        """Price of the bits that all entries take, per pixel."""
        if self.frozen:
            return torch.zeros_like(self.price)
        bits = sum((table.abs() * self.get_buffer(f"bits_{i}")).sum() for i, table in enumerate(self.tables))
        return self.price * ENTRIES_PER_UNIT / (self.sizes.width * self.sizes.height) * bits

    @torch.no_grad()
    def update(self, step: int, fraction: float, n_bytes: int) -> None:
        """Measures what entries cost every so often, and what they may cost. Towards the end of a run, whose
        ``fraction`` is spent, they are rounded for good; steps and network go on learning."""
        if self.frozen:
            return
        if fraction >= FREEZE_AT:
            planes, _ = self._fitting(int(n_bytes * (1 - RESERVE)))
            self._put([plane / np.float32(ENTRIES_PER_UNIT) for plane in planes], list(self.tables))
            self.frozen.fill_(True)
        elif step % self.config.measure_every == 0:
            taken = self.measure()
            if step > 0:
                self.price.mul_(min(1.6, max(0.7, (taken / n_bytes) ** 0.7)))

    @torch.no_grad()
    def measure(self) -> float:
        """Takes the bits of entries anew; returns the bytes of the payload, about."""
        planes = [np.rint(plane).astype(np.int32) for plane in self._planes()]
        n_bytes, bits = prices(self.sizes, planes)
        self._put(bits, [self.get_buffer(f"bits_{i}") for i in range(len(self.tables))])
        tensors = self._code(planes).tensors
        largest = max(1, *(int(np.abs(tensor).max()) for tensor in tensors))
        n_bytes += sum(2 + entropy(tensor, fit(tensor, largest)) / 8 for tensor in tensors)
        return n_bytes + 2 * len(planes) + 12

    def payload(self, n_bytes: int) -> bytes:
        """At most ``n_bytes``, whatever training has come to.

        Raises:
            CodecError: it does not fit with zeros alone.
        """
        return self._fitting(n_bytes)[1]

    @torch.no_grad()
    def _fitting(self, n_bytes: int) -> tuple[Planes, bytes]:
        """Integers and bytes. An error of one on a level is seen by four times as many pixels as on the next finer."""
        gains = (self.beside.square().sum(0) * self.log_steps.exp().square()).tolist()
        bits = self._by_channel([self.get_buffer(f"bits_{i}") for i in range(len(self.tables))])
        of_errors = [gain * 4.0**level for (level, _), gain in zip(self.sizes.channels, gains, strict=True)]
        weights = [plane / np.float32(weight) for plane, weight in zip(bits, of_errors, strict=True)]
        planes = self._planes()
        if not any(weight.any() for weight in weights):  # never measured
            weights = [np.ones_like(plane) for plane in planes]
        return round_to_fit(planes, weights, n_bytes, lambda rounded: grid_code.encode(self._code(rounded)))

    @torch.no_grad()
    def _code(self, planes: Planes) -> GridCode:
        """The photo's integers, with these entries."""

        def integers(value: Tensor, bits: int, least: int = -32767, most: int = 32767) -> np.ndarray:
            return (value * 2.0**bits).round().clamp(least, most).int().cpu().numpy()

        weights = [integers(weight, self.sizes.fraction_bits) for weight in (*self.mlp.weights, self.beside)]
        biases = [integers(bias, BIAS_BITS) for bias in self.mlp.biases]
        return GridCode(self.sizes, planes, integers(self.log_steps.exp(), STEP_BITS, 1, 65535), weights, biases)

    def _planes(self) -> Planes:
        """Entries [H, W] of each channel, not rounded."""
        return [plane * np.float32(ENTRIES_PER_UNIT) for plane in self._by_channel(list(self.tables))]

    def _by_channel(self, tables: list[Tensor]) -> Planes:
        """What tables hold [H, W] of each channel."""
        views = {feature: view.cpu().numpy() for feature, view in self._views(tables)}
        return [views[feature] for feature in self.sizes.channels]

    def _put(self, planes: Planes, tables: list[Tensor]) -> None:
        """Writes planes [H, W] of the channels to tables."""
        of_feature = dict(zip(self.sizes.channels, planes, strict=True))
        for feature, view in self._views(tables):
            view.copy_(torch.from_numpy(of_feature[feature]))

    def _views(self, tables: list[Tensor]) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """Level and channel, and entries [H, W], of everything in tables."""
        finest = (self.sizes.finest, self.sizes.finest_color)
        for first, channels, table, levels in zip(finest, ((0,), (1, 2)), tables, self.levels, strict=True):
            for i, (at, size, (width, height)) in enumerate(
                zip(levels.offsets, levels.sizes, levels.resolutions, strict=True)
            ):
                entries = table.detach()[at : at + size].view(height, width, len(channels))
                yield from (((first + i, channel), entries[..., j]) for j, channel in enumerate(channels))


def straight_through(x: Tensor, unit: float) -> Tensor:
    """``x`` rounded to multiples of ``1 / unit``, with the gradient of ``x`` (Bengio et al. 2013)."""
    return x + ((x * unit).round() / unit - x).detach()
