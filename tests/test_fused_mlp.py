"""The FusedMLP module: parameters, conversion, errors."""

import copy

import pytest
import torch
from torch import nn

import hashgrid
from hashgrid import FusedMLP


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("bias", [False, True])
def test_fused_mlp_equals_the_sequential_it_came_from(backend, bias):
    layers = nn.Sequential(
        nn.Linear(5, 24, bias=bias), nn.SiLU(), nn.Linear(24, 24, bias=bias), nn.SiLU(), nn.Linear(24, 3, bias=bias)
    )
    mlp = FusedMLP.from_sequential(layers, backend=backend)
    x = torch.randn(33, 5)
    torch.testing.assert_close(mlp(x), layers(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mlp.to_sequential()(x), layers(x), rtol=0, atol=0)


def test_fused_mlp_names_its_parameters_per_layer():
    mlp = FusedMLP(4, 2, n_neurons=8, n_hidden_layers=2, bias=True)
    shapes = {name: list(parameter.shape) for name, parameter in mlp.named_parameters()}
    assert shapes == {
        "weights.0": [8, 4],
        "weights.1": [8, 8],
        "weights.2": [2, 8],
        "biases.0": [8],
        "biases.1": [8],
        "biases.2": [2],
    }


def test_fused_mlp_state_round_trip_and_deepcopy():
    mlp = FusedMLP(4, 2, bias=True)
    other = FusedMLP(4, 2, bias=True)
    other.load_state_dict(mlp.state_dict())
    clone = copy.deepcopy(mlp)
    x = torch.randn(7, 4)
    assert torch.equal(mlp(x), other(x)) and torch.equal(mlp(x), clone(x))


def test_fused_mlp_xavier_bounds_and_siren_bounds():
    torch.manual_seed(0)
    mlp = FusedMLP(32, 16, n_neurons=64, n_hidden_layers=1)
    bound = (6 / (32 + 64)) ** 0.5
    assert 0.9 * bound < mlp.weights[0].abs().max().item() <= bound
    siren = FusedMLP(3, 1, n_neurons=256, n_hidden_layers=2, activation="sine")
    assert 9 < siren.weights[0].abs().max().item() <= 10
    assert 0.9 * (6 / 256) ** 0.5 < siren.weights[1].abs().max().item() <= (6 / 256) ** 0.5


def test_fused_mlp_takes_batches_and_none():
    mlp = FusedMLP(4, 3)
    assert mlp(torch.randn(2, 5, 4)).shape == (2, 5, 3)
    assert mlp(torch.randn(0, 4)).shape == (0, 3)
    assert mlp(torch.randn(4)).shape == (3,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_neurons": 0}, "`n_neurons` must be positive, got 0"),
        ({"n_hidden_layers": 9}, "`n_hidden_layers` must be in 0..8, got 9"),
        ({"activation": "gelu"}, "`activation` must be one of"),
        ({"backend": "cuda"}, "`backend` must be one of"),
        ({"compute_dtype": torch.float16}, "`compute_dtype` must be"),
    ],
)
def test_fused_mlp_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FusedMLP(4, 2, **arguments)


def test_fused_mlp_refuses_stacks_it_cannot_fuse():
    with pytest.raises(ValueError, match="one hidden width"):
        FusedMLP.from_sequential(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)))
    with pytest.raises(ValueError, match="layer 1 must be nn.Linear or one activation"):
        FusedMLP.from_sequential(nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 1)))
    with pytest.raises(ValueError, match="at least one"):
        FusedMLP.from_sequential(nn.Sequential())
    with pytest.raises(ValueError, match="no module in torch.nn"):
        FusedMLP(2, 1, output_activation="exp").to_sequential()
    with pytest.raises(ValueError, match=r"`x` must have shape \[..., 2\], got \[3, 5\]"):
        hashgrid.FusedMLP(2, 1)(torch.zeros(3, 5))
