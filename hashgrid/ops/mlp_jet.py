"""The multilayer perceptron along directions on the native kernels: what a loss with second derivatives is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.autograd import Function, apply
from hashgrid.ops._asked import is_asked_for
from hashgrid.ops._flatten import unflatten
from hashgrid.ops._last import no_third_derivative
from hashgrid.ops._vmap import register_vmap
from hashgrid.ops.mlp import check_network, split_gradient
from hashgrid.precision import at_least_fp32
from hashgrid.util.choices import ACTIVATIONS

MAX_DIRECTIONS = 64


def mlp_jet(
    x: Tensor,
    directions: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    activation: str = "relu",
    output_activation: str = "none",
    accelerations: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Values of `mlp` with their first and second derivatives along directions, in one forward pass.

    The sum of the second derivatives along the axes is the Laplacian. Differentiable once in every tensor, hence a loss
    may hold all three results. Sums are fp32 (fp64 for fp64 weights); gradients have the same bits for any number of
    threads. The backward keeps inputs and weights and computes hidden layers again.

    Args:
        x: [..., in], taken in the dtype of the weights.
        directions: [K, in], or [..., K, in] for directions of each point; 1 to 64 of them.
        weights: 1 to 9 tensors [out_i, in_i], fp32 or fp64 (half precision is read as fp32).
        biases: one [out_i] per layer.
        activation: of the hidden layers, as in `mlp`. Second derivatives of "relu" and "leaky_relu" are zero.
        output_activation: of the last layer, from the same set.
        accelerations: like ``directions``, second derivatives of ``x`` where it is the output of something curved: the
            derivatives are then those of ``mlp(x + s directions + s^2 / 2 accelerations)`` at s = 0.

    Returns:
        Values [..., out], first and second derivatives [..., K, out].

    Raises:
        ValueError: an option is unknown, or shapes do not chain.
        RuntimeError: a dtype the kernels do not take.
    """
    weights = [at_least_fp32(weight) for weight in weights]
    biases = [] if biases is None else [at_least_fp32(bias) for bias in biases]
    if x.dim() == 0:
        raise ValueError("`x` must have shape [..., in], got []")
    check_network(x.shape[-1], weights, biases, activation, output_activation, None)
    batch, dtype = x.shape[:-1], weights[0].dtype
    along = flatten_directions(directions, x, "directions").to(dtype)
    bent = None
    if accelerations is not None:
        bent = flatten_directions(accelerations, x, "accelerations").to(dtype)
        if bent.shape != along.shape:
            raise ValueError(f"`accelerations` must be as many as `directions`, {along.shape[1]}, got {bent.shape[1]}")
    flat = x.to(dtype).reshape(-1, x.shape[-1]).contiguous()
    options = ACTIVATIONS.index(activation), ACTIVATIONS.index(output_activation)
    params = [param.contiguous() for param in (*weights, *biases)]
    if torch.compiler.is_compiling():  # Dynamo shifts the arguments of a Function whose forward takes *params
        n = len(weights)
        results = _extension.ops().mlp_jet(flat, along, bent, params[:n], params[n:], *options)
    else:
        results = apply(_MlpJet, flat, along, bent, len(weights), options, *params)
    return unflatten_jet(results, batch)


