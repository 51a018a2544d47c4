"""Values of one tensor, gradient of another."""

from __future__ import annotations

from torch import Tensor


def straight_through(value: Tensor, gradient_to: Tensor) -> Tensor:
    """Exactly ``value`` in the dtype of ``gradient_to``, which receives the whole gradient; same shapes."""
    return value.detach().to(gradient_to.dtype) + (gradient_to - gradient_to.detach())  # the bracket is exactly 0
