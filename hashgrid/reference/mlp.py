"""Multilayer perceptron in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hashgrid.maths import layers
from hashgrid.ops._tensors import at_least_fp32, product_dtype, without_autocast
from hashgrid.util.choices import check_softplus_beta


def mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    activation: str = "relu",
    output_activation: str = "none",
    compute_dtype: torch.dtype | None = None,
    softplus_beta: float = 1.0,
) -> Tensor:
    """``output_activation(W_n ... activation(W_1 x + b_1) ... + b_n)``, twice differentiable to every tensor.

    Under ``torch.autocast`` a ``compute_dtype`` of None stands for the dtype of autocast.

    Args:
        x: [..., in], taken in the dtype of the weights.
        weights: one [out_i, in_i] per layer (half precision is read as fp32).
        biases: one [out_i] per layer.
        activation: of the hidden layers: "none", "relu", "leaky_relu" (slope 0.01), "silu", "softplus", "sigmoid",
            "tanh", "exp" (derivative exp(clamp(x, -15, 15))) or "sine".
        output_activation: of the last layer, from the same set.
        compute_dtype: both factors of each forward product are rounded to it, beyond float16's 65504 to infinity; sums,
            biases, activations and gradients keep the dtype of the weights, hence also their range.
        softplus_beta: of a hidden "softplus", ``log(1 + exp(beta x)) / beta``.

    Returns:
        [..., out] in the dtype of the weights, at least fp32.

    Raises:
        ValueError: shapes do not chain, or an activation is unknown.
    """
    _check_arguments(x, weights, biases)
    check_softplus_beta(activation, softplus_beta)
    weights = [at_least_fp32(weight) for weight in weights]
    biases = None if biases is None else [at_least_fp32(bias) for bias in biases]
    compute_dtype = product_dtype(compute_dtype, weights[0])
    return _layers(x.to(weights[0].dtype), weights, biases, activation, output_activation, compute_dtype, softplus_beta)


_layers = without_autocast(layers)


def _check_arguments(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None) -> None:
    if not weights:
        raise ValueError("`weights` must have at least one layer, got none")
    width = x.shape[-1] if x.dim() else None
    for layer, weight in enumerate(weights):
        if weight.dim() != 2 or weight.shape[1] != width:
            raise ValueError(f"`weights[{layer}]` must have shape [out, {width}], got {list(weight.shape)}")
        width = weight.shape[0]
    if biases is None:
        return
    if len(biases) != len(weights):
        raise ValueError(f"`biases` must have {len(weights)} tensors, one per layer, got {len(biases)}")
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"`biases[{layer}]` must have shape [{weight.shape[0]}], got {list(bias.shape)}")
