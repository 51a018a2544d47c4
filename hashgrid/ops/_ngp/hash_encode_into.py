"""Hash encoding for training loops: reads a half table, keeps known features, adds gradients to a buffer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.levels import LevelTable
from hashgrid.ops._autograd import is_asked_for
from hashgrid.ops._tensors import at_least_fp32, flatten, unflatten
from hashgrid.ops.hash_encode import encoding_options, is_deterministic, second_order
from hashgrid.util.autograd import Function, apply


def hash_encode_into(
    positions: Tensor,
    table: Tensor,
    levels: LevelTable,
    interpolation: str = "linear",
    bounds: str = "clamp",
    level_weights: Tensor | None = None,
    half_table: Tensor | None = None,
    precomputed: Tensor | None = None,
    grad_buffer: Tensor | None = None,
) -> Tensor:
    """Returns what `hash_encode` does, with three things that a training loop can give; the other arguments are
    explained there. Has no forward mode.

    Args:
        half_table: [n_entries, F], half-precision copy of ``table`` to read instead; the gradient still goes to
            ``table``, in fp32.
        precomputed: [..., L * F], result of an earlier call with the same arguments: returned as it is, with the
            gradient it would have had. Saves the forward pass where values were needed first to choose which points to
            keep.
        grad_buffer: [n_entries, F], usually ``table.grad``: the backward adds the table's gradient to it and passes
            none through autograd. A buffer that is kept from step to step costs no fresh pages and no zeroing pass.

    Returns:
        [..., L * F] in the dtype of ``positions``, with a ``half_table``, too: in fp16, gradients of a mean over many
        samples would be zero.

    Raises:
        ValueError: an option or a shape is wrong.
        RuntimeError: a dtype or size the kernels do not take.
    """
    positions = at_least_fp32(positions)
    flat = flatten(positions, levels.n_input_dims, "positions")
    if precomputed is not None:
        precomputed = flatten(precomputed, levels.n_levels * table.shape[1], "precomputed")
        if precomputed.shape[0] != flat.shape[0]:
            raise ValueError(
                f"`precomputed` must have one row per position ({flat.shape[0]}), got {precomputed.shape[0]}"
            )
    level_weights = None if level_weights is None else at_least_fp32(level_weights).contiguous()
    half_table = None if half_table is None else half_table.contiguous()
    options = encoding_options(levels, interpolation, bounds)
    y = apply(_Encode, flat, table.contiguous(), level_weights, half_table, precomputed, grad_buffer, options)
    return unflatten(y, positions.shape[:-1])


class _Encode(Function):
    @staticmethod
    def forward(positions, table, level_weights, half_table, precomputed, grad_buffer, options):  # type: ignore[override]
        if precomputed is not None:
            return precomputed.view_as(precomputed)
        read = table if half_table is None else half_table
        return _extension.ops().hash_encode(positions, read, level_weights, *options)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[override]
        positions, table, level_weights, half_table, _, ctx.grad_buffer, ctx.options = inputs
        ctx.save_for_backward(positions, table, level_weights, half_table)

    @staticmethod
    def backward(ctx, grad_y):  # type: ignore[override]
        positions, table, level_weights, half_table = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        needs = (needs[0] and is_asked_for(ctx, 0), needs[1] and is_asked_for(ctx, 1), needs[2])
        grad_y = grad_y.to(positions.dtype).contiguous()
        if ctx.grad_buffer is not None and needs[1] and not torch.is_grad_enabled():
            _accumulate(ctx.grad_buffer, None, grad_y, positions, level_weights, ctx.options)
            needs = (needs[0], False, needs[2])
            if not any(needs):
                return (None,) * 7
        grads = apply(
            _Gradients, grad_y, positions, table, level_weights, half_table, ctx.grad_buffer, ctx.options, needs
        )
        return *(grad if need else None for grad, need in zip(grads, needs, strict=True)), None, None, None, None


class _Gradients(Function):
    @staticmethod
    def forward(grad_y, positions, table, level_weights, half_table, grad_buffer, options, needs):  # type: ignore[override]
        read = table if half_table is None else half_table
        return _extension.ops().hash_encode_backward(
            grad_y, positions, read, level_weights, *options, *needs, is_deterministic()
        )

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[override]
        grad_y, positions, table, level_weights, half_table, ctx.grad_buffer, ctx.options, ctx.needs = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad_y, positions, table, level_weights, half_table)

    @staticmethod
    def backward(ctx, *cotangents):  # type: ignore[override]
        grad_y, positions, table, level_weights, half_table = ctx.saved_tensors
        kept = [
            None if g is None or not need else g.contiguous() for g, need in zip(cotangents, ctx.needs, strict=True)
        ]
        keep = ctx.needs_input_grad[:4]
        keep = (keep[0], keep[1] and is_asked_for(ctx, 1), keep[2] and is_asked_for(ctx, 2), keep[3])
        in_place = ctx.grad_buffer is not None and keep[2] and not torch.is_grad_enabled()
        if in_place and kept[0] is not None and kept[1] is None and kept[2] is None:
            _accumulate(ctx.grad_buffer, kept[0], grad_y, positions, level_weights, ctx.options)
            keep = (keep[0], keep[1], False, keep[3])
        read = table if half_table is None else half_table
        inputs = (positions, read, level_weights)
        grads = second_order(kept, grad_y, inputs, ctx.options, keep[1:], is_deterministic())
        return *(grad if need else None for grad, need in zip(grads, keep, strict=True)), None, None, None, None


def _accumulate(
    buffer: Tensor,
    of_positions: Tensor | None,
    grad_y: Tensor,
    positions: Tensor,
    level_weights: Tensor | None,
    options: tuple[Any, ...],
) -> None:
    """Adds the table's gradient, or that of the product of the positions' gradient with ``of_positions``."""
    _extension.ops().hash_encode_accumulate_table_gradient(
        buffer, of_positions, None, grad_y, positions, level_weights, *options, is_deterministic()
    )
    torch.autograd.graph.increment_version(buffer)
