"""Kernels against those of the CPU, and how far two implementations of an op may be apart that rounds its factors to 16
bits.

Both compute in fp32 what the op says, and add up in their own order. So each value lies in a range around one that is
known in double precision, and these ranges are followed through the op:

- A sum of K products: one after the other in fp32 it is off by at most K 2^-24 of the sum S of its absolute terms.
  Tensor cores of sm_80 take 8 products to the sum so far, cut off each of the 9 terms 2^-24 below the largest, whose
  leading bit is at most S, and the total 2^-23 below its own: 11 * 2^-24 S for every 8 products. Sums are padded to
  tiles of 16.
- A factor rounded to 16 bits: rounding is monotone, so the ends of the range are rounded. Most ranges lie between two
  borders and become a point; a few have a border inside and become a unit of the 16 bits wide, 2^-8 of the value in
  bfloat16. This is why no bound in units of fp32 holds for every draw.
- A monotone function likewise, and what its own error is: 2 units of fp32 with exp in it, CUDA's being off by 1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from host.redirect import has_tensor_cores
from torch import Tensor

from hashgrid.util.choices import ACTIVATIONS, FACTORS
from problems.samples import ON_CUDA, TENSOR_CORES_ONLY

UNIT = 2**-24
UNDERFLOW = 2**-120  # below that, functions and products may be zero
# An exp at 2 units, and one for every other operation; twice that, as ranges are of fp32 and not of real numbers.
FUNCTION_UNITS = {"none": 0, "relu": 0, "sigmoid": 8, "silu": 10, "exp": 4}


@dataclass
class Range:
    """Values that lie within ``error`` of ``value``."""

    value: Tensor
    error: Tensor

    @staticmethod
    def of(exact: Tensor) -> Range:
        return Range(exact.double(), torch.zeros_like(exact, dtype=torch.float64))

    def ends(self) -> tuple[Tensor, Tensor]:
        return self.value - self.error, self.value + self.error

    def __add__(self, other: Range) -> Range:
        value = self.value + other.value
        return Range(value, self.error + other.error + UNIT * value.abs())

    def __mul__(self, other: Range) -> Range:
        a, b = self.value.abs() + self.error, other.value.abs() + other.error
        error = a * b - self.value.abs() * other.value.abs()
        return Range(self.value * other.value, error + UNIT * a * b)

    def __getitem__(self, index: Any) -> Range:
        return Range(self.value[index], self.error[index])

    def t(self) -> Range:
        return Range(self.value.t(), self.error.t())

    def product(self, other: Range, bias: Range | None = None) -> Range:
        """self [N, K] other [K, M] + bias [M], in any order or on tensor cores."""
        bias = Range.of(torch.zeros(other.value.shape[1])) if bias is None else bias
        value = self.value @ other.value + bias.value
        a, b = self.value.abs(), other.value.abs()
        wide = (a + self.error) @ (b + other.error)
        terms = wide + bias.value.abs() + bias.error
        groups = 2 * -(-self.value.shape[1] // 16)
        return Range(value, wide - a @ b + bias.error + 11 * groups * UNIT * terms)

    def through(self, function: Callable[[Tensor], Tensor], units: float = 0.0) -> Range:
        """``function`` is monotone."""
        value = function(self.value)
        ends = torch.stack([function(end) for end in self.ends()])
        return Range(value, (ends - value).abs().amax(0) + units * UNIT * ends.abs().amax(0))

    def rounded(self, dtype: torch.dtype) -> Range:
        return self.through(lambda x: x.float().to(dtype).double())

    def rounded_gradient(self, dtype: torch.dtype) -> Range:
        """float16's mantissa, with an exponent that on tensor cores belongs to the row, and in sums over rows to the
        block: 2^-37 of the largest value is half of the least that is kept there, once or twice."""
        if dtype == torch.bfloat16:
            return self.rounded(dtype)
        result = self.through(_round_to_eleven_bits)
        result.error += 2**-36 * self.value.abs().max()
        return result


def _round_to_eleven_bits(x: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**11).round(), exponent - 11)


def cat(ranges: Sequence[Range], dim: int) -> Range:
    return Range(torch.cat([x.value for x in ranges], dim), torch.cat([x.error for x in ranges], dim))


@dataclass
class Layers:
    """A network's rounded weights, the factors in front of each and the sums behind it."""

    weights: list[Range]
    factors: list[Range]
    sums: list[Range]
    half: torch.dtype

    @property
    def output(self) -> Range:
        return self.sums[-1]


def activated(sums: Range, activation: str) -> Range:
    units = FUNCTION_UNITS[activation]
    if activation == "silu":  # not monotone; its derivative is at most 1.1
        value = torch.nn.functional.silu(sums.value)
        return Range(value, 1.1 * sums.error + units * UNIT * value.abs())
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "none": lambda x: x,
        "relu": torch.relu,
        "sigmoid": torch.sigmoid,
        "exp": torch.exp,
    }
    return sums.through(functions[activation], units)


