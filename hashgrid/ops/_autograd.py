"""Derivatives of the ops: one function per op and order, for PyTorch's eager mode, its compiler and `torch.func`."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers

from hashgrid import _extension
from hashgrid.util.autograd import (
    Function,
    apply,
    has_tangents,
    is_transformed,
    n_forward_modes,
    no_forward_mode,
    plain_apply,
)

Gradients = Sequence[Tensor | None]


# ---- calling ---------------------------------------------------------------------------------------------------------


def is_asked_for(ctx: Any, index: int) -> bool:
    """Returns whether this backward pass uses the gradient of tensor ``index`` of the inputs. ``needs_input_grad`` is
    true for every tensor that requires one: when an eikonal loss takes the gradient of positions alone, that of the
    parameters would be computed and thrown away."""
    if torch.compiler.is_compiling():
        return True
    try:
        return torch._C._will_engine_execute_node(ctx.next_functions[index][0])
    except (AttributeError, IndexError, RuntimeError, TypeError):  # no engine, as in torch.func; or another PyTorch
        return True


# ---- one derivative per op -------------------------------------------------------------------------------------------


class Static:
    """All arguments that are no tensors, as one object: `torch.func` would take a tuple or list of them apart.

    Attributes:
        sizes: lengths of the lists among the tensors, None for what is no list; None where there are no lists.
        options: the other arguments of an op.
    """

    __slots__ = ("options", "sizes")

    def __init__(self, sizes: tuple[int | None, ...] | None, options: Sequence[Any]) -> None:
        self.sizes, self.options = sizes, options


def differentiable(
    name: str,
    backward: Callable[..., Gradients],
    jvp: Callable[..., Any] = no_forward_mode,
    n_kept: int = 0,
) -> Callable[..., Any]:
    """Returns ``torch.ops.hashgrid.<name>`` with a derivative, as a function that takes the arguments of its schema.

    Eagerly and in `torch.func` it is an autograd function that is called at little cost; a compiler gets the registered
    op. The derivative of both is what is given here, so that what checks the registered op checks what users run. In
    the schema tensors and lists of tensors come first, then the other arguments, called options below.

    Args:
        name: of the op.
        backward: gradients of the tensors, those of a list each by itself, from ``(needs, tensors, options, *grads)``:
            which are asked for, the tensors and lists, the options, and the gradients of the results or None. What
            nobody asks for may be anything. To be differentiated again, it calls functions that can be.
        jvp: the results' tangents from ``(tensors, options, *tangents)``, those of a list each by itself, some None.
        n_kept: so many of the last results are themselves gradients: ``backward`` gets them behind the tensors, and
            only the first result of the op can be differentiated.
    """
    if _extension.module is None:  # there is no schema; calls say how to build it

        def missing(*arguments: Any) -> Any:
            return getattr(_extension.ops(), name)(*arguments)

        return missing

    kinds = [argument.type.str() for argument in getattr(torch.ops.hashgrid, name).default._schema.arguments]
    is_list = [kind == "Tensor[]" for kind in kinds if "Tensor" in kind]
    n, has_lists = len(is_list), any(is_list)

    def run(*tensors_and_static: Any) -> Any:
        *flat, static = tensors_and_static
        tensors = nested(flat, static.sizes) if has_lists else flat
        return getattr(_extension.ops(), name)(*tensors, *static.options)

    function = make_function(name, run, backward, jvp, n_kept)
    call_plainly = plain_apply(function)

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():  # Dynamo knows no function with a forward mode
            return getattr(_extension.ops(), name)(*arguments)
        flat, sizes = _flat(arguments[:n]) if has_lists else (arguments[:n], None)
        if is_transformed() or has_tangents():
            return apply(function, *flat, Static(sizes, arguments[n:]))
        if torch.is_grad_enabled():
            for tensor in flat:
                if tensor is not None and tensor.requires_grad:
                    return call_plainly(*unwrap_dead_wrappers((*flat, Static(sizes, arguments[n:]))))
        return getattr(_extension.ops(), name)(*arguments)  # as in most backward passes

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        flat, sizes = _flat(inputs[:n]) if has_lists else (inputs[:n], None)
        function.setup_context(ctx, (*flat, Static(sizes, inputs[n:])), output)

    def registered_backward(ctx: Any, *grads: Tensor) -> Any:
        needs: list[bool] = []
        for need, size in zip(ctx.needs_input_grad, ctx.static.sizes or (None,) * n, strict=False):
            flags = need if isinstance(need, (list, tuple)) else [need] * (1 if size is None else size)
            needs += map(bool, flags)  # of a list one flag each or one for all
        results = _pull_back(ctx, backward, needs, grads)
        return *nested(results, ctx.static.sizes), *(None for _ in kinds[n:])

    torch.library.register_autograd(f"hashgrid::{name}", registered_backward, setup_context=setup_context)
    return call


def make_function(
    name: str,
    run: Callable[..., Any],
    backward: Callable[..., Gradients],
    jvp: Callable[..., Any] = no_forward_mode,
    n_kept: int = 0,
) -> type[Function]:
    """Returns an autograd function that takes tensors, those of lists one by one, and a `Static`; see `differentiable`.
    Its class, which graphs show, is named after ``name``."""

    class Made(Function):
        forward = staticmethod(run)

        @staticmethod
        def setup_context(ctx, inputs, output) -> None:  # type: ignore[override]
            ctx.static = inputs[-1]
            ctx.set_materialize_grads(False)
            tensors = inputs[:-1]
            if n_kept:
                ctx.mark_non_differentiable(*output[1:])
                tensors += tuple(output[-n_kept:])
            ctx.save_for_backward(*tensors)
            if has_tangents():
                ctx.save_for_forward(*tensors)

        @staticmethod
        def backward(ctx, *grads):  # type: ignore[override]
            return *_pull_back(ctx, backward, ctx.needs_input_grad[:-1], grads), None

        @staticmethod
        def jvp(ctx, *tangents):  # type: ignore[override]
            results = jvp(nested(ctx.saved_tensors, ctx.static.sizes), ctx.static.options, *tangents[:-1])
            return results if isinstance(results, Tensor) else tuple(results)

    return types.new_class(name.title().replace("_", ""), (Made,))


def _pull_back(ctx: Any, backward: Callable[..., Gradients], needs: Sequence[bool], grads: Sequence[Any]) -> list[Any]:
    if all(grad is None for grad in grads):
        return [None] * len(needs)
    saved, static = ctx.saved_tensors, ctx.static
    if sum(needs) > 1:  # the pass would not be here for none of them
        index, asked = 0, []  # PyTorch counts tensors, None is none
        for need, tensor in zip(needs, saved, strict=False):
            asked.append(need and is_asked_for(ctx, index))
            index += tensor is not None
        needs = asked
    results = backward(needs, nested(saved, static.sizes), static.options, *grads)
    return [grad if need else None for grad, need in zip(results, needs, strict=True)]


def _flat(arguments: Sequence[Any]) -> tuple[list[Any], tuple[int | None, ...]]:
    """Returns all arguments, those in lists one by one, and per argument the length of its list, None if it is no
    list."""
    flat: list[Any] = []
    sizes: list[int | None] = []
    for argument in arguments:
        if isinstance(argument, (list, tuple)):
            flat += argument
            sizes.append(len(argument))
        else:
            flat.append(argument)
            sizes.append(None)
    return flat, tuple(sizes)


def nested(flat: Sequence[Any], sizes: Sequence[int | None] | None) -> Sequence[Any]:
    """Returns what `_flat` was given: arguments with their lists. Values behind the last argument stay behind it."""
    if sizes is None:
        return flat
    arguments, first = [], 0
    for size in sizes:
        arguments.append(flat[first] if size is None else flat[first : first + size])
        first += 1 if size is None else size
    return [*arguments, *flat[first:]]


def differentiable_by_formula(name: str, formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns ``torch.ops.hashgrid.<name>``, an op of one tensor, with derivatives of every order: the first by the
    kernel ``<name>_backward``, further ones by PyTorch's ops in ``formula``, which takes the same arguments."""

    def gradients(needs: Sequence[bool], tensors: Sequence[Any], options: Sequence[Any], grad_y: Tensor) -> Gradients:
        return (encode_backward(grad_y.contiguous(), *tensors, *options),)

    def tangents(tensors: Sequence[Any], options: Sequence[Any], tangent: Tensor) -> Tensor | None:
        # the derivative of <grad_x, tangent> to grad_y, which is the same for every grad_y
        (x,) = tensors
        grad_y = x.new_zeros(x.shape[0], formula(x[:0], *options).shape[1])
        return pull_back_gradient(lambda x: formula(x, *options), x, grad_y, tangent, (True, False))[0]

    def gradient_gradients(
        needs: Sequence[bool], tensors: Sequence[Any], options: Sequence[Any], cotangent: Tensor
    ) -> Gradients:
        grad_y, x = tensors
        return pull_back_gradient(lambda x: formula(x, *options), x, grad_y, cotangent, needs)

    def gradient_tangents(
        tensors: Sequence[Any], options: Sequence[Any], of_grad_y: Tensor | None, tangent: Tensor | None
    ) -> Tensor:
        grad_y, x = tensors
        terms = []
        if of_grad_y is not None:
            terms.append((encode_backward(of_grad_y.contiguous(), x, *options),))
        if tangent is not None:  # second derivatives are symmetric
            terms.append(pull_back_gradient(lambda x: formula(x, *options), x, grad_y, tangent, (False, True))[1:])
        return added(terms)[0]

    encode_backward = differentiable(f"{name}_backward", gradient_gradients, gradient_tangents)
    encode = differentiable(name, gradients, tangents)

    def call(*arguments: Any) -> Tensor:
        nested = not torch.compiler.is_compiling() and is_transformed() and n_forward_modes() > 1
        return formula(*arguments) if nested else encode(*arguments)

    return call


