"""Multilayer perceptron with derivatives along directions in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hashgrid.maths import EXP_GRADIENT_CLAMP, activate
from hashgrid.ops._tensors import at_least_fp32, without_autocast
from hashgrid.reference.mlp import _check_arguments
from hashgrid.util.choices import ACTIVATIONS, check_option, check_softplus_beta


def mlp_jet(
    x: Tensor,
    directions: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    activation: str = "relu",
    output_activation: str = "none",
    accelerations: Tensor | None = None,
    operators: Tensor | None = None,
    softplus_beta: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Values of `mlp` with their first and second derivatives along directions, by forward-mode differentiation.

    Args:
        x: [..., in], taken in the dtype of the weights.
        directions: [K, in], or [..., K, in] for directions of each point.
        weights: one [out_i, in_i] per layer (half precision is read as fp32).
        biases: one [out_i] per layer.
        activation: of the hidden layers, as in `mlp`.
        output_activation: of the last layer, from the same set.
        accelerations: like ``directions``, second derivatives of ``x`` where it is the output of something curved.
        operators: [M, K], sums ``operators[m, k]`` times the second derivative along direction k instead of giving
            each; ``accelerations`` are then M, in the same sums.
        softplus_beta: as in `mlp`.

    Returns:
        Values [..., out], first derivatives [..., K, out], second ones [..., K, out], or [..., M, out] with
        ``operators``.

    Raises:
        ValueError: shapes do not chain, or an activation is unknown.
    """
    _check_arguments(x, weights, biases)
    check_option("activation", activation, ACTIVATIONS)
    check_option("output_activation", output_activation, ACTIVATIONS)
    check_softplus_beta(activation, softplus_beta)
    weights = [at_least_fp32(weight) for weight in weights]
    biases = None if biases is None else [at_least_fp32(bias) for bias in biases]
    dtype = weights[0].dtype
    first = along_each(directions, x, "directions").to(dtype)
    second = None if accelerations is None else along_each(accelerations, x, "accelerations").to(dtype)
    n_seconds, what = first.shape[-2], "`directions`"
    if operators is not None:
        if operators.dim() != 2 or operators.shape[1] != n_seconds or len(operators) == 0:
            raise ValueError(f"`operators` must have shape [M, {n_seconds}], got {list(operators.shape)}")
        operators = operators.to(dtype)
        n_seconds, what = len(operators), "`operators`"
    if second is None:
        second = first.new_zeros(*first.shape[:-2], n_seconds, first.shape[-1])
    elif second.shape[-2] != n_seconds:
        raise ValueError(f"`accelerations` must be as many as {what}, {n_seconds}, got {second.shape[-2]}")
    return _layers(x.to(dtype), first, second, operators, weights, biases, activation, output_activation, softplus_beta)


def along_each(directions: Tensor, x: Tensor, name: str) -> Tensor:
    """``directions`` [K, D], or [..., K, D] already, as [..., K, D]: K for each row of ``x`` [..., D].

    Raises:
        ValueError: the shapes do not fit.
    """
    shared = directions.dim() == 2 and directions.shape[1:] == x.shape[-1:]
    if shared:
        return directions.expand(*x.shape[:-1], *directions.shape)
    if directions.dim() != x.dim() + 1 or directions.shape[:-2] != x.shape[:-1] or directions.shape[-1] != x.shape[-1]:
        wanted = f"[K, {x.shape[-1]}] or {[*x.shape[:-1], 'K', x.shape[-1]]}".replace("'", "")
        raise ValueError(f"`{name}` must have shape {wanted}, got {list(directions.shape)}")
    return directions


@without_autocast
def _layers(
    a: Tensor,
    first: Tensor,
    second: Tensor,
    operators: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    activation: str,
    output_activation: str,
    softplus_beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    for layer, weight in enumerate(weights):
        z = a @ weight.t()
        if biases is not None:
            z = z + biases[layer]
        first = first @ weight.t()
        second = second @ weight.t()
        name, beta = (activation, softplus_beta) if layer < len(weights) - 1 else (output_activation, 1.0)
        if name == "none":
            a = z
            continue
        a = activate(z, name, beta)
        slope, bend = (derivative.unsqueeze(-2) for derivative in _DERIVATIVES[name](beta * z))  # [..., 1, out]
        squares = first.square() if operators is None else operators @ first.square()
        first, second = slope * first, beta * bend * squares + slope * second
    return a, first, second


def _none(z: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(z), torch.zeros_like(z)


def _relu(z: Tensor) -> tuple[Tensor, Tensor]:
    return (z > 0).to(z.dtype), torch.zeros_like(z)


def _leaky_relu(z: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(z > 0, torch.ones_like(z), 0.01), torch.zeros_like(z)


def _silu(z: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s)), s * (1 - s) * (2 + z * (1 - 2 * s))


def _softplus(z: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(z)
    return s, s * (1 - s)


def _sigmoid(z: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(z)
    return s * (1 - s), s * (1 - s) * (1 - 2 * s)


def _tanh(z: Tensor) -> tuple[Tensor, Tensor]:
    y = torch.tanh(z)
    return 1 - y.square(), -2 * y * (1 - y.square())


def _exp(z: Tensor) -> tuple[Tensor, Tensor]:
    slope = z.clamp(-EXP_GRADIENT_CLAMP, EXP_GRADIENT_CLAMP).exp()
    return slope, torch.where(z.abs() <= EXP_GRADIENT_CLAMP, slope, 0)


def _sine(z: Tensor) -> tuple[Tensor, Tensor]:
    return z.cos(), -z.sin()


# first and second derivative at a pre-activation
_DERIVATIVES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "none": _none,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "silu": _silu,
    "softplus": _softplus,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "exp": _exp,
    "sine": _sine,
}
