"""Multiresolution hash encoding (Müller et al. 2022, section 3) on the native kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.levels import LevelTable
from hashgrid.ops._autograd import Gradients, Static, added, differentiable, make_function, no_third_derivative
from hashgrid.ops._tensors import at_least_fp32, flatten, unflatten
from hashgrid.ops._vmap import register_vmap
from hashgrid.util.autograd import apply
from hashgrid.util.choices import BOUNDS, INTERPOLATIONS, check_option


def hash_encode(
    positions: Tensor,
    table: Tensor,
    levels: LevelTable,
    interpolation: str = "linear",
    bounds: str = "clamp",
    level_weights: Tensor | None = None,
) -> Tensor:
    """Interpolated table features of every level, concatenated: channel ``l * F + f``.

    Differentiable twice in ``positions``, ``table`` and ``level_weights``, the second time also in forward mode; sums
    and gradient sums are fp32 (fp64 for fp64 inputs), and the table gradient has the same bits for any number of
    threads. A position that is NaN or infinite gives NaN and no table gradient.

    Args:
        positions: [..., D] in [0, 1], fp32 or fp64 (half precision is read as fp32).
        table: [n_entries, F], fp32 (half precision is read as fp32), or fp64 with fp64 positions.
        levels: geometry of the levels.
        interpolation: ``"linear"``, ``"smoothstep"`` or ``"nearest"`` (no gradient to positions).
        bounds: outside [0, 1], ``"clamp"`` uses the border value with zero position gradient, ``"zero"`` gives zeros
            and no gradients, ``"none"`` extrapolates and wraps as tiny-cuda-nn does.
        level_weights: [L] factors of the levels, for coarse-to-fine schedules.

    Returns:
        [..., L * F] in the dtype of ``positions``.

    Raises:
        ValueError: an option or a shape is wrong.
        RuntimeError: a dtype or size the kernels do not take.
    """
    positions = at_least_fp32(positions)
    y = _encode(
        flatten(positions, levels.n_input_dims, "positions"),
        table.contiguous(),
        None if level_weights is None else at_least_fp32(level_weights).contiguous(),
        *encoding_options(levels, interpolation, bounds),
    )
    return unflatten(y, positions.shape[:-1])


def encoding_options(levels: LevelTable, interpolation: str, bounds: str) -> tuple[Any, ...]:
    """The arguments of compiled ops with levels that are no tensors, in schema order.

    Raises:
        ValueError: an option is unknown.
    """
    check_option("interpolation", interpolation, INTERPOLATIONS)
    check_option("bounds", bounds, BOUNDS)
    return *levels.arguments, INTERPOLATIONS.index(interpolation), BOUNDS.index(bounds)


def n_levels_of(scales: Sequence[float], geometry: Sequence[int]) -> int:
    """Returns the number of levels in what ops take: D scales and D + 3 integers for each, and the shift."""
    return (len(geometry) - (len(scales) - 1)) // 3


def is_deterministic() -> bool:
    """Returns whether the table's gradient on CUDA has to have the same bits in every run; on the CPU it always has."""
    return torch.are_deterministic_algorithms_enabled()


# ---- derivatives -----------------------------------------------------------------------------------------------------
# Tensors (positions, table, level_weights); as cotangents and tangents in this order, too.


def _gradients(needs: Sequence[bool], tensors: Sequence[Any], options: Sequence[Any], grad_y: Tensor) -> Gradients:
    positions, table, level_weights = tensors
    grad_positions, grad_table, grad_weights = _encode_backward(
        grad_y.contiguous(), positions, table, level_weights, *options, *needs, is_deterministic()
    )
    return grad_positions, grad_table.to(table.dtype) if needs[1] else None, grad_weights


def _gradient_gradients(
    needs: Sequence[bool], tensors: Sequence[Any], options: Sequence[Any], *cotangents: Tensor | None
) -> Gradients:
    grad_y, *inputs = tensors
    *geometry, need_positions, need_table, need_weights, deterministic = options
    made = (need_positions, need_table, need_weights)
    kept = [None if g is None or not need else g.contiguous() for g, need in zip(cotangents, made, strict=True)]
    return second_order(kept, grad_y, inputs, geometry, needs[1:], deterministic)


def second_order(
    cotangents: Sequence[Tensor | None],
    grad_y: Tensor,
    inputs: Sequence[Tensor | None],
    geometry: Sequence[Any],
    needs: Sequence[bool],
    deterministic: bool,
) -> Gradients:
    """Gradients of the gradients' product with ``cotangents``: to ``grad_y`` and, as far as needed, to the inputs."""
    if all(cotangent is None for cotangent in cotangents):
        return [None] * 4
    options = (*geometry, *needs, deterministic)

    def compute(*tensors: Any) -> Any:
        return _extension.ops().hash_encode_backward_backward(*tensors, *options)

    return no_third_derivative("hash_encode", compute, *cotangents, grad_y, *inputs)


