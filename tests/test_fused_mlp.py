"""The MLP module: parameters, initialisation, conversion to and from nn.Sequential, training."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import hashgrid
from hashgrid import FusedMLP
from hashgrid.util.choices import ACTIVATIONS


def test_parameters_are_named_per_layer() -> None:
    mlp = FusedMLP(3, 2, n_neurons=8, n_hidden_layers=2, bias=True)
    shapes = {name: tuple(parameter.shape) for name, parameter in mlp.named_parameters()}
    assert shapes == {
        "weights.0": (8, 3),
        "weights.1": (8, 8),
        "weights.2": (2, 8),
        "biases.0": (8,),
        "biases.1": (8,),
        "biases.2": (2,),
    }
    assert len(FusedMLP(3, 2).biases) == 0
    assert [tuple(w.shape) for w in FusedMLP(3, 2, n_hidden_layers=0).weights] == [(2, 3)]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("n_hidden_layers", [0, 1, 8])
def test_forward_matches_sequential(backend: str, n_hidden_layers: int) -> None:
    mlp = FusedMLP(5, 3, 16, n_hidden_layers, "silu", "sigmoid", bias=True, backend=backend)
    x = torch.randn(2, 7, 5)
    torch.testing.assert_close(mlp(x), mlp.to_sequential()(x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_sequential_round_trip(activation: str, bias: bool) -> None:
    mlp = FusedMLP(4, 3, [6, 5], 2, activation, activation, bias).double()
    x = torch.randn(9, 4, dtype=torch.float64)
    again = FusedMLP.from_sequential(mlp.to_sequential())
    assert again.activation == again.output_activation == activation
    assert again.weights[0].dtype == torch.float64
    for name, parameter in mlp.state_dict().items():
        assert torch.equal(again.state_dict()[name], parameter)
    torch.testing.assert_close(mlp.to_sequential()(x), again(x))
    with torch.no_grad():
        again.weights[0].zero_()
    assert mlp.weights[0].abs().sum() > 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(), "at least one nn.Linear"),
        (nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), "begin with nn.Linear"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Tanh()), "one activation after each"),
        (nn.Sequential(nn.Linear(2, 2), nn.GELU()), "GELU"),
        (nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(0.2)), "slope 0.01, got 0.2"),
        (nn.Sequential(nn.Linear(2, 2), nn.Softplus(2)), "after the last layer must have beta 1, got 2"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)), "same activation"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False)), "biases in all layers or in none"),
    ],
)
def test_from_sequential_refuses(model: nn.Sequential, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FusedMLP.from_sequential(model)


@pytest.mark.parametrize("n_hidden", [0, 1, 3])
def test_softplus_with_a_beta_is_that_of_torch(n_hidden: int) -> None:
    """Value, gradients and the gradients of a gradient's norm, in fp64, of pre-activations beyond the corner too."""
    layers: list[nn.Module] = []
    for layer in range(n_hidden):
        layers += [nn.Linear(8 if layer else 3, 8), nn.Softplus(100, threshold=40)]
    model = nn.Sequential(*layers, nn.Linear(8 if n_hidden else 3, 2)).double()
    mlp = FusedMLP.from_sequential(model)
    assert mlp.softplus_beta == (100 if n_hidden else 1)
    assert repr(mlp.to_sequential()) == repr(model)
    results = []
    for network, params in ((mlp, [*mlp.weights, *mlp.biases]), (model, list(model.parameters()))):
        torch.manual_seed(0)
        x = torch.randn(50, 3, dtype=torch.float64, requires_grad=True)
        y = network(x)
        first = torch.autograd.grad(y.square().sum(), [x, *params], create_graph=True)
        loss = (first[0].norm(dim=-1) - 1).square().sum()
        second = torch.autograd.grad(loss, [x, *params], allow_unused=True, materialize_grads=True)
        results.append(
            [y, *(sorted_grads(first, n_hidden, network is mlp)), *sorted_grads(second, n_hidden, network is mlp)]
        )
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)


def sorted_grads(grads: Sequence[Tensor], n_hidden: int, of_ours: bool) -> list[Tensor]:
    """Of x, then of weight and bias of each layer: ours come as all weights, then all biases."""
    x, *params = grads
    n = n_hidden + 1
    return [x, *(params[i + n * j] for i in range(n) for j in range(2))] if of_ours else [x, *params]


def test_from_sequential_takes_nested_and_linear_models() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Identity()), nn.Linear(4, 2))
    mlp = FusedMLP.from_sequential(model, compute_dtype=torch.bfloat16, backend="reference")
    assert (mlp.activation, mlp.compute_dtype, mlp.backend) == ("none", torch.bfloat16, "reference")
    x = torch.randn(5, 3)
    torch.testing.assert_close(FusedMLP.from_sequential(model)(x), model(x))


