"""Multiresolution hash encoding (Müller et al. 2022, section 3) on the native kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.autograd import Function, apply
from hashgrid.levels import LevelTable
from hashgrid.ops._asked import is_asked_for
from hashgrid.ops._flatten import flatten, unflatten
from hashgrid.ops._last import no_third_derivative
from hashgrid.ops._vmap import register_vmap
from hashgrid.precision import at_least_fp32
from hashgrid.util.choices import BOUNDS, INTERPOLATIONS, check_option


def hash_encode(
    positions: Tensor,
    table: Tensor,
    levels: LevelTable,
    interpolation: str = "linear",
    bounds: str = "clamp",
    level_weights: Tensor | None = None,
    shadow: Tensor | None = None,
    known: Tensor | None = None,
    grad_buffer: Tensor | None = None,
) -> Tensor:
    """Interpolated table features of every level, concatenated: channel ``l * F + f``.

    Differentiable twice in ``positions``, ``table`` and ``level_weights``; sums and gradient sums are fp32 (fp64 for
    fp64 inputs), and the table gradient has the same bits for any number of threads. A position that is NaN or
    infinite gives NaN and no table gradient.

    Args:
        positions: [..., D] in [0, 1], fp32 or fp64 (half precision is read as fp32).
        table: [n_entries, F], fp32 (half precision is read as fp32), or fp64 with fp64 positions.
        levels: geometry of the levels.
        interpolation: ``"linear"``, ``"smoothstep"`` or ``"nearest"`` (no gradient to positions).
        bounds: outside [0, 1], ``"clamp"`` uses the border value with zero position gradient, ``"zero"`` gives zeros
            and no gradients, ``"none"`` extrapolates and wraps as tiny-cuda-nn does.
        level_weights: [L] factors of the levels, for coarse-to-fine schedules.
        shadow: [n_entries, F] half-precision copy of ``table`` to read instead; the gradient still goes to ``table``,
            in fp32.
        known: [..., L * F] result of an earlier call with the same arguments: returned as it is, with the gradient it
            would have had. Saves the forward pass where values were needed first to choose which points to keep.
        grad_buffer: [n_entries, F], usually ``table.grad``: the backward adds the table's gradient to it and passes
            none through autograd. A buffer that is kept from step to step costs no fresh pages and no zeroing pass.

    Returns:
        [..., L * F] in the dtype of ``positions``, with a ``shadow`` as well: in fp16, gradients of a mean over many
        samples would be zero.

    Raises:
        ValueError: an option or a shape is wrong.
        RuntimeError: a dtype or size the kernels do not take.
    """
    check_option("interpolation", interpolation, INTERPOLATIONS)
    check_option("bounds", bounds, BOUNDS)
    positions = at_least_fp32(positions)
    batch = positions.shape[:-1]
    options = options_of(levels, interpolation, bounds)
    flat = flatten(positions, levels.n_input_dims, "positions")
    if known is not None:
        known = flatten(known, levels.n_levels * table.shape[1], "known")
        if known.shape[0] != flat.shape[0]:
            raise ValueError(f"`known` must have one row per position ({flat.shape[0]}), got {known.shape[0]}")
    table = table.contiguous()
    level_weights = None if level_weights is None else at_least_fp32(level_weights).contiguous()
    shadow = None if shadow is None else shadow.contiguous()
    y = apply(_HashEncode, flat, table, level_weights, shadow, known, grad_buffer, options)
    return unflatten(y, batch)


def options_of(levels: LevelTable, interpolation: str, bounds: str) -> tuple[Any, ...]:
    """The arguments of the ops that are no tensors, in schema order."""
    return *levels.arguments, INTERPOLATIONS.index(interpolation), BOUNDS.index(bounds)


def n_levels_of(scales: Sequence[float], geometry: Sequence[int]) -> int:
    """Return the number of levels in what ops take: D scales and D + 3 integers each, and the shift."""
    return (len(geometry) - (len(scales) - 1)) // 3


def _deterministic() -> bool:
    """Whether CUDA has to sum the table's gradient in a way that no order changes; on the CPU it always is."""
    return torch.are_deterministic_algorithms_enabled()


class _HashEncode(Function):
    @staticmethod
    def forward(positions, table, level_weights, shadow, known, grad_buffer, options):  # type: ignore[override]
        if known is not None:
            return known.view_as(known)
        return _extension.ops().hash_encode(positions, table if shadow is None else shadow, level_weights, *options)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[override]
        positions, table, level_weights, shadow, _, ctx.grad_buffer, ctx.options = inputs
        ctx.save_for_backward(positions, table, level_weights, shadow)

    @staticmethod
    def backward(ctx, grad_y):  # type: ignore[override]
        positions, table, level_weights, shadow = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        needs = (needs[0] and is_asked_for(ctx, 0), needs[1] and is_asked_for(ctx, 1), needs[2])
        grad_y = grad_y.to(positions.dtype).contiguous()
        if ctx.grad_buffer is not None and needs[1] and not torch.is_grad_enabled():
            _extension.ops().hash_encode_accumulate_table_gradient(
                ctx.grad_buffer, None, grad_y, positions, level_weights, *ctx.options, _deterministic()
            )
            torch.autograd.graph.increment_version(ctx.grad_buffer)
            needs = (needs[0], False, needs[2])
            if not any(needs):
                return (None,) * 7
        grads = apply(
            _HashEncodeBackward, grad_y, positions, table, level_weights, shadow, ctx.grad_buffer, ctx.options, needs
        )
        return *(grad if need else None for grad, need in zip(grads, needs, strict=True)), None, None, None, None