def added(terms: Sequence[Sequence[Any]]) -> Sequence[Any]:
    """Returns the sum of one or two terms, each a sequence of results, result by result."""
    return terms[0] if len(terms) == 1 else [a + b for a, b in zip(*terms, strict=True)]


# ---- second derivatives ----------------------------------------------------------------------------------------------

_TWICE = "can be differentiated twice, not three times"
_JETS = f"{_TWICE}; a loss that holds second derivatives takes them from `hashgrid.derivatives_along`"
_ONCE = "can be differentiated once, as its results are second derivatives already"
_MESSAGES = {"mlp": _JETS, "hash_encode": _JETS, "mlp_jet": _ONCE, "hash_encode_jet": _ONCE}


def no_third_derivative(name: str, compute: Callable[..., Any], *tensors: Tensor | None) -> Any:
    """Returns ``compute(*tensors)``, the last derivative that the op ``name`` has: the second, of a jet the first.
    Differentiating the result raises.

    `torch.autograd.function.once_differentiable` would give zero, silently, where the cotangents are constant.
    """
    return apply(_Last, name, compute, *tensors)


class _Last(Function):
    @staticmethod
    def forward(name, compute, *tensors):  # type: ignore[override]
        return compute(*tensors)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[override]
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx, *cotangents):  # type: ignore[override]
        message = _MESSAGES.get(ctx.name, _TWICE)
        raise RuntimeError(f'{ctx.name} {message}; for higher derivatives use `backend="reference"`')

    @staticmethod
    def jvp(ctx, *tangents):  # type: ignore[override]
        _Last.backward(ctx)


