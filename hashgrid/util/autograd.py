"""Calls of autograd functions, at little cost and under `torch.func`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad


class Function(torch.autograd.Function):
    """An autograd function whose vmap is that of the ops inside: `torch.func` transforms them one by one."""

    generate_vmap_rule = True


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """Returns ``function.apply(*args)``, without the `inspect.signature` that PyTorch runs in every call of a function
    with ``setup_context``: 20 of the 40 µs that an encoding of a few points takes. ``args`` are those of ``forward``,
    in order and without defaults.

    Raises:
        NotImplementedError: in forward-mode differentiation by `torch.func`, of a function without one, or inside of
            another forward mode.
    """
    if torch.compiler.is_compiling():
        return function.apply(*args)
    if is_transformed():
        check_forward_modes(function.jvp is not torch.autograd.Function.jvp)
        return function.apply(*args)
    return plain_apply(function)(*unwrap_dead_wrappers(args))


def plain_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """Returns the ``apply`` of PyTorch's C++ class, which that of `torch.autograd.Function` calls."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]


def is_transformed() -> bool:
    """Returns whether `torch.func` is at work, in which gradients are results and ``requires_grad_`` is not allowed."""
    return torch._C._are_functorch_transforms_active()


def has_tangents() -> bool:
    """Returns whether forward-mode differentiation is at work, by `torch.func` or by dual numbers."""
    return forward_ad._current_level >= 0


def is_recorded(*tensors: Tensor) -> bool:
    """Returns whether a call with ``tensors`` becomes part of a graph: of autograd, of a compiler, of a `torch.func`
    transform. If not, a kernel without a derivative can take it."""
    if torch.compiler.is_compiling() or is_transformed() or has_tangents():
        return True
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def n_forward_modes() -> int:
    """How many forward modes are nested around this call. In a second one PyTorch silently takes for a constant what an
    autograd function's own ``jvp`` returns."""
    return sum(level.key() == TransformType.Jvp for level in get_interpreter_stack() or ())


def check_forward_modes(n_supported: int) -> None:
    """Raises `NotImplementedError` where more forward modes than that are nested around this call."""
    if n_forward_modes() > n_supported:
        no_forward_mode()


def no_forward_mode(*arguments: Any) -> NoReturn:
    """Raises the error of forward-mode differentiation where there is none."""
    raise NotImplementedError(
        "this op has no forward-mode derivative of that order; use `torch.func.jacrev` instead of `jacfwd`, or"
        ' `backend="reference"`'
    )
