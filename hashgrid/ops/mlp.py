"""Multilayer perceptron on the native kernels, all layers fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.maths import layers
from hashgrid.ops._autograd import (
    Gradients,
    Static,
    added,
    differentiable,
    make_function,
    nested,
    no_third_derivative,
    pull_back_transformed,
)
from hashgrid.ops._tensors import at_least_fp32, flatten, product_dtype, unflatten, without_autocast
from hashgrid.ops._vmap import register_vmap
from hashgrid.util.autograd import apply, is_transformed
from hashgrid.util.choices import ACTIVATIONS, FACTORS, check_option, check_softplus_beta


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
    has a kernel without ``compute_dtype``; with it, and for derivatives of the parameters' gradients, it is composed of
    PyTorch ops.

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
    weights, biases = prepare_network(x, weights, biases, activation, output_activation, compute_dtype, softplus_beta)
    compute_dtype = product_dtype(compute_dtype, weights[0])
    batch = x.shape[:-1]
    flat = flatten(x.to(weights[0].dtype), weights[0].shape[1], "x")
    options = (
        ACTIVATIONS.index(activation),
        ACTIVATIONS.index(output_activation),
        FACTORS.index(None if compute_dtype == weights[0].dtype else compute_dtype),
    )
    params = [param.contiguous() for param in (*weights, *biases)]
    y = _mlp(flat, params[: len(weights)], params[len(weights) :], *options)
    return unflatten(y, batch)


def prepare_network(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    activation: str,
    output_activation: str,
    compute_dtype: torch.dtype | None,
    softplus_beta: float,
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns weights and biases as the kernels take them, of a network that takes ``x`` [..., in].

    Raises:
        ValueError: an option is unknown, or shapes do not chain.
    """
    if x.dim() == 0:
        raise ValueError("`x` must have shape [..., in], got []")
    weights = [at_least_fp32(weight) for weight in weights]
    biases = [] if biases is None else [at_least_fp32(bias) for bias in biases]
    check_network(x.shape[-1], weights, biases, activation, output_activation, compute_dtype)
    return fold_softplus_beta(weights, biases, activation, softplus_beta)


