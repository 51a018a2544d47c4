"""The native MLP against its reference: values, derivatives, rounding, determinism, contracts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from problems.mlp import BF16, FP16, UNITS, check_mlp_budget, make_batch, make_params, mlp_and_gradients, sums_of_terms
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from hashgrid import ops, reference
from hashgrid.util.choices import ACTIVATIONS

pytestmark = pytest.mark.every_kernel

# Block sizes are 128 rows for narrow networks and less for wide ones; a partial sum of gradients covers 2048 or more.
SIZES = (0, 1, 7, 127, 128, 129)
WIDTHS = ([1, 1], [3, 64, 3], [32, 64, 64, 16], [31, 100, 16, 5], [17, 31, 1], [3, 100, 100, 100, 2])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("widths", WIDTHS, ids=lambda w: "-".join(map(str, w)))
def test_matches_reference(activation: str, widths: list[int]) -> None:
    gain = 0.3 if activation == "exp" else 1.0
    for n in SIZES:
        for bias in (False, True):
            x, weights, biases, grad_y = make_batch(widths, n, bias, gain)
            options = activation, activation if bias else "none"
            exact = mlp_and_gradients(reference.mlp, torch.float64, x, weights, biases, grad_y, *options)
            pytorch = mlp_and_gradients(reference.mlp, torch.float32, x, weights, biases, grad_y, *options)
            ours = mlp_and_gradients(ops.mlp, torch.float32, x, weights, biases, grad_y, *options)
            check_mlp_budget(ours, pytorch, exact, 2**-24, sums_of_terms(x, weights, biases, grad_y, *options))
            ours = mlp_and_gradients(ops.mlp, torch.float64, x, weights, biases, grad_y, *options)
            for a, b in zip(ours, exact, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("compute_dtype", [None, BF16, FP16])
@pytest.mark.parametrize("bias", [False, True])
def test_softplus_with_a_beta_matches_reference(bias: bool, compute_dtype: torch.dtype | None) -> None:
    for n in (0, 7, 129):
        x, weights, biases, grad_y = make_batch([32, 64, 64, 16], n, bias)
        activations = "softplus", "softplus"
        exact, pytorch = (
            mlp_and_gradients(reference.mlp, dtype, x, weights, biases, grad_y, *activations, products, 100.0)
            for dtype, products in ((torch.float64, None), (torch.float32, compute_dtype))
        )
        ours = mlp_and_gradients(ops.mlp, torch.float32, x, weights, biases, grad_y, *activations, compute_dtype, 100.0)
        check_mlp_budget(
            ours, pytorch, exact, UNITS[compute_dtype], sums_of_terms(x, weights, biases, grad_y, "relu", "softplus")
        )


@pytest.mark.parametrize("n_hidden", range(9))
@pytest.mark.parametrize("compute_dtype", [None, BF16, FP16])
def test_matches_reference_at_any_depth(n_hidden: int, compute_dtype: torch.dtype | None) -> None:
    x, weights, biases, grad_y = make_batch([7, *[31] * n_hidden, 2], 33, True)
    options = "leaky_relu", "sigmoid"
    exact = mlp_and_gradients(reference.mlp, torch.float64, x, weights, biases, grad_y, *options)
    pytorch = mlp_and_gradients(reference.mlp, torch.float32, x, weights, biases, grad_y, *options, compute_dtype)
    ours = mlp_and_gradients(ops.mlp, torch.float32, x, weights, biases, grad_y, *options, compute_dtype)
    terms = sums_of_terms(x, weights, biases, grad_y, *options)
    check_mlp_budget(ours, pytorch, exact, UNITS[compute_dtype], terms)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("widths", [[32, 64, 64, 3], [7, 31, 33, 5]], ids=["even", "odd"])
@pytest.mark.parametrize("compute_dtype", [BF16, FP16])
def test_rounded_factors_match_reference(activation: str, widths: list[int], compute_dtype: torch.dtype) -> None:
    gain = 0.3 if activation == "exp" else 1.0
    for n in (1, 7, 129):
        x, weights, biases, grad_y = make_batch(widths, n, True, gain)
        options = activation, activation
        exact = mlp_and_gradients(reference.mlp, torch.float64, x, weights, biases, grad_y, *options)
        rounded = mlp_and_gradients(reference.mlp, torch.float32, x, weights, biases, grad_y, *options, compute_dtype)
        ours = mlp_and_gradients(ops.mlp, torch.float32, x, weights, biases, grad_y, *options, compute_dtype)
        terms = sums_of_terms(x, weights, biases, grad_y, *options)
        check_mlp_budget(ours, rounded, exact, UNITS[compute_dtype], terms)


@pytest.mark.parametrize("widths", [[1, 1], [3, 100, 17], [17, 128, 33, 5]], ids=lambda w: "-".join(map(str, w)))
@pytest.mark.parametrize("bias", [False, True])
def test_float16_matches_reference_at_any_size(widths: list[int], bias: bool) -> None:
    for n in (0, 1, 7, 255, 256, 257):
        x, weights, biases, grad_y = make_batch(widths, n, bias)
        options = "relu", "sigmoid" if bias else "none"
        exact = mlp_and_gradients(reference.mlp, torch.float64, x, weights, biases, grad_y, *options)
        rounded = mlp_and_gradients(reference.mlp, torch.float32, x, weights, biases, grad_y, *options, FP16)
        ours = mlp_and_gradients(ops.mlp, torch.float32, x, weights, biases, grad_y, *options, FP16)
        check_mlp_budget(ours, rounded, exact, UNITS[FP16], sums_of_terms(x, weights, biases, grad_y, *options))


@pytest.mark.parametrize("compute_dtype", [BF16, FP16])
def test_the_factors_are_rounded_and_nothing_else(compute_dtype: torch.dtype) -> None:
    x, weights, biases, grad_y = make_batch([37, 19], 300, True)
    options = "relu", "none", compute_dtype
    y, grad_x, grad_weight, grad_bias = mlp_and_gradients(ops.mlp, torch.float32, x, weights, biases, grad_y, *options)
    x, weight, g = (t.float().to(compute_dtype).double() for t in (x, weights[0], grad_y))
    exact = [x @ weight.T + biases[0].float(), g @ weight, g.T @ x, grad_y.float().double().sum(0)]
    for a, b in zip((y, grad_x, grad_weight, grad_bias), exact, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("compute_dtype", [BF16, FP16])
def test_rounding_is_that_of_torch(compute_dtype: torch.dtype) -> None:
    """Any bits: ties, subnormal numbers, those beyond the largest, infinities and NaN."""
    bits = torch.randint(-(2**31), 2**31, (20_000,), dtype=torch.int64)
    exponents = torch.randint(-27, 17, (20_000,))
    near = (1 + torch.randint(0, 2**13, (20_000,)) / 2**13) * 2.0**exponents  # an eighth are ties of float16
    edges = torch.tensor([65504, 65519.996, 65520, 65536, 2.0**-24, 2.0**-25, 1.5 * 2.0**-24, 0, torch.inf, torch.nan])
    x = torch.cat((bits.to(torch.int32).view(torch.float32), near, edges, -edges))
    y = ops.mlp(x[:, None], [torch.ones(1, 1)], None, "none", "none", compute_dtype)
    # bfloat16 instructions take fp32's subnormal numbers for zero
    torch.testing.assert_close(y[:, 0], x.to(compute_dtype).float(), rtol=0, atol=2.0**-126, equal_nan=True)


@pytest.mark.parametrize("compute_dtype", [BF16, FP16])
@pytest.mark.parametrize("widths", [[7, 40, 33, 5], [20, 100, 40, 3]], ids=lambda w: "-".join(map(str, w)))
def test_small_and_large_gradients_keep_their_precision(compute_dtype: torch.dtype, widths: list[int]) -> None:
    """Those of a mean are far below float16's 6e-8: powers of two go through as they are, row by row."""
    x, weights, biases, grad_y = make_batch(widths, 200, True)
    options = "softplus", "sigmoid", compute_dtype
    y, grad_x, *grad_params = mlp_and_gradients(ops.mlp, torch.float32, x, weights, biases, grad_y, *options)
    for scale in (2.0**-30, 2.0**-70, 2.0**60):
        _, *scaled = mlp_and_gradients(ops.mlp, torch.float32, x, weights, biases, scale * grad_y, *options)
        for a, b in zip(scaled, (grad_x, *grad_params), strict=True):
            assert torch.equal(a, scale * b)
    scales = 2.0 ** torch.randint(-60, 60, (200, 1))
    _, mixed, *_ = mlp_and_gradients(ops.mlp, torch.float32, x, weights, biases, scales * grad_y, *options)
    assert torch.equal(mixed, scales.float() * grad_x)
    # decimal ones are rounded elsewhere
    exact = mlp_and_gradients(reference.mlp, torch.float64, x, weights, biases, 1e-9 * grad_y, *options[:2])
    rounded = mlp_and_gradients(reference.mlp, torch.float32, x, weights, biases, 1e-9 * grad_y, *options)
    ours = mlp_and_gradients(ops.mlp, torch.float32, x, weights, biases, 1e-9 * grad_y, *options)
    terms = sums_of_terms(x, weights, biases, 1e-9 * grad_y, *options[:2])
    check_mlp_budget(ours, rounded, exact, UNITS[compute_dtype], terms)


