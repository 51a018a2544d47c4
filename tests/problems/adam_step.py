"""Parameters and what an Adam step keeps of them, sparse gradients, and how far a step may be off."""

from __future__ import annotations

import torch
from torch import Tensor


class State:
    """A parameter, its gradient and everything a step writes."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, skip_zero: bool, ema: bool, half_copy=None) -> None:
        generator = torch.Generator().manual_seed(len(shape) + sum(shape))
        draw = lambda: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
        n_counters = int(torch.Size(shape[:-1]).numel()) if skip_zero and shape else 1
        self.param, self.exp_avg, self.exp_avg_sq = draw(), draw() * 0.1, draw().square() * 0.01
        self.steps = torch.randint(0, 3000, (n_counters,), generator=generator, dtype=torch.int32)
        self.ema = draw() if ema else None
        self.ema_last = torch.randint(0, 90, (n_counters,), generator=generator, dtype=torch.int32) if ema else None
        self.half_copy = self.param.to(half_copy) if half_copy is not None else None

    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if value is not None}

    def step(self, op, grad: Tensor, skip_zero: bool, global_step: int = 100, **options) -> None:
        op(
            self.param, grad, self.exp_avg, self.exp_avg_sq, self.steps, torch.tensor(0.01), 0.9, 0.99, 1e-15, 1e-3,
            skip_zero, self.ema, self.ema_last, 0.95, global_step, self.half_copy, **options,
        )  # fmt: skip


def sparse_gradient(shape: tuple[int, ...], density: float, dtype: torch.dtype) -> Tensor:
    grad = torch.randn(shape, dtype=torch.float64).to(dtype)
    if not shape:
        return grad
    return grad * (torch.rand(*shape[:-1], 1) < density)


def check_state(actual: State, expected: State, exact: State) -> None:
    """The error against fp64 is at most twice the reference's, plus roundings."""
    for name, tensor in actual.tensors().items():
        if not tensor.is_floating_point():
            assert torch.equal(tensor, getattr(expected, name)), name
            continue
        truth = getattr(exact, name).double()
        assert tensor.shape == truth.shape
        if tensor.numel() == 0:
            continue
        scale = truth.abs().max().item() * torch.finfo(tensor.dtype).eps
        error = (tensor.double() - truth).abs().max().item()
        allowed = (getattr(expected, name).double() - truth).abs().max().item()
        assert error <= 2 * allowed + 2 * scale, f"{name}: {error} > 2 * {allowed} + 2 * {scale}"
