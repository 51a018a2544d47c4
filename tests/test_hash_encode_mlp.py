"""A hash grid and the network behind it in one kernel, against the two ops and the reference."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from hashgrid import FusedMLP, HashGrid, NetworkWithInputEncoding, SphericalHarmonics, ops, reference
from hashgrid.levels import LevelTable, make_level_table
from hashgrid.ops import _ngp

pytestmark = pytest.mark.every_kernel

BF16, FP16 = torch.bfloat16, torch.float16
UNITS = {BF16: 2**-9, FP16: 2**-12}  # half a unit in the last place of 1
SIZES = (0, 1, 31, 33, 257)  # warps take 32 points, blocks 128
NETWORKS = {
    "density": ([64, 16], False, "relu", "none"),
    "deep": ([100, 128, 31, 5], True, "relu", "sigmoid"),
    "smooth": ([32, 3], True, "softplus", "exp"),
    "linear": ([1], False, "relu", "none"),
}


def make_levels(n_dims: int, n_levels: int = 5) -> LevelTable:
    return make_level_table(n_dims, n_levels, log2_hashmap_size=9, base_resolution=5, max_resolution=60)


def make_network(width: int, name: str) -> dict:
    widths, bias, activation, output_activation = NETWORKS[name]
    shapes = list(zip(widths, [width, *widths[:-1]], strict=True))
    return {
        "weights": [torch.randn(shape) / shape[1] ** 0.5 for shape in shapes],
        "biases": [0.1 * torch.randn(shape[0]) for shape in shapes] if bias else None,
        "activation": activation,
        "output_activation": output_activation,
    }


def two_ops(library, positions: Tensor, table: Tensor, levels: LevelTable, network: dict, **options) -> Tensor:
    compute_dtype = options.pop("compute_dtype", None)
    encode = (_ngp if library is ops else library).hash_encode_into
    encoded = encode(positions, table, levels, **options)
    return library.mlp(encoded, **network, compute_dtype=compute_dtype)


@pytest.mark.parametrize("compute_dtype", [BF16, FP16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("n_dims", "n_features"), [(2, 2), (3, 2), (3, 4), (2, 8)])
def test_has_the_bits_of_the_two_ops(n_dims: int, n_features: int, network: str, compute_dtype: torch.dtype) -> None:
    """And is as close to the truth as rounding the factors of every product allows."""
    levels = make_levels(n_dims)
    table = torch.randn(levels.n_entries, n_features)
    layers = make_network(levels.n_levels * n_features, network)
    for n in SIZES:
        x = torch.rand(n, n_dims)
        y = _ngp.hash_encode_mlp(x, table, levels, **layers, compute_dtype=compute_dtype)
        assert torch.equal(y, two_ops(ops, x, table, levels, layers, compute_dtype=compute_dtype))
        exact = {name: _double(value) for name, value in layers.items()}
        truth = two_ops(reference, x.double(), table.double(), levels, exact)
        # each layer rounds its factors; the derivative of the output activation is at most what comes out, or 1
        allowed = 6 * len(layers["weights"]) * UNITS[compute_dtype] * (1 + truth.abs().amax().item() if n else 0)
        assert y.shape == truth.shape and torch.all((y - truth).abs() <= allowed)


def _double(value):
    if isinstance(value, list):
        return [tensor.double() for tensor in value]
    return value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n_dims", "n_features"), [(1, 1), (3, 1), (4, 2), (5, 8)])
def test_other_shapes_and_dtypes(n_dims: int, n_features: int, dtype: torch.dtype) -> None:
    """Where features do reach memory on a GPU."""
    levels = make_levels(n_dims)
    x, table = torch.rand(300, n_dims, dtype=dtype), torch.randn(levels.n_entries, n_features, dtype=dtype)
    layers = make_network(levels.n_levels * n_features, "smooth")
    layers |= {name: [tensor.to(dtype) for tensor in layers[name]] for name in ("weights", "biases")}
    y = _ngp.hash_encode_mlp(x, table, levels, **layers)
    assert y.dtype == dtype and torch.equal(y, two_ops(ops, x, table, levels, layers))
    if dtype == torch.float32:
        half_table = table.bfloat16()
        y = _ngp.hash_encode_mlp(x, table, levels, **layers, half_table=half_table)
        assert torch.equal(y, two_ops(ops, x, table, levels, layers, half_table=half_table))


@pytest.mark.parametrize("n_dims", [2, 3])
def test_axes_that_differ(n_dims: int) -> None:
    levels = make_level_table(n_dims, 5, 9, (5, 9, 3)[:n_dims], (60, 30, 8)[:n_dims])
    assert levels.per_axis
    x, table = torch.rand(100, n_dims), torch.randn(levels.n_entries, 2)
    layers = make_network(levels.n_levels * 2, "density")
    y = _ngp.hash_encode_mlp(x, table, levels, **layers, compute_dtype=BF16)
    assert torch.equal(y, two_ops(ops, x, table, levels, layers, compute_dtype=BF16))
    torch.testing.assert_close(y, two_ops(reference, x, table, levels, layers), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("interpolation", ["linear", "smoothstep", "nearest"])
@pytest.mark.parametrize("bounds", ["clamp", "zero", "none"])
@pytest.mark.parametrize("half", [None, BF16, FP16], ids=["fp32", "bf16", "fp16"])
def test_encoding_options_the_grid(interpolation: str, bounds: str, half: torch.dtype | None) -> None:
    """Positions outside, infinite and NaN; level weights; a table of 16 bits, also of another type than the factors."""
    levels = make_levels(3)
    table = torch.randn(levels.n_entries, 2)
    x = 1.6 * torch.rand(200, 3) - 0.3
    x[3, 1], x[70, 0] = float("nan"), float("inf")
    options = {
        "interpolation": interpolation,
        "bounds": bounds,
        "level_weights": torch.rand(levels.n_levels),
        "half_table": None if half is None else table.to(half),
    }
    layers = make_network(levels.n_levels * 2, "density")
    y = _ngp.hash_encode_mlp(x, table, levels, **layers, **options, compute_dtype=BF16)
    expected = two_ops(ops, x, table, levels, layers, **options, compute_dtype=BF16)
    assert torch.equal(y.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert y[3].isnan().all() and y[70].isnan().all() and y.isfinite().all(1).sum() == 198


@pytest.mark.cpu_only
def test_more_points_than_the_workspace_holds_on_the_cpu() -> None:
    levels = make_levels(3, n_levels=16)
    x, table = torch.rand((1 << 19) + 777, 3), torch.randn(levels.n_entries, 2)
    layers = make_network(32, "density")
    assert torch.equal(_ngp.hash_encode_mlp(x, table, levels, **layers), two_ops(ops, x, table, levels, layers))


def test_one_kernel_where_there_is_one(kernels: str, request: pytest.FixtureRequest) -> None:
    """Counted: with a gradient, in fp32, with one feature, or wider than 128 it is the two ops."""
    if kernels != "cuda_on_host":
        pytest.skip("launches are counted by the emulation")
    host = request.getfixturevalue("cuda_on_host")

    def launches(n_features: int = 2, width: int = 64, recorded: bool = False, **options) -> tuple[int, int]:
        levels = make_levels(3)
        table = torch.randn(levels.n_entries, n_features).requires_grad_(recorded)
        weights = [torch.randn(width, levels.n_levels * n_features), torch.randn(3, width)]
        before = host.launches()
        _ngp.hash_encode_mlp(torch.rand(40, 3), table, levels, weights, **options)
        after = host.launches()
        names = "hash_encode_mlp_kernel", "hash_encode_forward_kernel"
        return tuple(after.get(name, 0) - before.get(name, 0) for name in names)

    assert launches(compute_dtype=BF16) == launches(compute_dtype=FP16, width=128) == (1, 0)
    with torch.autocast("cpu", dtype=BF16):
        assert launches() == (1, 0)
    with torch.no_grad():
        assert launches(compute_dtype=BF16, recorded=True) == (1, 0)
    assert launches() == (0, 1)
    for other in ({"recorded": True}, {"n_features": 1}, {"width": 130}):
        assert launches(compute_dtype=BF16, **other) == (0, 1), other


def grid_and_network(**options) -> tuple[HashGrid, FusedMLP]:
    grid = HashGrid(3, n_levels=4, log2_hashmap_size=8, base_resolution=4, max_resolution=32, **options)
    torch.nn.init.normal_(grid.table)
    return grid, FusedMLP(grid.n_output_dims, 5, n_neurons=32, n_hidden_layers=1, compute_dtype=BF16)


@pytest.mark.parametrize("half", [None, BF16], ids=["fp32", "bf16"])
def test_module(half: torch.dtype | None) -> None:
    grid, network = grid_and_network(compute_dtype=half)
    module = NetworkWithInputEncoding(grid, network)
    x, level_weights = torch.rand(2, 9, 3), torch.rand(4)
    expected = network(grid(x, level_weights))
    with torch.no_grad():
        y = module(x, level_weights)
    assert y.shape == (2, 9, 5) and torch.equal(y, expected)
    grads = torch.autograd.grad(module(x, level_weights).sum(), list(module.parameters()))
    for a, b in zip(grads, torch.autograd.grad(expected.sum(), list(module.parameters())), strict=True):
        torch.testing.assert_close(a, b)


def test_module_of_other_modules() -> None:
    directions = torch.nn.functional.normalize(torch.randn(7, 3), dim=1)
    encoding, network = SphericalHarmonics(4), torch.nn.Linear(16, 2)
    assert torch.equal(NetworkWithInputEncoding(encoding, network)(directions), network(encoding(directions)))


def test_bad_input_is_refused() -> None:
    grid, network = grid_and_network()
    with pytest.raises(ValueError, match=r"`network` must have 8 inputs, as `encoding` has outputs, got 9"):
        NetworkWithInputEncoding(grid, FusedMLP(9, 5))
    arguments: Sequence = torch.rand(4, 3), grid.table, grid.levels
    layers = network.op_arguments()
    with torch.no_grad():
        with pytest.raises(ValueError, match=r"`x` must have shape \[..., 3\], got \[4, 2\]"):
            NetworkWithInputEncoding(grid, network)(torch.rand(4, 2))
        with pytest.raises(ValueError, match=r"`positions` must have shape \[..., 3\], got \[4, 2\]"):
            _ngp.hash_encode_mlp(torch.rand(4, 2), *arguments[1:], **layers)
        with pytest.raises(ValueError, match=r"`interpolation` must be"):
            _ngp.hash_encode_mlp(*arguments, **layers, interpolation="cubic")
        with pytest.raises(ValueError, match=r"`weights\[0\]` must have shape \[out, 8\], got \[32, 7\]"):
            _ngp.hash_encode_mlp(*arguments, **{**layers, "weights": [torch.rand(32, 7)]})
        with pytest.raises(RuntimeError, match=r"covers entries"):
            _ngp.hash_encode_mlp(arguments[0], grid.table[:5], grid.levels, **layers)