def forward(
    x: Range, weights: Sequence[Tensor], biases: Sequence[Tensor], half: torch.dtype, activation: str = "relu"
) -> Layers:
    """Through layers with activations between them."""
    layers = Layers([Range.of(weight.to(half)) for weight in weights], [], [], half)
    for i, weight in enumerate(layers.weights):
        layers.factors.append(x.rounded(half))
        layers.sums.append(layers.factors[-1].product(weight.t(), Range.of(biases[i]) if biases else None))
        x = activated(layers.sums[-1], activation)
    return layers


def backward(layers: Layers, grad: Range, need_first: bool = True) -> tuple[Range, list[Range], list[Range]]:
    """From the gradient of the last sums those of the first factors, of weights and of biases."""
    of_weights, of_biases = [], []
    for i in reversed(range(len(layers.weights))):
        rounded = grad.rounded_gradient(layers.half)
        of_weights.insert(0, _summed_over_rows(rounded, layers.half).t().product(layers.factors[i]))
        of_biases.insert(0, Range.of(torch.ones(1, len(grad.value))).product(grad)[0])
        if i > 0 or need_first:
            grad = rounded.product(layers.weights[i])
        if i > 0:
            low, high = layers.sums[i - 1].ends()
            # the sign may be read behind the rounding
            open_ = (low <= 2**-25) & (high >= 0)
            factor = Range(torch.where(open_, 0.5, (low > 0).double()), 0.5 * open_)
            grad = Range(grad.value * factor.value, grad.error + factor.error * grad.value.abs())
    return grad, of_weights, of_biases


def _summed_over_rows(grad: Range, half: torch.dtype) -> Range:
    """With float16 on tensor cores a row may drop out of sums over rows: its values are below 2^15 of its units, the
    largest of all is at least 2^12 of the block's, and it is lost where its unit is 2^-25 of the block's."""
    if half == torch.bfloat16:
        return grad
    magnitude = grad.value.abs() + grad.error
    lost = magnitude.amax(1, keepdim=True) <= 2.0 ** (15 - 25 - 12) * magnitude.max()
    return Range(grad.value, grad.error + lost * magnitude)


def _sigmoid_derivative(sums: Range) -> Range:
    """s (1 - s); its own derivative is at most sqrt(3) / 18."""
    s = torch.sigmoid(sums.value)
    return Range(s * (1 - s), 0.0963 * sums.error + 2 * FUNCTION_UNITS["sigmoid"] * UNIT * s)


def _density_derivative(sums: Range) -> Range:
    return sums.through(lambda x: x.clamp(-15, 15).exp(), FUNCTION_UNITS["exp"])


def _hash_encode_mlp(positions: Tensor, table: Tensor, level_weights: Tensor | None, *rest: Any) -> list[Range]:
    *levels, weights, biases, activation, output_activation, factors = rest
    assert ACTIVATIONS[activation] == "relu"
    encode = torch.ops.hashgrid.hash_encode
    features, terms = (encode(positions, rows, level_weights, *levels) for rows in (table, table.abs()))
    # Fractions of a cell are the same numbers; a corner's weight takes up to 4 roundings for each of 3 dimensions, its
    # term one more, the sum of 8 terms 8. The features are one such result, so another is twice as far away.
    x = Range(features.double(), 2 * (4 * 3 + 1 + 8) * UNIT * terms.double())
    layers = forward(x, weights, biases, FACTORS[factors])
    return [activated(layers.output, ACTIVATIONS[output_activation])]


def _mlp(x: Tensor, weights: list[Tensor], biases: list[Tensor], *options: int) -> list[Range]:
    activation, output_activation, factors = options
    layers = forward(Range.of(x), weights, biases, FACTORS[factors], ACTIVATIONS[activation])
    return [activated(layers.output, ACTIVATIONS[output_activation])]


def _mlp_backward(grad_y: Tensor, x: Tensor, weights: list[Tensor], biases: list[Tensor], *options: int) -> list[Range]:
    activation, output_activation, factors, need_x, need_params = options
    assert (ACTIVATIONS[activation], ACTIVATIONS[output_activation]) == ("relu", "none")
    layers = forward(Range.of(x), weights, biases, FACTORS[factors])
    of_x, of_weights, of_biases = backward(layers, Range.of(grad_y))
    params = [*of_weights, *(of_biases if biases else [])] if need_params else []
    return [of_x if need_x else of_x[:0], _flat(params)]


def _flat(ranges: Sequence[Range]) -> Range:
    return cat([Range(x.value.flatten(), x.error.flatten()) for x in ranges], 0)


def _radiance_layers(
    x: Tensor, ray_features: Tensor, rays: Tensor, density: list[Tensor], color: list[Tensor], half: torch.dtype
) -> tuple[Layers, Layers]:
    geometry = forward(Range.of(x), density, [], half)
    return geometry, forward(cat([geometry.output, Range.of(ray_features[rays])], 1), color, [], half)


def _radiance_mlp(*arguments: Any) -> list[Range]:
    *inputs, output_activation, factors = arguments
    geometry, colors = _radiance_layers(*inputs, FACTORS[factors])
    sigmas = geometry.output[:, 0].through(torch.exp, FUNCTION_UNITS["exp"])
    return [sigmas, activated(colors.output, ACTIVATIONS[output_activation])]