@pytest.mark.parametrize("n_hidden", [40, 100])
def test_float16_gradients_of_unequal_columns(n_hidden: int) -> None:
    """Columns that come first are much smaller, or zero, and those that follow larger than float16 can hold."""
    x, weights, biases, grad_y = make_batch([9, n_hidden, n_hidden, 5], 70, True)
    x = 1e-3 * x
    weights[2][:, :16] *= 1e-8
    weights[2][:, 16:] *= 1e4
    weights[1][:, :16] = 0
    weights[1][:, 20:30] *= 100
    exact = mlp_and_gradients(reference.mlp, torch.float64, x, weights, biases, grad_y, "leaky_relu", "none")
    rounded = mlp_and_gradients(reference.mlp, torch.float32, x, weights, biases, grad_y, "leaky_relu", "none", FP16)
    ours = mlp_and_gradients(ops.mlp, torch.float32, x, weights, biases, grad_y, "leaky_relu", "none", FP16)
    assert exact[1].abs().max() > 65504
    terms = sums_of_terms(x, weights, biases, grad_y, "leaky_relu", "none")
    check_mlp_budget(ours, rounded, exact, UNITS[FP16], terms)


def test_float16_overflow_is_that_of_torch() -> None:
    """Inputs, weights and hidden values beyond 65504 become infinite; gradients do not."""
    x, weights, biases, grad_y = make_batch([3, 20, 20, 2], 40, True)
    weights = [w.abs() for w in weights]
    x[3] *= 1e6
    weights[1][7] *= 3e6
    weights[2] *= 1e-3
    for given in (grad_y, 1e30 * grad_y):
        options = "relu", "none", FP16
        expected = mlp_and_gradients(reference.mlp, torch.float32, x, weights, biases, given, *options)
        ours = mlp_and_gradients(ops.mlp, torch.float32, x, weights, biases, given, *options)
        assert not expected[0].isfinite().all() and not expected[2].isfinite().all()
        for a, b in zip(ours, expected, strict=True):
            assert torch.equal(a.isfinite(), b.isfinite())
            scale = b[b.isfinite()].abs().max().item() if b.isfinite().any() else 0
            torch.testing.assert_close(a[b.isfinite()], b[b.isfinite()], rtol=0, atol=8 * UNITS[FP16] * scale)


