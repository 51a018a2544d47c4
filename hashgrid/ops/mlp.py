"""Multilayer perceptron on the native kernels, all layers fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.autograd import Function, apply, is_transformed
from hashgrid.ops._asked import is_asked_for
from hashgrid.ops._composed import pull_back_transformed
from hashgrid.ops._flatten import flatten, unflatten
from hashgrid.ops._last import no_third_derivative
from hashgrid.ops._vmap import register_vmap
from hashgrid.precision import at_least_fp32, product_dtype, without_autocast
from hashgrid.reference.mlp import mlp as reference_mlp
from hashgrid.util.choices import ACTIVATIONS, FACTORS, check_option, check_softplus_beta

MAX_LAYERS = 9
SECOND_ORDER_DEVICES = ("cpu",)  # that have a kernel for it


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

    Sums are fp32 (fp64 for fp64 weights); gradients have the same bits for any number of threads. The backward keeps
    only ``x`` and the weights and computes hidden layers again. The second derivative, that of the gradient of ``x``,
    has a kernel on the CPU without ``compute_dtype``; on CUDA, with ``compute_dtype``, and for derivatives of the
    parameters' gradients it is composed of PyTorch ops.

    Under ``torch.autocast`` a ``compute_dtype`` of None stands for the dtype of autocast, in all derivatives of the
    call; sums and result keep the dtype of the weights.

    Args:
        x: [..., in], taken in the dtype of the weights.
        weights: 1 to 9 tensors [out_i, in_i], fp32 or fp64 (half precision is read as fp32).
        biases: one [out_i] per layer.
        activation: of the hidden layers: "none", "relu", "leaky_relu" (slope 0.01), "silu", "softplus", "sigmoid",
            "tanh", "exp" (derivative exp(clamp(x, -15, 15))) or "sine".
        output_activation: of the last layer, from the same set.
        compute_dtype: ``torch.bfloat16`` or ``torch.float16`` rounds both factors of every product, forward and
            backward, and sums in fp32; None or the dtype of the weights rounds nothing. Of float16, gradients have the
            11 bits but not the range, so that they need no loss scale; activations and weights beyond 65504 become
            infinite.
        softplus_beta: of a hidden "softplus", ``log(1 + exp(beta x)) / beta``. Kernels know softplus alone: they get
            the first layer and the biases times ``beta``, the last layer over ``beta``, and those are what
            ``compute_dtype`` rounds.

    Returns:
        [..., out] in the dtype of the weights, at least fp32.

    Raises:
        ValueError: an option is unknown, or shapes do not chain.
        RuntimeError: a dtype the kernels do not take.
    """
    weights = [at_least_fp32(weight) for weight in weights]
    biases = [] if biases is None else [at_least_fp32(bias) for bias in biases]
    if x.dim() == 0:
        raise ValueError("`x` must have shape [..., in], got []")
    check_network(x.shape[-1], weights, biases, activation, output_activation, compute_dtype)
    weights, biases = fold_softplus_beta(weights, biases, activation, softplus_beta)
    compute_dtype = product_dtype(compute_dtype, weights[0])
    batch = x.shape[:-1]
    flat = flatten(x.to(weights[0].dtype), weights[0].shape[1], "x")
    options = (
        ACTIVATIONS.index(activation),
        ACTIVATIONS.index(output_activation),
        FACTORS.index(None if compute_dtype == weights[0].dtype else compute_dtype),
    )
    params = [param.contiguous() for param in (*weights, *biases)]
    if torch.compiler.is_compiling():  # Dynamo shifts the arguments of a Function whose forward takes *params
        y = _extension.ops().mlp(flat, params[: len(weights)], params[len(weights) :], *options)
    else:
        y = apply(_Mlp, flat, len(weights), options, *params)
    return unflatten(y, batch)


def check_network(
    width: int,
    weights: list[Tensor],
    biases: list[Tensor],
    activation: str,
    output_activation: str,
    compute_dtype: torch.dtype | None,
    list_name: str = "weights",
) -> None:
    """Whether a network takes inputs ``width`` wide; messages call its weights ``list_name``.

    Raises:
        ValueError: it does not, or an option is unknown.
    """
    for name, value in (("activation", activation), ("output_activation", output_activation)):
        check_option(name, value, ACTIVATIONS)
    if not 1 <= len(weights) <= MAX_LAYERS:
        raise ValueError(f"`{list_name}` must have 1 to {MAX_LAYERS} layers, got {len(weights)}")
    if compute_dtype not in (*FACTORS, weights[0].dtype):
        allowed = ", ".join(map(str, FACTORS))
        raise ValueError(f"`compute_dtype` must be {allowed} or {weights[0].dtype}, got {compute_dtype}")
    if biases and len(biases) != len(weights):
        raise ValueError(f"`biases` must have {len(weights)} tensors, one per layer, got {len(biases)}")
    for layer, weight in enumerate(weights):
        if weight.dim() != 2 or weight.shape[1] != width:
            raise ValueError(f"`{list_name}[{layer}]` must have shape [out, {width}], got {list(weight.shape)}")
        width = weight.shape[0]
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=False)):
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"`biases[{layer}]` must have shape [{weight.shape[0]}], got {list(bias.shape)}")


