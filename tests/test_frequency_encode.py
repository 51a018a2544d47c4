"""The native frequency encoding against exact values, the reference and torch's own checks."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from hashgrid import ops, reference
from hashgrid.nn.encodings import Frequency

pytestmark = pytest.mark.every_kernel


PI = Fraction("3.14159265358979323846264338327950288419716939937510582097494459")


def exact(x: float, k: int, pi: bool = True) -> tuple[float, float]:
    """sin and cos of 2^k pi x, or of 2^k x, with the whole turns taken off in rational arithmetic."""
    turn = Fraction(x) * 2**k / (1 if pi else PI) % 2
    quadrant = round(turn * 2)
    rest = math.pi * float(turn - Fraction(quadrant, 2))
    s, c = math.sin(rest), math.cos(rest)
    return ((s, c), (c, -s), (-s, -c), (-c, s))[quadrant % 4]


@given(st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**60), max_value=2.0**60))
@settings(max_examples=200, deadline=None)
def test_fp32_error_is_near_one_rounding_everywhere(x: float) -> None:
    y = ops.frequency_encode(torch.tensor([x]), 40).view(40, 2)
    expected = torch.tensor([exact(x, k) for k in range(40)], dtype=torch.float64)
    error = (y.double() - expected).abs()
    assert (error <= 1.5 * 2.0**-24 * expected.abs().clamp(min=2.0**-126) * 2).all()


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-(2.0**60), max_value=2.0**60))
@settings(max_examples=200, deadline=None)
def test_fp64_error_is_near_one_rounding_everywhere(x: float) -> None:
    y = ops.frequency_encode(torch.tensor([x], dtype=torch.float64), 40).view(40, 2)
    expected = torch.tensor([exact(x, k) for k in range(40)], dtype=torch.float64)
    torch.testing.assert_close(y, expected, rtol=4e-16, atol=1e-300)


@pytest.mark.parametrize("dtype, budget", [(torch.float32, 3e-7), (torch.float64, 6e-16)])
def test_frequencies_without_pi_are_as_exact(dtype: torch.dtype, budget: float) -> None:
    """x / pi in one number of fp32 is off by 1e-4 of ten octaves, and by 1 of twenty-four."""
    x = torch.linspace(-math.pi, math.pi, 101, dtype=dtype)
    y = ops.frequency_encode(x[:, None], 24, pi=False).view(101, 24, 2)
    expected = torch.tensor([[exact(float(a), k, pi=False) for k in range(24)] for a in x], dtype=torch.float64)
    assert (y.double() - expected).abs().max() <= budget
    x = torch.zeros(1, 1, dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(ops.frequency_encode(x, 24, pi=False).view(24, 2)[:, 0].sum(), x)
    torch.testing.assert_close(gradient, torch.full((1, 1), 2.0**24 - 1, dtype=dtype))  # the sum of 2^k cos 0


def test_gradients_without_pi_match_finite_differences() -> None:
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: ops.frequency_encode(x, 4, pi=False), (x,))
    assert gradgradcheck(lambda x: ops.frequency_encode(x, 4, pi=False), (x,))
    torch.testing.assert_close(ops.frequency_encode(x, 4, pi=False), reference.frequency_encode(x, 4, pi=False))


@pytest.mark.parametrize("n", [0, 1, 7, 84, 85, 86, 1025])
@pytest.mark.parametrize("n_frequencies", [1, 3, 12, 64])
def test_fp32_stays_in_the_error_budget(n: int, n_frequencies: int) -> None:
    inputs = torch.rand(n, 3) * 4 - 2
    grad_y = torch.randn(n, 6 * n_frequencies)

    def run(function, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = inputs.to(dtype).requires_grad_()
        y = function(x, n_frequencies)
        (grad,) = torch.autograd.grad(y, x, grad_y.to(dtype))
        assert y.dtype == grad.dtype == dtype
        return y.detach().double(), grad.double()

    truth = run(reference.frequency_encode, torch.float64)
    theirs, ours = run(reference.frequency_encode, torch.float32), run(ops.frequency_encode, torch.float32)
    for a, b, true in zip(ours, theirs, truth, strict=True):
        if n == 0:
            assert a.shape == true.shape
            continue
        rounding = true.abs().max() * torch.finfo(torch.float32).eps
        assert (a - true).abs().max() <= 2 * (b - true).abs().max() + rounding


@pytest.mark.parametrize("n_frequencies", [1, 5, 12])
def test_fp64_matches_reference(n_frequencies: int) -> None:
    x = torch.randn(20, 2, dtype=torch.float64)
    expected = reference.frequency_encode(x, n_frequencies)
    torch.testing.assert_close(ops.frequency_encode(x, n_frequencies), expected, rtol=0, atol=1e-14)


def test_order_is_input_then_frequency_then_sine_and_cosine() -> None:
    x = torch.tensor([[0.25, -0.5]], dtype=torch.float64)
    half = math.sqrt(0.5)
    expected = torch.tensor([[half, half, 1, 0, -1, 0, 0, -1]], dtype=torch.float64)
    torch.testing.assert_close(ops.frequency_encode(x, 2), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("op", [ops.frequency_encode, lambda *a: torch.ops.hashgrid.frequency_encode(*a, True)])
def test_gradients_match_finite_differences(op) -> None:
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: op(x, 4), (x,))
    assert gradgradcheck(lambda x: op(x, 4), (x,))


def test_third_derivative_matches_reference() -> None:
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def third(function) -> Tensor:
        (first,) = torch.autograd.grad(function(x, 3).pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
        return torch.autograd.grad(second.square().sum(), x)[0]

    torch.testing.assert_close(third(ops.frequency_encode), third(reference.frequency_encode), rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_inputs_give_nan_in_their_channels_only(bad: float, dtype: torch.dtype) -> None:
    x = torch.rand(40, 2, dtype=dtype)
    x[3, 1] = bad
    y = ops.frequency_encode(x, 6).view(40, 2, 12)
    assert y[3, 1].isnan().all() and y.isnan().sum() == 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strides_offsets_and_batches(dtype: torch.dtype) -> None:
    base = torch.randn(6, 7, 5, dtype=dtype)
    x = base[1::2, :, 1:4].transpose(0, 1)
    assert torch.equal(ops.frequency_encode(x, 3), ops.frequency_encode(x.contiguous(), 3))
    assert ops.frequency_encode(x, 3).shape == (7, 3, 18)
    assert ops.frequency_encode(base[0, 0], 3).shape == (30,)


def test_half_inputs_run_in_fp32() -> None:
    x = torch.rand(5, 2).bfloat16()
    assert torch.equal(ops.frequency_encode(x), ops.frequency_encode(x.float()))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_module(backend: str) -> None:
    module = Frequency(2, 5, backend=backend)
    x = torch.rand(6, 2)
    assert module.n_output_dims == 20
    torch.testing.assert_close(module(x), reference.frequency_encode(x, 5), rtol=0, atol=1e-6)


@pytest.mark.cpu_only
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_compiled_module(backend: str) -> None:
    module, x = Frequency(2, 5, backend=backend), torch.rand(6, 2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))


def test_errors_name_contract_and_actual() -> None:
    with pytest.raises(ValueError, match=r"`x` must have shape \[\.\.\., D\], got \[\]"):
        ops.frequency_encode(torch.tensor(1.0))
    for function in (lambda: ops.frequency_encode(torch.zeros(5, 3), 0), lambda: Frequency(3, 0)):
        with pytest.raises(ValueError, match="`n_frequencies` must be in 1..64, got 0"):
            function()
    with pytest.raises(ValueError, match=r"`x` must have shape \[\.\.\., 3\], got \[5, 2\]"):
        Frequency(3)(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="`n_input_dims` must be at least 1, got 0"):
        Frequency(0)
