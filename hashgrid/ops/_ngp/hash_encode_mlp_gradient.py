"""A hash grid and the network behind it with the gradient of the first output, and one backward pass of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.levels import LevelTable
from hashgrid.ops._tensors import flatten
from hashgrid.ops.hash_encode import encoding_options, is_deterministic
from hashgrid.ops.mlp import prepare_network, second_order_with_values, split_gradient
from hashgrid.util.autograd import Function, apply
from hashgrid.util.choices import ACTIVATIONS


class Slopes(NamedTuple):
    """Outputs of a network behind a hash grid, the gradient of the first of them, and what both came from."""

    values: Tensor  # [N, C]
    gradient: Tensor  # [N, D], of values[:, 0] to positions
    features: Tensor  # [N, L * F], of the grid
    of_features: Tensor  # [N, L * F], gradient of values[:, 0] to them


def hash_encode_mlp_gradient(
    positions: Tensor,
    table: Tensor,
    levels: LevelTable,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    interpolation: str = "linear",
    bounds: str = "clamp",
    level_weights: Tensor | None = None,
    activation: str = "relu",
    output_activation: str = "none",
    softplus_beta: float = 1.0,
    precomputed: Slopes | None = None,
    grad_buffer: Tensor | None = None,
) -> Slopes:
    """Returns ``mlp(hash_encode(positions, ...), ...)`` and the gradient of its first output, both differentiable once
    in ``positions``, ``table``, ``weights`` and ``biases``; `hash_encode` and `mlp` explain the other arguments.

    What an eikonal loss and a renderer of distances ask for, in the order in which it is cheap: a point's layers run
    once forward for both, and its backward takes first and second order through the layers and into the table together.

    Args:
        positions: [N, D], fp32 or fp64, as all other tensors.
        level_weights: [L] constants.
        precomputed: result of an earlier call with the same arguments: returned as it is, with its gradient.
        grad_buffer: [n_entries, F], usually ``table.grad``, to which the backward adds the table's gradient.

    Returns:
        The results; of ``features`` and ``of_features`` there is no gradient.

    Raises:
        ValueError: an option is unknown, or a shape does not fit.
        RuntimeError: a dtype or size the kernels do not take, or a second backward.
    """
    flat = flatten(positions, levels.n_input_dims, "positions")
    width = flat.new_empty(0, levels.n_levels * table.shape[1])
    weights, biases = prepare_network(width, weights, biases, activation, output_activation, None, softplus_beta)
    options = (
        encoding_options(levels, interpolation, bounds),
        (ACTIVATIONS.index(activation), ACTIVATIONS.index(output_activation)),
        (None if level_weights is None else level_weights.detach().to(flat.dtype), precomputed, grad_buffer),
        len(weights),
    )
    params = [param.contiguous() for param in (*weights, *biases)]
    return Slopes(*apply(_Slopes, flat, table.contiguous(), options, *params))


class _Slopes(Function):
    @staticmethod
    def forward(positions, table, options, *params):  # type: ignore[override]
        grid, kinds, (level_weights, precomputed, _), n = options
        if precomputed is not None:
            return tuple(x.view_as(x) for x in precomputed)
        features = _extension.ops().hash_encode(positions, table, level_weights, *grid)
        network = features, params[:n], params[n:], *kinds
        first = _first(positions.shape[0], params[n - 1])
        values, of_features = _extension.ops().mlp_with_gradient(first, *network)
        wants = True, False, False, False
        gradient, *_ = _extension.ops().hash_encode_backward(
            of_features, positions, table, level_weights, *grid, *wants
        )
        return values, gradient, features, of_features

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[override]
        positions, table, ctx.options, *params = inputs
        ctx.mark_non_differentiable(output[2], output[3])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(positions, table, output[2], output[3], *params)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_values, grad_gradient, *_):  # type: ignore[override]
        positions, table, features, of_features, *params = ctx.saved_tensors
        grid, kinds, (level_weights, _, buffer), n = ctx.options
        need_x, need_table, _, *need_params = ctx.needs_input_grad
        if grad_values is None and grad_gradient is None:
            return (None,) * len(ctx.needs_input_grad)
        grad_values = None if grad_values is None else grad_values.contiguous()
        along, grad_x, inputs, ops = None, None, (positions, table, level_weights, *grid), _extension.ops()
        if grad_gradient is not None:
            grad_gradient = grad_gradient.contiguous()
            along, grad_x, *_ = ops.hash_encode_backward_backward(
                grad_gradient, None, None, of_features, *inputs, need_x, False, False, False
            )
        first = _first(positions.shape[0], params[n - 1])
        weights, biases, need = params[:n], params[n:], any(need_params)
        network = first, features, weights, biases, *kinds, need
        grad_features, flat = second_order_with_values(along, grad_values, *network)
        if need_x:
            further = ops.hash_encode_backward(grad_features, *inputs, True, False, False, False)[0]
            grad_x = further if grad_x is None else grad_x + further
        grad_table = None
        if need_table:
            target = torch.zeros_like(table) if buffer is None else buffer
            of_grid = (None, None, grad_features) if along is None else (grad_gradient, grad_features, of_features)
            ops.hash_encode_accumulate_table_gradient(
                target, *of_grid, positions, level_weights, *grid, is_deterministic()
            )
            if buffer is None:
                grad_table = target
            else:
                torch.autograd.graph.increment_version(buffer)
        parts = split_gradient(flat, params) if need else [None] * len(params)
        return grad_x if need_x else None, grad_table, None, *parts


def _first(n_rows: int, last_weight: Tensor) -> Tensor:
    """What says of rows [N, C] that the first output is meant."""
    ones = last_weight.new_zeros(n_rows, last_weight.shape[0])
    ones[:, 0] = 1
    return ones