def test_initialisation_is_xavier_uniform() -> None:
    mlp = FusedMLP(32, 16, 64, 2, bias=True)
    for weight in mlp.weights:
        bound = math.sqrt(6 / sum(weight.shape))
        assert 0.95 * bound < weight.abs().max() <= bound
    assert all(not bias.any() for bias in mlp.biases)


def test_initialisation_for_sine_keeps_activations_spread() -> None:
    """SIREN's point: every hidden pre-activation is close to a unit normal distribution."""
    mlp = FusedMLP(3, 8, 256, 4, "sine", bias=True)
    x = torch.rand(2000, 3) * 2 - 1
    for weight, bias in list(zip(mlp.weights, mlp.biases, strict=True))[1:-1]:
        assert weight.abs().max() <= math.sqrt(6 / 256)
        assert bias.abs().max() <= 30 / math.sqrt(256)
    hidden = torch.sin(x @ mlp.weights[0].T + mlp.biases[0])
    z = hidden @ mlp.weights[1].T
    assert 0.8 < z.std() < 1.2
    assert mlp.weights[-1].abs().max() <= math.sqrt(6 / 256) / 30


def test_module_copies_saves_and_moves() -> None:
    mlp = FusedMLP(3, 2, 8, 1, bias=True)
    other = FusedMLP(3, 2, 8, 1, bias=True)
    other.load_state_dict(mlp.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(other(x), mlp(x))
    assert torch.equal(copy.deepcopy(mlp)(x), mlp(x))
    assert mlp.double()(x).dtype == torch.float64
    with torch.device("meta"):
        assert FusedMLP(3, 2).weights[0].is_meta
    assert FusedMLP(3, 2).to("meta")(x.to("meta")).shape == (4, 2)


def test_repr_names_the_options() -> None:
    text = repr(FusedMLP(3, 2, 8, 1, "tanh", "exp", True, torch.bfloat16))
    for part in ("3, 2", "n_neurons=8", "'tanh'", "'exp'", "bias=True", "bfloat16", "'native'"):
        assert part in text


@pytest.mark.parametrize("compute_dtype", [None, torch.bfloat16, torch.float16])
def test_backends_train_alike(compute_dtype: torch.dtype | None) -> None:
    x = torch.rand(512, 2)
    target = torch.sin(4 * x).sum(1, keepdim=True)
    losses = {}
    for backend in ("native", "reference"):
        torch.manual_seed(1)
        mlp = FusedMLP(2, 1, 32, 2, bias=True, compute_dtype=compute_dtype, backend=backend)
        optimizer = torch.optim.Adam(mlp.parameters(), lr=1e-2, eps=1e-15)
        for _ in range(50):
            optimizer.zero_grad()
            loss = (mlp(x) - target).square().mean()
            (1e-6 * loss).backward()  # gradients below float16's smallest number; Adam does not see the factor
            optimizer.step()
        losses[backend] = loss.item()
    assert losses["native"] < 0.1
    assert losses["native"] == pytest.approx(losses["reference"], rel=0.02 if compute_dtype is None else 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_hidden_layers": 9}, r"`n_hidden_layers` must be in 0..8, got 9"),
        ({"n_neurons": [4]}, r"`n_neurons` must be an integer or 2 of them, got \[4\]"),
        ({"n_neurons": 0}, r"must be positive, got \[3, 0, 0, 2\]"),
        ({"activation": "gelu"}, r"`activation` must be one of .* got 'gelu'"),
        ({"output_activation": "gelu"}, r"`output_activation` must be one of .* got 'gelu'"),
        (
            {"compute_dtype": torch.float64},
            r"`compute_dtype` must be .*torch.float16 or torch.float32, got torch.float64",
        ),
        ({"backend": "fast"}, r"`backend` must be one of"),
        ({"activation": "softplus", "softplus_beta": 0}, "`softplus_beta` must be positive, got 0"),
        ({"softplus_beta": 100}, "`softplus_beta` must be 1 unless `activation` is 'softplus', got 100 and 'relu'"),
    ],
)
def test_constructor_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FusedMLP(3, 2, **arguments)


def test_forward_refuses_wrong_inputs() -> None:
    with pytest.raises(ValueError, match=r"`x` must have shape \[\.\.\., 3\], got \[5, 2\]"):
        FusedMLP(3, 2)(torch.randn(5, 2))
    assert hashgrid.FusedMLP(3, 2)(torch.randn(0, 3)).shape == (0, 2)


def test_batches_of_any_shape() -> None:
    mlp = FusedMLP(4, 3)
    assert mlp(torch.randn(2, 5, 4)).shape == (2, 5, 3)
    assert mlp(torch.randn(0, 4)).shape == (0, 3)
    assert mlp(torch.randn(4)).shape == (3,)
