"""The last derivative an op has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hashgrid.autograd import Function, apply


def no_third_derivative(name: str, compute: Callable[..., Any], *arguments: Any) -> Any:
    """``compute(*arguments)``, the second derivative of the op ``name``; differentiating the result raises.

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
        raise RuntimeError(
            f'{ctx.name} can be differentiated twice, not three times; use `backend="reference"` for higher derivatives'
        )