def _tangent(tensors: Sequence[Any], options: Sequence[Any], *tangents: Tensor | None) -> Tensor:
    return apply(_Along, *(t if t is None else t.contiguous() for t in tangents), *tensors, Static(None, options))


def _gradient_tangents(tensors: Sequence[Any], options: Sequence[Any], *tangents: Tensor | None) -> Gradients:
    """Returns the change of the inputs' gradients along tangents. They are linear in ``grad_y``; along tangents of the
    inputs, as second derivatives are symmetric, it is the gradient of their product with these tangents."""
    of_grad_y, *directions = tangents
    grad_y, *inputs = tensors
    terms: list[Any] = []
    if of_grad_y is not None:
        terms.append(_encode_backward(of_grad_y.contiguous(), *inputs, *options))
    if any(direction is not None for direction in directions):
        kept = [None if direction is None else direction.contiguous() for direction in directions]
        terms.append(second_order(kept, grad_y, inputs, options[:-4], options[-4:-1], options[-1])[1:])
    return added(terms)


def _run_along(*arguments: Any) -> Tensor:
    """Returns the change of the features along directions of all inputs. It is the derivative, to the features'
    gradient, of the product of the inputs' gradients with these directions; as that product is linear in it, its value
    does not matter."""
    *tensors, static = arguments
    directions, inputs, options = tensors[:3], tensors[3:], static.options
    positions, table, _ = inputs
    grad_y = positions.new_zeros(positions.shape[0], n_levels_of(*options[:2]) * table.shape[1])
    return _extension.ops().hash_encode_backward_backward(
        *directions, grad_y, *inputs, *options, False, False, False, is_deterministic()
    )[0]


def _along_gradients(
    needs: Sequence[bool], tensors: Sequence[Any], options: Sequence[Any], grad_y: Tensor
) -> Gradients:  # fmt: skip
    directions, inputs, grad_y = tensors[:3], tensors[3:], grad_y.contiguous()
    grads: list[Tensor | None] = [None] * 6
    if any(needs[:3]):
        grads[:3] = _encode_backward(grad_y, *inputs, *options, *needs[:3], is_deterministic())
    if any(needs[3:]):
        grads[3:] = second_order(directions, grad_y, inputs, options, needs[3:], is_deterministic())[1:]
    return grads


_Along = make_function("hash_encode_along", _run_along, _along_gradients)
_encode = differentiable("hash_encode", _gradients, _tangent)
_encode_backward = differentiable("hash_encode_backward", _gradient_gradients, _gradient_tangents)


def _register() -> None:
    """Registers fake kernels of ``torch.ops.hashgrid.hash_encode`` and its derivatives, and vmap over them."""

    @torch.library.register_fake("hashgrid::hash_encode")
    def _(positions, table, level_weights, scales, geometry, *options):
        return positions.new_empty(positions.shape[0], n_levels_of(scales, geometry) * table.shape[1])

    @torch.library.register_fake("hashgrid::hash_encode_backward")
    def _(grad_y, positions, table, level_weights, scales, geometry, *options):
        need_positions, need_table, need_level_weights, _ = options[-4:]
        n_levels = n_levels_of(scales, geometry) if need_level_weights else 0
        return (
            positions.new_empty(positions.shape[0] if need_positions else 0, positions.shape[1]),
            positions.new_empty(table.shape[0] if need_table else 0, table.shape[1]),
            positions.new_empty(n_levels),
        )

    @torch.library.register_fake("hashgrid::hash_encode_accumulate_table_gradient")
    def _(grad_table, grad_grad_positions, grad_features, grad_y, positions, level_weights, *options):
        return None

    @torch.library.register_fake("hashgrid::hash_encode_backward_backward")
    def _(v, grad_grad_table, u, grad_y, positions, table, level_weights, scales, geometry, *options):
        need_positions, need_table, need_level_weights, _ = options[-4:]
        return (
            torch.empty_like(grad_y),
            positions.new_empty(positions.shape[0] if need_positions else 0, positions.shape[1]),
            positions.new_empty(table.shape[0] if need_table else 0, table.shape[1]),
            positions.new_empty(n_levels_of(scales, geometry) if need_level_weights else 0),
        )

    needs = ("need_table", "need_level_weights")
    register_vmap("hash_encode", ["positions"])
    register_vmap("hash_encode_backward", ["grad_y", "positions"], sums=needs)
    rows = ["grad_grad_positions", "grad_y", "positions"]
    register_vmap("hash_encode_backward_backward", rows, (0, 1), needs)


if _extension.module is not None:
    _register()
