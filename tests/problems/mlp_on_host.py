"""The MLP's kernels as they are called on a GPU, emulated on the host, and how far they may be off."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hashgrid import reference
from hashgrid.util.choices import ACTIVATIONS, FACTORS
from problems.mlp import BF16, UNITS


class MlpOnHost:
    """An MLP and a batch in fp64. Values are positive where sums run over rows, which then do not cancel. No sum lies
    within fp32's rounding of zero, where the derivative of a ReLU jumps."""

    def __init__(self, widths: Sequence[int], n: int, bias: bool, activation: str, output_activation: str) -> None:
        gain = 0.3 if "exp" in (activation, output_activation) else 1.0
        pairs = list(zip(widths, widths[1:], strict=False))
        self.weights = [gain * (6 / (i + o)) ** 0.5 * (2 * torch.rand(o, i, dtype=torch.float64) - 1) for i, o in pairs]
        self.biases = [0.1 * torch.randn(o, dtype=torch.float64) for _, o in pairs] if bias else []
        self.activation, self.output_activation = activation, output_activation
        self.x = torch.rand(n, widths[0], dtype=torch.float64)
        while len(close := self.rows_close_to_zero()) > 0:
            self.x[close] = torch.rand(len(close), widths[0], dtype=torch.float64)
        self.grad_y = torch.rand(n, widths[-1], dtype=torch.float64)

    def rows_close_to_zero(self) -> Tensor:
        """Rows of x for which some sum lies close to zero."""
        close = torch.zeros(len(self.x), dtype=torch.bool)
        for layer in range(1, len(self.weights) + 1):
            activation = self.output_activation if layer == len(self.weights) else self.activation
            biases = self.biases[:layer] or None
            if activation in ("relu", "leaky_relu"):
                sums = reference.mlp(self.x, self.weights[:layer], biases, self.activation, "none")
                close |= (sums.abs() < 1e-5).any(-1)
        return close.nonzero().squeeze(-1)

    def reference(self, dtype: torch.dtype, compute_dtype: torch.dtype | None = None) -> list[Tensor]:
        """Output and gradients to x, weights, biases."""
        inputs = [t.to(dtype).requires_grad_() for t in (self.x, *self.weights, *self.biases)]
        n = 1 + len(self.weights)
        y = reference.mlp(
            inputs[0], inputs[1:n], inputs[n:] or None, self.activation, self.output_activation, compute_dtype
        )
        return [y.detach(), *torch.autograd.grad(y, inputs, self.grad_y.to(dtype))]

    def emulated(
        self, dtype: torch.dtype, compute_dtype: torch.dtype | None = None, needs: tuple[bool, bool] = (True, True)
    ) -> list[Tensor]:
        """The same of the kernels."""
        ops = torch.ops.hashgrid_on_host
        x, grad_y = self.x.to(dtype), self.grad_y.to(dtype)
        params = [t.to(dtype) for t in (*self.weights, *self.biases)]
        n = len(self.weights)
        activations = ACTIVATIONS.index(self.activation), ACTIVATIONS.index(self.output_activation)
        options = *activations, FACTORS.index(compute_dtype)
        y = ops.mlp(x, params[:n], params[n:], *options)
        grad_x, flat = ops.mlp_backward(grad_y, x, params[:n], params[n:], *options, *needs)
        assert grad_x.shape == (len(x) if needs[0] else 0, x.shape[1])
        assert len(flat) == (sum(p.numel() for p in params) if needs[1] else 0)
        parts = flat.split([p.numel() for p in params]) if needs[1] else ()
        return [y, grad_x, *(part.view(p.shape) for part, p in zip(parts, params, strict=False))]

    def sum_of_terms(self) -> float:
        """Largest sum of absolute terms of the last layer."""
        if len(self.x) == 0:
            return 0.0
        h = self.x
        if len(self.weights) > 1:
            h = reference.mlp(h, self.weights[:-1], self.biases[:-1] or None, self.activation, self.activation)
        return (h.abs() @ self.weights[-1].abs().T).amax().item()


def _check_budget(problem: MlpOnHost, ours: list[Tensor], theirs: list[Tensor], unit: float) -> None:
    """|ours - exact| <= 2 |PyTorch - exact| + a few roundings of the largest sum, max-norm per tensor."""
    for i, (a, b, exact) in enumerate(zip(ours, theirs, problem.reference(torch.float64), strict=True)):
        assert a.shape == exact.shape
        if exact.numel() == 0:
            continue
        scale = max(exact.abs().max().item(), problem.sum_of_terms() if i == 0 else 0.0)
        error, budget = (a - exact).abs().max().item(), (b - exact).abs().max().item()
        assert error <= 2 * budget + 8 * unit * scale, f"tensor {i}: {error:.3g}, PyTorch {budget:.3g}, max {scale:.3g}"


def check_fused(problem: MlpOnHost, compute_dtype: torch.dtype = BF16) -> None:
    ours, theirs = (f(torch.float32, compute_dtype) for f in (problem.emulated, problem.reference))
    _check_budget(problem, ours, theirs, UNITS[compute_dtype])


def check_plain(problem: MlpOnHost) -> None:
    _check_budget(problem, problem.emulated(torch.float32), problem.reference(torch.float32), UNITS[None])
    for a, b in zip(problem.emulated(torch.float64), problem.reference(torch.float64), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
