"""Calls of autograd functions without PyTorch's inspection of their signature."""

import torch
from torch import Tensor

from hashgrid.util.autograd import apply


class Scale(torch.autograd.Function):
    """factor * x with a gradient twice too large, so that it shows whose backward ran."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return factor * x

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return 2 * ctx.factor * grad, None


def scale(x: Tensor) -> Tensor:
    return apply(Scale, x, 3.0)


def test_values_and_gradients_are_those_of_the_function():
    x = torch.arange(4.0, requires_grad=True)
    y = scale(x)
    y.sum().backward()
    assert y.tolist() == [0, 3, 6, 9] and x.grad is not None and x.grad.tolist() == [6] * 4
    with torch.no_grad():
        assert not scale(x).requires_grad


def test_function_transforms_see_the_function():
    x = torch.arange(4.0)
    assert torch.func.grad(lambda x: scale(x).sum())(x).tolist() == [6] * 4
    assert torch.func.vmap(scale)(x).tolist() == [0, 3, 6, 9]
    assert torch.func.vmap(torch.func.grad(scale))(x).tolist() == [6] * 4


def test_compiled_graphs_hold_the_function():
    x = torch.arange(4.0, requires_grad=True)
    torch.compile(scale, fullgraph=True, backend="aot_eager")(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [6] * 4
