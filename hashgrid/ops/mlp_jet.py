"""Multilayer perceptron with derivatives along directions on the native kernels, for losses that hold second
derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.ops._autograd import Gradients, differentiable, no_third_derivative
from hashgrid.ops._tensors import unflatten
from hashgrid.ops._vmap import register_vmap
from hashgrid.ops.mlp import prepare_network, split_gradient
from hashgrid.util.choices import ACTIVATIONS


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
    """Values of `mlp` with their first and second derivatives along directions, in one forward pass.

    Differentiable once in every tensor but ``operators``, hence a loss may hold all three results. Sums are fp32 (fp64
    for fp64 weights); gradients have the same bits for any number of threads. The backward keeps inputs and weights and
    computes hidden layers again.

    Args:
        x: [..., in], taken in the dtype of the weights.
        directions: [K, in], or [..., K, in] for directions of each point; 1 to 64 of them.
        weights: 1 to 9 tensors [out_i, in_i], fp32 or fp64 (half precision is read as fp32).
        biases: one [out_i] per layer.
        activation: of the hidden layers, as in `mlp`. Second derivatives of "relu" and "leaky_relu" are zero.
        output_activation: of the last layer, from the same set.
        accelerations: like ``directions``, second derivatives of ``x`` where it is the output of something curved: the
            derivatives are then those of ``mlp(x + s directions + s^2 / 2 accelerations)`` at s = 0.
        operators: [M, K], sums ``operators[m, k]`` times the second derivative along direction k instead of giving
            each; ones [1, K] along the axes make the Laplacian. Fewer of them cost less. ``accelerations`` are then M,
            in the same sums.
        softplus_beta: as in `mlp`.

    Returns:
        Values [..., out], first derivatives [..., K, out], second ones [..., K, out], or [..., M, out] with
        ``operators``.

    Raises:
        ValueError: an option is unknown, or shapes do not chain.
        RuntimeError: a dtype the kernels do not take.
    """
    weights, biases = prepare_network(x, weights, biases, activation, output_activation, None, softplus_beta)
    batch, dtype = x.shape[:-1], weights[0].dtype
    along = flatten_directions(directions, x, "directions").to(dtype)
    bent = None
    if accelerations is not None:
        bent = flatten_directions(accelerations, x, "accelerations").to(dtype)
    sums = None if operators is None else operators.detach().to(dtype).contiguous()
    check_operators(operators, along.shape[1], None if bent is None else bent.shape[1])
    flat = x.to(dtype).reshape(-1, x.shape[-1]).contiguous()
    options = ACTIVATIONS.index(activation), ACTIVATIONS.index(output_activation)
    params = [param.contiguous() for param in (*weights, *biases)]
    results = _mlp_jet(flat, along, bent, sums, params[: len(weights)], params[len(weights) :], *options)
    return unflatten_jet(results, batch)


def flatten_directions(directions: Tensor, x: Tensor, name: str) -> Tensor:
    """Returns ``directions`` [K, D] or [..., K, D] of points ``x`` [..., D] as a contiguous [N, K, D].

    Raises:
        ValueError: shapes do not fit, or there are none or too many.
    """
    batch, width = x.shape[:-1], x.shape[-1]
    if directions.dim() == 2 and directions.shape[1] == width:
        directions = directions.expand(*batch, *directions.shape)
    if directions.dim() != x.dim() + 1 or directions.shape[:-2] != batch or directions.shape[-1] != width:
        each = ", ".join(map(str, (*batch, "K", width)))
        raise ValueError(f"`{name}` must have shape [K, {width}] or [{each}], got {list(directions.shape)}")
    n_directions = directions.shape[-2]
    most = _extension.require().MAX_JET_DIRECTIONS
    if not 1 <= n_directions <= most:
        raise ValueError(f"`{name}` must be 1 to {most} per point, got {n_directions}")
    return directions.reshape(batch.numel(), n_directions, width).contiguous()


def check_operators(operators: Tensor | None, n_directions: int, n_accelerations: int | None) -> None:
    """Checks that ``operators`` sum up derivatives along ``n_directions``, and that accelerations are as many as the
    sums.

    Raises:
        ValueError: they do not.
    """
    n_seconds, what = n_directions, "`directions`"
    if operators is not None:
        most = _extension.require().MAX_JET_DIRECTIONS
        if operators.dim() != 2 or operators.shape[1] != n_directions or not 1 <= len(operators) <= most:
            raise ValueError(
                f"`operators` must have shape [M, {n_directions}] with M in 1..{most}, got {list(operators.shape)}"
            )
        if operators.requires_grad:
            raise ValueError("`operators` must be constants, got a tensor that requires grad; detach it")
        n_seconds, what = len(operators), "`operators`"
    if n_accelerations not in (None, n_seconds):
        raise ValueError(f"`accelerations` must be as many as {what}, {n_seconds}, got {n_accelerations}")


def unflatten_jet(results: Sequence[Tensor], batch: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """Returns results [N, C], [N, K, C], [N, M, C] of an op with the dimensions ``batch`` in place of the first."""
    y, first, second = results
    if len(batch) == 1:
        return y, first, second
    return unflatten(y, batch), first.reshape(*batch, *first.shape[1:]), second.reshape(*batch, *second.shape[1:])


# Tensors (x, directions, accelerations, operators, weights, biases); operators are constants.
def _gradients(
    needs: Sequence[bool], tensors: Sequence[Any], options: Sequence[Any], *grads: Tensor | None
) -> Gradients:
    *rows, weights, biases = tensors
    need_params = any(needs[4:])

    def compute(*tensors: Any) -> Gradients:
        of_results, rows, params = tensors[:3], tensors[3:7], tensors[7:]
        *of_rows, of_params = _extension.ops().mlp_jet_backward(
            *of_results, *rows, params[: len(weights)], params[len(weights) :], *options, *needs[:3], need_params
        )
        return *of_rows, None, *(split_gradient(of_params, params) if need_params else (None for _ in params))

    kept = [None if grad is None else grad.contiguous() for grad in grads]
    return no_third_derivative("mlp_jet", compute, *kept, *rows, *weights, *biases)


_mlp_jet = differentiable("mlp_jet", _gradients)


def _register() -> None:
    """Registers fake kernels of ``torch.ops.hashgrid.mlp_jet`` and its derivative, and vmap over them."""

    @torch.library.register_fake("hashgrid::mlp_jet")
    def _(x, directions, accelerations, operators, weights, biases, *options):
        n, n_out, n_directions = x.shape[0], weights[-1].shape[0], directions.shape[1]
        n_seconds = n_directions if operators is None else operators.shape[0]
        return x.new_empty(n, n_out), x.new_empty(n, n_directions, n_out), x.new_empty(n, n_seconds, n_out)

    @torch.library.register_fake("hashgrid::mlp_jet_backward")
    def _(grad_y, grad_first, grad_second, x, directions, accelerations, operators, weights, biases, *options):
        n_seconds = directions.shape[1] if operators is None else operators.shape[0]
        *_, need_x, need_directions, need_accelerations, need_params = options
        n_params = sum(param.numel() for param in (*weights, *biases)) if need_params else 0
        return (
            x.new_empty(x.shape[0] if need_x else 0, x.shape[1]),
            x.new_empty(x.shape[0] if need_directions else 0, *directions.shape[1:]),
            x.new_empty(x.shape[0] if need_accelerations else 0, n_seconds, x.shape[1]),
            x.new_empty(n_params),
        )

    rows = ["x", "directions", "accelerations"]
    register_vmap("mlp_jet", rows, (0, 1, 2))
    register_vmap("mlp_jet_backward", ["grad_y", "grad_first", "grad_second", *rows], (0, 1, 2), ["need_params"])


if _extension.module is not None:
    _register()
