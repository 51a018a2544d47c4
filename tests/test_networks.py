"""Coordinate networks: what is drawn at the start against theory, layers against plain formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from problems.jets import jet_by_reverse_mode
from torch import Tensor, nn

from hashgrid import (
    MLP,
    Bacon,
    CoordX,
    FusedMLP,
    LearnedFourier,
    Lines,
    MultiplicativeFilterNetwork,
    Planes,
    PlanesAndLines,
    Siren,
    Wire,
    derivatives_along,
    value_and_laplacian,
)
from hashgrid.nn.wire import GaborWavelets
from hashgrid.optim import Adam
from hashgrid.train.groups import adam_groups

# ---- SIREN -----------------------------------------------------------------------------------------------------------


def theory(d: int, width: int, bias: bool) -> dict[str, float]:
    """Standard deviations of arguments of sines and of sines, layer by layer, and rms of gradients and Laplacians of 4
    layers of sines with w0 = 30, in the limit of many neurons: sums are Gaussian, and what is in them independent. From
    the bounds alone: weights of variance 1 / (3 d^2), then 2 / (900 n); biases of variance 1 / (3 inputs)."""
    v = 900 * (1 / (9 * d) + (1 / (3 * d) if bias else 0))
    gradient, laplacian = 300 / d**2, 0.0  # variances, of a component and of the sum of second derivatives
    square = d * (30 / d) ** 4 / 5 + d * (d - 1) * (300 / d**2) ** 2  # mean of |gradient|^4, of uniform weights
    result = {"argument_0": math.sqrt(v)}
    for layer in range(4):
        decay = math.exp(-2 * v)  # the mean of cos(2 z)
        result[f"sine_{layer}"] = math.sqrt((1 - decay) / 2)
        v = 1 - decay + (300 / width if bias else 0)
        laplacian = (1 + decay) * laplacian + (1 - decay) * square
        gradient *= 1 + decay
        square = gradient**2 * (d * d + 2 * d)
        result[f"argument_{layer + 1}"] = math.sqrt(v)
    return result | {"gradient": math.sqrt(d * gradient / 900), "laplacian": math.sqrt(laplacian / 900)}


def measured(d: int, width: int, bias: bool, n_seeds: int) -> dict[str, float]:
    """The same of networks as they are drawn."""
    sums: dict[str, float] = {}
    x = 2 * torch.quasirandom.SobolEngine(d).draw(64).double() - 1
    axes, total = torch.eye(d, dtype=torch.float64), torch.ones(1, d, dtype=torch.float64)
    for _ in range(n_seeds):
        siren = Siren(d, 4, width, 4, bias_init="default" if bias else "zero").double()
        with torch.no_grad():
            z, (weights, biases) = x, siren.layers_used()
            for layer in range(4):
                z = z @ weights[layer].T + biases[layer]
                sums[f"argument_{layer}"] = sums.get(f"argument_{layer}", 0) + float(z.square().mean())
                z = z.sin()
                sums[f"sine_{layer}"] = sums.get(f"sine_{layer}", 0) + float(z.square().mean())
            values, first, second = derivatives_along(siren, x, axes, total)
        torch.testing.assert_close(values, z @ weights[4].T + biases[4])
        sums["gradient"] = sums.get("gradient", 0) + float(first.square().sum(1).mean())
        sums["laplacian"] = sums.get("laplacian", 0) + float(second.square().mean())
    return {name: math.sqrt(value / n_seeds) for name, value in sums.items()}


@pytest.mark.parametrize(("width", "n_seeds"), [(64, 8), (256, 3), (512, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_siren_starts_with_the_statistics_of_theory(width: int, n_seeds: int, bias: bool) -> None:
    """Values within 5 %, derivatives, in which networks differ, within 20 %: a w0 that is missing is off by 30."""
    for d in (1, 2, 3):
        found, expected = measured(d, width, bias, n_seeds), theory(d, width, bias)
        for name, value in found.items():
            is_derivative = name in ("gradient", "laplacian")
            assert value == pytest.approx(expected[name], rel=0.2 if is_derivative else 0.05), (d, name)


def test_theory_of_siren_has_known_values() -> None:
    """Of 256 neurons in 1, 2 and 3 dimensions, as another program found them in networks that it drew."""
    with_bias, without = ([theory(d, 256, bias) for d in (1, 2, 3)] for bias in (True, False))
    for name, values in {
        "argument_0": (20.5, 14.3, 11.4),
        "gradient": (0.57, 0.40, 0.32),
        "laplacian": (31.4, 13.6, 8.1),
    }.items():
        np.testing.assert_allclose([row[name] for row in with_bias], values, rtol=0.1)
    for name, values in {
        "argument_0": (10.0, 7.0, 5.8),
        "argument_1": (1.0, 1.0, 1.0),
        "argument_2": (0.92, 0.92, 0.92),
        "gradient": (0.73, 0.50, 0.38),
        "laplacian": (37.6, 15.9, 9.0),
    }.items():
        np.testing.assert_allclose([row[name] for row in without], values, rtol=0.12)


def test_sirens_of_both_parametrisations_are_one_function_and_train_alike() -> None:
    nets = {}
    for factored in (True, False):
        torch.manual_seed(0)
        nets[factored] = Siren(2, 3, 16, 3, factored=factored)
    torch.manual_seed(0)
    fused = FusedMLP(2, 3, 16, 3, "sine", bias=True)
    x, target = 2 * torch.rand(64, 2) - 1, torch.rand(64, 3)
    torch.testing.assert_close(nets[True](x), nets[False](x))
    torch.testing.assert_close(nets[True](x), fused(x))
    for net in nets.values():
        optimizer = Adam(net.parameter_groups(1e-3), eps=1e-14)
        for _ in range(5):
            optimizer.zero_grad()
            (net(x) - target).square().mean().backward()
            optimizer.step()
    change = (nets[True](x) - fused(x)).abs().max()
    assert change > 0.05 and (nets[True](x) - nets[False](x)).abs().max() < 0.01 * change


def test_lucidrains_siren_has_w0_in_the_first_layer_alone() -> None:
    net = Siren(2, 1, 64, 3, w0_hidden=1, bias_init="weight")
    bounds = [float(weight.detach().abs().max()) for weight in net.weights]
    np.testing.assert_allclose(bounds, [0.5, *[math.sqrt(6 / 64)] * 3], rtol=0.05)
    assert all(bias.abs().max() <= bound for bias, bound in zip(net.biases, bounds, strict=True))
    weights, _ = net.layers_used()
    assert torch.equal(weights[0], 30 * net.weights[0]) and torch.equal(weights[1], net.weights[1])


@pytest.mark.parametrize("n_hidden_layers", [3, 10])
def test_laplacian_of_a_siren_is_that_of_central_differences(n_hidden_layers: int) -> None:
    """Whose error falls with the square of the step; 10 layers are two kernels."""
    net = Siren(2, 1, 32, n_hidden_layers, factored=False).double()
    x = 2 * torch.rand(50, 2, dtype=torch.float64) - 1
    values, laplacian = value_and_laplacian(net, x)
    errors = []
    for step in (1e-3, 1e-4):
        moves = torch.cat((torch.eye(2), -torch.eye(2))).double() * step
        differences = (net(x[:, None] + moves).sum(1) - 4 * values) / step**2
        errors.append(float(((differences - laplacian).norm() / laplacian.norm()).detach()))
    assert errors[0] < 3e-3 and errors[1] < errors[0] / 50


# ---- networks with skips ---------------------------------------------------------------------------------------------


def plain(mlp: MLP, x: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
    """NeRF's way to say it: the input comes after the activation, and before the layer."""
    h = x
    for layer, (weight, bias) in enumerate(zip(mlp.weights, mlp.biases, strict=True)):
        if layer in mlp.skips:
            h = torch.cat((h, x), dim=-1) * mlp.skip_scale
        h = h @ weight.T + bias
        h = act(h) if layer < mlp.n_hidden_layers else h
    return h


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_skips_of_three_papers(backend: str) -> None:
    x = torch.randn(7, 3, dtype=torch.float64)
    nerf = MLP(3, 2, 16, 8, skips=(5,), backend=backend).double()
    assert nerf.weights[5].shape == (16, 19) and nerf.weights[4].shape == (16, 16)
    torch.testing.assert_close(nerf(x), plain(nerf, x, torch.relu))
    igr = MLP(
        3, 1, 16, 8, "softplus", "none", True, (4,), 2**-0.5, narrow_skips=True, softplus_beta=100, backend=backend
    )
    igr = igr.double()
    assert igr.weights[3].shape == (13, 16) and igr.weights[4].shape == (16, 16)
    torch.testing.assert_close(igr(x), plain(igr, x, nn.Softplus(100)))
    deep = MLP(3, 1, 8, 12, "tanh", backend=backend).double()
    torch.testing.assert_close(deep(x), plain(deep, x, torch.tanh))
    before = MLP(3, 1, 8, 2, skips=(1,), skip_place="before", backend=backend).double()
    h = torch.cat((x @ before.weights[0].T, x), dim=-1).relu()
    h = (h @ before.weights[1].T).relu()
    torch.testing.assert_close(before(x), h @ before.weights[2].T)


