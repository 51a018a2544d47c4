"""Multiresolution hash encoding with derivatives along directions, on the native kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.levels import LevelTable
from hashgrid.ops._autograd import Gradients, differentiable, no_third_derivative
from hashgrid.ops._tensors import at_least_fp32, flatten
from hashgrid.ops._vmap import register_vmap
from hashgrid.ops.hash_encode import encoding_options, is_deterministic, n_levels_of
from hashgrid.ops.mlp_jet import flatten_directions, unflatten_jet


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
    positions = at_least_fp32(positions)
    results = _encode_jet(
        flatten(positions, levels.n_input_dims, "positions"),
        flatten_directions(directions, positions, "directions").to(positions.dtype),
        at_least_fp32(table).contiguous(),
        *encoding_options(levels, interpolation, bounds),
    )
    if level_weights is not None:
        factors = at_least_fp32(level_weights).to(positions.dtype).repeat_interleave(table.shape[1])
        results = tuple(result * factors for result in results)
    return unflatten_jet(results, positions.shape[:-1])


# Tensors (positions, directions, table).
def _gradients(
    needs: Sequence[bool], tensors: Sequence[Any], options: Sequence[Any], *grads: Tensor | None
) -> Gradients:
    needs = tuple(needs)
    deterministic = is_deterministic()

    def compute(*tensors: Any) -> Any:
        return _extension.ops().hash_encode_jet_backward(*tensors, *options, *needs, deterministic)

    kept = [None if grad is None else grad.contiguous() for grad in grads]
    return no_third_derivative("hash_encode_jet", compute, *kept, *tensors)


_encode_jet = differentiable("hash_encode_jet", _gradients)


def _register() -> None:
    """Registers fake kernels of ``torch.ops.hashgrid.hash_encode_jet`` and its derivative, and vmap over them."""

    @torch.library.register_fake("hashgrid::hash_encode_jet")
    def _(positions, directions, table, scales, geometry, *options):
        n_out = n_levels_of(scales, geometry) * table.shape[1]
        shape = positions.shape[0], directions.shape[1], n_out
        return positions.new_empty(positions.shape[0], n_out), positions.new_empty(shape), positions.new_empty(shape)

    @torch.library.register_fake("hashgrid::hash_encode_jet_backward")
    def _(grad_y, grad_first, grad_second, positions, directions, table, scales, geometry, *options):
        *_, need_positions, need_directions, need_table, _ = options
        n_points = positions.shape[0]
        return (
            positions.new_empty(n_points if need_positions else 0, positions.shape[1]),
            positions.new_empty(n_points if need_directions else 0, *directions.shape[1:]),
            positions.new_empty(table.shape[0] if need_table else 0, table.shape[1]),
        )

    rows = ["positions", "directions"]
    register_vmap("hash_encode_jet", rows, (0, 1, 2))
    register_vmap("hash_encode_jet_backward", ["grad_y", "grad_first", "grad_second", *rows], (0, 1), ["need_table"])


if _extension.module is not None:
    _register()
