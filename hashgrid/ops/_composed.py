"""Second derivatives by automatic differentiation of a plain-PyTorch twin, for ops whose second order is rare."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hashgrid.autograd import is_transformed


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
    """The same inside `torch.func` and of several inputs: gradients to ``grad_y`` and to ``inputs``."""
    asked = [i for i, cotangent in enumerate(cotangents) if cotangent is not None]

    def first(grad_y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        grads = torch.func.vjp(function, *inputs)[1](grad_y)
        return tuple(grads[i] for i in asked)

    return torch.func.vjp(first, grad_y, *inputs)[1](tuple(cotangents[i] for i in asked))
