"""tiny-cuda-nn's encodings as functions of stretches of its flat ``params``, with its padding.

An encoding here has no tensors of its own: ``sizes`` says how its parameters lie one behind the other, and each call
gets them as that many flat tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hashgrid.compat.tinycudann_start import Pcg32, uniform_table
from hashgrid.levels import LevelTable, round_fp32
from hashgrid.nn.permutohedral import permutohedral_encode
from hashgrid.ops._backend import backend_ops

# vertices along a side of a level that tiny-cuda-nn counts in 32 bits, by dimension
_MAX_RESOLUTIONS = (0, 0xFFFFFFFF, 0xFFFF, 0x659, 0xFF, 0x54, 0x28, 0x17)


def next_multiple(n: int, of: int) -> int:
    return -(-n // of) * of


class Part:
    """An encoding of positions [..., n_input_dims] to [..., width], of which ``n_features`` say something.

    Attributes:
        multiple: what its width has to be a multiple of.
        padding: value of the columns that fill the width up, before the features if ``padding_first``.
    """

    multiple = 1
    padding = 1.0
    padding_first = False
    sizes: tuple[int, ...] = ()

    def __init__(self, n_input_dims: int, n_features: int) -> None:
        self.n_input_dims = n_input_dims
        self.n_features = self.width = n_features

    def set_width(self, width: int) -> None:
        self.width = width

    def pad_to(self, multiple: int) -> None:
        self.set_width(next_multiple(self.width, multiple))

    def set_backend(self, backend: str) -> None:
        """Has features made by the ops of ``backend`` from now on, where there are two."""

    def features(self, x: Tensor, params: Sequence[Tensor]) -> Tensor:
        raise NotImplementedError

    def initial(self, random: Pcg32) -> list[np.ndarray]:
        """The parameters to start from, flat."""
        return []

    def __call__(self, x: Tensor, params: Sequence[Tensor]) -> Tensor:
        """[..., width] of ``x`` [..., n_input_dims]."""
        y, n = self.features(x, params), self.width - self.n_features
        return F.pad(y, (n, 0) if self.padding_first else (0, n), value=self.padding) if n else y


class Formula(Part):
    """An encoding without parameters: ``function`` of ``scale * x + offset``."""

    def __init__(
        self,
        function: Callable[[Tensor], Tensor] | None,
        n_input_dims: int,
        n_features: int,
        scale: float = 1.0,
        offset: float = 0.0,
        padding_first: bool = False,
    ) -> None:
        super().__init__(n_input_dims, n_features)
        self.function, self.scale, self.offset, self.padding_first = function, scale, offset, padding_first

    def set_backend(self, backend: str) -> None:
        if hasattr(self.function, "backend"):
            self.function.backend = backend  # type: ignore[union-attr]

    def features(self, x: Tensor, params: Sequence[Tensor]) -> Tensor:
        if (self.scale, self.offset) != (1.0, 0.0):
            x = x * self.scale + self.offset
        return x if self.function is None else self.function(x)


class Empty(Part):
    """No features at all."""

    def __init__(self, n_input_dims: int) -> None:
        super().__init__(n_input_dims, 0)

    def features(self, x: Tensor, params: Sequence[Tensor]) -> Tensor:
        return x[..., :0]


class Grid(Part):
    """A grid of several resolutions, hashed, dense or tiled."""

    padding = 0.0

    def __init__(self, levels: LevelTable, n_entries: int, n_features: int, interpolation: str, backend: str) -> None:
        super().__init__(levels.n_input_dims, levels.n_levels * n_features)
        self.levels, self.interpolation, self.backend = levels, interpolation, backend
        self.multiple = n_features
        used = levels.n_entries * n_features
        self.sizes = (used, n_entries * n_features - used)

    def op_arguments(self, x: Tensor, params: Sequence[Tensor]) -> dict[str, Any]:
        """What :func:`hashgrid.ops.hash_encode` takes."""
        return {
            "positions": x,
            "table": params[0].view(-1, self.multiple),
            "levels": self.levels,
            "interpolation": self.interpolation,
            "bounds": "none",
        }

    def set_backend(self, backend: str) -> None:
        self.backend = backend

    def features(self, x: Tensor, params: Sequence[Tensor]) -> Tensor:
        return backend_ops(self.backend).hash_encode(**self.op_arguments(x, params))

    def initial(self, random: Pcg32) -> list[np.ndarray]:
        return [uniform_table(random, sum(self.sizes))]


class Simplices(Part):
    """Features on a permutohedral lattice, which tiny-cuda-nn does not have."""

    padding = 0.0

    def __init__(self, n_input_dims: int, resolutions: Sequence[float], n_entries: int, n_features: int) -> None:
        super().__init__(n_input_dims, len(resolutions) * n_features)
        self.resolutions, self.n_features_per_level = resolutions, n_features
        self.sizes = (n_entries * n_features,)

    def features(self, x: Tensor, params: Sequence[Tensor]) -> Tensor:
        return permutohedral_encode(x, params[0].view(-1, self.n_features_per_level), self.resolutions)

    def initial(self, random: Pcg32) -> list[np.ndarray]:
        return [uniform_table(random, self.sizes[0])]


class Composite(Part):
    """Encodings of some of the dimensions each, side by side, or their sum or product.

    Args:
        n_input_dims: of the whole.
        parts: at least one, with the first of the dimensions that each takes.
        reduction: "concatenation", "sum" or "product".
    """

    def __init__(self, n_input_dims: int, parts: Sequence[tuple[Part, int]], reduction: str) -> None:
        self.parts, self.reduction = parts, reduction
        members = [part for part, _ in parts]
        self.multiple = math.lcm(*(part.multiple for part in members))
        self.sizes = tuple(size for part in members for size in part.sizes)
        if reduction == "concatenation":
            end = 0
            for part, following in zip(members, members[1:], strict=False):
                part.set_width(next_multiple(end + part.width, following.multiple) - end)
                end += part.width
            super().__init__(n_input_dims, end + members[-1].width)
            return
        for part in members:
            part.pad_to(self.multiple)
        widths = [part.width for part in members]
        if len(set(widths)) > 1:
            raise ValueError(f"nested encodings of a {reduction} must have as many outputs each, got {widths}")
        super().__init__(n_input_dims, widths[0])

    def set_width(self, width: int) -> None:
        last = self.parts[-1][0]
        if self.reduction == "concatenation":
            last.set_width(last.width + width - self.width)
        else:
            for part, _ in self.parts:
                part.set_width(width)
        self.width = self.n_features = width

    def set_backend(self, backend: str) -> None:
        for part, _ in self.parts:
            part.set_backend(backend)

    def features(self, x: Tensor, params: Sequence[Tensor]) -> Tensor:
        outputs, begin = [], 0
        for part, first in self.parts:
            end = begin + len(part.sizes)
            outputs.append(part(x[..., first : first + part.n_input_dims], params[begin:end]))
            begin = end
        if self.reduction == "concatenation":
            return torch.cat(outputs, dim=-1)
        result = outputs[0]
        for output in outputs[1:]:
            result = result + output if self.reduction == "sum" else result * output
        return result

    def initial(self, random: Pcg32) -> list[np.ndarray]:
        return [values for part, _ in self.parts for values in part.initial(random)]


def grid_levels(
    n_input_dims: int, kind: str, n_levels: int, log2_hashmap_size: int, base_resolution: int, growth: float
) -> tuple[LevelTable, int]:
    """Levels of a grid that is "hash", "tiled" or "dense" as tiny-cuda-nn rounds them, and the entries of its table.

    Scales are evaluated in fp32 step by step, each result the nearest fp32 number.

    Raises:
        ValueError: a level would have more than 2^31 entries, or there are too many.
    """
    log2_growth = round_fp32(math.log2(round_fp32(growth)))
    scales, resolutions, offsets, sizes, hashed = [], [], [], [], []
    n_entries = 0
    for level in range(n_levels):
        power = round_fp32(2.0 ** round_fp32(level * log2_growth)) if level else 1.0
        scale = round_fp32(round_fp32(power * base_resolution) - 1.0)
        if not scale < 2**31:
            raise ValueError(f"level {level} of a grid would have more than 2^31 vertices along a side, got {scale}")
        resolution = math.ceil(scale) + 1
        n_vertices = resolution**n_input_dims
        is_counted = resolution <= _MAX_RESOLUTIONS[n_input_dims]
        size = next_multiple(n_vertices, 8)
        if kind != "dense":
            size = min(size, base_resolution**n_input_dims if kind == "tiled" else 2**log2_hashmap_size)
        scales.append((scale,))
        resolutions.append((resolution,))
        offsets.append(n_entries)
        # where vertices cannot be counted, tiny-cuda-nn reads the first entry of a tiled level for all of them
        sizes.append(size if is_counted or kind == "hash" else 1)
        hashed.append(kind == "hash" and (not is_counted or size < n_vertices))
        n_entries += size
    levels = LevelTable(
        n_input_dims,
        tuple(row * n_input_dims for row in scales),
        tuple(row * n_input_dims for row in resolutions),
        0.5,
        tuple(offsets),
        tuple(sizes),
        tuple(hashed),
    )
    return levels, n_entries
