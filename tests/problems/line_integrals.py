"""Samples along rays, the definition of their integrals one at a time, and derivatives up to the second."""

from __future__ import annotations

import torch
from torch import Tensor


def make_problem(counts: list[int], n_channels: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """values, t_starts, t_ends and packed_info."""
    n = sum(counts)
    t_starts, count = torch.rand(n, dtype=dtype), torch.tensor(counts, dtype=torch.int64)
    packed_info = torch.stack([count.cumsum(0) - count, count], dim=-1)
    values = torch.randn(n, n_channels, dtype=dtype)
    return values, t_starts, t_starts + torch.rand(n, dtype=dtype), packed_info


def one_by_one(values: Tensor, t_starts: Tensor, t_ends: Tensor, packed_info: Tensor) -> Tensor:
    """Straight from the definition."""
    rows = []
    for first, count in packed_info.tolist():
        row = torch.zeros(values.shape[1], dtype=values.dtype)
        for i in range(first, first + count):
            row = row + values[i] * (t_ends[i] - t_starts[i])
        rows.append(row)
    return torch.stack(rows) if rows else values.new_zeros(0, values.shape[1])


def integrals_and_derivatives(function, problem: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    """Sums, gradients and second derivatives in ``dtype``, for cotangents that do not depend on it."""
    *reals, packed_info = problem
    inputs = [x.to(dtype).clone().requires_grad_() for x in reals]
    generator = torch.Generator().manual_seed(1)

    def random_like(tensors) -> list[Tensor]:
        return [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(dtype) for x in tensors]

    sums = function(*inputs, packed_info)
    (cotangent,) = random_like([sums])
    cotangent.requires_grad_()
    grads = torch.autograd.grad(sums, inputs, cotangent, create_graph=True)
    second = torch.autograd.grad(grads, [cotangent, *inputs], random_like(grads))
    return [sums, *grads, *second]


def check_budget(ours: list[Tensor], theirs: list[Tensor], exact: list[Tensor]) -> None:
    """Twice the error of PyTorch in fp32 and one rounding; three where so few numbers make PyTorch lucky."""
    for a, b, e in zip(ours, theirs, exact, strict=True):
        assert a.shape == e.shape
        if e.numel() > 0:
            roundings = 3 if e.numel() < 100 else 1
            budget = 2 * (b - e).abs().max() + roundings * torch.finfo(torch.float32).eps * e.abs().max()
            assert (a - e).abs().max() <= budget