@pytest.mark.cpu_only
@pytest.mark.parametrize("compute_dtype", [None, BF16, FP16])
def test_gradients_do_not_depend_on_threads(compute_dtype: torch.dtype | None) -> None:
    x, weights, biases, grad_y = make_batch([32, 64, 64, 3], 10_007, True)
    before = torch.get_num_threads()
    results = []
    try:
        for n_threads in (1, 2, 16, 16):
            torch.set_num_threads(n_threads)
            results.append(
                mlp_and_gradients(ops.mlp, torch.float32, x, weights, biases, grad_y, "relu", "sigmoid", compute_dtype)
            )
            if compute_dtype is None:  # else the second order is products of torch, which promise nothing of the kind
                arguments = x, (grad_y, x, *weights, *biases), len(weights), "relu", "sigmoid", compute_dtype
                results[-1] += of_input_gradient(ops.mlp, torch.float32, *arguments)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_first_and_second_derivatives(activation: str) -> None:
    x, weights, biases, _ = make_batch([3, 5, 4, 2], 4, True, 0.7)
    inputs = [(t - 0.5 if i == 0 else t).requires_grad_() for i, t in enumerate((x, *weights, *biases))]

    def mlp(x: Tensor, *params: Tensor) -> Tensor:
        return ops.mlp(x, params[:3], params[3:], activation, activation)

    assert gradcheck(mlp, inputs)
    assert gradgradcheck(mlp, inputs)


