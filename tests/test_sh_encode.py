"""The native spherical harmonics against the reference, finite differences and torch's own checks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from hashgrid import ops, reference
from hashgrid.nn.encodings import SphericalHarmonics

pytestmark = pytest.mark.every_kernel

DEGREES = range(1, 9)


def random_directions(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, 3, dtype=torch.float64), dim=-1).to(dtype)


def differentiable_reference(directions: Tensor, degree: int) -> Tensor:
    """The reference, whose degree 1 is a constant, with a gradient at every degree."""
    return reference.sh_encode(directions, degree) + 0 * directions.sum()


@pytest.mark.parametrize("degree", DEGREES)
def test_fp64_matches_reference(degree: int) -> None:
    d, expected_d = (random_directions(50).requires_grad_() for _ in range(2))
    expected_d.data.copy_(d.data)
    y, expected = ops.sh_encode(d, degree), differentiable_reference(expected_d, degree)
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-14)
    grad_y = torch.randn_like(y)
    (grad,) = torch.autograd.grad(y, d, grad_y)
    (expected_grad,) = torch.autograd.grad(expected, expected_d, grad_y)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("n", [0, 1, 7, 15, 16, 17, 4095, 4097, 9000])
@pytest.mark.parametrize("degree", [1, 4, 8])
def test_fp32_stays_in_the_error_budget(n: int, degree: int) -> None:
    directions = random_directions(9000, torch.float32)
    grad_y = torch.randn(9000, degree**2)

    def run(function, dtype: torch.dtype, n: int) -> tuple[Tensor, Tensor]:
        d = directions[:n].to(dtype).requires_grad_()
        y = function(d, degree)
        (grad,) = torch.autograd.grad(y, d, grad_y[:n].to(dtype))
        assert y.dtype == grad.dtype == dtype and y.shape == (n, degree**2) and grad.shape == (n, 3)
        return y.detach().double(), grad.double()

    truth = run(differentiable_reference, torch.float64, 9000)
    theirs = run(differentiable_reference, torch.float32, 9000)  # all rows: the budget of few would be a matter of luck
    for a, b, exact in zip(run(ops.sh_encode, torch.float32, n), theirs, truth, strict=True):
        rounding = exact.abs().max() * torch.finfo(torch.float32).eps
        assert n == 0 or (a - exact[:n]).abs().max() <= 2 * (b - exact).abs().max() + rounding


@pytest.mark.parametrize("degree", [1, 2, 4, 8])
def test_gradients_match_finite_differences(degree: int) -> None:
    d = random_directions(3).requires_grad_()
    assert gradcheck(lambda d: ops.sh_encode(d, degree), (d,))
    assert gradgradcheck(lambda d: ops.sh_encode(d, degree), (d,))


def test_polynomials_hold_off_the_sphere() -> None:
    d = torch.randn(20, 3, dtype=torch.float64)
    torch.testing.assert_close(ops.sh_encode(d, 8), reference.sh_encode(d, 8), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strides_offsets_and_batches(dtype: torch.dtype) -> None:
    base = torch.randn(6, 7, 5, dtype=dtype)
    d = base[1::2, :, 1:4].transpose(0, 1)
    assert torch.equal(ops.sh_encode(d, 3), ops.sh_encode(d.contiguous(), 3))
    assert ops.sh_encode(d, 3).shape == (7, 3, 9)
    assert ops.sh_encode(base[0, 0, :3]).shape == (16,)


def test_rows_do_not_depend_on_their_neighbours() -> None:
    d = random_directions(1000, torch.float32)
    d[5] = torch.nan
    y = ops.sh_encode(d)
    assert y[5, 1:].isnan().all() and y[:5].isfinite().all() and y[6:].isfinite().all()
    assert torch.equal(ops.sh_encode(d[900:903]), y[900:903])


def test_half_directions_run_in_fp32() -> None:
    d = random_directions(5, torch.float16)
    assert torch.equal(ops.sh_encode(d), ops.sh_encode(d.float()))


@pytest.mark.cpu_only
def test_registered_op_is_twice_differentiable() -> None:
    d = random_directions(3).requires_grad_()
    assert gradcheck(lambda d: torch.ops.hashgrid.sh_encode(d, 3), (d,))
    assert gradgradcheck(lambda d: torch.ops.hashgrid.sh_encode(d, 3), (d,))


def test_third_derivative_matches_reference() -> None:
    d = random_directions(3).requires_grad_()

    def third(function) -> Tensor:
        (first,) = torch.autograd.grad(function(d, 5).pow(3).sum(), d, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), d, create_graph=True)
        return torch.autograd.grad(second.square().sum(), d)[0]

    torch.testing.assert_close(third(ops.sh_encode), third(reference.sh_encode), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_module(backend: str) -> None:
    module = SphericalHarmonics(3, backend=backend)
    d = random_directions(6, torch.float32)
    assert module.n_output_dims == 9
    torch.testing.assert_close(module(d), reference.sh_encode(d, 3))


@pytest.mark.cpu_only
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_compiled_module(backend: str) -> None:
    module, d = SphericalHarmonics(3, backend=backend), random_directions(6, torch.float32)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(d), module(d))


def test_errors_name_contract_and_actual() -> None:
    with pytest.raises(ValueError, match=r"`directions` must have shape \[\.\.\., 3\], got \[5, 2\]"):
        ops.sh_encode(torch.zeros(5, 2))
    for function in (lambda: ops.sh_encode(torch.zeros(5, 3), 9), lambda: SphericalHarmonics(9)):
        with pytest.raises(ValueError, match="`degree` must be in 1..8, got 9"):
            function()
    with pytest.raises(ValueError, match="`backend` must be one of"):
        SphericalHarmonics(backend="cuda")
    with pytest.raises(RuntimeError, match="`directions` must be float32, float64"):
        ops.sh_encode(torch.zeros(5, 3, dtype=torch.int32))
