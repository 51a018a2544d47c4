"""The reference hash encoding against plain Python integers, finite differences and its own contracts."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from problems.hash_encode import safe_positions
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from hashgrid.levels import LevelTable, make_level_table
from hashgrid.reference import hash_encode, hash_encode_into

PRIMES = (1, 2654435761, 805459861, 3674653429, 2097192037, 1434869437, 2165219737)


def small_levels(n_input_dims: int = 3, **options) -> LevelTable:
    return make_level_table(
        n_input_dims,
        **{"n_levels": 3, "log2_hashmap_size": 6, "base_resolution": 3, "per_level_scale": 1.7} | options,
    )


def brute_force(x: list[float], table: list[list[float]], levels: LevelTable, interpolation: str) -> list[float]:
    """One point with Python floats and integers, straight from the definition."""
    y = []
    for level in range(levels.n_levels):
        p = [scale * coordinate + levels.shift for scale, coordinate in zip(levels.scales[level], x, strict=True)]
        cell = [math.floor(v) for v in p]
        f = [v - c for v, c in zip(p, cell, strict=True)]
        if interpolation == "smoothstep":
            f = [v * v * (3 - 2 * v) for v in f]
        if interpolation == "nearest":
            f = [0.0 for _ in f]
        total = [0.0] * len(table[0])
        for corner in itertools.product((0, 1), repeat=len(x)):
            weight = math.prod(v if bit else 1 - v for v, bit in zip(f, corner, strict=True))
            vertex = [(c + bit) % 2**32 for c, bit in zip(cell, corner, strict=True)]
            if levels.hashed[level]:
                index = 0
                for coordinate, prime in zip(vertex, PRIMES, strict=False):
                    index ^= coordinate * prime % 2**32
            else:
                index = sum(v * math.prod(levels.resolutions[level][:d]) for d, v in enumerate(vertex)) % 2**32
            entry = table[levels.offsets[level] + index % levels.sizes[level]]
            total = [t + weight * e for t, e in zip(total, entry, strict=True)]
        y += total
    return y


@pytest.mark.parametrize("per_axis", [False, True])
@pytest.mark.parametrize("n_input_dims", range(1, 8))
@pytest.mark.parametrize("interpolation", ["linear", "smoothstep", "nearest"])
def test_values_match_plain_python(n_input_dims: int, interpolation: str, per_axis: bool) -> None:
    sizes = {"base_resolution": [3, 5, 2, 4, 3, 2, 6][:n_input_dims]} if per_axis else {}
    levels = small_levels(n_input_dims, **sizes)
    assert levels.per_axis == (per_axis and n_input_dims > 1)
    assert any(levels.hashed) or n_input_dims == 1
    table = torch.randn(levels.n_entries, 2, dtype=torch.float64)
    # outside [0, 1] as well: "none" wraps negative cells
    x = torch.rand(5, n_input_dims, dtype=torch.float64) * 3 - 1
    y = hash_encode(x, table, levels, interpolation, bounds="none")
    expected = [brute_force(row, table.tolist(), levels, interpolation) for row in x.tolist()]
    torch.testing.assert_close(y, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
@pytest.mark.parametrize("n_input_dims", [1, 2, 3, pytest.param(7, marks=pytest.mark.full)])
def test_gradients_match_finite_differences(n_input_dims: int, interpolation: str) -> None:
    levels = small_levels(n_input_dims, n_levels=2, log2_hashmap_size=3)
    inputs = (
        safe_positions(levels, 2, margin=0.05).double().requires_grad_(),
        torch.randn(levels.n_entries, 2, dtype=torch.float64, requires_grad=True),
        torch.rand(levels.n_levels, dtype=torch.float64, requires_grad=True),
    )

    def encode(x: Tensor, table: Tensor, level_weights: Tensor) -> Tensor:
        return hash_encode(x, table, levels, interpolation, level_weights=level_weights)

    assert gradcheck(encode, inputs)
    assert gradgradcheck(encode, inputs)


def test_nearest_has_table_gradient_only() -> None:
    levels = small_levels(2)
    table = torch.randn(levels.n_entries, 2, dtype=torch.float64, requires_grad=True)
    x = safe_positions(levels, 4, margin=0.05).double()
    assert gradcheck(lambda table: hash_encode(x, table, levels, "nearest"), (table,))


def test_bounds_clamp_holds_border_and_stops_gradient() -> None:
    levels = small_levels(2)
    table = torch.randn(levels.n_entries, 2, dtype=torch.float64)
    x = torch.tensor([[1.3, 0.41], [-0.2, 0.41]], dtype=torch.float64, requires_grad=True)
    y = hash_encode(x, table, levels)
    assert torch.equal(y, hash_encode(x.detach().clamp(0, 1), table, levels))
    (grad_x,) = torch.autograd.grad(y.sum(), x)
    assert not grad_x[:, 0].any() and grad_x[:, 1].all()


def test_bounds_zero_gives_zeros_without_gradient() -> None:
    levels = small_levels(2)
    table = torch.randn(levels.n_entries, 2, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[1.3, 0.4], [0.3, 0.4]], dtype=torch.float64, requires_grad=True)
    y = hash_encode(x, table, levels, bounds="zero")
    assert not y[0].any() and torch.equal(y[1], hash_encode(x[1], table, levels))
    grad_x, grad_table = torch.autograd.grad(y[0].sum(), [x, table])
    assert not grad_x.any() and not grad_table.any()


@pytest.mark.parametrize("bounds", ["clamp", "zero", "none"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_positions_give_nan_and_no_gradient(bounds: str, bad: float) -> None:
    levels = small_levels(3)
    table = torch.randn(levels.n_entries, 2, requires_grad=True)
    level_weights = torch.ones(levels.n_levels, requires_grad=True)
    x = torch.tensor([[0.2, bad, 0.4], [0.2, 0.3, 0.4]])
    y = hash_encode(x, table, levels, bounds=bounds, level_weights=level_weights)
    assert y[0].isnan().all() and y[1].isfinite().all()
    gradients = torch.autograd.grad(y.sum(), [table, level_weights])
    clean = hash_encode(x[1:], table, levels, bounds=bounds, level_weights=level_weights)
    for gradient, expected in zip(gradients, torch.autograd.grad(clean.sum(), [table, level_weights]), strict=True):
        assert torch.equal(gradient, expected)


@pytest.mark.parametrize("magnitude", [1e9, 1e20, 3e38])
def test_huge_positions_are_defined(magnitude: float) -> None:
    levels = small_levels(3)
    table = torch.randn(levels.n_entries, 2)
    y = hash_encode(torch.full((2, 3), -magnitude), table, levels, bounds="none")
    overflows = magnitude * max(map(max, levels.scales)) > torch.finfo(torch.float32).max
    # a mean of table entries; where the product with the scale overflows, it may be NaN
    assert y.shape == (2, 6) and ((y.abs() <= table.abs().max()) | (y.isnan() & overflows)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_table_gives_values_and_table_gets_gradient(dtype: torch.dtype) -> None:
    levels = small_levels(3)
    table = torch.randn(levels.n_entries, 2, requires_grad=True)
    half_table = table.detach().to(dtype)
    x = safe_positions(levels, 6)
    y = hash_encode_into(x, table, levels, half_table=half_table)
    assert torch.equal(y, hash_encode(x, half_table.float(), levels))
    (grad_table,) = torch.autograd.grad(y.sum(), table)
    (expected,) = torch.autograd.grad(hash_encode(x, table, levels).sum(), table)
    assert grad_table.dtype == torch.float32
    assert torch.equal(grad_table, expected)


def test_half_positions_run_in_fp32() -> None:
    levels = small_levels(3)
    table = torch.randn(levels.n_entries, 2)
    x = torch.rand(4, 3).half()
    assert torch.equal(hash_encode(x, table, levels), hash_encode(x.float(), table, levels))


def test_leading_shape_is_kept_and_empty_batch_works() -> None:
    levels = small_levels(3)
    table = torch.randn(levels.n_entries, 4, requires_grad=True)
    assert hash_encode(torch.rand(2, 5, 3), table, levels).shape == (2, 5, 12)
    assert hash_encode(torch.rand(3), table, levels).shape == (12,)
    y = hash_encode(torch.rand(0, 3), table, levels)
    assert y.shape == (0, 12)
    assert not torch.autograd.grad(y.sum(), table)[0].any()


def test_levels_with_gaps_match_packed_levels() -> None:
    packed = small_levels(2)
    gap = 5
    offsets = tuple(offset + gap * (level + 1) for level, offset in enumerate(packed.offsets))
    spaced = LevelTable(2, packed.scales, packed.resolutions, packed.shift, offsets, packed.sizes, packed.hashed)
    table = torch.randn(spaced.n_entries, 2)
    pieces = [table[offset : offset + size] for offset, size in zip(offsets, packed.sizes, strict=True)]
    x = torch.rand(8, 2)
    assert torch.equal(hash_encode(x, table, spaced), hash_encode(x, torch.cat(pieces), packed))


def test_compiles_to_one_graph() -> None:
    levels = small_levels(3)
    table = torch.randn(levels.n_entries, 2)
    x = torch.rand(16, 3)
    compiled = torch.compile(hash_encode, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, table, levels), hash_encode(x, table, levels))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": torch.zeros(5, 2)}, r"`positions` must have shape \[\.\.\., 3\], got \[5, 2\]"),
        ({"table": torch.zeros(4, 2)}, r"`table` must have shape"),
        ({"positions": torch.zeros(5, 3).double()}, r"`table` must be torch.float64"),
        ({"interpolation": "cubic"}, r"`interpolation` must be one of .*got 'cubic'"),
        ({"bounds": "wrap"}, r"`bounds` must be one of .*got 'wrap'"),
        ({"level_weights": torch.ones(2)}, r"`level_weights` must have shape \[3\], got \[2\]"),
        ({"half_table": torch.zeros(4, 2)}, r"`half_table` must have shape \[.*\] like `table`, got \[4, 2\]"),
    ],
)
def test_errors_name_contract_and_actual(changes: dict, message: str) -> None:
    levels = small_levels(3)
    arguments = {"positions": torch.zeros(5, 3), "table": torch.zeros(levels.n_entries, 2), "levels": levels}
    with pytest.raises(ValueError, match=message):
        hash_encode_into(**arguments | changes)
