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
    """Results of ``op(*inputs)`` in ``dtype``, and the gradients to all inputs of their sum with cotangents."""
    leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    results = op(*leaves)
    total = sum((result * cotangent.to(dtype)).sum() for result, cotangent in zip(results, cotangents, strict=True))
    grads = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return [*(result.detach() for result in results), *grads]


def check_jets(
    ours: Callable[..., Sequence[Tensor]],
    theirs: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    n_rows: int,
    n_roundings: int = 8,
) -> None:
    """Results and gradients to all ``inputs``, of which the first ``n_rows`` have a row per point: nearly exact in
    fp64, and in fp32 |ours - f64| <= 2 |PyTorch - f64| + ``n_roundings`` of the absolute terms that a sum adds up.
    """
    cotangents = [torch.rand(result.shape, dtype=torch.float64) for result in theirs(*inputs)]
    exact = results_and_gradients(theirs, inputs, cotangents, torch.float64)
    native = results_and_gradients(ours, inputs, cotangents, torch.float64)
    for a, b in zip(native, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * b.abs().max().item() if b.numel() else 0)
    pytorch = results_and_gradients(theirs, inputs, cotangents, torch.float32)
    native = results_and_gradients(ours, inputs, cotangents, torch.float32)
    sizes = _sizes_of_sums(theirs, inputs, cotangents, n_rows)
    for i, (a, b, truth) in enumerate(zip(native, pytorch, exact, strict=True)):
        assert a.shape == truth.shape and a.dtype == torch.float32
        if truth.numel() == 0:
            continue
        size = truth.abs().max().item() if i < len(cotangents) + n_rows else sizes[i - len(cotangents) - n_rows]
        error, budget = (a - truth).abs().max().item(), (b - truth).abs().max().item()
        assert error <= 2 * budget + n_roundings * 2**-24 * size, f"tensor {i}: {error:.3g}, {budget:.3g}, {size:.3g}"


def _sizes_of_sums(
    op: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], cotangents: Sequence[Tensor], n_rows: int
) -> list[float]:
    """For each input beyond ``n_rows``, whose gradient is a sum over rows: the largest sum of absolute terms."""

    def of_row(rows: tuple[Tensor, ...], params: tuple[Tensor, ...], cotangents: tuple[Tensor, ...]) -> Tensor:
        results = op(*(row.unsqueeze(0) for row in rows), *params)
        return sum((result[0] * cotangent).sum() for result, cotangent in zip(results, cotangents, strict=True))

    per_row = torch.func.vmap(torch.func.grad(of_row, argnums=1), (0, None, 0))
    totals = [torch.zeros_like(param) for param in inputs[n_rows:]]
    for begin in range(0, len(inputs[0]), 256):
        rows, of_rows = (tuple(t[begin : begin + 256] for t in group) for group in (inputs[:n_rows], cotangents))
        for total, term in zip(totals, per_row(rows, tuple(inputs[n_rows:]), of_rows), strict=True):
            total += term.abs().sum(0)
    return [total.max().item() for total in totals]