class _HashEncodeBackward(Function):
    """The first derivative as a function of its own, so that it can be differentiated once more."""

    @staticmethod
    def forward(grad_y, positions, table, level_weights, shadow, grad_buffer, options, needs):  # type: ignore[override]
        read = table if shadow is None else shadow
        return _extension.ops().hash_encode_backward(
            grad_y, positions, read, level_weights, *options, *needs, _deterministic()
        )

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[override]
        grad_y, positions, table, level_weights, shadow, ctx.grad_buffer, ctx.options, ctx.needs = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad_y, positions, table, level_weights, shadow)

    @staticmethod
    def backward(ctx, *cotangents):  # type: ignore[override]
        kept = tuple(
            None if g is None or not need else g.contiguous() for g, need in zip(cotangents, ctx.needs, strict=True)
        )
        if all(g is None for g in kept):
            return (None,) * 8
        keep = ctx.needs_input_grad[:4]
        keep = (keep[0], keep[1] and is_asked_for(ctx, 1), keep[2] and is_asked_for(ctx, 2), keep[3])
        in_place = ctx.grad_buffer is not None and keep[2] and not torch.is_grad_enabled()
        if in_place and kept[0] is not None and kept[1] is None and kept[2] is None:
            grad_y, positions, _, level_weights, _ = ctx.saved_tensors
            _extension.ops().hash_encode_accumulate_table_gradient(
                ctx.grad_buffer, kept[0], grad_y, positions, level_weights, *ctx.options, _deterministic()
            )
            torch.autograd.graph.increment_version(ctx.grad_buffer)
            keep = (keep[0], keep[1], False, keep[3])
        grads = no_third_derivative("hash_encode", _second_order, *kept, *ctx.saved_tensors, ctx.options, keep)
        return *(grad if need else None for grad, need in zip(grads, keep, strict=True)), None, None, None, None


def _second_order(v_positions, v_table, v_weights, grad_y, positions, table, level_weights, shadow, options, keep):
    read = table if shadow is None else shadow
    return _extension.ops().hash_encode_backward_backward(
        v_positions, v_table, v_weights, grad_y, positions, read, level_weights, *options, *keep[1:],
        _deterministic(),
    )  # fmt: skip


def _register() -> None:
    """Fake kernels and autograd of ``torch.ops.hashgrid.hash_encode``."""

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
    def _(grad_table, grad_grad_positions, grad_y, positions, level_weights, *options):
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

    def setup_context(ctx, inputs, output) -> None:
        positions, table, level_weights, *ctx.options = inputs
        ctx.save_for_backward(positions, table, level_weights)

    def backward(ctx, grad_y):
        positions, table, level_weights = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        grads = torch.ops.hashgrid.hash_encode_backward(
            grad_y.contiguous(), positions, table, level_weights, *ctx.options, *needs, _deterministic()
        )
        grads = [grad if need else None for grad, need in zip(grads, needs, strict=True)]
        if grads[1] is not None:
            grads[1] = grads[1].to(table.dtype)
        return *grads, *(None for _ in ctx.options)

    def setup_context_backward(ctx, inputs, output) -> None:
        ctx.options = inputs[4:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:4])

    def backward_backward(ctx, *cotangents):
        grad_y, positions, table, level_weights = ctx.saved_tensors
        *options, need_positions, need_table, need_weights, deterministic = ctx.options
        needs = ctx.needs_input_grad[:4]
        kept = [
            None if g is None or not need else g.contiguous()
            for g, need in zip(cotangents, (need_positions, need_table, need_weights), strict=True)
        ]
        grads = torch.ops.hashgrid.hash_encode_backward_backward(
            *kept, grad_y, positions, table, level_weights, *options, *needs[1:], deterministic
        )
        return *(g if need else None for g, need in zip(grads, needs, strict=True)), *(None for _ in ctx.options)

    torch.library.register_autograd("hashgrid::hash_encode", backward, setup_context=setup_context)
    torch.library.register_autograd(
        "hashgrid::hash_encode_backward", backward_backward, setup_context=setup_context_backward
    )

    needs = ("need_table", "need_level_weights")
    register_vmap("hash_encode", ["positions"])
    register_vmap("hash_encode_backward", ["grad_y", "positions"], sums=needs)
    rows = ["grad_grad_positions", "grad_y", "positions"]
    register_vmap("hash_encode_backward_backward", rows, (0, 1), needs)


if _extension.module is not None:
    _register()
