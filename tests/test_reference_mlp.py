"""The reference MLP against nn.Sequential, finite differences and its own contracts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from hashgrid.maths import activate
from hashgrid.reference import mlp
from hashgrid.util.choices import ACTIVATIONS

MODULES = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.01),
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


def make_layers(widths: list[int], dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    weights = [
        torch.randn(n_out, n_in, dtype=dtype, requires_grad=True)
        for n_in, n_out in zip(widths, widths[1:], strict=False)
    ]
    biases = [torch.randn(n_out, dtype=dtype, requires_grad=True) for n_out in widths[1:]]
    return weights, biases


@pytest.mark.parametrize("activation", MODULES)
def test_matches_sequential(activation: str) -> None:
    weights, biases = make_layers([3, 5, 5, 2])
    layers: list[nn.Module] = []
    for weight, bias in zip(weights, biases, strict=True):
        linear = nn.Linear(*reversed(weight.shape), dtype=weight.dtype)
        linear.load_state_dict({"weight": weight, "bias": bias})
        layers += [linear, MODULES[activation]()]
    model = nn.Sequential(*layers[:-1], nn.Sigmoid())
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    torch.testing.assert_close(mlp(x, weights, biases, activation, "sigmoid"), model(x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_match_finite_differences(activation: str) -> None:
    weights, biases = make_layers([2, 3, 2])
    # small, so that a chain of exp stays within the clamp of its derivative
    inputs = [0.5 * t.detach() for t in (torch.randn(3, 2, dtype=torch.float64), *weights, *biases)]
    inputs = [t.requires_grad_() for t in inputs]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return mlp(x, parameters[:2], parameters[2:], activation, activation)

    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


def test_exp_derivative_is_clamped() -> None:
    x = torch.tensor([-20.0, -1.0, 2.0, 20.0], dtype=torch.float64, requires_grad=True)
    y = activate(x, "exp")
    assert torch.equal(y, x.exp())
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert torch.equal(first, x.clamp(-15, 15).exp())
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(second, torch.where(x.abs() <= 15, x.exp(), 0))


def test_softplus_is_exact_where_pytorch_switches() -> None:
    x = torch.tensor([19.0, 21.0, 39.0, 41.0, 800.0], dtype=torch.float64)
    torch.testing.assert_close(activate(x, "softplus"), torch.logaddexp(x, torch.zeros_like(x)), rtol=1e-15, atol=0)


@pytest.mark.parametrize("compute_dtype", [torch.bfloat16, torch.float16])
def test_compute_dtype_rounds_factors_and_keeps_fp32_sums(compute_dtype: torch.dtype) -> None:
    weights, biases = make_layers([64, 64, 8], torch.float32)
    x = torch.randn(16, 64)

    def rounded(t: Tensor) -> Tensor:
        return t.detach().to(compute_dtype).double()

    hidden = (rounded(x) @ rounded(weights[0]).T + biases[0]).relu().float()
    expected = rounded(hidden) @ rounded(weights[1]).T + biases[1]
    y = mlp(x, weights, biases, compute_dtype=compute_dtype)
    assert y.dtype == torch.float32
    # a hidden value whose fp32 sum rounds to the other half neighbour moves the result by one half ulp times a weight
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-3 * expected.abs().max().item())
    gradients = torch.autograd.grad(y.sum(), weights + biases)
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients)


def test_input_is_taken_in_dtype_of_weights() -> None:
    weights, _ = make_layers([3, 4], torch.float32)
    assert mlp(torch.randn(2, 3).half(), weights).dtype == torch.float32


def test_empty_batch() -> None:
    weights, biases = make_layers([3, 4, 2])
    y = mlp(torch.zeros(0, 3, dtype=torch.float64), weights, biases)
    assert y.shape == (0, 2)
    assert not any(gradient.any() for gradient in torch.autograd.grad(y.sum(), weights + biases))


def test_compiles_to_one_graph() -> None:
    weights, biases = make_layers([3, 4, 2])
    x = torch.randn(5, 3, dtype=torch.float64)
    compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weights, biases, "silu", "exp"), mlp(x, weights, biases, "silu", "exp"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3), []), "`weights` must have at least one layer"),
        ((torch.zeros(2, 3), [torch.zeros(4, 2)]), r"`weights\[0\]` must have shape \[out, 3\], got \[4, 2\]"),
        ((torch.zeros(2, 3), [torch.zeros(4, 3)], []), "`biases` must have 1 tensors"),
        ((torch.zeros(2, 3), [torch.zeros(4, 3)], [torch.zeros(3)]), r"`biases\[0\]` must have shape \[4\], got \[3\]"),
        ((torch.zeros(2, 3), [torch.zeros(4, 3)], None, "relu", "gelu"), "`activation` must be one of .*got 'gelu'"),
    ],
)
def test_errors_name_contract_and_actual(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mlp(*arguments)