def _radiance_mlp_backward(grad_sigmas: Tensor, grad_colors: Tensor, *arguments: Any) -> list[Range]:
    *inputs, output_activation, factors, need_x, need_params = arguments
    assert ACTIVATIONS[output_activation] == "sigmoid"
    geometry, colors = _radiance_layers(*inputs, FACTORS[factors])
    grad = Range.of(grad_colors) * _sigmoid_derivative(colors.output)
    of_inputs, of_color, _ = backward(colors, grad)
    grad = of_inputs[:, : geometry.output.value.shape[1]]
    of_density = Range.of(grad_sigmas) * _density_derivative(geometry.output[:, 0])
    grad = cat([(grad[:, 0] + of_density)[:, None], grad[:, 1:]], 1)
    of_x, of_weights, _ = backward(geometry, grad)
    return [of_x if need_x else of_x[:0], _flat([*of_weights, *of_color] if need_params else [])]


# op: where its arguments hold the type of the factors, and the ranges of its results
RANGES: dict[str, tuple[int, Callable[..., list[Range]]]] = {
    "hash_encode_mlp": (-1, _hash_encode_mlp),
    "mlp": (-1, _mlp),
    "mlp_backward": (-3, _mlp_backward),
    "radiance_mlp": (-1, _radiance_mlp),
    "radiance_mlp_backward": (-3, _radiance_mlp_backward),
}


def ranges_of(name: str, arguments: Sequence[Any]) -> list[Range] | None:
    """Ranges of the results of an op, None if it rounds nothing to 16 bits."""
    place, function = RANGES.get(name, (0, None))
    if function is None or FACTORS[arguments[place]] not in (torch.bfloat16, torch.float16):
        return None
    return function(*arguments)


def assert_agree(name: str, arguments: Sequence[Any], results: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Results of two implementations of an op, floats. Those that round to 16 bits lie in the range of each value.

    Others may be 2^-17 of the largest value apart. Their sums have at most 40 terms, whose roundings add up to
    2 * 40 * 2^-24 of the absolute terms, if all went one way; as they do not, that covers terms that cancel as well:
    over 200 draws of every sample the largest difference was 2^-19.
    """
    ranges = ranges_of(name, arguments)
    for i, (a, b) in enumerate(zip(results, expected, strict=True)):
        assert a.shape == b.shape and a.dtype == b.dtype
        if a.numel() == 0:
            continue
        if ranges is None or i >= len(ranges):  # arguments, which nothing is written into
            assert (a - b).abs().max() <= 2**-17 * b.abs().max(), (name, i)
            continue
        for x in (a, b):
            excess = ((x.double() - ranges[i].value).abs() / (ranges[i].error + UNDERFLOW)).max()
            assert excess <= 1, f"{name}, result {i}: {excess:.3g} of what is allowed"


# ---- kernels against the CPU's ---------------------------------------------------------------------------------------


def moved(values: Any, device: str) -> Any:
    """The tensors among ``values``, also in lists and tuples, on another device; gradients find their way back."""
    if isinstance(values, Tensor):
        return values.to(device)
    if isinstance(values, dict):
        return {name: moved(value, device) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(moved(value, device) for value in values)
    return values


def detached(values: Any) -> Any:
    """The same with every tensor a leaf that needs no gradient."""
    if isinstance(values, Tensor):
        return values.detach()
    return type(values)(detached(value) for value in values) if isinstance(values, (list, tuple)) else values


def tensors_of(values: Any) -> list[Tensor]:
    if isinstance(values, (list, tuple)):
        return [tensor for value in values for tensor in tensors_of(value)]
    return [values] if isinstance(values, Tensor) else []


def check_agreement(name: str, arguments: Any, library: Any, device: str = "cpu") -> None:
    """Results of ``library``'s op and what it writes into arguments: floats as far from the CPU's as rounding can take
    them, the rest the same. Without tensor cores, an op that needs them says so."""
    arguments = detached(arguments)
    copies = moved(copy.deepcopy(arguments), device)
    if name in TENSOR_CORES_ONLY and not has_tensor_cores(library):
        with pytest.raises(RuntimeError, match=f"{name.removesuffix('_backward')} has no kernel without tensor cores"):
            getattr(library, name)(*copies)
        return
    results = getattr(library, name)(*copies)
    expected = getattr(torch.ops.hashgrid, name)(*arguments)
    ours, theirs = moved(tensors_of((results, copies)), "cpu"), tensors_of((expected, arguments))
    floats = [i for i, tensor in enumerate(theirs) if tensor.is_floating_point()]
    assert_agree(name, arguments, [ours[i] for i in floats], [theirs[i] for i in floats])
    for i in set(range(len(theirs))) - set(floats):
        assert torch.equal(ours[i], theirs[i]), (name, i)


def check_draws(name: str, seeds: range) -> None:
    """The emulated kernels, for draws of an op's samples."""
    for seed in seeds:
        torch.manual_seed(seed)
        for arguments in ON_CUDA[name]():
            check_agreement(name, arguments, torch.ops.hashgrid_on_host)
