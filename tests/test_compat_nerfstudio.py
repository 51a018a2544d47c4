"""nerfstudio's field components against plain PyTorch written from their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hashgrid.compat import nerfstudio, tinycudann


def assert_same(ours: Callable, theirs: Callable, x: Tensor, parameters: list[Tensor]) -> None:
    """Values and gradients to fp32 rounding of fp64."""
    x = x.clone().requires_grad_()
    y = ours(x)
    twin_inputs = [t.detach().double().requires_grad_() for t in (x, *parameters)]
    twin = theirs(*twin_inputs)
    assert y.shape == twin.shape and y.dtype == torch.float32
    grad = torch.randn_like(y)
    made = (y, *torch.autograd.grad(y, (x, *parameters), grad))
    expected = (twin, *torch.autograd.grad(twin, twin_inputs, grad.double()))
    for a, b in zip(made, expected, strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()


def hash_twin(scales: list[float], size: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Every level hashed, without shift."""

    def encode(x: Tensor, table: Tensor) -> Tensor:
        outputs = []
        for level, scale in enumerate(scales):
            position = x * scale
            cell = position.detach().floor()
            fraction = position - cell
            total = 0
            for corner in range(8):
                bits = torch.tensor([corner >> axis & 1 for axis in range(3)])
                vertex = cell.long() + bits
                terms = vertex * torch.tensor([1, 2654435761, 805459861])
                row = (terms[..., 0] ^ terms[..., 1] ^ terms[..., 2]) % size + level * size
                weight = torch.where(bits.bool(), fraction, 1 - fraction).prod(dim=-1)
                total = total + weight[..., None] * table[row]
            outputs.append(total)
        return torch.cat(outputs, dim=-1)

    return encode


def away_from_borders(n: int, scales: list[float], low: float = 0.0) -> Tensor:
    x = low + (1 - low) * torch.rand(8 * n, 3)
    far = [((x * scale - (x * scale).round()).abs() > 4e-3).all(dim=1) for scale in scales]
    return x[torch.stack(far).all(dim=0)][:n]


@pytest.mark.parametrize("features", [1, 2, 3, 8])
def test_hash_encoding(features: int) -> None:
    torch.manual_seed(0)
    encoding = nerfstudio.HashEncoding(5, 4, 64, 9, features, implementation="torch")
    torch.manual_seed(0)
    start = (torch.rand(5 * 512, features) * 2 - 1) * 0.001
    assert list(encoding.state_dict()) == ["hash_table"] and torch.equal(encoding.hash_table, start)
    scales = [4.0, 8.0, 16.0, 32.0, 64.0]
    assert encoding.scalings.tolist() == scales and encoding.get_out_dim() == 5 * features
    x = away_from_borders(200, scales, low=-0.5)
    assert_same(encoding, hash_twin(scales, 512), x, [encoding.hash_table])
    assert encoding(torch.rand(2, 3, 3)).shape == (2, 3, 5 * features)


def test_resolutions_are_rounded_as_there() -> None:
    """In fp32, which loses one of 2048."""
    scalings = nerfstudio.HashEncoding(16, 16, 2048, 4, implementation="torch").scalings
    assert scalings[-1] == 2047 and scalings[:4].tolist() == [16, 22, 30, 42]


def perceptron_twin(n: int, skips: tuple[int, ...], hidden: Callable, last: Callable) -> Callable[..., Tensor]:
    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        y = x
        for i in range(n):
            weight, bias = parameters[2 * i : 2 * i + 2]
            y = (torch.cat((x, y), dim=-1) if i in skips else y) @ weight.T + bias
            y = hidden(y) if i < n - 1 else last(y)
        return y

    return run


