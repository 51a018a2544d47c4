"""Calling autograd functions at little cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch._functorch.utils import unwrap_dead_wrappers


class Function(torch.autograd.Function):
    """An autograd function of ours. `torch.func` transforms its parts, by the rules that the ops inside have."""

    generate_vmap_rule = True


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply(*args)`` without the `inspect.signature` that PyTorch runs in every call of a function with
    ``setup_context``: 20 of the 40 µs that an encoding of a few points takes. ``args`` are those of ``forward``, in
    order and without defaults.

    Raises:
        NotImplementedError: in forward-mode differentiation by `torch.func`.
    """
    if torch.compiler.is_compiling():
        return function.apply(*args)
    if is_transformed():
        if any(level.key() == TransformType.Jvp for level in get_interpreter_stack() or ()):
            raise NotImplementedError(
                "native kernels and rounded products have no forward-mode derivative; use `torch.func.jacrev` for"
                ' `jacfwd`, `jacrev(jacrev(f))` for `hessian`, or `backend="reference"` without `compute_dtype`'
            )
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]


def is_transformed() -> bool:
    """Whether `torch.func` is at work, in which gradients are results and ``requires_grad_`` is not allowed."""
    return torch._C._are_functorch_transforms_active()


def is_recorded(*tensors: Tensor) -> bool:
    """Whether a call with ``tensors`` becomes part of a graph: of autograd, of a compiler, of a functorch transform. If
    not, a kernel without a derivative can take it."""
    if torch.compiler.is_compiling() or is_transformed():
        return True
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