def test_weight_norm_leaves_the_start_as_it_is() -> None:
    mlp = MLP(3, 1, 16, 3, weight_norm=True)
    for used, weight in zip(mlp.layers_used()[0], mlp.weights, strict=True):
        torch.testing.assert_close(used, weight)
    x = torch.rand(5, 3)
    y = mlp(x)
    y.sum().backward()
    with torch.no_grad():  # lengths of directions mean nothing
        for weight in mlp.weights:
            assert (weight * weight.grad).sum(1).abs().max() < 1e-4 * weight.grad.abs().max()
            weight *= 3
    torch.testing.assert_close(mlp(x), y)


def test_dropout_is_of_training_alone() -> None:
    mlp = MLP(3, 400, 64, 2, dropout=0.3)
    x = torch.rand(50, 3)
    assert not torch.equal(mlp(x), mlp(x))
    mlp.eval()
    torch.testing.assert_close(mlp(x), plain(mlp, x, torch.relu))
    mlp.train()
    with torch.no_grad():  # hidden outputs of 1, of which 0.7 come through as 1 / 0.7
        mlp.weights[1].zero_()
        mlp.biases[1].fill_(1)
        mlp.weights[2].fill_(1 / 64)
    outputs = mlp(x)[:, 0].detach()
    assert float(outputs.mean()) == pytest.approx(1, abs=0.03) and float(outputs.std()) > 0.03


