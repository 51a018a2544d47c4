"""tiny-cuda-nn's encodings and networks as functions of stretches of its flat ``params``, with its padding.

An encoding or a network here has no tensors of its own: ``sizes`` says how its parameters lie one behind the other, and
each call gets them as that many flat tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hashgrid.compat.tinycudann_start import Pcg32, sine_bound, uniform_matrix, uniform_table, xavier_bound
from hashgrid.levels import LevelTable, round_fp32
from hashgrid.nn.fused_mlp import MAX_HIDDEN_LAYERS
from hashgrid.nn.permutohedral import permutohedral_encode
from hashgrid.ops._backend import backend_ops, ngp_ops
from hashgrid.util.autograd import is_recorded
from hashgrid.util.choices import ACTIVATIONS

NETWORK_MULTIPLE = 16  # inputs and outputs of networks are padded to multiples of it
_SHARPNESS = 10.0  # of softplus and squareplus
_MAX_KERNEL_LAYERS = MAX_HIDDEN_LAYERS + 1
# vertices along a side of a level that tiny-cuda-nn counts in 32 bits, by dimension
_MAX_RESOLUTIONS = (0, 0xFFFFFFFF, 0xFFFF, 0x659, 0xFF, 0x54, 0x28, 0x17)


def next_multiple(n: int, of: int) -> int:
    return -(-n // of) * of


# ---- encodings -------------------------------------------------------------------------------------------------------


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
        self.set_width(next_multiple(self.width, math.lcm(multiple, self.multiple)))

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
        for part in members:
            part.pad_to(1 if reduction == "concatenation" else self.multiple)
        if reduction == "concatenation":
            end = 0
            for part, following in zip(members, members[1:], strict=False):
                part.set_width(next_multiple(end + part.width, following.multiple) - end)
                end += part.width
        elif len({part.width for part in members}) > 1:
            raise ValueError(
                f"nested encodings of a {reduction} must have as many outputs each, got {[p.width for p in members]}"
            )
        width = sum(part.width for part in members) if reduction == "concatenation" else members[0].width
        super().__init__(n_input_dims, width)

    def set_width(self, width: int) -> None:
        last = self.parts[-1][0]
        if self.reduction == "concatenation":
            last.set_width(last.width + width - self.width)
        else:
            for part, _ in self.parts:
                part.set_width(width)
        self.width = self.n_features = width

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


# ---- networks --------------------------------------------------------------------------------------------------------


class Layers:
    """A multilayer perceptron without biases, its weights [out, in] row by row one behind the other.

    Args:
        n_inputs: a multiple of 16.
        n_output_dims: rows of the last layer that are used; its others fill it up to a multiple of 16.
        n_neurons: width of the hidden layers.
        n_hidden_layers: how many.
        activation: of the hidden layers: one of `hashgrid.util.choices.ACTIVATIONS`, or "squareplus".
        output_activation: of the last layer, likewise.
        backend: "native" or "reference".
    """

    def __init__(
        self,
        n_inputs: int,
        n_output_dims: int,
        n_neurons: int,
        n_hidden_layers: int,
        activation: str,
        output_activation: str,
        backend: str,
    ) -> None:
        widths = [n_inputs, *[n_neurons] * n_hidden_layers, next_multiple(n_output_dims, NETWORK_MULTIPLE)]
        self.n_output_dims = n_output_dims
        self.activation, self.output_activation, self.backend = activation, output_activation, backend
        self.shapes = [(n_out, n_in) for n_in, n_out in zip(widths, widths[1:], strict=False)]
        self.sizes = tuple(n_out * n_in for n_out, n_in in self.shapes)

    def weights(self, params: Sequence[Tensor], n_inputs: int) -> list[Tensor]:
        """Matrices [out, in], without the first one's columns from ``n_inputs`` on and the last one's unused rows."""
        matrices = [flat.view(shape) for flat, shape in zip(params, self.shapes, strict=True)]
        matrices[-1] = matrices[-1][: self.n_output_dims]
        matrices[0] = matrices[0][:, :n_inputs]
        return matrices

    def __call__(self, x: Tensor, params: Sequence[Tensor], compute_dtype: torch.dtype | None) -> Tensor:
        """Outputs [..., n_output_dims] of ``x`` [..., in], where inputs that are missing at the end are zero."""
        weights = self.weights(params, x.shape[-1])
        n = len(weights)
        most = _MAX_KERNEL_LAYERS if self.activation in ACTIVATIONS else 1
        for begin in range(0, n, most):
            end = min(begin + most, n)
            last = self.output_activation if end == n else self.activation
            x = backend_ops(self.backend).mlp(
                x, weights[begin:end], compute_dtype=compute_dtype, **self._kernel_activations(last)
            )
            x = x if _is_of_kernels(last) else _soft(x, last)
        return x

    def fused(
        self, grid: Grid, x: Tensor, params: Sequence[Tensor], compute_dtype: torch.dtype | None
    ) -> Tensor | None:
        """Outputs behind a grid by one kernel; None where there is none, or a gradient is recorded."""
        n = len(self.shapes)
        is_whole = n <= _MAX_KERNEL_LAYERS and self.activation in ACTIVATIONS and _is_of_kernels(self.output_activation)
        if not is_whole or is_recorded(x, *params):
            return None
        weights = self.weights(params[:n], grid.n_features)
        return ngp_ops(self.backend).hash_encode_mlp(
            **grid.op_arguments(x, params[n:]),
            weights=weights,
            compute_dtype=compute_dtype,
            **self._kernel_activations(self.output_activation),
        )

    def _kernel_activations(self, last: str) -> dict[str, Any]:
        return {
            "activation": self.activation if self.activation in ACTIVATIONS else "none",
            "output_activation": last if _is_of_kernels(last) else "none",
            "softplus_beta": _SHARPNESS if self.activation == "softplus" else 1.0,
        }

    def initial(self, random: Pcg32) -> list[np.ndarray]:
        """The weights to start from, flat."""
        return [
            uniform_matrix(
                random,
                n_out,
                n_in,
                sine_bound(n_in, layer == 0) if self.activation == "sine" else xavier_bound(n_out, n_in),
            )
            for layer, (n_out, n_in) in enumerate(self.shapes)
        ]


def _is_of_kernels(output_activation: str) -> bool:
    """Whether kernels have it behind a last layer, where their softplus knows no sharpness."""
    return output_activation in ACTIVATIONS and output_activation != "softplus"


def _soft(x: Tensor, activation: str) -> Tensor:
    """Softplus ``log(1 + e^(10 x)) / 10`` or squareplus ``(x + sqrt(x^2 + 0.04)) / 2`` (Barron 2021)."""
    if activation == "softplus":
        return F.softplus(x, _SHARPNESS, threshold=40)
    return (x + (x * x + 4 / _SHARPNESS**2).sqrt()) / 2