def of_input_gradient(
    mlp: Callable[..., Tensor], dtype: torch.dtype, cotangent: Tensor, inputs: Sequence[Tensor], n: int, *options
) -> list[Tensor]:
    """Gradients of ``cotangent . grad_x`` to ``inputs``: grad_y, x, ``n`` weights, biases."""
    inputs = [t.to(dtype).requires_grad_() for t in inputs]
    y = mlp(inputs[1], inputs[2 : 2 + n], inputs[2 + n :] or None, *options)
    (grad_x,) = torch.autograd.grad(y, inputs[1], inputs[0], create_graph=True)
    return list(torch.autograd.grad(grad_x, inputs, cotangent.to(dtype), materialize_grads=True))


def rounding_scales(exact: list[Tensor], cotangent: Tensor, inputs: Sequence[Tensor], *arguments) -> list[float]:
    """The largest value of grad_y and x; of each parameter the largest sum over rows, 32 at a time, of absolute values:
    curvature has either sign, so that these sums cancel."""
    totals = [torch.zeros_like(t) for t in exact[2:]]
    for rows in torch.arange(len(cotangent)).split(32):
        part = inputs[0][rows], inputs[1][rows], *inputs[2:]
        of_rows = of_input_gradient(reference.mlp, torch.float64, cotangent[rows], part, *arguments)
        totals = [total + t.abs() for total, t in zip(totals, of_rows[2:], strict=True)]
    return [t.abs().max().item() for t in (*exact[:2], *totals)]