@pytest.mark.parametrize(
    "n, skips, activation, out_activation",
    [
        (1, (), nn.ReLU(), None),
        (2, (), nn.Softplus(), nn.Sigmoid()),
        (4, (2,), nn.ReLU(), nn.Tanh()),
        (3, (), None, nn.GELU()),
        (11, (), nn.Tanh(), None),
    ],
)
def test_mlp(n: int, skips: tuple[int, ...], activation: nn.Module | None, out_activation: nn.Module | None) -> None:
    torch.manual_seed(0)
    mlp = nerfstudio.MLP(6, n, 24, 5, skips, activation, out_activation)
    assert mlp.get_out_dim() == 5 and nerfstudio.MLP(6, 2, 24).get_out_dim() == 24
    torch.manual_seed(0)
    first = nn.Linear(6, 24 if n > 1 else 5)
    assert torch.equal(mlp.layers[0].weight, first.weight) and torch.equal(mlp.layers[0].bias, first.bias)
    names = [f"layers.{i}.{kind}" for i in range(n) for kind in ("weight", "bias")]
    assert list(mlp.state_dict()) == names
    twin = perceptron_twin(n, skips, activation or nn.Identity(), out_activation or nn.Identity())
    assert_same(mlp, twin, torch.randn(4, 10, 6), [*mlp.parameters()])


def test_mlp_with_hash_encoding() -> None:
    sizes = {"num_levels": 4, "min_res": 4, "max_res": 32, "log2_hashmap_size": 10}
    model = nerfstudio.MLPWithHashEncoding(**sizes, hash_init_scale=1.0, out_dim=3, layer_width=32)
    assert [*model.state_dict()][:2] == ["model.0.hash_table", "model.1.layers.0.weight"]
    scales = [4.0, 8.0, 16.0, 32.0]
    encode, run = hash_twin(scales, 1024), perceptron_twin(2, (), nn.ReLU(), nn.Identity())

    def twin(x: Tensor, table: Tensor, *parameters: Tensor) -> Tensor:
        return run(encode(x, table), *parameters)

    assert_same(model, twin, away_from_borders(200, scales), [*model.parameters()])


def harmonics_twin(d: Tensor) -> Tensor:
    """By associated Legendre polynomials of the angle, without the phase."""
    x, y, z = d.unbind(-1)
    phi, columns = torch.atan2(y, x), []
    for band in range(5):
        for m in range(-band, band + 1):
            n = abs(m)
            coefficients = torch.tensor([1.0], dtype=torch.float64)
            square = torch.tensor([-1.0, 0, 1], dtype=torch.float64)
            for _ in range(band):  # (z^2 - 1)^l, lowest power first
                coefficients = torch.stack(
                    [
                        (
                            coefficients[max(0, k - 2) : k + 1]
                            * square[[k - j for j in range(max(0, k - 2), k + 1) if j < len(coefficients)]]
                        ).sum()
                        for k in range(len(coefficients) + 2)
                    ]
                )
            for _ in range(band + n):
                coefficients = coefficients[1:] * torch.arange(1, len(coefficients))
            legendre = sum(c * z**k for k, c in enumerate(coefficients)) / (2**band * math.factorial(band))
            norm = math.sqrt((2 * band + 1) / (4 * math.pi) * math.factorial(band - n) / math.factorial(band + n))
            wave = 1 if m == 0 else math.sqrt(2) * (torch.cos(n * phi) if m > 0 else torch.sin(n * phi))
            columns.append(norm * legendre * (1 - z * z).clamp(min=0) ** (n / 2) * wave)
    return torch.stack(columns, dim=-1)


def test_spherical_harmonics() -> None:
    d = nn.functional.normalize(torch.randn(100, 3), dim=1)
    y = nerfstudio.SHEncoding(5)(d)
    torch.testing.assert_close(y.double(), harmonics_twin(d.double()), rtol=0, atol=2e-6)
    assert y[0, 1] * d[0, 1] > 0 and not nerfstudio.SHEncoding(2)(d.requires_grad_()).requires_grad
    torch.testing.assert_close(nerfstudio.SHEncoding(3)(d), y[:, :9])
    for levels in (0, 6):
        with pytest.raises(ValueError, match="levels"):
            nerfstudio.SHEncoding(levels)