def flatten_directions(directions: Tensor, x: Tensor, name: str) -> Tensor:
    """``directions`` [K, D] or [..., K, D] of points ``x`` [..., D] as a contiguous [N, K, D].

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
    if not 1 <= n_directions <= MAX_DIRECTIONS:
        raise ValueError(f"`{name}` must be 1 to {MAX_DIRECTIONS} per point, got {n_directions}")
    return directions.reshape(batch.numel(), n_directions, width).contiguous()


def unflatten_jet(results: Sequence[Tensor], batch: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """Results [N, C], [N, K, C], [N, K, C] of an op with the dimensions ``batch`` in place of the first."""
    y, first, second = results
    if len(batch) == 1:
        return y, first, second
    return unflatten(y, batch), first.reshape(*batch, *first.shape[1:]), second.reshape(*batch, *second.shape[1:])


class _MlpJet(Function):
    @staticmethod
    def forward(x, directions, accelerations, n_layers, options, *params):  # type: ignore[override]
        return _extension.ops().mlp_jet(x, directions, accelerations, params[:n_layers], params[n_layers:], *options)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[override]
        x, directions, accelerations, ctx.n_layers, ctx.options, *params = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, directions, accelerations, *params)

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[override]
        x, directions, accelerations, *params = ctx.saved_tensors
        n = ctx.n_layers
        n_rows = 2 if accelerations is None else 3  # of the inputs that are tensors
        asked = [need and is_asked_for(ctx, i) for i, need in enumerate(ctx.needs_input_grad[:3])]
        asked_params = [need and is_asked_for(ctx, n_rows + i) for i, need in enumerate(ctx.needs_input_grad[5:])]
        needs = (*asked, any(asked_params))

        def compute(*tensors):
            x, directions, accelerations, *params = tensors[3:]
            return _backward(tensors[:3], x, directions, accelerations, params, n, ctx.options, needs)

        results = no_third_derivative("mlp_jet", compute, *grads, x, directions, accelerations, *params)
        kept = (g if need else None for g, need in zip(results, (*asked, *asked_params), strict=True))
        of_x, of_directions, of_accelerations, *of_params = kept
        return of_x, of_directions, of_accelerations, None, None, *of_params


def _backward(
    grads: Sequence[Tensor | None],
    x: Tensor,
    directions: Tensor,
    accelerations: Tensor | None,
    params: Sequence[Tensor],
    n_layers: int,
    options: Sequence[Any],
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Pulls gradients of the three results, None for zero, back to x, directions, accelerations and parameters."""
    if all(grad is None for grad in grads):
        return (None,) * (3 + len(params))
    kept = [None if grad is None else grad.to(x.dtype).contiguous() for grad in grads]
    *of_inputs, of_params = _extension.ops().mlp_jet_backward(
        *kept, x, directions, accelerations, params[:n_layers], params[n_layers:], *options, *needs
    )
    parts = split_gradient(of_params, params) if needs[3] else [None] * len(params)
    return *(grad if need else None for grad, need in zip(of_inputs, needs, strict=False)), *parts


def _register() -> None:
    """Fake kernels and autograd of ``torch.ops.hashgrid.mlp_jet``."""

    @torch.library.register_fake("hashgrid::mlp_jet")
    def _(x, directions, accelerations, weights, biases, *options):
        n_out = weights[-1].shape[0]
        shape = x.shape[0], directions.shape[1], n_out
        return x.new_empty(x.shape[0], n_out), x.new_empty(shape), x.new_empty(shape)

    @torch.library.register_fake("hashgrid::mlp_jet_backward")
    def _(grad_y, grad_first, grad_second, x, directions, accelerations, weights, biases, *options):
        *_, need_x, need_directions, need_accelerations, need_params = options
        n_params = sum(param.numel() for param in (*weights, *biases)) if need_params else 0
        return (
            x.new_empty(x.shape[0] if need_x else 0, x.shape[1]),
            x.new_empty(x.shape[0] if need_directions else 0, *directions.shape[1:]),
            x.new_empty(x.shape[0] if need_accelerations else 0, *directions.shape[1:]),
            x.new_empty(n_params),
        )

    def setup_context(ctx, inputs, output) -> None:
        x, directions, accelerations, weights, biases, *ctx.options = inputs
        ctx.n_layers = len(weights)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, directions, accelerations, *weights, *biases)

    def backward(ctx, *grads):
        x, directions, accelerations, *params = ctx.saved_tensors
        n = ctx.n_layers
        need_params = any(any(need) if isinstance(need, (list, tuple)) else need for need in ctx.needs_input_grad[3:5])
        needs = (*ctx.needs_input_grad[:3], need_params)
        results = _backward(grads, x, directions, accelerations, params, n, ctx.options, needs)
        return *results[:3], list(results[3 : 3 + n]), list(results[3 + n :]), *(None for _ in ctx.options)

    torch.library.register_autograd("hashgrid::mlp_jet", backward, setup_context=setup_context)

    rows = ["x", "directions", "accelerations"]
    register_vmap("mlp_jet", rows, (0, 1, 2))
    register_vmap("mlp_jet_backward", ["grad_y", "grad_first", "grad_second", *rows], (0, 1, 2), ["need_params"])


if _extension.module is not None:
    _register()