def test_weight_decay_leaves_directions_of_dead_neurons() -> None:
    """Adam gives what a dead neuron's weights see of coupled decay, some 1e-8, a full step."""
    mlp = MLP(3, 1, 16, 2, weight_norm=True)
    with torch.no_grad():
        mlp.biases[0][5] = -100.0
    before, x = mlp.weights[0][5].clone(), torch.rand(64, 3)
    optimizer = Adam(adam_groups(mlp, 1e-6), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        mlp(x).square().mean().backward()
        optimizer.step()
    assert torch.equal(mlp.weights[0][5], before)
    with torch.no_grad():
        mlp.weights[1][3] = 0.0
    mlp(x).square().mean().backward()
    assert mlp(x).isfinite().all() and all(param.grad.isfinite().all() for param in mlp.parameters())


@pytest.mark.parametrize("weight_norm", [False, True])
def test_geometric_start_is_a_sphere(weight_norm: bool) -> None:
    """Negative at the centre and positive outside; in the mean over 3 networks, whose slopes go from .93 to 1.17, zero
    within 15 % of the radius, and within 25 % in every direction, with frequencies beside the coordinates. Without
    the scale of the skip it would be at .7 of the radius."""
    radius, n_seeds = 0.7, 3
    directions = nn.functional.normalize(torch.randn(40, 3), dim=-1)
    distances = torch.cat((torch.tensor([0.0]), torch.linspace(0.5, 1.5, 41)))  # in units of the radius
    at = radius * distances[:, None, None] * directions  # [42, 40, 3]
    inputs = torch.cat((at, torch.cos(9 * at)), dim=-1)
    total = torch.zeros(42, 40)
    for _ in range(n_seeds):
        options = {"skips": (4,), "skip_scale": 2**-0.5, "narrow_skips": True, "softplus_beta": 100.0}
        mlp = MLP(6, 1, 256, 8, "softplus", weight_norm=weight_norm, **options)
        mlp.reset_geometric(radius, n_coordinates=3)
        with torch.no_grad():
            y = mlp(inputs).squeeze(-1)
        assert (y[0] < 0).all() and (y[-1] > 0).all()
        total += y / n_seeds
    crossing = distances[(total < 0).sum(0)]
    assert 0.85 < float(crossing.mean()) < 1.15 and 0.75 < crossing.min() and crossing.max() < 1.25
    mlp.reset_geometric(radius, n_coordinates=3, inside=1.0)
    assert (mlp(inputs[0]) > 0).all() and (mlp(inputs[-1]) < 0).all()


# ---- WIRE and CoordX -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("windows", [1, 2])
def test_wavelets_by_numpy(windows: int) -> None:
    w0, s0 = 8.0, 6.0
    layer = GaborWavelets(3, 5, w0, s0, windows, False, False).double()
    z = np.random.default_rng(0).normal(size=(7, 3, 2), scale=0.1) @ [1, 1j]
    weights, biases = ([], [])
    for linear in (layer.linear, layer.across)[:windows]:
        real, imaginary = linear.weight.detach().numpy()
        weights.append(real + 1j * imaginary)
        biases.append(linear.bias.detach().numpy()[0] + 1j * linear.bias.detach().numpy()[1])
    parts = [z @ weight.T + bias for weight, bias in zip(weights, biases, strict=True)]
    expected = np.exp(1j * w0 * parts[0] - s0**2 * sum(np.abs(part) ** 2 for part in parts))
    found = layer(torch.from_numpy(np.concatenate((z.real, z.imag), -1))).detach().numpy()
    np.testing.assert_allclose(found[:, :5] + 1j * found[:, 5:], expected, atol=1e-6)


@pytest.mark.parametrize(("w0", "s0"), [(20.0, 30.0), (15.0, 10.0), (20.0, 10.0)])
def test_wavelets_are_bounded(w0: float, s0: float) -> None:
    """By exp((w0 / s0)^2 / 4), 1.76 and 2.72 of the last two, which one z reaches."""
    layer = GaborWavelets(1, 1, w0, s0, 1, False, False)
    with torch.no_grad():
        layer.linear.weight.copy_(torch.tensor([1.0, 0.0])[:, None, None])
        layer.linear.bias.zero_()
        z = torch.cat((torch.randn(2000, 2) / s0, torch.tensor([[0.0, -w0 / (2 * s0**2)]])))
        sizes = layer(z).norm(dim=-1)
    bound = math.exp((w0 / s0) ** 2 / 4)
    assert sizes.max() <= bound * (1 + 1e-5) and float(sizes[-1]) == pytest.approx(bound, rel=1e-5)


def test_wire_has_as_many_parameters_as_it_says() -> None:
    """Of a real network of the same layers, but for the first, which sees real numbers."""
    sizes = {windows: sum(p.numel() for p in Wire(2, 3, 256, windows=windows).parameters()) for windows in (1, 2)}
    real = sum(p.numel() for p in MLP(2, 3, 256, 3).parameters())
    assert all(0.95 < size / real < 1.05 for size in sizes.values())


@pytest.mark.parametrize("fusion", ["product", "sum", "concat"])
@pytest.mark.parametrize("groups", [None, ((1,), (2, 0))])
def test_grid_of_coordx_is_that_of_its_points(fusion: str, groups: tuple[tuple[int, ...], ...] | None) -> None:
    net = CoordX(3, 2, 16, fusion=fusion, groups=groups)
    axes = [2 * torch.rand(n) - 1 for n in (4, 5, 6)]
    points = torch.cartesian_prod(*axes)
    if groups is None:
        values, expected = net.grid(axes), net(points).view(4, 5, 6, 2)
    else:  # time, and pairs of places
        pairs = torch.cartesian_prod(axes[2], axes[0])
        values = net.grid([axes[1], pairs]).view(5, 6, 4, 2).permute(2, 0, 1, 3)
        expected = net(points).view(4, 5, 6, 2)
    assert (values - expected).abs().max() < 1e-6


def test_coordx_by_numpy() -> None:
    net = CoordX(2, 1, 8, 4, 2).double()
    x = 2 * torch.rand(5, 2, dtype=torch.float64) - 1
    p = {name: value.numpy() for name, value in net.state_dict().items()}

    def sines(h: np.ndarray, name: str) -> np.ndarray:
        return np.sin(30 * (h @ p[f"{name}.weight"].T + p[f"{name}.bias"]))

    branches = [sines(sines(x.numpy()[:, [i]], f"first.{i}"), "shared.0") for i in range(2)]
    h = sines(sines(branches[0] * branches[1], "rest.0"), "rest.1")
    expected = h @ p["rest.2.weight"].T + p["rest.2.bias"]
    np.testing.assert_allclose(net(x).detach().numpy(), expected, atol=1e-12)


# ---- all of them -----------------------------------------------------------------------------------------------------

NETWORKS: dict[str, Callable[[str], nn.Module]] = {
    "skips": lambda b: MLP(3, 2, 8, 4, "tanh", skips=(1, 3), skip_scale=0.7, weight_norm=True, backend=b),
    "beta": lambda b: MLP(3, 2, 8, 3, "softplus", skips=(2,), skip_place="before", softplus_beta=9.0, backend=b),
    "siren": lambda b: Siren(3, 2, 8, 9, backend=b),
    "wire": lambda b: Wire(3, 2, 8, w0=4, s0=3),
    "wire 2d": lambda b: Wire(3, 2, 8, w0=4, s0=3, windows=2, trainable=True, w0_first=6.0),
    "fourier filters": lambda b: MultiplicativeFilterNetwork(3, 2, 8, input_scale=9, backend=b),
    "gabor filters": lambda b: MultiplicativeFilterNetwork(3, 2, 8, filters="gabor", input_scale=9, backend=b),
    "bacon": lambda b: Bacon(3, 2, 8, resolution=8, backend=b),
    "coordx": lambda b: CoordX(3, 2, 8, backend=b),
    "coordx sum": lambda b: CoordX(3, 2, 8, fusion="sum", groups=((0, 2), (1,)), backend=b),
    "coordx concat": lambda b: CoordX(3, 2, 8, fusion="concat", backend=b),
    "planes": lambda b: Planes(3, (4, 6), 4, backend=b),
    "lines": lambda b: Lines(3, (4, 6), 8, backend=b),
    "planes and lines": lambda b: PlanesAndLines(3, (4, 6), 2, backend=b),
    "fourier": lambda b: LearnedFourier(3, 8, 1.0, backend=b),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_derivatives_along_directions(name: str) -> None:
    """On native kernels, against reverse mode on the reference: they, and a loss of them."""
    native, plain = (NETWORKS[name](backend).double() for backend in ("native", "reference"))
    plain.load_state_dict(native.state_dict())
    x, directions = torch.rand(4, 3, dtype=torch.float64), torch.randn(4, 2, 3, dtype=torch.float64)
    operators = torch.randn(3, 2, dtype=torch.float64)
    expected = jet_by_reverse_mode(plain, x, directions)
    torch.testing.assert_close(native(x), expected[0])
    for jets, seconds in (
        (derivatives_along(native, x, directions), expected[2]),
        (derivatives_along(native, x, directions, operators), operators @ expected[2]),
    ):
        for a, b in zip(jets, (*expected[:2], seconds), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10 * float(b.detach().abs().max()))
    for results in (derivatives_along(native, x, directions), expected):
        sum(result.square().mean() for result in results).backward()
    for a, b in zip(native.parameters(), plain.parameters(), strict=True):
        if a.grad is not None and b.grad is not None:  # not those of BACON's other outputs
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-9 * float(b.grad.abs().max()))


@pytest.mark.parametrize("name", ["siren", "fourier", "bacon", "coordx"])
def test_sines_are_not_rounded_under_autocast(name: str) -> None:
    net, x = NETWORKS[name]("native"), 2 * torch.rand(20, 3) - 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(x)
    torch.testing.assert_close(y.float(), net(x), rtol=0, atol=0.05 if name == "bacon" else 1e-6)  # its products are


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(3, 1, skips=(9,)), r"`skips` must be layers in 1..8, got \(9,\)"),
        (lambda: MLP(3, 1, 3, 4, skips=(2,), narrow_skips=True), "`n_neurons` must be above the 3 inputs"),
        (lambda: MLP(3, 1, dropout=1.0), r"`dropout` must be in \[0, 1\), got 1.0"),
        (lambda: MLP(3, 1, bias=False).reset_geometric(), "`bias` must be True for a sphere"),
        (lambda: MLP(3, 1).reset_geometric(n_coordinates=4), "`n_coordinates` must be in 1..3"),
        (lambda: MLP(3, 1, 8, 2)(torch.rand(5, 2)), r"`x` must have shape \[..., 3\], got \[5, 2\]"),
        (lambda: Siren(2, 1, w0=0.0), "`w0` and `w0_hidden` must be positive and finite, got 0.0"),
        (lambda: Siren(2, 1, n_hidden_layers=0), "`n_hidden_layers` must be at least 1, got 0"),
        (lambda: Wire(2, 1, s0=0.0), "`w0` and `w0_first` must be at least 0 and `s0` above it"),
        (lambda: Wire(2, 1, windows=3), "`windows` must be 1 or 2, got 3"),
        (lambda: CoordX(2, 1, n_split_layers=5), "`n_split_layers` must be in 1..4"),
        (lambda: CoordX(2, 1, groups=((0,),)), "`groups` must hold each of 2 coordinates once"),
        (lambda: CoordX(2, 1, 8).grid([torch.rand(3)]), "`axes` must be 2 tensors, one per group, got 1"),
        (lambda: CoordX(2, 1, 8).grid([torch.rand(3), torch.rand(3, 2)]), r"`axes\[1\]` must have shape \[N, 1\]"),
        (lambda: Planes(3, axes=((0, 3),)), r"`axes` must be groups of different axes below 3, got \(0, 3\)"),
        (lambda: Planes(3, axes=()), "`axes` must name at least one plane, got none"),
        (lambda: Planes(3, n_features=12), "`n_features` must be 1, 2, 4 or a multiple of 8, got 12"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
