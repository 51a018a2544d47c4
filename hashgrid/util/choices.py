"""The options that have names, in the order of the kernels' enumerations."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable
from typing import Any, TypeVar

import torch

T = TypeVar("T")

BACKENDS = ("native", "reference")
INTERPOLATIONS = ("linear", "smoothstep", "nearest")
BOUNDS = ("clamp", "zero", "none")
ACTIVATIONS = ("none", "relu", "leaky_relu", "silu", "softplus", "sigmoid", "tanh", "exp", "sine")
# What matrix products multiply: the tensors as they are, or rounded.
FACTORS = (None, torch.bfloat16, torch.float16)


def check_option(name: str, value: str, allowed: Collection[str]) -> str:
    """``value``, when it is ``allowed``.

    Raises:
        ValueError: it is not.
    """
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {tuple(allowed)}, got {value!r}")
    return value


def exactly_one(**values: T | None) -> tuple[str, T]:
    """Return the name and the value of the argument that is not None.

    Raises:
        ValueError: not exactly one is given.
    """
    given = [(name, value) for name, value in values.items() if value is not None]
    if len(given) != 1:
        names = " and ".join(f"`{name}`" for name in values)
        raise ValueError(f"exactly one of {names} must be given, got {len(given)}")
    return given[0]


def check_softplus_beta(activation: str, beta: float) -> float:
    """Return ``beta``, of the hidden activation called ``activation``.

    Raises:
        ValueError: it is not positive, or is not 1 where the activation has none.
    """
    if not beta > 0:
        raise ValueError(f"`softplus_beta` must be positive, got {beta}")
    if beta != 1 and activation != "softplus":
        raise ValueError(f"`softplus_beta` must be 1 unless `activation` is 'softplus', got {beta} and {activation!r}")
    return beta


def as_integer(name: str, value: Any) -> int:
    """``value`` as Python's own integer. Those of NumPy are the same numbers, but wrap where they are multiplied.

    Raises:
        ValueError: it is no integer, 8.0 included.
    """
    if type(value) is int:  # all that a compiler's graph can hold
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"`{name}` must be an integer, got {value!r}") from None


def as_integers(name: str, value: Any, count: int) -> tuple[int, ...]:
    """``value`` as ``count`` integers, a single one as so many of it.

    Raises:
        ValueError: it is neither an integer nor ``count`` of them.
    """
    if hasattr(value, "__index__") and not getattr(value, "ndim", 0):
        return (as_integer(name, value),) * count
    values = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else None
    if values is None or len(values) != count:
        raise ValueError(f"`{name}` must be an integer or {count} of them, got {value!r}")
    return tuple(as_integer(name, element) for element in values)
