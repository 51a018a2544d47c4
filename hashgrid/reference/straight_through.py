"""Values of one tensor, gradient of another."""

from __future__ import annotations

from torch import Tensor

from hashgrid.autograd import Function, apply


def straight_through(value: Tensor, gradient_to: Tensor) -> Tensor:
    """Exactly ``value`` in the dtype of ``gradient_to``, which receives the whole gradient; same shapes."""
    return apply(_StraightThrough, value, gradient_to)


class _StraightThrough(Function):
    @staticmethod
    def forward(value, gradient_to):  # type: ignore[override]
        return value.to(gradient_to.dtype, copy=True)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[override]
        pass

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        return None, grad
