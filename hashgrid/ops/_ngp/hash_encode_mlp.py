"""A hash grid and the network behind it, as one kernel where no gradient is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.levels import LevelTable
from hashgrid.ops._ngp.hash_encode_into import hash_encode_into
from hashgrid.ops._tensors import at_least_fp32, flatten, product_dtype, unflatten
from hashgrid.ops.hash_encode import encoding_options
from hashgrid.ops.mlp import check_network, fold_softplus_beta, mlp
from hashgrid.util.autograd import is_recorded
from hashgrid.util.choices import ACTIVATIONS, BOUNDS, FACTORS, INTERPOLATIONS, check_option


def hash_encode_mlp(
    positions: Tensor,
    table: Tensor,
    levels: LevelTable,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    interpolation: str = "linear",
    bounds: str = "clamp",
    level_weights: Tensor | None = None,
    half_table: Tensor | None = None,
    activation: str = "relu",
    output_activation: str = "none",
    compute_dtype: torch.dtype | None = None,
    softplus_beta: float = 1.0,
) -> Tensor:
    """Returns ``mlp(hash_encode(positions, ...), ...)``; `hash_encode_into` and `mlp` explain the arguments.

    Where no gradient is recorded, features do not reach memory: on the CPU, and on a GPU from sm_80 on with 2 or 3
    dimensions, an even number of features per level, fp32 positions, 16-bit products (``compute_dtype`` or autocast), a
    table of fp32 or a half table of their dtype, and layers up to 128 wide. In all other cases the kernels of
    the two ops run. Values are rounded at the same places.

    Returns:
        [..., out] in the dtype of the weights, at least fp32.

    Raises:
        ValueError: an option is unknown, or a shape does not fit.
        RuntimeError: a dtype or size the kernels do not take.
    """
    weights, biases = list(weights), [] if biases is None else list(biases)
    tensors = [positions, table, *weights, *biases, *([] if level_weights is None else [level_weights])]
    if is_recorded(*tensors) or not _have_one_dtype(at_least_fp32(positions), table, *weights, *biases):
        encoded = hash_encode_into(positions, table, levels, interpolation, bounds, level_weights, half_table)
        return mlp(encoded, weights, biases or None, activation, output_activation, compute_dtype, softplus_beta)
    check_option("interpolation", interpolation, INTERPOLATIONS)
    check_option("bounds", bounds, BOUNDS)
    width = levels.n_levels * table.shape[-1]
    check_network(width, weights, biases, activation, output_activation, compute_dtype)
    weights, biases = fold_softplus_beta(weights, biases, activation, softplus_beta)
    positions, products = at_least_fp32(positions), product_dtype(compute_dtype, weights[0])
    y = _extension.ops().hash_encode_mlp(
        flatten(positions, levels.n_input_dims, "positions"),
        (table if half_table is None else half_table).contiguous(),
        None if level_weights is None else at_least_fp32(level_weights).contiguous(),
        *encoding_options(levels, interpolation, bounds),
        [weight.contiguous() for weight in weights],
        [bias.contiguous() for bias in biases],
        ACTIVATIONS.index(activation),
        ACTIVATIONS.index(output_activation),
        FACTORS.index(None if products == weights[0].dtype else products),
    )
    return unflatten(y, positions.shape[:-1])


def _have_one_dtype(*tensors: Tensor) -> bool:
    """Returns whether no cast is needed: the two ops cast between them, the kernel does not."""
    return all(tensor.dtype == tensors[0].dtype for tensor in tensors)


def _register() -> None:
    @torch.library.register_fake("hashgrid::hash_encode_mlp")
    def _(positions, table, level_weights, scales, geometry, interpolation, bounds, weights, *options):
        return positions.new_empty(positions.shape[0], weights[-1].shape[0])


if _extension.module is not None:
    _register()