def check_network(
    width: int,
    weights: list[Tensor],
    biases: list[Tensor],
    activation: str,
    output_activation: str,
    compute_dtype: torch.dtype | None,
    list_name: str = "weights",
) -> None:
    """Checks that a network takes inputs ``width`` wide; messages call its weights ``list_name``.

    Raises:
        ValueError: it does not, or an option is unknown.
    """
    check_option("activation", activation, ACTIVATIONS)
    check_option("output_activation", output_activation, ACTIVATIONS)
    most = _extension.require().MAX_MLP_LAYERS
    if not 1 <= len(weights) <= most:
        raise ValueError(f"`{list_name}` must have 1 to {most} layers, got {len(weights)}")
    if compute_dtype is not None and compute_dtype not in (*FACTORS, weights[0].dtype):
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
    """Returns parameters that make the same network with a softplus of beta 1: its hidden values are ``beta`` times as
    large.

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
    """Returns the flat gradient of the kernels as one view per parameter."""
    parts = grad_params.split([param.numel() for param in params])
    return [part.view(param.shape) for part, param in zip(parts, params, strict=True)]


# ---- derivatives -----------------------------------------------------------------------------------------------------
# Tensors (x, weights, biases); their gradients, cotangents and tangents are (x, *weights, *biases).


def _gradients(needs: Sequence[bool], tensors: Sequence[Any], options: Sequence[Any], grad_y: Tensor) -> Gradients:
    x, weights, biases = tensors
    need_params = any(needs[1:])
    grad_x, grad_params = _mlp_backward(grad_y.contiguous(), x, weights, biases, *options, needs[0], need_params)
    params = (*weights, *biases)
    return [grad_x, *(split_gradient(grad_params, params) if need_params else (None for _ in params))]


def _gradient_gradients(
    needs: Sequence[bool], tensors: Sequence[Any], options: Sequence[Any], of_x: Tensor | None, of_params: Tensor | None
) -> Gradients:
    grad_y, x, weights, biases = tensors
    *options, need_x, need_params = options
    parts: Gradients = [None] * (len(weights) + len(biases))
    if of_params is not None and need_params:
        parts = split_gradient(of_params, (*weights, *biases))
    return _second_order((of_x if need_x else None, *parts), grad_y, x, weights, biases, options, needs)


def _tangent(tensors: Sequence[Any], options: Sequence[Any], *tangents: Tensor | None) -> Tensor:
    x, weights, biases = tensors
    static = Static((None, len(weights), len(biases)) * 2, options)
    return apply(_Along, *tangents, x, *weights, *biases, static)


def _gradient_tangents(
    tensors: Sequence[Any], options: Sequence[Any], of_grad_y: Tensor | None, *directions: Tensor | None
) -> Gradients:
    """Returns the change of the inputs' gradients along tangents. They are linear in ``grad_y``; along tangents of the
    inputs, as second derivatives are symmetric, it is the gradient of their product with these tangents."""
    grad_y, x, weights, biases = tensors
    *shared, need_x, need_params = options
    terms: list[Any] = []
    if of_grad_y is not None:
        terms.append(_mlp_backward(of_grad_y.contiguous(), x, weights, biases, *options))
    if any(direction is not None for direction in directions):
        needs = (False, need_x, *[need_params] * (len(weights) + len(biases)))
        _, of_x, *of_params = _second_order(directions, grad_y, x, weights, biases, shared, needs)
        flat = [grad.flatten() for grad in of_params if grad is not None]
        terms.append((of_x if need_x else x.new_empty(0, x.shape[1]), torch.cat([x.new_empty(0), *flat])))
    return added(terms)


def _run_along(*arguments: Any) -> Tensor:
    """Returns the change of the outputs along directions of all inputs. It is the derivative, to the outputs' gradient,
    of the product of the inputs' gradients with these directions; as that product is linear in it, its value does not
    matter."""
    *flat, static = arguments
    n = len(flat) // 2
    x, weights, biases = nested(flat[n:], static.sizes[:3])
    grad_y = x.new_zeros(x.shape[0], weights[-1].shape[0])
    needs = (True, *[False] * n)
    result = _compute_second_order(flat[:n], grad_y, x, (*weights, *biases), len(weights), static.options, needs)[0]
    assert result is not None
    return result


def _along_gradients(
    needs: Sequence[bool], tensors: Sequence[Any], options: Sequence[Any], grad_y: Tensor
) -> Gradients:
    of_x, of_weights, of_biases, x, weights, biases = tensors
    n = 1 + len(weights) + len(biases)
    grads: list[Tensor | None] = [None] * (2 * n)
    if any(needs[:n]):
        grads[:n] = _gradients(needs[:n], (x, weights, biases), options, grad_y)
    if any(needs[n:]):
        directions = (of_x, *of_weights, *of_biases)
        grads[n:] = _second_order(directions, grad_y.contiguous(), x, weights, biases, options, (False, *needs[n:]))[1:]
    return grads


def _second_order(
    cotangents: Sequence[Tensor | None],
    grad_y: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    options: Sequence[Any],
    needs: Sequence[bool],
) -> Gradients:
    """Gradients of the gradients' product with ``cotangents`` to (grad_y, x, *weights, *biases), as far as needed."""
    n = len(cotangents)

    def compute(*tensors: Any) -> tuple[Tensor | None, ...]:
        grad_y, x, *params = tensors[n:]
        return tuple(_compute_second_order(tensors[:n], grad_y, x, params, len(weights), options, needs))

    return no_third_derivative("mlp", compute, *cotangents, grad_y, x, *weights, *biases)


