"""Derivatives along directions by another way than jets: reverse mode alone, twice per order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def along(function: Callable[[Tensor], Tensor], v: Tensor) -> Callable[[Tensor], Tensor]:
    """The derivative of ``function``, of rows [N, D] to rows [N, C], along ``v`` [N, D], as a function of x: that of
    ``<grad_x <function(x), u>, v>`` to u."""

    def derivative(x: Tensor) -> Tensor:
        x = x if x.requires_grad else x.detach().requires_grad_()
        y = function(x)
        if not y.requires_grad:  # linear functions have constant derivatives
            return torch.zeros_like(y)
        u = torch.zeros_like(y, requires_grad=True)
        (grad,) = torch.autograd.grad(y, x, u, create_graph=True, materialize_grads=True)
        if not grad.requires_grad:
            return torch.zeros_like(y)
        (of_u,) = torch.autograd.grad(grad, u, v, create_graph=True, materialize_grads=True)
        return of_u

    return derivative


def jet_by_reverse_mode(
    function: Callable[[Tensor], Tensor], x: Tensor, directions: Tensor, accelerations: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What an op of jets returns for ``function``: values, first and second derivatives along [N, K, D]."""
    first, second = [], []
    for k in range(directions.shape[1]):
        slope = along(function, directions[:, k])
        first.append(slope(x))
        second.append(along(slope, directions[:, k])(x))
        if accelerations is not None:
            second[-1] = second[-1] + along(function, accelerations[:, k])(x)
    return function(x), torch.stack(first, 1), torch.stack(second, 1)


def results_and_gradients(
    op: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], cotangents: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Results of ``op(*inputs)`` computed in ``dtype``, and the gradients to all inputs of their sum with cotangents."""
    leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    results = op(*leaves)
    total = sum((result * cotangent.to(dtype)).sum() for result, cotangent in zip(results, cotangents, strict=True))
    grads = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return [*(result.detach() for result in results), *grads]


def sizes_of_sums(
    op: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], cotangents: Sequence[Tensor], n_rows: int
) -> list[float]:
    """Largest absolute value of each result and gradient; of a sum over rows, those of all inputs but the first
    ``n_rows``, that of the absolute values it adds up."""

    def of_row(rows: tuple[Tensor, ...], params: tuple[Tensor, ...], cotangents: tuple[Tensor, ...]) -> Tensor:
        results = op(*(row.unsqueeze(0) for row in rows), *params)
        return sum((result[0] * cotangent).sum() for result, cotangent in zip(results, cotangents, strict=True))

    exact = results_and_gradients(op, inputs, cotangents, torch.float64)
    if len(inputs[0]) == 0:
        return [0.0] * len(exact)
    per_row = torch.func.vmap(torch.func.grad(of_row, argnums=1), (0, None, 0))
    terms = per_row(tuple(inputs[:n_rows]), tuple(inputs[n_rows:]), tuple(cotangents))
    sums = [term.abs().sum(0) for term in terms]
    return [tensor.abs().max().item() for tensor in (*exact[: len(cotangents) + n_rows], *sums)]