@pytest.mark.parametrize("output_activation", ["none", "relu", "silu", "tanh"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives_of_the_input_gradient(activation: str, output_activation: str) -> None:
    """What an eikonal loss needs, against PyTorch's fp64."""
    for widths, n, bias in (
        ([2, 3], 9, True),
        ([3, 64, 3], 127, True),
        ([31, 100, 16, 5], 130, False),
        ([32, 64, 64, 1], 700, True),
    ):
        x, weights, biases, grad_y = make_batch(widths, n, bias, 0.5)
        cotangent, inputs, layers = torch.rand_like(x), (grad_y, x, *weights, *biases), len(weights)
        arguments = cotangent, inputs, layers, activation, output_activation
        exact = of_input_gradient(reference.mlp, torch.float64, *arguments)
        for a, b in zip(of_input_gradient(ops.mlp, torch.float64, *arguments), exact, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * b.abs().max().item())
        ours, pytorch = (of_input_gradient(mlp, torch.float32, *arguments) for mlp in (ops.mlp, reference.mlp))
        scales = rounding_scales(exact, *arguments)
        for i, (a, b, truth, scale) in enumerate(zip(ours, pytorch, exact, scales, strict=True)):
            error, theirs = ((t - truth).abs().max().item() for t in (a, b))
            assert error <= 2 * theirs + 8 * UNITS[None] * scale, f"{widths}, tensor {i}: {error}, PyTorch {theirs}"


@pytest.mark.parametrize("n", [0, 1])
def test_derivatives_of_the_input_gradient_of_few_points(n: int) -> None:
    x, weights, biases, grad_y = make_batch([3, 16, 1], n, True)
    arguments = torch.rand_like(x), (grad_y, x, *weights, *biases), 2, "softplus"
    for ours, theirs in zip(
        *(of_input_gradient(mlp, torch.float64, *arguments) for mlp in (ops.mlp, reference.mlp)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("compute_dtype", [None, BF16, FP16])
def test_second_derivatives_match_reference(compute_dtype: torch.dtype | None) -> None:
    """A gradient penalty, as for signed distances."""
    x, weights, biases, _ = make_batch([3, 16, 1], 50, True)
    results = []
    for mlp in (ops.mlp, reference.mlp):
        inputs = [t.float().requires_grad_() for t in (x, *weights, *biases)]
        y = mlp(inputs[0], inputs[1:3], inputs[3:], "softplus", "none", compute_dtype)
        (normal,) = torch.autograd.grad(y.sum(), inputs[0], create_graph=True)
        results.append(torch.autograd.grad((normal.norm(dim=1) - 1).square().sum() + y.sum(), inputs))
    rtol = {None: 1e-4, BF16: 3e-2, FP16: 4e-3}[compute_dtype]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-4 * b.abs().max().item())


@pytest.mark.parametrize("loss", [torch.sum, lambda t: t.square().sum()])
def test_third_derivative_raises(loss) -> None:
    x = torch.rand(5, 2, requires_grad=True)
    (first,) = torch.autograd.grad(
        ops.mlp(x, [torch.ones(3, 2)], activation="none", output_activation="tanh").sum(), x, create_graph=True
    )
    (second,) = torch.autograd.grad(loss(first), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice, not three times"):
        second.sum().backward()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_accurate_everywhere(activation: str) -> None:
    """One input, one weight 1: the activation and its derivative alone, in units in the last place of their scale."""
    x = torch.cat((torch.linspace(-100, 80, 4001), torch.linspace(-3, 3, 4001), torch.tensor([0.0, -0.0])))
    if activation == "sine":
        x = torch.cat((x, torch.tensor([1e4, 3e4, -1e6, 1e20])))
    one = [torch.ones(1, 1)]

    def value_and_derivative(mlp: Callable[..., Tensor], x: Tensor, weights: list[Tensor]) -> list[Tensor]:
        x = x[:, None].requires_grad_()
        y = mlp(x, weights, None, "none", activation)
        return [y.detach(), *torch.autograd.grad(y.sum(), x)]

    exact = value_and_derivative(reference.mlp, x.double(), [one[0].double()])
    ours = value_and_derivative(ops.mlp, x, one)
    # beside a zero of sine, cosine and the derivative of SiLU only the absolute error can be small
    floor = 1.0 if activation in ("sine", "silu", "tanh", "sigmoid") else 1e-30
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=4e-7, atol=2e-7 if activation == "sine" else 1e-35)
    torch.testing.assert_close(ours[1].double(), exact[1], rtol=1e-6, atol=2.5e-7 * floor)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("compute_dtype", [None, BF16, FP16])
def test_nan_and_infinity_stay_in_their_rows(activation: str, compute_dtype: torch.dtype | None) -> None:
    x, weights, _, grad_y = make_batch([3, 31, 5], 40, False, 0.3)
    clean = mlp_and_gradients(ops.mlp, torch.float32, x, weights, [], grad_y, activation, "none", compute_dtype)
    bad = x.clone()
    bad[3, 1] = torch.nan
    bad[8, 0] = torch.inf
    bad[20, 2] = -torch.inf
    y, grad_x, *_ = mlp_and_gradients(
        ops.mlp, torch.float32, bad, weights, [], grad_y, activation, "none", compute_dtype
    )
    expected, *_ = mlp_and_gradients(reference.mlp, torch.float32, bad, weights, [], grad_y, activation, "none")
    torch.testing.assert_close(y.isnan(), expected.isnan())
    torch.testing.assert_close(y.isinf(), expected.isinf())
    assert y[3].isnan().all()
    good = torch.ones(40, dtype=torch.bool)
    good[[3, 8, 20]] = False
    assert torch.equal(y[good], clean[0][good])
    assert torch.equal(grad_x[good], clean[1][good])


def test_two_forwards_before_one_backward() -> None:
    x, weights, _, _ = make_batch([4, 8, 2], 20, False)
    weights = [w.requires_grad_() for w in weights]
    first, second = ops.mlp(x, weights), ops.mlp(2 * x, weights)
    ours = torch.autograd.grad((first * second).sum(), weights)
    first, second = reference.mlp(x, weights), reference.mlp(2 * x, weights)
    torch.testing.assert_close(ours, torch.autograd.grad((first * second).sum(), weights))


def test_batches_strides_and_offsets() -> None:
    weights, biases = make_params([3, 8, 2], True)
    storage = torch.randn(3, 5, 4, 2, dtype=torch.float64)
    for x in (storage[:, 1:, :, 0].permute(2, 1, 0), torch.randn(3, dtype=torch.float64), storage[:, 0, 0, 0]):
        torch.testing.assert_close(ops.mlp(x, weights, biases), reference.mlp(x, weights, biases))
    slanted = [torch.randn(w.shape[::-1], dtype=torch.float64).T.requires_grad_() for w in weights]
    x = torch.randn(6, 3, dtype=torch.float64)
    y, expected = ops.mlp(x, slanted), reference.mlp(x, slanted)
    torch.testing.assert_close(y, expected)
    ours = torch.autograd.grad(y.sum(), slanted)  # an expanded, stride-0 grad_y
    torch.testing.assert_close(ours, torch.autograd.grad(expected.sum(), slanted))


def test_only_what_requires_grad_gets_one() -> None:
    x, weights, biases, _ = make_batch([4, 8, 2], 20, True)
    x.requires_grad_()
    y = ops.mlp(x, weights, biases)
    y.sum().backward()
    assert x.grad is not None and weights[0].grad is None
    weights[1].requires_grad_()
    ops.mlp(x.detach(), weights, biases).sum().backward()
    assert weights[1].grad is not None and weights[0].grad is None and biases[0].grad is None


def test_empty_batch_gives_zero_parameter_gradients() -> None:
    x, weights, biases, _ = make_batch([4, 8, 2], 0, True)
    params = [p.requires_grad_() for p in (*weights, *biases)]
    y = ops.mlp(x, params[:2], params[2:])
    assert y.shape == (0, 2)
    assert all(not g.any() for g in torch.autograd.grad(y.sum(), params))


@pytest.mark.parametrize("dtype", [torch.float16, BF16, torch.float64])
def test_inputs_take_the_dtype_of_the_weights(dtype: torch.dtype) -> None:
    weights = [w.float() for w in make_params([4, 8, 2], False)[0]]
    x = torch.randn(5, 4).to(dtype).requires_grad_()
    y = ops.mlp(x, weights)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, ops.mlp(x.float(), weights))
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype


def test_torch_func_grad() -> None:
    x, weights, biases, _ = make_batch([4, 8, 2], 20, True)

    def loss(mlp: Callable[..., Tensor], params: list[Tensor]) -> Tensor:
        return mlp(x, params[:2], params[2:]).square().sum()

    params = [*weights, *biases]
    ours = torch.func.grad(lambda p: loss(ops.mlp, p))(params)
    torch.testing.assert_close(ours, torch.func.grad(lambda p: loss(reference.mlp, p))(params))


@pytest.mark.cpu_only
def test_compiled_gradients_match_eager() -> None:
    x, weights, biases, _ = make_batch([4, 8, 2], 20, True)
    inputs = [t.requires_grad_() for t in (x, *weights, *biases)]

    def loss(x: Tensor, *params: Tensor) -> Tensor:
        return ops.mlp(x, params[:2], params[2:], "silu", "tanh").square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(*inputs), inputs)
    torch.testing.assert_close(torch.autograd.grad(compiled(*inputs), inputs), expected)


W = [torch.zeros(4, 3), torch.zeros(2, 4)]
X = torch.zeros(5, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, []), r"`weights` must have 1 to 9 layers, got 0"),
        ((X, [torch.zeros(3, 3)] * 10), r"`weights` must have 1 to 9 layers, got 10"),
        ((torch.zeros(()), W), r"`x` must have shape \[\.\.\., in\], got \[\]"),
        ((X[:, :2], W), r"`weights\[0\]` must have shape \[out, 2\], got \[4, 3\]"),
        ((X, [W[0], W[0]]), r"`weights\[1\]` must have shape \[out, 4\], got \[4, 3\]"),
        ((X, W, [torch.zeros(4)]), r"`biases` must have 2 tensors, one per layer, got 1"),
        ((X, W, [torch.zeros(4), torch.zeros(3)]), r"`biases\[1\]` must have shape \[2\], got \[3\]"),
        ((X, W, None, "gelu"), r"`activation` must be one of .*, got 'gelu'"),
        ((X, W, None, "relu", "gelu"), r"`output_activation` must be one of .*, got 'gelu'"),
        ((X, W, None, "relu", "none", torch.float64), r"`compute_dtype` must be .*float16 or .*, got torch.float64"),
    ],
)
def test_wrong_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.mlp(*arguments)


def test_wrong_dtypes() -> None:
    with pytest.raises(RuntimeError, match=r"`weights\[1\]` must be float32, got float64"):
        ops.mlp(X, [W[0], W[1].double()])
    for compute_dtype, name in ((BF16, "bfloat16"), (FP16, "float16")):
        with pytest.raises(RuntimeError, match=rf"\b{name} products need float32 tensors, got float64"):
            ops.mlp(X, [w.double() for w in W], compute_dtype=compute_dtype)
