"""Networks and batches in fp64, gradients in any dtype, and how far they may be off."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hashgrid import reference
from hashgrid.maths import activate

BF16, FP16 = torch.bfloat16, torch.float16
UNITS = {None: 2**-24, BF16: 2**-9, FP16: 2**-12}  # half a unit in the last place of 1


def make_params(widths: Sequence[int], bias: bool, gain: float = 1.0) -> tuple[list[Tensor], list[Tensor]]:
    """fp64 weights, Xavier times ``gain``, and biases."""
    pairs = list(zip(widths, widths[1:], strict=False))
    weights = [gain * (6 / (i + o)) ** 0.5 * (2 * torch.rand(o, i, dtype=torch.float64) - 1) for i, o in pairs]
    return weights, [0.1 * torch.randn(o, dtype=torch.float64) for _, o in pairs] if bias else []


def mlp_and_gradients(
    mlp: Callable[..., Tensor],
    dtype: torch.dtype,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    grad_y: Tensor,
    *options,
) -> list[Tensor]:
    """Output and gradients to x, weights, biases, all computed in ``dtype``."""
    inputs = [t.to(dtype).requires_grad_() for t in (x, *weights, *biases)]
    n = len(weights)
    y = mlp(inputs[0], inputs[1 : 1 + n], inputs[1 + n :] or None, *options)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad_y.to(dtype))]


def check_mlp_budget(
    ours: list[Tensor], pytorch: list[Tensor], exact: list[Tensor], unit: float, terms: tuple[float, float]
) -> None:
    """|ours - exact| <= 2 |pytorch - exact| + a few roundings, max-norm per tensor.

    Roundings are relative to the largest sum of absolute terms: ``terms`` for y and the gradient to x; sums over rows,
    those of parameters, do not cancel.
    """
    for i, (a, b, truth) in enumerate(zip(ours, pytorch, exact, strict=True)):
        assert a.shape == truth.shape
        if truth.numel() == 0:
            continue
        error, theirs, scale = ((t - truth).abs().max().item() for t in (a, b, torch.zeros_like(truth)))
        scale = max(scale, terms[i] if i < len(terms) else 0)
        assert error <= 2 * theirs + 8 * unit * scale, f"tensor {i}: {error:.3g}, PyTorch {theirs:.3g}, max {scale:.3g}"


def sums_of_terms(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    grad_y: Tensor,
    activation: str,
    output_activation: str,
) -> tuple[float, float]:
    """Largest sum of absolute terms of the last layer, and of the gradient to x."""
    if len(x) == 0:
        return 0.0, 0.0
    deep = len(weights) > 1
    first = reference.mlp(x, weights[:1], biases[:1] or None, "none", "none").requires_grad_()
    y = activate(first, activation if deep else output_activation)
    if deep:
        y = reference.mlp(y, weights[1:], biases[1:] or None, activation, output_activation)
    (grad,) = torch.autograd.grad(y, first, grad_y)
    h = reference.mlp(x, weights[:-1], biases[:-1] or None, activation, activation) if deep else x
    return (h.abs() @ weights[-1].abs().T).amax().item(), (grad.abs() @ weights[0].abs()).amax().item()


def make_batch(widths: Sequence[int], n: int, bias: bool, gain: float = 1.0) -> tuple:
    """x and grad_y are positive: sums over rows do not cancel, so that roundings are relative to the results."""
    weights, biases = make_params(widths, bias, gain)
    return (
        torch.rand(n, widths[0], dtype=torch.float64),
        weights,
        biases,
        torch.rand(n, widths[-1], dtype=torch.float64),
    )