def test_nerf_encoding() -> None:
    encoding = nerfstudio.NeRFEncoding(4, 3, 0, 5, include_input=True)
    assert encoding.get_out_dim() == 28
    frequencies = 2 * math.pi * 2.0 ** torch.tensor([0, 2.5, 5], dtype=torch.float64)

    def twin(x: Tensor) -> Tensor:
        phases = (x[..., None] * frequencies).flatten(-2)
        return torch.cat((phases.sin(), phases.cos(), x), dim=-1)

    assert_same(encoding, twin, torch.rand(2, 10, 4) / 4, [])
    x, covs = torch.rand(5, 4) / 4, torch.diag_embed(torch.rand(5, 4) * 1e-3)
    damped = encoding(x, covs=covs)[:, :12] / encoding(x)[:, :12]
    variances = (covs.diagonal(dim1=1, dim2=2)[..., None] * 2 ** torch.tensor([0, 5.0, 10])).flatten(1)
    torch.testing.assert_close(damped, (-variances / 2).exp(), rtol=1e-4, atol=1e-4)


def test_other_implementations_are_tiny_cuda_nn() -> None:
    x = torch.rand(10, 3)
    config = {"otype": "HashGrid", "n_levels": 4, "n_features_per_level": 2, "log2_hashmap_size": 10}
    config |= {"base_resolution": 16, "per_level_scale": 4.0 ** (1 / 3), "interpolation": "Smoothstep"}
    network = {"otype": "FullyFusedMLP", "activation": "Softplus", "n_neurons": 32, "n_hidden_layers": 2}
    sizes = {"num_levels": 4, "max_res": 64, "log2_hashmap_size": 10, "interpolation": "Smoothstep"}
    layers = {"num_layers": 3, "layer_width": 32, "out_dim": 7, "activation": nn.Softplus()}
    for name in ("tcnn", "hashgrid"):
        encoding = nerfstudio.HashEncoding(**sizes, implementation=name)
        both = nerfstudio.MLPWithHashEncoding(**sizes, **layers, implementation=name)
        mlp = nerfstudio.MLP(3, **layers, implementation=name)
        assert [*encoding.state_dict(), *both.state_dict()] == ["tcnn_encoding.params", "model.params"]
        torch.testing.assert_close(encoding(x), tinycudann.Encoding(3, config)(x))
        torch.testing.assert_close(both(x), tinycudann.NetworkWithInputEncoding(3, 7, config, network)(x))
        torch.testing.assert_close(mlp(x), tinycudann.Network(3, 7, network)(x))
        harmonics = nerfstudio.SHEncoding(3, implementation=name)(x)
        torch.testing.assert_close(harmonics.abs(), nerfstudio.SHEncoding(3)(2 * x - 1).abs())
        assert nerfstudio.NeRFEncoding(3, 4, 0, 3, implementation=name)(x).shape == (10, 24)


def test_wrong_arguments_are_told() -> None:
    wrong: list[tuple[str, Callable]] = [
        ("implementation", lambda: nerfstudio.HashEncoding(implementation="numpy")),
        ("interpolation", lambda: nerfstudio.HashEncoding(implementation="torch", interpolation="Nearest")),
        ("skip_connections", lambda: nerfstudio.MLP(3, 3, 16, skip_connections=(1,), implementation="tcnn")),
        ("skip_connections", lambda: nerfstudio.MLP(3, 3, 16, skip_connections=(0,))),
        ("activations", lambda: nerfstudio.MLP(3, 3, 16, activation=nn.GELU(), implementation="hashgrid")),
        ("exponents", lambda: nerfstudio.NeRFEncoding(3, 4, 0, 4, implementation="tcnn")),
        ("in_dim", lambda: nerfstudio.NeRFEncoding(0, 4, 0, 4)),
    ]
    for message, make in wrong:
        with pytest.raises(ValueError, match=message):
            make()
