"""The last derivative an op has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hashgrid.autograd import Function, apply

_TWICE = "can be differentiated twice, not three times"
_JETS = f"{_TWICE}; a loss that holds second derivatives takes them from `hashgrid.derivatives_along`"
_ONCE = "can be differentiated once, as its results are second derivatives already"
_MESSAGES = {"mlp": _JETS, "hash_encode": _JETS, "mlp_jet": _ONCE, "hash_encode_jet": _ONCE}


def no_third_derivative(name: str, compute: Callable[..., Any], *arguments: Any) -> Any:
    """``compute(*arguments)``, the second derivative of the op ``name``, of a jet the first; differentiating the result
    raises.

    `torch.autograd.function.once_differentiable` would give zero, silently, where the cotangents are constant.
    """
    return apply(_Last, name, compute, *arguments)


class _Last(Function):
    @staticmethod
    def forward(name, compute, *arguments):  # type: ignore[override]
        return compute(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[override]
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx, *cotangents):  # type: ignore[override]
        message = _MESSAGES.get(ctx.name, _TWICE)
        raise RuntimeError(f'{ctx.name} {message}; for higher derivatives use `backend="reference"`')