def fold_softplus_beta(
    weights: list[Tensor], biases: list[Tensor], activation: str, beta: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters with which a plain softplus makes the same network, ``beta`` times the hidden values.

    Raises:
        ValueError: ``beta`` is not positive, or hidden layers have another activation.
    """
    check_softplus_beta(activation, beta)
    if beta == 1 or len(weights) == 1:
        return weights, biases
    return (
        [weights[0] * beta, *weights[1:-1], weights[-1] / beta],
        [*(bias * beta for bias in biases[:-1]), *biases[-1:]],
    )


def split_gradient(grad_params: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """The flat gradient of the kernels as one view per parameter."""
    parts = grad_params.split([param.numel() for param in params])
    return [part.view(param.shape) for part, param in zip(parts, params, strict=True)]


class _Mlp(Function):
    @staticmethod
    def forward(x, n_layers, options, *params):  # type: ignore[override]
        return _extension.ops().mlp(x, params[:n_layers], params[n_layers:], *options)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[override]
        x, ctx.n_layers, ctx.options, *params = inputs
        ctx.save_for_backward(x, *params)

    @staticmethod
    def backward(ctx, grad_y):  # type: ignore[override]
        x, *params = ctx.saved_tensors
        asked = [need and is_asked_for(ctx, 1 + i) for i, need in enumerate(ctx.needs_input_grad[3:])]
        needs = (ctx.needs_input_grad[0], any(asked))
        grad_x, *grads = apply(_MlpBackward, grad_y.contiguous(), x, ctx.n_layers, ctx.options, needs, *params)
        kept = (grad if need else None for grad, need in zip(grads, asked, strict=True))
        return grad_x if needs[0] else None, None, None, *kept


class _MlpBackward(Function):
    """The first derivative as a function of its own, so that it can be differentiated once more."""

    @staticmethod
    def forward(grad_y, x, n_layers, options, needs, *params):  # type: ignore[override]
        grad_x, grad_params = _extension.ops().mlp_backward(
            grad_y, x, params[:n_layers], params[n_layers:], *options, *needs
        )
        return grad_x, *(
            split_gradient(grad_params, params) if needs[1] else [grad_params.new_empty(0) for _ in params]
        )

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[override]
        grad_y, x, ctx.n_layers, ctx.options, ctx.needs, *params = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad_y, x, *params)

    @staticmethod
    def backward(ctx, *cotangents):  # type: ignore[override]
        grad_y, x, *params = ctx.saved_tensors
        need_x, need_params = ctx.needs
        of_x = cotangents[0] if need_x else None
        of_params = [g if need_params else None for g in cotangents[1:]]
        wanted = (*ctx.needs_input_grad[:2], *ctx.needs_input_grad[5:])
        n_given = len(cotangents)

        def compute(*tensors):
            grad_y, x, *params = tensors[n_given:]
            return tuple(_second_order(tensors[:n_given], grad_y, x, params, ctx.n_layers, ctx.options, wanted))

        grads = no_third_derivative("mlp", compute, of_x, *of_params, grad_y, x, *params)
        return *grads[:2], None, None, None, *grads[2:]


@without_autocast
def _second_order(
    cotangents: Sequence[Tensor | None],
    grad_y: Tensor,
    x: Tensor,
    params: Sequence[Tensor],
    n_layers: int,
    options: Sequence[Any],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Pulls cotangents of (grad_x, gradients of ``params``) back to (grad_y, x, ``params``)."""
    of_x, *of_params = cotangents
    has_kernel = x.device.type in SECOND_ORDER_DEVICES and options[2] == FACTORS.index(None)
    if has_kernel and of_x is not None and all(cotangent is None for cotangent in of_params):
        needs = (*wanted[:2], any(wanted[2:]))
        grad_grad_y, grad_x, grad_params = _extension.ops().mlp_backward_backward(
            of_x.contiguous(), grad_y, x, params[:n_layers], params[n_layers:], *options[:2], *needs
        )
        parts = split_gradient(grad_params, params) if needs[2] else [None] * len(params)
        return [g if want else None for g, want in zip((grad_grad_y, grad_x, *parts), wanted, strict=True)]
    given = [cotangent for cotangent in cotangents if cotangent is not None]
    if not given:
        return [None] * (2 + len(params))
    names = ACTIVATIONS[options[0]], ACTIVATIONS[options[1]], FACTORS[options[2]]

    def function(x: Tensor, *params: Tensor) -> Tensor:
        return reference_mlp(x, params[:n_layers], params[n_layers:] or None, *names)

    if is_transformed():
        grads = pull_back_transformed(function, [x, *params], grad_y, cotangents)
        return [grad if want else None for grad, want in zip(grads, wanted, strict=True)]
    inputs = [tensor.detach().requires_grad_() for tensor in (grad_y, x, *params)]
    asked = [tensor for tensor, cotangent in zip(inputs[1:], cotangents, strict=True) if cotangent is not None]
    with torch.enable_grad():
        y = function(*inputs[1:])
        first = torch.autograd.grad(y, asked, inputs[0], create_graph=True)
        targets = [tensor for tensor, want in zip(inputs, wanted, strict=True) if want]
        second = iter(torch.autograd.grad(first, targets, given, allow_unused=True, materialize_grads=True))
    return [next(second) if want else None for want in wanted]


def _register() -> None:
    """Fake kernels and autograd of ``torch.ops.hashgrid.mlp``."""

    @torch.library.register_fake("hashgrid::mlp")
    def _(x, weights, biases, *options):
        return x.new_empty(x.shape[0], weights[-1].shape[0])

    @torch.library.register_fake("hashgrid::mlp_backward")
    def _(grad_y, x, weights, biases, activation, output_activation, factors, need_x, need_params):
        n_params = sum(param.numel() for param in (*weights, *biases))
        return x.new_empty(x.shape[0] if need_x else 0, x.shape[1]), x.new_empty(n_params if need_params else 0)

    @torch.library.register_fake("hashgrid::mlp_backward_backward")
    def _(cotangent, grad_y, x, weights, biases, activation, output_activation, need_grad_y, need_x, need_params):
        n_params = sum(param.numel() for param in (*weights, *biases))
        return (
            x.new_empty(x.shape[0] if need_grad_y else 0, grad_y.shape[1]),
            x.new_empty(x.shape[0] if need_x else 0, x.shape[1]),
            x.new_empty(n_params if need_params else 0),
        )

    def setup_context(ctx, inputs, output) -> None:
        x, weights, biases, *ctx.options = inputs
        ctx.n_layers = len(weights)
        ctx.n_biases = len(biases)
        ctx.save_for_backward(x, *weights, *biases)

    def backward(ctx, grad_y):
        x, *params = ctx.saved_tensors
        n = ctx.n_layers
        need_x, *need_params = _needs(ctx.needs_input_grad[:3], n, ctx.n_biases)
        grad_x, grad_params = torch.ops.hashgrid.mlp_backward(
            grad_y.contiguous(), x, params[:n], params[n:], *ctx.options, need_x, any(need_params)
        )
        grads: list[Tensor | None] = [None] * len(params)
        if any(need_params):
            parts = split_gradient(grad_params, params)
            grads = [grad if need else None for grad, need in zip(parts, need_params, strict=True)]
        return grad_x if need_x else None, grads[:n], grads[n:], *(None for _ in ctx.options)

    def setup_context_backward(ctx, inputs, output) -> None:
        grad_y, x, weights, biases, *ctx.options = inputs
        ctx.n_layers = len(weights)
        ctx.n_biases = len(biases)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad_y, x, *weights, *biases)

    def backward_backward(ctx, of_x, of_params):
        grad_y, x, *params = ctx.saved_tensors
        n = ctx.n_layers
        *options, need_x, need_params = ctx.options
        parts: list[Tensor | None] = [None] * len(params)
        if of_params is not None and need_params:
            parts = [*split_gradient(of_params, params)]
        wanted = [ctx.needs_input_grad[0], *_needs(ctx.needs_input_grad[1:4], n, ctx.n_biases)]
        grads = _second_order([of_x if need_x else None, *parts], grad_y, x, params, n, options, wanted)
        return *grads[:2], grads[2 : 2 + n], grads[2 + n :], *(None for _ in ctx.options)

    torch.library.register_autograd("hashgrid::mlp", backward, setup_context=setup_context)
    torch.library.register_autograd("hashgrid::mlp_backward", backward_backward, setup_context=setup_context_backward)

    register_vmap("mlp", ["x"])
    register_vmap("mlp_backward", ["grad_y", "x"], sums=["need_params"])
    register_vmap("mlp_backward_backward", ["cotangent", "grad_y", "x"], (0, 1), ["need_params"])


def _needs(needs: Sequence[Any], n_layers: int, n_biases: int) -> list[bool]:
    """Flattens (x, weights, biases) of an op's ``needs_input_grad``; list arguments may come as one flag or as many."""
    flat: list[bool] = [bool(needs[0])]
    for need, count in zip(needs[1:], (n_layers, n_biases), strict=True):
        flat += [bool(n) for n in need] if isinstance(need, (list, tuple)) else [bool(need)] * count
    return flat


if _extension.module is not None:
    _register()