def pull_back_gradient(
    function: Callable[[Tensor], Tensor], x: Tensor, grad_y: Tensor, cotangent: Tensor, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``<grad_x, cotangent>`` to ``grad_y`` and ``x``, with ``grad_x`` the gradient of
    ``<function(x), grad_y>``; None where ``needs`` (grad_y, x) does not ask. Differentiable any number of times."""
    if is_transformed():
        of_grad_y, of_x = pull_back_transformed(function, [x], grad_y, [cotangent])
        return of_grad_y if needs[0] else None, of_x if needs[1] else None
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # new views, so that a grad_y computed from x does not lead back to the x differentiated here
        x, grad_y = (t.view_as(t) if again and t.requires_grad else t.detach().requires_grad_() for t in (x, grad_y))
        y = function(x) + 0 * x.sum()  # the sum keeps functions that are constant differentiable
        (grad_x,) = torch.autograd.grad(y, x, grad_y, create_graph=True)
        wanted = [tensor for tensor, need in zip((grad_y, x), needs, strict=True) if need]
        grads = iter(
            torch.autograd.grad(grad_x, wanted, cotangent, create_graph=again, materialize_grads=True) if wanted else ()
        )
    return tuple(next(grads) if need else None for need in needs)  # type: ignore[return-value]


def pull_back_transformed(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_y: Tensor, cotangents: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Returns the same as `pull_back_gradient` inside `torch.func` and for several inputs: gradients to ``grad_y`` and
    to each of ``inputs``."""
    asked = [i for i, cotangent in enumerate(cotangents) if cotangent is not None]

    def first(grad_y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        grads = torch.func.vjp(function, *inputs)[1](grad_y)
        return tuple(grads[i] for i in asked)

    return torch.func.vjp(first, grad_y, *inputs)[1](tuple(cotangents[i] for i in asked))
