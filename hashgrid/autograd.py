"""Calling autograd functions at little cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply(*args)`` without the `inspect.signature` that PyTorch runs in every call of a function with
    ``setup_context``: 20 of the 40 µs that an encoding of a few points takes. ``args`` are those of ``forward``, in
    order and without defaults."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]


def is_recorded(*tensors: Tensor) -> bool:
    """Whether a call with ``tensors`` becomes part of a graph: of autograd, of a compiler, of a functorch transform. If
    not, a kernel without a derivative can take it."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
