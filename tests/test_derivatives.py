"""Derivatives of fields along directions: against reverse mode, through every kind of module, in a loss that trains."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from problems.jets import jet_by_reverse_mode
from torch import Tensor, nn

from hashgrid import (
    FusedMLP,
    HashGrid,
    NetworkWithInputEncoding,
    curl,
    derivatives_along,
    divergence,
    gradient,
    jacobian,
    laplacian,
    value_and_laplacian,
)
from hashgrid.nn.encodings import Frequency

GRID = {"n_levels": 3, "log2_hashmap_size": 8, "base_resolution": 3, "per_level_scale": 1.7}


def make_field(kind: str, backend: str) -> nn.Module:
    """A field of points in the plane, in float64."""
    options = {"bias": True, "backend": backend}
    mlp = FusedMLP(2, 3, 16, 2, activation="sine", **options)
    grid = HashGrid(2, **GRID, interpolation="smoothstep", backend=backend)
    nn.init.normal_(grid.table)
    behind = FusedMLP(grid.n_output_dims, 3, 16, 2, activation="tanh", output_activation="sigmoid", **options)
    fields = {
        "mlp": mlp,
        "encoded": NetworkWithInputEncoding(grid, behind),
        "sequential": nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Sequential(grid, behind), nn.Tanh()),
        "frequencies": nn.Sequential(Frequency(2, 2, backend=backend), FusedMLP(8, 3, 16, 2, "tanh", **options)),
        "pytorch": nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)),
    }
    return fields[kind].double()


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("kind", ["mlp", "encoded", "sequential", "frequencies", "pytorch"])
def test_every_field_has_the_derivatives_of_reverse_mode(kind: str, backend: str) -> None:
    field = make_field(kind, backend)
    plain = make_field(kind, "reference")
    plain.load_state_dict(field.state_dict())
    x, directions = torch.rand(11, 2, dtype=torch.float64), torch.randn(11, 3, 2, dtype=torch.float64)
    jets = derivatives_along(field, x, directions)
    expected = jet_by_reverse_mode(plain, x, directions)
    for a, b in zip(jets, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    operators = torch.randn(2, 3, dtype=torch.float64)
    summed = derivatives_along(field, x, directions, operators)
    for a, b in zip(summed, (*expected[:2], operators @ expected[2]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    for results in (jets, expected):
        sum(result.square().mean() for result in results).backward()
    for a, b in zip(field.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-8 * b.grad.abs().max().item())


def test_laplacian_of_known_functions() -> None:
    x = torch.rand(2, 5, 3, dtype=torch.float64)
    values, laplacian = value_and_laplacian(lambda x: (x**3).sum(-1, keepdim=True), x)
    torch.testing.assert_close(values, (x**3).sum(-1, keepdim=True))
    torch.testing.assert_close(laplacian, 6 * x.sum(-1, keepdim=True))
    field = FusedMLP(3, 1, n_hidden_layers=0, output_activation="sine").double()
    values, laplacian = value_and_laplacian(field, x)
    torch.testing.assert_close(laplacian, -field.weights[0].square().sum() * values)


def test_operators_of_known_fields() -> None:
    x = torch.rand(2, 5, 3, dtype=torch.float64)
    a, b, c = x.unbind(-1)

    def field(x: Tensor) -> Tensor:
        a, b, c = x.unbind(-1)
        return torch.stack((a * b, b * c**2, a**2 * c), dim=-1)

    zero = torch.zeros_like(a)
    rows = [(b, a, zero), (zero, c**2, 2 * b * c), (2 * a * c, zero, a**2)]
    torch.testing.assert_close(jacobian(field, x), torch.stack([torch.stack(row, -1) for row in rows], -2))
    torch.testing.assert_close(divergence(field, x), b + c**2 + a**2)
    torch.testing.assert_close(curl(field, x), torch.stack((-2 * b * c, -2 * a * c, -a), -1))
    torch.testing.assert_close(laplacian(field, x), torch.stack((zero, 2 * b, 2 * c), -1))
    torch.testing.assert_close(gradient(lambda x: field(x)[..., :1], x), torch.stack(rows[0], -1))
    turning = curl(lambda x: torch.stack((-x[..., 1], x[..., 0]), -1), x[..., :2])
    torch.testing.assert_close(turning, 2 + zero)
    assert not jacobian(lambda x: torch.ones_like(x), x).any()  # constants have no graph


@pytest.mark.parametrize("operator", [jacobian, divergence, curl, laplacian])
def test_a_loss_of_an_operator_trains(operator: Callable[..., Tensor]) -> None:
    """On native kernels: gradients of parameters and points are those of the reference, and of a difference."""
    grads = {}
    x = torch.rand(7, 2, dtype=torch.float64, requires_grad=True)
    for backend in ("native", "reference"):
        torch.manual_seed(0)
        field = FusedMLP(2, 2, 8, 2, activation="tanh", bias=True, backend=backend).double()
        params = [x, *field.weights]
        grads[backend] = torch.autograd.grad(operator(field, x).square().sum(), params)
    for a, b in zip(grads["native"], grads["reference"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    weight, step = field.weights[1], 1e-5
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[0, 0] += sign * step
            losses.append(float(operator(field, x).square().sum()))
            weight[0, 0] -= sign * step
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(float(grads["native"][2][0, 0]), rel=1e-5)
    with torch.no_grad():
        assert not operator(field, x).requires_grad


def test_several_channels_are_not_summed_up() -> None:
    x = torch.rand(5, 2)
    for operator, field, message in (
        (gradient, FusedMLP(2, 3), "`field` must have one channel to have a gradient, got 3; take its jacobian"),
        (divergence, FusedMLP(2, 3), "`field` must have 2 channels, as points have dimensions, got 3"),
        (curl, FusedMLP(2, 3), "`field` must have 2 channels in the plane or 3 in space, got 3 in 2 dimensions"),
        (jacobian, lambda x: x.sum(-1), r"`field` must return shape \[5, C\] for points \[5, 2\], got \[5\]"),
    ):
        with pytest.raises(ValueError, match=message):
            operator(field, x)


def test_a_module_may_bring_its_own_jet() -> None:
    class Centred(nn.Module):
        """Points of the unit square as the network wants them."""

        def forward(self, x: Tensor) -> Tensor:
            return 2 * x - 1

        def jet(
            self, x: Tensor, directions: Tensor, accelerations: Tensor | None, operators: Tensor | None
        ) -> tuple[Tensor, ...]:
            """Bends nothing."""
            if accelerations is None:
                accelerations = torch.zeros_like(directions if operators is None else operators @ directions)
            return 2 * x - 1, 2 * directions, 2 * accelerations

    mlp = FusedMLP(2, 1, 16, activation="tanh").double()
    x, axes = torch.rand(5, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    for operators in (None, torch.tensor([[1.0, -1.0]])):
        for a, b in zip(
            derivatives_along(nn.Sequential(Centred(), mlp), x, axes, operators),
            derivatives_along(lambda x: mlp.to_sequential()(2 * x - 1), x, axes, operators),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_a_loss_with_a_laplacian_compiles_in_one_graph() -> None:
    field = make_field("encoded", "native")
    x = torch.rand(9, 2, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        values, laplacian = value_and_laplacian(field, x)
        return (values - laplacian).square().mean()

    expected = torch.autograd.grad(loss(x), list(field.parameters()))
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(x), list(field.parameters())), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_bad_input() -> None:
    mlp, x = FusedMLP(2, 1), torch.rand(5, 2)
    with pytest.raises(ValueError, match=r"`directions` must have shape \[K, 2\] or \[5, K, 2\], got \[2, 3\]"):
        derivatives_along(mlp, x, torch.ones(2, 3))
    with pytest.raises(NotImplementedError, match="native kernels inside of <lambda>: give it a method `jet`"):
        derivatives_along(lambda x: mlp(2 * x - 1), x, torch.eye(2))
    with pytest.raises(ValueError, match="`compute_dtype` must be None for derivatives along directions, got torch.bf"):
        value_and_laplacian(FusedMLP(2, 1, compute_dtype=torch.bfloat16), x)


def load_mark(name: str) -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "marks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_interpolant_of_a_picture_goes_through_its_pixels_with_the_slope_of_a_cosine() -> None:
    """What `benchmarks/marks/siren_gradients.py` learns, of a picture whose gradient is known between pixels, too."""
    mark = load_mark("siren_gradients")
    places = mark.places(12)

    def picture(x: Tensor) -> Tensor:
        return torch.cos(math.pi * (x[:, 0] + 1)) * torch.cos(1.5 * math.pi * (x[:, 1] + 1))

    between = 2 * torch.rand(50, 2) - 1
    expected = jacobian(lambda x: picture(x)[:, None], between).squeeze(-2)
    found = mark.Interpolant(picture(places).view(12, 12)).gradient(between)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
