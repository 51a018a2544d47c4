"""Activation functions of the MLP, each twice differentiable."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hashgrid.autograd import Function, apply
from hashgrid.util.choices import ACTIVATIONS, check_option

EXP_GRADIENT_CLAMP = 15.0


class _ClampedGradientExp(Function):
    """exp(x) with the derivative exp(clamp(x, -15, 15)).

    The backward is made of differentiable operations, so the second derivative follows: zero outside the clamp.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.exp()

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad_y: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad_y * x.clamp(-EXP_GRADIENT_CLAMP, EXP_GRADIENT_CLAMP).exp()


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.01),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": lambda x: apply(_ClampedGradientExp, x),
    "sine": torch.sin,
}


def activate(x: Tensor, activation: str, softplus_beta: float = 1.0) -> Tensor:
    """Apply the activation called ``activation`` elementwise."""
    if activation == "softplus":  # beyond 40 the identity is exact in fp64; PyTorch's default of 20 is not
        return F.softplus(x, softplus_beta, threshold=40)
    return _FUNCTIONS[check_option("activation", activation, ACTIVATIONS)](x)
