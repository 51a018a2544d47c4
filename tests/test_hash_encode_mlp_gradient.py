"""A network behind a hash grid and the gradient of its first output, from one op: against differences and PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hashgrid.levels import make_level_table
from hashgrid.ops import _ngp
from hashgrid.reference import hash_encode_mlp_gradient as reference

pytestmark = pytest.mark.every_kernel
LEVELS = make_level_table(3, 3, 8, 4, 24)
N = 300  # more than a block of the network's kernel


def problem(dtype: torch.dtype, biases: bool = False, n: int = N, scale: float = 0.5) -> dict[str, Any]:
    torch.manual_seed(0)
    leaf = lambda *shape: (scale * torch.randn(*shape, dtype=dtype)).requires_grad_()  # noqa: E731
    return {
        "positions": (0.02 + 0.96 * torch.rand(n, 3, dtype=dtype)).requires_grad_(),
        "table": leaf(LEVELS.n_entries, 2),
        "levels": LEVELS,
        "weights": [leaf(20, 6), leaf(20, 20), leaf(5, 20)],
        "biases": [leaf(20), leaf(20), leaf(5)] if biases else None,
        "interpolation": "smoothstep",
    }


def leaves(given: dict[str, Any]) -> list[Tensor]:
    return [given["positions"], given["table"], *given["weights"], *(given["biases"] or [])]


def loss_of(found: Any, of: str) -> Tensor:
    """Of what asks every output for something else."""
    angle = torch.arange(found.values.numel(), dtype=found.values.dtype).view_as(found.values)
    values = (found.values * torch.sin(angle)).sum()
    slopes = (found.gradient.norm(dim=1) - 1).square().sum() + (found.gradient * torch.tensor([0.3, -1, 2])).sum()
    return {"both": values + slopes, "values": values, "gradient": slopes}[of]


@pytest.mark.parametrize("activation", ["silu", "relu", "softplus"])
def test_gradients_against_differences(activation: str) -> None:
    """Every output and every derivative of the loss, in fp64: no formula of ours is on the other side."""
    given = problem(torch.float64, biases=True, n=3)
    options = {"softplus_beta": 3.0} if activation == "softplus" else {}

    def outputs(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        positions, table, *params = tensors
        arguments = {**given, "positions": positions, "table": table, "weights": params[:3], "biases": params[3:]}
        found = _ngp.hash_encode_mlp_gradient(**arguments, activation=activation, **options)
        return found.values, found.gradient

    assert torch.autograd.gradcheck(outputs, leaves(given), eps=1e-6, atol=1e-5)
    step = 1e-6 * torch.eye(3, dtype=torch.float64)
    with torch.no_grad():
        found = outputs(*leaves(given))[1]
        sides = [
            [outputs(given["positions"] + sign * step[d], *leaves(given)[1:])[0][:, 0] for sign in (1, -1)]
            for d in range(3)
        ]
    expected = torch.stack([(up - down) / 2e-6 for up, down in sides], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("of", ["both", "values", "gradient"])
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
@pytest.mark.parametrize("output_activation", ["none", "tanh"])
def test_native_is_the_reference(of: str, biases: bool, interpolation: str, output_activation: str) -> None:
    """Also at the border of the grid, where clamped axes have no gradient, and with fading levels."""
    kinds = {"activation": "silu", "output_activation": output_activation, "interpolation": interpolation}
    given = problem(torch.float32, biases) | kinds
    with torch.no_grad():
        given["positions"][:20] += torch.randn(20, 3)
    weights = torch.tensor([1.0, 0.7, 0.0])
    results = []
    for op in (reference, _ngp.hash_encode_mlp_gradient):
        found = op(**given, level_weights=weights)
        grads = torch.autograd.grad(loss_of(found, of), leaves(given), allow_unused=True, materialize_grads=True)
        results.append([*found, *grads])
    for ours, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(
            ours, expected, rtol=1e-4, atol=1e-5 * max(1.0, float(expected.detach().abs().max()))
        )


def test_what_is_known_is_returned_and_trained() -> None:
    """The samples of a window that turn out to be seen: gradients are as if they had been computed just now."""
    given = problem(torch.float32) | {"activation": "silu"}
    with torch.no_grad():
        known = _ngp.hash_encode_mlp_gradient(**given)
    rows = torch.arange(0, N, 3)
    given["positions"] = given["positions"].detach()[rows].requires_grad_()
    some = _ngp.Slopes(*(x[rows] for x in known))
    results = []
    for precomputed in (None, some):
        found = _ngp.hash_encode_mlp_gradient(**given, precomputed=precomputed)
        results.append([*found, *torch.autograd.grad(loss_of(found, "both"), leaves(given))])
    for ours, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    nothing = _ngp.Slopes(*(torch.zeros_like(x) for x in some))
    assert not _ngp.hash_encode_mlp_gradient(**given, precomputed=nothing).values.any()


def test_a_buffer_gets_what_the_table_would() -> None:
    given, buffer = problem(torch.float32) | {"activation": "silu"}, torch.ones(LEVELS.n_entries, 2)
    loss_of(_ngp.hash_encode_mlp_gradient(**given), "both").backward()
    expected, given["table"].grad = given["table"].grad, None
    loss_of(_ngp.hash_encode_mlp_gradient(**given, grad_buffer=buffer), "both").backward()
    assert given["table"].grad is None
    torch.testing.assert_close(buffer, 1 + expected, rtol=1e-5, atol=1e-4)


@pytest.mark.cpu_only
def test_table_gradients_have_the_same_bits_for_any_number_of_threads() -> None:
    given = problem(torch.float32, n=5000) | {"activation": "silu"}
    found, threads = [], torch.get_num_threads()
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            loss = loss_of(_ngp.hash_encode_mlp_gradient(**given), "both")
            found.append(torch.autograd.grad(loss, leaves(given)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_no_points_and_no_third_derivative() -> None:
    given = problem(torch.float32, n=0)
    found = _ngp.hash_encode_mlp_gradient(**given)
    assert found.values.shape == (0, 5) and found.gradient.shape == (0, 3)
    loss_of(found, "both").backward()
    given = problem(torch.float32, n=5) | {"activation": "silu"}
    (grad,) = torch.autograd.grad(
        loss_of(_ngp.hash_encode_mlp_gradient(**given), "both"), given["positions"], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
