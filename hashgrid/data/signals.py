"""Signals sampled on a regular grid: pictures, sounds, videos, volumes, as functions of a place in the unit cube."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1 << 16  # samples that are evaluated together


class SignalError(ValueError):
    """A signal that cannot be used; the message says what, where and what to do."""


@dataclass
class Signal:
    """Samples [*shape, C] in the dtype they are stored in: a picture of 100 megapixels stays one of 300 MB. Places are
    the middles of samples in [0, 1]^D; their first coordinate runs along the last axis of ``shape``: (x, y) of a
    picture [H, W, C], (x, y, t) of a video.

    Args:
        values: [*shape, C], integers or floats.
        low, high: stored values that a network is shown as 0 and 1.
        known: [K] flat indices of the samples to learn from; None for all.

    Raises:
        SignalError: there are no samples, or one is not finite.
    """

    values: Tensor
    low: float = 0.0
    high: float = 1.0
    known: Tensor | None = None

    def __post_init__(self) -> None:
        if self.values.dim() < 2 or not self.values.numel():
            raise SignalError(f"a signal must have samples, shape [..., C], got shape {list(self.values.shape)}")
        self.values = self.values.contiguous()
        self._rows = self.values.view(-1, self.values.shape[-1])
        if self.values.is_floating_point():
            bad = sum(int((~part.isfinite()).sum()) for part in self._rows.split(1 << 22))
            if bad:
                raise SignalError(f"a signal must be finite, got {bad} of {self.values.numel()} values that are not")
        if self.known is not None and not len(self.known):
            raise SignalError("a signal must have a sample to learn from, got none that is known")

    @property
    def shape(self) -> tuple[int, ...]:
        """Samples along each axis."""
        return tuple(self.values.shape[:-1])

    @property
    def n_channels(self) -> int:
        return self.values.shape[-1]

    def __len__(self) -> int:
        return len(self._rows)

    def to(self, device: torch.device) -> Signal:
        known = None if self.known is None else self.known.to(device)
        return Signal(self.values.to(device), self.low, self.high, known)

    def draw(self, n: int, seed: int, step: int, everywhere: bool = False) -> Tensor:
        """Flat indices [n] of samples, a function of seed and step: of those to learn from, or of all."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        known = None if everywhere else self.known
        index = torch.randint(len(self) if known is None else len(known), (n,), generator=generator)
        return index.to(self.values.device) if known is None else known[index.to(known.device)].long()

    def draw_patches(self, n: int, side: int, seed: int, step: int) -> Tensor:
        """Flat indices [n, side, side] of random squares of a picture, a function of seed and step."""
        height, width = self.shape
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows, columns = (torch.randint(size - side + 1, (n,), generator=generator) for size in (height, width))
        inside = torch.arange(side)
        index = (rows[:, None, None] + inside[:, None]) * width + columns[:, None, None] + inside
        return index.to(self.values.device)

    def at(self, index: Tensor) -> Tensor:
        """What a network should say [N, C] at samples [N], fp32."""
        if self._rows.dtype == torch.uint16:  # of which PyTorch selects no rows
            rows = self._rows.view(torch.int16)[index].int() & 0xFFFF
        else:
            rows = self._rows[index]
        return (rows.float() - self.low) / (self.high - self.low)

    def places(self, index: Tensor) -> Tensor:
        """Middles [N, D] of samples [N] in the unit cube."""
        coordinates = []
        for size in reversed(self.shape):
            coordinates.append(((index % size).float() + 0.5) / size)
            index = torch.div(index, size, rounding_mode="floor")
        return torch.stack(coordinates, dim=1)

    def neighbours(self, index: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Flat indices [N, D] of the samples ``step`` further along each coordinate, and whether there are such
        [N, D]; where there are none, the sample itself."""
        found, exists, stride = [], [], 1
        for size in reversed(self.shape):
            place = torch.div(index, stride, rounding_mode="floor") % size + step
            inside = (place >= 0) & (place < size)
            found.append(torch.where(inside, index + step * stride, index))
            exists.append(inside)
            stride *= size
        return torch.stack(found, dim=1), torch.stack(exists, dim=1)

    def stored(self, output: Tensor) -> Tensor:
        """A network's outputs [..., C] as values are stored: integers rounded, and clipped to what the dtype holds."""
        values, dtype = output * (self.high - self.low) + self.low, self.values.dtype
        if dtype.is_floating_point:
            return values.to(dtype)
        limits = torch.iinfo(dtype)
        return values.clamp_(limits.min, limits.max).round_().to(torch.int32).to(dtype)

    @torch.no_grad()
    def sampled(self, field: Callable[[Tensor], Tensor]) -> Tensor:
        """What ``field`` says at all samples [*shape, C], as they are stored, on the CPU."""
        device, out = self.values.device, torch.empty(self._rows.shape, dtype=self.values.dtype)
        for start in range(0, len(self), CHUNK):
            index = torch.arange(start, min(start + CHUNK, len(self)), device=device)
            out[start : start + CHUNK] = self.stored(field(self.places(index)).float()).cpu()
        return out.view(self.values.shape)

    def differences(self, values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Flat indices and differences to other stored values, in fractions of the range [N, C], fp64, in parts."""
        rows = values.view(-1, values.shape[-1])
        for start in range(0, len(self), CHUNK):
            part = slice(start, start + CHUNK)
            index = torch.arange(*part.indices(len(self)))
            difference = rows[part].double() - self._rows[part].cpu().double()
            yield index, difference / (self.high - self.low)

    def psnr(self, values: Tensor, where: Tensor | None = None) -> float:
        """PSNR in dB of stored values [*shape, C]: ``-10 log10`` of the squared error, pooled over samples and
        channels, relative to the squared range from ``low`` to ``high``; of the samples of ``where`` [*shape] bool
        only, if given. inf where nothing differs, NaN where there are no samples."""
        total, count = 0.0, 0
        chosen = None if where is None else where.reshape(-1).cpu()
        for index, difference in self.differences(values):
            difference = difference if chosen is None else difference[chosen[index]]
            total += float(difference.square().sum())
            count += difference.numel()
        if not count:
            return math.nan
        return -10 * math.log10(total / count) if total > 0 else math.inf

    def keep(self, share: float, seed: int) -> Signal:
        """The same, known at a random ``share`` of what is known; at one sample at least."""
        total = len(self) if self.known is None else len(self.known)
        chosen = torch.zeros(total, dtype=torch.bool)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + 917)
        for start in range(0, total, 1 << 22):
            part = chosen[start : start + (1 << 22)]
            part.copy_(torch.rand(len(part), generator=generator) < share)
        if not chosen.any():
            chosen[torch.randint(total, (1,), generator=generator)] = True
        index = chosen.nonzero().squeeze(1)
        return Signal(self.values, self.low, self.high, index if self.known is None else self.known[index])

    def known_mask(self) -> Tensor:
        """Which samples are learned from [*shape] bool, on the CPU."""
        mask = torch.full((len(self),), self.known is None)
        if self.known is not None:
            mask[self.known.cpu().long()] = True
        return mask.view(self.shape)
