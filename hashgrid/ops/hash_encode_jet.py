"""Multiresolution hash encoding along directions on the native kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.autograd import Function, apply
from hashgrid.levels import LevelTable
from hashgrid.ops._asked import is_asked_for
from hashgrid.ops._flatten import flatten
from hashgrid.ops._last import no_third_derivative
from hashgrid.ops._vmap import register_vmap
from hashgrid.ops.hash_encode import options_of
from hashgrid.ops.mlp_jet import flatten_directions, unflatten_jet
from hashgrid.precision import at_least_fp32
from hashgrid.util.choices import BOUNDS, INTERPOLATIONS, check_option


def hash_encode_jet(
    positions: Tensor,
    directions: Tensor,
    table: Tensor,
    levels: LevelTable,
    interpolation: str = "linear",
    bounds: str = "clamp",
    level_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Features of `hash_encode` with their first and second derivatives along directions, in one pass.

    Differentiable once in every tensor: a loss may hold all three results. The table gradient has the same bits for any
    number of threads on the CPU; on CUDA its order is left to atomics.

    Args:
        positions: [..., D] in [0, 1], fp32 or fp64 (half precision is read as fp32).
        directions: [K, D], or [..., K, D] for directions of each position; 1 to 64 of them.
        table: [n_entries, F], fp32 (half precision is read as fp32), or fp64 with fp64 positions.
        levels: geometry of the levels.
        interpolation: as in `hash_encode`. A loss of second derivatives needs ``"smoothstep"``: within a cell
            ``"linear"`` bends only between axes, ``"nearest"`` not at all.
        bounds: as in `hash_encode`. Derivatives along an axis on which a position is outside are zero.
        level_weights: [L] factors of the levels.

    Returns:
        Features [..., L * F], first and second derivatives [..., K, L * F], in the dtype of ``positions``.

    Raises:
        ValueError: an option or a shape is wrong.
        RuntimeError: a dtype or size the kernels do not take; on CUDA, deterministic algorithms are asked for.
    """
    check_option("interpolation", interpolation, INTERPOLATIONS)
    check_option("bounds", bounds, BOUNDS)
    positions = at_least_fp32(positions)
    flat = flatten(positions, levels.n_input_dims, "positions")
    along = flatten_directions(directions, positions, "directions").to(positions.dtype)
    options = options_of(levels, interpolation, bounds)
    tensors = flat, along, at_least_fp32(table).contiguous()
    if torch.compiler.is_compiling():  # Dynamo does not trace a Function that is applied in the backward of another
        results = _extension.ops().hash_encode_jet(*tensors, *options)
    else:
        results = apply(_HashEncodeJet, *tensors, options)
    if level_weights is not None:
        factors = at_least_fp32(level_weights).to(positions.dtype).repeat_interleave(table.shape[1])
        results = tuple(result * factors for result in results)
    return unflatten_jet(results, positions.shape[:-1])


class _HashEncodeJet(Function):
    @staticmethod
    def forward(positions, directions, table, options):  # type: ignore[override]
        return _extension.ops().hash_encode_jet(positions, directions, table, *options)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[override]
        *tensors, ctx.options = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[override]
        needs = [need and is_asked_for(ctx, i) for i, need in enumerate(ctx.needs_input_grad[:3])]
        results = no_third_derivative(
            "hash_encode_jet", _backward, *grads, *ctx.saved_tensors, ctx.options, tuple(needs)
        )
        return *(grad if need else None for grad, need in zip(results, needs, strict=True)), None


def _backward(
    grad_y: Tensor | None,
    grad_first: Tensor | None,
    grad_second: Tensor | None,
    positions: Tensor,
    directions: Tensor,
    table: Tensor,
    options: tuple[Any, ...],
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Pulls gradients of the three results, None for zero, back to positions, directions and table."""
    grads = (grad_y, grad_first, grad_second)
    if all(grad is None for grad in grads):
        return (None,) * 3
    kept = [None if grad is None else grad.to(positions.dtype).contiguous() for grad in grads]
    results = _extension.ops().hash_encode_jet_backward(
        *kept, positions, directions, table, *options, *needs, torch.are_deterministic_algorithms_enabled()
    )
    return tuple(grad if need else None for grad, need in zip(results, needs, strict=True))


def _register() -> None:
    """Fake kernels and autograd of ``torch.ops.hashgrid.hash_encode_jet``."""

    @torch.library.register_fake("hashgrid::hash_encode_jet")
    def _(positions, directions, table, scales, *options):
        n_out = len(scales) * table.shape[1]
        shape = positions.shape[0], directions.shape[1], n_out
        return positions.new_empty(positions.shape[0], n_out), positions.new_empty(shape), positions.new_empty(shape)

    @torch.library.register_fake("hashgrid::hash_encode_jet_backward")
    def _(grad_y, grad_first, grad_second, positions, directions, table, scales, *options):
        *_, need_positions, need_directions, need_table, _ = options
        n_points = positions.shape[0]
        return (
            positions.new_empty(n_points if need_positions else 0, positions.shape[1]),
            positions.new_empty(n_points if need_directions else 0, *directions.shape[1:]),
            positions.new_empty(table.shape[0] if need_table else 0, table.shape[1]),
        )

    def setup_context(ctx, inputs, output) -> None:
        ctx.options = inputs[3:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:3])

    def backward(ctx, grad_y, grad_first, grad_second):
        positions, directions, table = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        results = _backward(grad_y, grad_first, grad_second, positions, directions, table, ctx.options, needs)
        return *results, *(None for _ in ctx.options)

    torch.library.register_autograd("hashgrid::hash_encode_jet", backward, setup_context=setup_context)

    rows = ["positions", "directions"]
    register_vmap("hash_encode_jet", rows, (0, 1, 2))
    register_vmap("hash_encode_jet_backward", ["grad_y", "grad_first", "grad_second", *rows], (0, 1), ["need_table"])


if _extension.module is not None:
    _register()
