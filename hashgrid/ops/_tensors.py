"""Shapes and dtypes of the ops' arguments: batch dimensions, half precision, ``torch.autocast``.

Ops work on rows [N, D]; public functions accept [..., D].

Autocast changes one thing: `mlp` without a ``compute_dtype`` multiplies in the dtype of autocast. Sums, results and
everything geometric (positions, directions, rays, distances, densities) are fp32 at least, with autocast or without,
and of modules that ``.half()`` or ``.bfloat16()`` has cast as well: their parameters are read as the values they have.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from hashgrid.util.choices import FACTORS

P = ParamSpec("P")
R = TypeVar("R")

HALF_DTYPES = (torch.float16, torch.bfloat16)


def maths_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype that formulas run in: fp64 for fp64, fp32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def at_least_fp32(x: Tensor) -> Tensor:
    """Returns ``x``, cast to fp32 if it is of half precision, as the output of a layer under autocast is."""
    return x.float() if x.dtype in HALF_DTYPES else x


def product_dtype(compute_dtype: torch.dtype | None, weight: Tensor) -> torch.dtype | None:
    """Returns the dtype in which `mlp` multiplies: ``compute_dtype`` or, if that is None, the one of autocast where it
    is on. Autocast does not apply to a float64 ``weight``, as in PyTorch's own layers, nor does a dtype that `mlp` has
    no products of."""
    if compute_dtype is not None or weight.dtype == torch.float64 or not _autocast_is_on(weight.device.type):
        return compute_dtype
    dtype = torch.get_autocast_dtype(weight.device.type)
    return dtype if dtype in FACTORS else None


def keeping_dtype(fn: Callable[[Tensor], Tensor], kept: Collection[Tensor]) -> Callable[[Tensor], Tensor]:
    """Returns ``fn``, a function that `nn.Module._apply` moves and casts tensors with, changed to move the tensors
    ``kept`` without a cast."""

    def moved(tensor: Tensor) -> Tensor:
        result = fn(tensor)
        if result.dtype == tensor.dtype or all(tensor is not other for other in kept):
            return result
        return tensor.to(result.device)

    return moved


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates functions made of PyTorch's ops, which autocast would run in half precision. Compiled ops do not need
    it: autocast has no rule for them."""

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        device_type = _device_type((*args, *kwargs.values()))
        if device_type is None or not _autocast_is_on(device_type):
            return function(*args, **kwargs)
        with torch.autocast(device_type, enabled=False):
            return function(*args, **kwargs)

    return wrapper


def _autocast_is_on(device_type: str) -> bool:
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def _device_type(arguments: Iterable[Any]) -> str | None:
    """Returns the kind of device of the first tensor, None without one."""
    return next((argument.device.type for argument in arguments if isinstance(argument, Tensor)), None)


def flatten(x: Tensor, n_dims: int | None, name: str) -> Tensor:
    """Returns ``x`` [..., D] as a contiguous [N, D].

    Raises:
        ValueError: ``x`` has no dimension, or its last one is not ``n_dims``.
    """
    if x.dim() == 0 or (n_dims is not None and x.shape[-1] != n_dims):
        wanted = "D" if n_dims is None else n_dims
        raise ValueError(f"`{name}` must have shape [..., {wanted}], got {list(x.shape)}")
    return x.reshape(-1, x.shape[-1]).contiguous() if x.dim() != 2 else x.contiguous()


def unflatten(y: Tensor, batch: torch.Size) -> Tensor:
    """Returns ``y`` [N, C] as [*batch, C]."""
    return y if len(batch) == 1 else y.reshape(*batch, y.shape[-1])
