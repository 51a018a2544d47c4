"""The multilayer perceptron along directions: jets against reverse mode in float64, gradients, contracts."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from problems.jets import check_jets, jet_by_reverse_mode, results_and_gradients
from problems.mlp import make_params
from torch import Tensor
from torch.autograd import gradcheck

import hashgrid
from hashgrid import ops, reference
from hashgrid.util.choices import ACTIVATIONS

pytestmark = pytest.mark.every_kernel

CURVED = ("silu", "softplus", "sigmoid", "tanh", "exp", "sine")
WIDTHS = ([1, 1], [2, 31, 1], [3, 64, 64, 64, 2], [17, 33, 20, 5])


def problem(widths: list[int], n: int, n_directions: int, bent: bool, gain: float = 1.0) -> tuple[list[Tensor], int]:
    """fp64 inputs x, directions, (accelerations,) weights, biases; and how many there are before the weights."""
    weights, biases = make_params(widths, True, gain)
    rows = [torch.randn(n, n_directions, widths[0], dtype=torch.float64) for _ in range(1 + bent)]
    return [torch.rand(n, widths[0], dtype=torch.float64), *rows, *weights, *biases], 2 + bent


def call(op: Any, n_rows: int, n_layers: int, options: tuple[str, str], *inputs: Tensor) -> Any:
    """``op`` of what `problem` makes, in order."""
    x, directions, *bent = inputs[:n_rows]
    weights, biases = inputs[n_rows : n_rows + n_layers], inputs[n_rows + n_layers :]
    return op(x, directions, weights, biases, *options, *bent)


def reverse_mode(
    x: Tensor, directions: Tensor, weights: Any, biases: Any, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """`mlp_jet` made of `reference.mlp`."""
    names, bent = options[:2], options[2] if len(options) > 2 else None
    return jet_by_reverse_mode(lambda x: reference.mlp(x, weights, biases, *names), x, directions, bent)


@pytest.mark.cpu_only
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bent", [False, True])
def test_reference_matches_reverse_mode(activation: str, bent: bool) -> None:
    for output in ("none", activation):
        inputs, n_rows = problem([3, 8, 8, 2], 5, 2, bent)
        if activation == "exp":
            inputs[n_rows] = 3 * inputs[n_rows]  # some beyond 15, where its derivative stands still
        jets = call(reference.mlp_jet, n_rows, 3, (activation, output), *inputs)
        expected = call(reverse_mode, n_rows, 3, (activation, output), *inputs)
        for a, b in zip(jets, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
        assert (expected[2].abs().max() > 1e-3) == (activation in CURVED or bent)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("widths", WIDTHS, ids=lambda w: "-".join(map(str, w)))
def test_matches_reference(activation: str, widths: list[int]) -> None:
    gain = 0.3 if activation == "exp" else 1.0
    for n, n_directions, bent in ((0, 1, False), (1, 3, True), (7, 1, False), (129, 2, True), (203, 3, False)):
        inputs, n_rows = problem(widths, n, n_directions, bent, gain)
        options = activation, activation if bent else "none"
        ours, theirs = (partial(call, op, n_rows, len(widths) - 1, options) for op in (ops.mlp_jet, reference.mlp_jet))
        # a few roundings per layer and per term of a sum
        check_jets(ours, theirs, inputs, n_rows, 4 * (len(widths) - 1) * (1 + 2 * n_directions))


def test_softplus_of_another_beta() -> None:
    inputs, n_rows = problem([3, 32, 32, 2], 33, 2, True)
    options, beta = ("softplus", "softplus"), {"softplus_beta": 20.0}
    ours, theirs = (partial(call, partial(op, **beta), n_rows, 3, options) for op in (ops.mlp_jet, reference.mlp_jet))
    check_jets(ours, theirs, inputs, n_rows, 60)
    x, directions, bent, *params = inputs
    expected = jet_by_reverse_mode(
        lambda x: reference.mlp(x, params[:3], params[3:], *options, **beta), x, directions, bent
    )
    for a, b in zip(theirs(*inputs), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("n_seconds", [1, 2, 5])
@pytest.mark.parametrize("activation", ["tanh", "relu", "silu"])
def test_operators_sum_up_second_derivatives(n_seconds: int, activation: str) -> None:
    """As the second derivatives themselves do, results and gradients; and as in the reference, in any dtype."""
    weights, biases = make_params([4, 31, 33, 3], True)
    operators = torch.randn(n_seconds, 3, dtype=torch.float64)
    rows = [(4,), (3, 4), (n_seconds, 4)]
    inputs = [*(torch.randn(77, *shape, dtype=torch.float64) for shape in rows), *weights, *biases]

    def summed(op: Any, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, v, a, *params = inputs
        return op(x, v, params[:3], params[3:], activation, "tanh", a, operators)

    check_jets(partial(summed, ops.mlp_jet), partial(summed, reference.mlp_jet), inputs, 3, 72)

    def apart(*inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, v, a, *params = inputs
        both = torch.cat((v, a), 1)
        y, first, second = ops.mlp_jet(x, both, params[:3], params[3:], activation, "tanh")
        return y, first[:, :3], operators @ second[:, :3] + first[:, 3:]

    shapes = (77, 3), (77, 3, 3), (77, n_seconds, 3)
    cotangents = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    runs = (
        results_and_gradients(op, inputs, cotangents, torch.float64) for op in (partial(summed, ops.mlp_jet), apart)
    )
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10 * b.abs().max().item())


@pytest.mark.parametrize("activation", ["tanh", "sine", "silu", "softplus"])
def test_gradcheck_of_a_loss_with_a_laplacian(activation: str) -> None:
    inputs, n_rows = problem([2, 9, 9, 1], 6, 2, False)
    x, _, *params = (tensor.requires_grad_() for tensor in inputs)

    def loss(x: Tensor, *params: Tensor) -> Tensor:
        axes = torch.eye(2, dtype=torch.float64)
        y, first, second = ops.mlp_jet(x, axes, params[:3], params[3:], activation)
        return (second.sum(-2) + y * first[:, 0]).square().mean()

    assert n_rows == 2 and gradcheck(loss, (x, *params))
    expected = torch.autograd.grad(loss(x, *params), (x, *params))

    def composed(x: Tensor, *params: Tensor) -> Tensor:
        y = reference.mlp(x, params[:3], params[3:], activation)
        (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        laplacian = sum(torch.autograd.grad(first[:, d].sum(), x, create_graph=True)[0][:, d] for d in range(2))
        return (laplacian[:, None] + y * first[:, :1]).square().mean()

    for a, b in zip(expected, torch.autograd.grad(composed(x, *params), (x, *params)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_gradcheck_in_every_input() -> None:
    inputs, n_rows = problem([2, 7, 3], 4, 2, True)
    arguments = n_rows, 2, ("tanh", "sigmoid")
    assert gradcheck(partial(call, ops.mlp_jet, *arguments), [tensor.requires_grad_() for tensor in inputs])


def test_missing_gradients_are_zero() -> None:
    """A loss of one of the three results, and gradients of some of the inputs."""
    inputs, n_rows = problem([3, 16, 2], 33, 2, False)
    for i in range(3):
        for wanted in ([0], [1], [2, 4], [0, 5]):
            grads = []
            for op in (ops.mlp_jet, reference.mlp_jet):
                leaves = [t.clone().requires_grad_(j in wanted) for j, t in enumerate(inputs)]
                asked = [leaves[j] for j in wanted]
                result = call(op, n_rows, 2, ("sine", "none"), *leaves)[i].square().sum() + 0 * asked[0].sum()
                grads.append(torch.autograd.grad(result, asked, allow_unused=True, materialize_grads=True))
            for a, b in zip(*grads, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_batches_and_shared_directions() -> None:
    inputs, _ = problem([3, 16, 2], 24, 1, False)
    x, _, *params = inputs
    axes = torch.eye(3, dtype=torch.float64)[:2]
    flat = ops.mlp_jet(x, axes, params[:2], params[2:], "tanh")
    shaped = ops.mlp_jet(x.view(2, 3, 4, 3), axes.expand(2, 3, 4, 2, 3), params[:2], params[2:], "tanh")
    assert [list(t.shape) for t in shaped] == [[2, 3, 4, 2], [2, 3, 4, 2, 2], [2, 3, 4, 2, 2]]
    single = ops.mlp_jet(x[0], axes, params[:2], params[2:], "tanh")
    assert [list(t.shape) for t in single] == [[2], [2, 2], [2, 2]]
    for a, b, c in zip(flat, shaped, single, strict=True):
        assert torch.equal(a, b.reshape(a.shape))
        torch.testing.assert_close(a[0], c, rtol=1e-13, atol=1e-14)
    values = ops.mlp(x.float(), [w.float() for w in params[:2]], [b.float() for b in params[2:]], "tanh")
    torch.testing.assert_close(flat[0].float(), values)


@pytest.mark.cpu_only
def test_gradients_are_the_same_for_any_number_of_threads() -> None:
    inputs, n_rows = problem([2, 64, 64, 1], 3001, 2, False)
    cotangents = [torch.randn(3001, 1), torch.randn(3001, 2, 1), torch.randn(3001, 2, 1)]
    op = partial(call, ops.mlp_jet, n_rows, 3, ("sine", "none"))
    threads = torch.get_num_threads()
    try:
        runs = []
        for n in (1, 2, 16):
            torch.set_num_threads(n)
            runs.append(results_and_gradients(op, inputs, cotangents, torch.float32))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_points_that_are_not_finite_stay_apart() -> None:
    inputs, n_rows = problem([2, 16, 16, 1], 9, 2, False)
    clean = call(ops.mlp_jet, n_rows, 3, ("sine", "none"), *inputs)
    inputs[0][4] = torch.nan
    mixed = call(ops.mlp_jet, n_rows, 3, ("sine", "none"), *inputs)
    for a, b in zip(clean, mixed, strict=True):
        assert torch.equal(a[:4], b[:4]) and torch.equal(a[5:], b[5:]) and b[4].isnan().all()


@pytest.mark.cpu_only
def test_padding_rows_do_not_overflow() -> None:
    """A network that is finite at every point but not at zero: rows that only fill a block must not reach the sums."""
    x = torch.full((3, 1), 100.0)
    weights, biases = [torch.tensor([[-1.0]]), torch.ones(1, 1)], [torch.tensor([105.0]), torch.zeros(1)]
    leaves = [weight.requires_grad_() for weight in weights]
    y, first, second = ops.mlp_jet(x, torch.ones(1, 1), leaves, biases, "exp")
    grads = torch.autograd.grad((y + first[:, 0] + second[:, 0]).sum(), leaves)
    assert torch.exp(biases[0]).isinf() and all(grad.isfinite().all() for grad in grads)


@pytest.mark.cpu_only
def test_second_order_raises() -> None:
    inputs, n_rows = problem([2, 8, 1], 4, 1, False)
    x = inputs[0].requires_grad_()
    result = call(ops.mlp_jet, n_rows, 2, ("tanh", "none"), *inputs)[2]
    (grad,) = torch.autograd.grad(result.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="mlp_jet can be differentiated once"):
        grad.sum().backward()


@pytest.mark.cpu_only
def test_a_third_derivative_of_mlp_names_the_way() -> None:
    inputs, _ = problem([2, 8, 1], 4, 1, False)
    x, _, *params = inputs
    x.requires_grad_()
    (first,) = torch.autograd.grad(ops.mlp(x, params[:2], params[2:], "tanh").sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first[:, 0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"not three times; .* `hashgrid.derivatives_along`"):
        second.square().sum().backward()
    assert callable(hashgrid.derivatives_along)


@pytest.mark.cpu_only
def test_functional_transforms() -> None:
    inputs, n_rows = problem([2, 8, 1], 5, 2, False)
    x, directions, *params = inputs

    def residual(params: tuple[Tensor, ...], x: Tensor, directions: Tensor) -> Tensor:
        return ops.mlp_jet(x, directions, params[:2], params[2:], "sine")[2].square().sum()

    grads = torch.func.grad(residual)(tuple(params), x, directions)
    per_point = torch.func.vmap(torch.func.grad(residual), (None, 0, 0))(tuple(params), x, directions)
    for a, b in zip(grads, per_point, strict=True):
        torch.testing.assert_close(a, b.sum(0), rtol=1e-10, atol=1e-11)


@pytest.mark.cpu_only
def test_compiles_in_one_graph() -> None:
    inputs, n_rows = problem([2, 8, 1], 5, 2, True)
    op = partial(call, ops.mlp_jet, n_rows, 2, ("sine", "none"))
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    cotangents = [torch.randn(5, 1), torch.randn(5, 2, 1), torch.randn(5, 2, 1)]
    runs = [results_and_gradients(f, inputs, cotangents, torch.float32) for f in (op, compiled)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.cpu_only
@pytest.mark.parametrize("op", [ops.mlp_jet, reference.mlp_jet])
def test_bad_input(op: Any) -> None:
    x, weights = torch.rand(5, 3), [torch.rand(1, 3)]
    with pytest.raises(ValueError, match=r"`directions` must have shape \[K, 3\] or \[5, K, 3\], got \[2, 2\]"):
        op(x, torch.ones(2, 2), weights)
    with pytest.raises(ValueError, match=r"`directions` must have shape .*, got \[4, 2, 3\]"):
        op(x, torch.ones(4, 2, 3), weights)
    with pytest.raises(ValueError, match="`accelerations` must be as many as `directions`, 2, got 1"):
        op(x, torch.ones(2, 3), weights, accelerations=torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"`operators` must have shape \[M, 2\].*, got \[1, 3\]"):
        op(x, torch.ones(2, 3), weights, operators=torch.ones(1, 3))
    with pytest.raises(ValueError, match="`accelerations` must be as many as `operators`, 1, got 2"):
        op(x, torch.ones(2, 3), weights, accelerations=torch.ones(2, 3), operators=torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"`weights\[0\]` must have shape \[out, 3\], got \[1, 2\]"):
        op(x, torch.ones(2, 3), [torch.rand(1, 2)])
    with pytest.raises(ValueError, match="`activation` must be"):
        op(x, torch.ones(2, 3), weights, activation="gelu")
    if op is ops.mlp_jet:
        with pytest.raises(ValueError, match="`operators` must be constants"):
            op(x, torch.ones(2, 3), weights, operators=torch.ones(1, 2, requires_grad=True))
        with pytest.raises(ValueError, match="`directions` must be 1 to 64 per point, got 65"):
            op(x, torch.ones(65, 3), weights)