@without_autocast
def _compute_second_order(
    cotangents: Sequence[Tensor | None],
    grad_y: Tensor,
    x: Tensor,
    params: Sequence[Tensor],
    n_layers: int,
    options: Sequence[Any],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Returns the gradients of `_second_order` without a graph: by the kernel where there is one, elsewhere by
    PyTorch's ops."""
    of_x, *of_params = cotangents
    if options[2] == FACTORS.index(None) and of_x is not None and all(cotangent is None for cotangent in of_params):
        needs = (*wanted[:2], any(wanted[2:]))
        grad_grad_y, grad_x, grad_params = _extension.ops().mlp_backward_backward(
            of_x.contiguous(), None, grad_y, x, params[:n_layers], params[n_layers:], *options[:2], *needs
        )
        parts = split_gradient(grad_params, params) if needs[2] else [None] * len(params)
        return [g if want else None for g, want in zip((grad_grad_y, grad_x, *parts), wanted, strict=True)]
    given = [cotangent for cotangent in cotangents if cotangent is not None]
    if not given:
        return [None] * (2 + len(params))
    names = ACTIVATIONS[options[0]], ACTIVATIONS[options[1]], FACTORS[options[2]]

    def function(x: Tensor, *params: Tensor) -> Tensor:
        return layers(x, params[:n_layers], params[n_layers:] or None, *names)

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


def second_order_with_values(
    cotangent: Tensor | None,
    grad_values: Tensor | None,
    grad_y: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: int,
    output_activation: int,
    need_params: bool,
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of ``x`` and, flat, of the parameters: of the product of the gradient that ``grad_y`` has
    to ``x`` with ``cotangent``, and of outputs whose gradient is ``grad_values``; either may be missing. Without a
    graph, by one kernel."""
    network = x, weights, biases, activation, output_activation
    if cotangent is None:
        real = FACTORS.index(None)
        return _extension.ops().mlp_backward(grad_values, *network, real, True, need_params)  # type: ignore[no-any-return]
    return _extension.ops().mlp_backward_backward(  # type: ignore[no-any-return]
        cotangent, grad_values, grad_y, *network, False, True, need_params
    )[1:]


_Along = make_function("mlp_along", _run_along, _along_gradients)
_mlp = differentiable("mlp", _gradients, _tangent)
_mlp_backward = differentiable("mlp_backward", _gradient_gradients, _gradient_tangents)


def _register() -> None:
    """Registers fake kernels of ``torch.ops.hashgrid.mlp`` and its derivatives, and vmap over them."""

    @torch.library.register_fake("hashgrid::mlp")
    def _(x, weights, biases, *options):
        return x.new_empty(x.shape[0], weights[-1].shape[0])

    @torch.library.register_fake("hashgrid::mlp_backward")
    def _(grad_y, x, weights, biases, activation, output_activation, factors, need_x, need_params):
        n_params = sum(param.numel() for param in (*weights, *biases))
        return x.new_empty(x.shape[0] if need_x else 0, x.shape[1]), x.new_empty(n_params if need_params else 0)

    @torch.library.register_fake("hashgrid::mlp_with_gradient")
    def _(grad_y, x, weights, biases, *options):
        return torch.empty_like(grad_y), torch.empty_like(x)

    @torch.library.register_fake("hashgrid::mlp_backward_backward")
    def _(
        cotangent,
        grad_values,
        grad_y,
        x,
        weights,
        biases,
        activation,
        output_activation,
        need_grad_y,
        need_x,
        need_params,
    ):
        n_params = sum(param.numel() for param in (*weights, *biases))
        return (
            x.new_empty(x.shape[0] if need_grad_y else 0, grad_y.shape[1]),
            x.new_empty(x.shape[0] if need_x else 0, x.shape[1]),
            x.new_empty(n_params if need_params else 0),
        )

    register_vmap("mlp", ["x"])
    register_vmap("mlp_backward", ["grad_y", "x"], sums=["need_params"])
    register_vmap("mlp_with_gradient", ["grad_y", "x"], (0, 1))
    register_vmap("mlp_backward_backward", ["cotangent", "grad_values", "grad_y", "x"], (0, 1), ["need_params"])


if _extension.module is not None:
    _register()
