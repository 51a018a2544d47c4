"""The native hash encoding against its reference in float64, with the error budget of PyTorch in the same dtype."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems.hash_encode import (
    check_encoding_budget,
    check_huge_positions,
    check_nonfinite_positions,
    encoding_and_derivatives,
    make_levels,
    reference_in_several_orders,
    safe_positions,
)
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from hashgrid import ops, reference
from hashgrid.levels import LevelTable, make_level_table
from hashgrid.ops import _ngp

pytestmark = pytest.mark.every_kernel

SIZES = [0, 1, 7, 1023, 1024, 1025]


def compare(levels: LevelTable, x: Tensor, n_features: int, level_weights: bool = False, **options) -> None:
    table = torch.randn(levels.n_entries, n_features)
    grad_y = torch.randn(x.shape[0], levels.n_levels * n_features)
    weights = torch.rand(levels.n_levels) if level_weights else None
    arguments = (x, table, weights, grad_y, levels)
    truth = encoding_and_derivatives(reference.hash_encode, torch.float64, *arguments, **options)
    theirs = reference_in_several_orders(torch.float32, *arguments, **options)
    ours = encoding_and_derivatives(ops.hash_encode, torch.float32, *arguments, **options)
    check_encoding_budget(ours, theirs, truth, torch.finfo(torch.float32).eps)
    assert torch.equal(ours["grad_table"] != 0, truth["grad_table"] != 0), "other entries have gradients"


@pytest.mark.parametrize("interpolation", ["linear", "smoothstep", "nearest"])
@pytest.mark.parametrize("n_features", [1, 2, 4, 8])
@pytest.mark.parametrize("n_input_dims", range(1, 8))
def test_fp32_stays_in_the_error_budget(n_input_dims: int, n_features: int, interpolation: str) -> None:
    levels = make_levels(n_input_dims)
    x = safe_positions(levels, 300 if n_input_dims < 5 else 60)
    compare(levels, x, n_features, level_weights=True, interpolation=interpolation)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("n_input_dims", [2, 3, 5])
def test_batch_sizes_around_a_block(n: int, n_input_dims: int) -> None:
    levels = make_levels(n_input_dims)
    compare(levels, safe_positions(levels, n), 2)


@pytest.mark.parametrize("n_features", [1, 2, 4, 8])
@pytest.mark.parametrize("n_input_dims", [2, 3, 4])
def test_points_in_order_along_rays(n_input_dims: int, n_features: int) -> None:
    """Neighbours share cells, so that their gradients may be added up before they reach the table: some of them are
    zero, some points lie outside."""
    levels = make_levels(n_input_dims)
    begin, end = 1.4 * torch.rand(2, 9, 1, n_input_dims) - 0.2
    x = torch.lerp(begin, end, torch.linspace(0, 1, 70)[:, None]).flatten(0, 1)
    table = torch.randn(levels.n_entries, n_features)
    grad_y = torch.randn(len(x), levels.n_levels, n_features)
    grad_y[100:200] = grad_y[::7] = grad_y[::5, 1] = 0
    arguments = x, table, torch.rand(levels.n_levels), grad_y.flatten(1), levels
    for interpolation, bounds in (("linear", "zero"), ("nearest", "clamp")):
        truth, *others = (
            encoding_and_derivatives(function, dtype, *arguments, interpolation=interpolation, bounds=bounds)[
                "grad_table"
            ]
            for function, dtype in (
                (reference.hash_encode, torch.float64),
                (reference.hash_encode, torch.float32),
                (ops.hash_encode, torch.float32),
            )
        )
        theirs, ours = ((other - truth).abs().max().item() for other in others)
        assert ours <= 2 * theirs + truth.abs().max().item() * torch.finfo(torch.float32).eps
        assert torch.equal(others[1] != 0, truth != 0), "other entries have gradients"


@pytest.mark.parametrize("bounds", ["clamp", "zero", "none"])
@pytest.mark.parametrize("interpolation", ["linear", "smoothstep", "nearest"])
@pytest.mark.parametrize("n_input_dims", [1, 2, 3, 4, 6])
def test_positions_outside_follow_the_bounds(n_input_dims: int, interpolation: str, bounds: str) -> None:
    levels = make_levels(n_input_dims, base_resolution=4, per_level_scale=2)
    x = safe_positions(levels, 300, -0.4, 1.4, clamp=bounds == "clamp")
    assert ((x < 0) | (x > 1)).any() and (n_input_dims > 4 or ((x >= 0) & (x <= 1)).all(-1).any())
    compare(levels, x, 2, level_weights=True, interpolation=interpolation, bounds=bounds)


@pytest.mark.parametrize(
    "options",
    [
        {"convention": "paper"},
        {"n_levels": 1, "base_resolution": 16},
        {"n_levels": 16, "log2_hashmap_size": 12, "base_resolution": 4, "per_level_scale": 1.3},
        {"log2_hashmap_size": 2},
        {"per_level_scale": 1.0},
        {"per_level_scale": 0.9, "base_resolution": 9},
        {"base_resolution": (3, 5, 2), "per_level_scale": (1.7, 1.2, 2.3)},
        {"base_resolution": (16, 16, 4), "per_level_scale": None, "max_resolution": (64, 128, 4)},
    ],
    ids=str,
)
def test_level_geometries(options: dict) -> None:
    levels = make_levels(3, **options)
    compare(levels, safe_positions(levels, 500), 2)


@pytest.mark.parametrize("bounds", ["clamp", "zero", "none"])
@pytest.mark.parametrize("interpolation", ["linear", "smoothstep", "nearest"])
@pytest.mark.parametrize("n_input_dims", range(2, 8))
def test_axes_that_differ(n_input_dims: int, interpolation: str, bounds: str) -> None:
    """Of a plane with a time axis, a box that is no cube: another scale and resolution on every axis."""
    levels = make_levels(n_input_dims, base_resolution=[3, 5, 2, 4, 3, 2, 6][:n_input_dims])
    assert levels.per_axis and (n_input_dims > 3 or not levels.hashed[0])
    x = safe_positions(levels, 200 if n_input_dims < 5 else 60, -0.2, 1.2, clamp=bounds == "clamp")
    compare(levels, x, 2, level_weights=True, interpolation=interpolation, bounds=bounds)


def test_axes_given_alike_are_those_of_one_number() -> None:
    levels, same = make_levels(3), make_levels(3, base_resolution=(3, 3, 3), per_level_scale=(1.7, 1.7, 1.7))
    assert same == levels and not same.per_axis


def test_levels_with_gaps_leave_them_without_gradient() -> None:
    packed = make_levels(2)
    offsets = tuple(offset + 5 * (level + 1) for level, offset in enumerate(packed.offsets))
    levels = LevelTable(2, packed.scales, packed.resolutions, packed.shift, offsets, packed.sizes, packed.hashed)
    compare(levels, safe_positions(levels, 200), 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n_features", [1, 2, 4, 8])
@pytest.mark.parametrize("n_input_dims", [2, 3, 5])
def test_half_table(n_input_dims: int, n_features: int, dtype: torch.dtype) -> None:
    levels = make_levels(n_input_dims)
    table = torch.randn(levels.n_entries, n_features)
    table.view(-1)[:3] = torch.tensor([1e-7, -3e-8, 3e-5])  # subnormal in fp16
    half_table, x = table.to(dtype), safe_positions(levels, 300)
    grad_y = torch.randn(300, levels.n_levels * n_features)
    weights = torch.rand(levels.n_levels)
    encode = functools.partial(_ngp.hash_encode_into, half_table=half_table)
    ours = encoding_and_derivatives(encode, torch.float32, x, table, weights, grad_y, levels)
    # the same values in an ordinary table
    stored = half_table.float()
    truth = encoding_and_derivatives(reference.hash_encode, torch.float64, x, stored, weights, grad_y, levels)
    theirs = reference_in_several_orders(torch.float32, x, stored, weights, grad_y, levels)
    check_encoding_budget(ours, theirs, truth, torch.finfo(torch.float32).eps)
    y = encode(x, table.requires_grad_(), levels)
    assert y.dtype == torch.float32
    (grad,) = torch.autograd.grad(y.sum(), table)
    assert grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strides_offsets_and_batches(dtype: torch.dtype) -> None:
    levels = make_levels(3)
    base = torch.rand(6, 7, 5, dtype=dtype)
    x = base[1::2, :, 1:4].transpose(0, 1)
    wide = torch.randn(levels.n_entries + 1, 3, dtype=dtype)
    table = wide[1:, 1:]
    y = ops.hash_encode(x, table, levels)
    assert torch.equal(y, ops.hash_encode(x.contiguous(), table.contiguous(), levels)) and y.shape == (7, 3, 8)
    assert ops.hash_encode(x[0, 0], table, levels).shape == (8,)
    assert ops.hash_encode(x[:0], table, levels).shape == (0, 3, 8)
    table = table.detach().requires_grad_()
    grads = []
    for grad_y in (torch.ones(1, dtype=dtype).expand(7, 3, 8), torch.ones(7, 3, 8, dtype=dtype)):
        grads.append(torch.autograd.grad(ops.hash_encode(x, table, levels), table, grad_y)[0])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("bounds", ["clamp", "zero", "none"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nonfinite_positions_give_nan_and_no_gradient(bounds: str, bad: float, dtype: torch.dtype) -> None:
    check_nonfinite_positions(bounds, bad, dtype)


@pytest.mark.parametrize("magnitude", [1e9, 1e20, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_positions_follow_the_bounds(magnitude: float, dtype: torch.dtype) -> None:
    check_huge_positions(magnitude, dtype)


@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
@pytest.mark.parametrize("n_input_dims", [2, 3, 4])
def test_gradients_match_finite_differences(n_input_dims: int, interpolation: str) -> None:
    levels = make_levels(n_input_dims, n_levels=2, log2_hashmap_size=3)
    x = safe_positions(levels, 2).double().requires_grad_()
    table = torch.randn(levels.n_entries, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, table: Tensor, weights: Tensor) -> Tensor:
        return ops.hash_encode(x, table, levels, interpolation, level_weights=weights)

    assert gradcheck(function, (x, table, weights))
    assert gradgradcheck(function, (x, table, weights))
    for wanted in range(
        3 if n_input_dims == 2 else 0
    ):  # each input alone: the others' parts of the kernels are switched off
        inputs = [t.detach().requires_grad_(i == wanted) for i, t in enumerate((x, table, weights))]
        assert gradcheck(function, inputs) and gradgradcheck(function, inputs)


@pytest.mark.parametrize("bounds", ["clamp", "zero", "none"])
def test_gradients_outside_match_finite_differences(bounds: str) -> None:
    levels = make_levels(2, n_levels=2, log2_hashmap_size=3, base_resolution=4, per_level_scale=2)
    x = safe_positions(levels, 6, -0.4, 1.4, clamp=bounds == "clamp").double().requires_grad_()
    table = torch.randn(levels.n_entries, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, table: ops.hash_encode(x, table, levels, bounds=bounds), (x, table))
    assert gradgradcheck(lambda x, table: ops.hash_encode(x, table, levels, bounds=bounds), (x, table))


def test_nearest_has_table_gradient_only() -> None:
    levels = make_levels(2)
    x = safe_positions(levels, 5).double().requires_grad_()
    table = torch.randn(levels.n_entries, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda table: ops.hash_encode(x.detach(), table, levels, "nearest"), (table,))
    (grad,) = torch.autograd.grad(ops.hash_encode(x, table, levels, "nearest").sum(), x, materialize_grads=True)
    assert not grad.any()


@pytest.mark.cpu_only
@pytest.mark.parametrize("n_levels", [1, 16])
@pytest.mark.parametrize("n_input_dims", [2, 3])
def test_table_gradient_has_the_same_bits_for_any_number_of_threads(n_input_dims: int, n_levels: int) -> None:
    levels = make_level_table(n_input_dims, n_levels, 12, 16, 256)
    x = torch.rand(50_000, n_input_dims)
    table = torch.randn(levels.n_entries, 2, requires_grad=True)
    weights = torch.rand(n_levels, requires_grad=True)
    grad_y = torch.randn(50_000, n_levels * 2)
    threads = torch.get_num_threads()
    results = []
    try:
        for n_threads in (1, 2, 16, 2):
            torch.set_num_threads(n_threads)
            y = ops.hash_encode(x, table, levels, level_weights=weights)
            results.append((y, *torch.autograd.grad(y, [table, weights], grad_y)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_continuous_across_cell_borders(interpolation: str, dtype: torch.dtype) -> None:
    levels = make_levels(2, n_levels=1, base_resolution=20)
    table = torch.randn(levels.n_entries, 2, dtype=dtype)
    border = (torch.arange(1, 19, dtype=torch.float64) - levels.shift + 0.0) / levels.scales[0][0]
    border = border.to(dtype)
    values = []
    x = border
    for _ in range(8):
        x = x.nextafter(torch.zeros_like(x))
    for _ in range(17):  # from eight numbers below to eight above: some on either side, whatever the rounding
        points = torch.stack((x, torch.full_like(x, 0.3123)), dim=-1)
        values.append(ops.hash_encode(points, table, levels, interpolation))
        x = x.nextafter(torch.ones_like(x))
    steps = torch.stack(values).diff(dim=0).abs()
    assert steps.max() <= 20 * levels.scales[0][0] * torch.finfo(dtype).eps


def test_two_forwards_before_one_backward() -> None:
    levels = make_levels(3)
    table = torch.randn(levels.n_entries, 2, requires_grad=True)
    a, b = (torch.rand(40, 3, requires_grad=True) for _ in range(2))
    first, second = ops.hash_encode(a, table, levels), ops.hash_encode(b, table, levels)
    (first.square().sum() + second.pow(3).sum()).backward()
    grads = a.grad, b.grad, table.grad
    expected = [torch.zeros(40, 3), torch.zeros(40, 3), torch.zeros_like(table)]
    for i, (x, power) in enumerate(((a, 2), (b, 3))):
        x = x.detach().requires_grad_()
        y = ops.hash_encode(x, table, levels)
        grad_x, grad_table = torch.autograd.grad(y.pow(power).sum(), [x, table])
        expected[i] += grad_x
        expected[2] += grad_table
    for grad, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, other)


@pytest.mark.cpu_only
def test_more_points_than_the_workspace_holds_on_the_cpu() -> None:
    """With 512 features the CPU takes 2^14 points at a time: results have the bits of calls with fewer."""
    levels = make_levels(3, n_levels=64, per_level_scale=1.05, log2_hashmap_size=8)
    n, part = 2 * 2**14 + 100, 9000
    x, grad_y = torch.rand(n, 3), torch.randn(n, 512)
    table = torch.randn(levels.n_entries, 8)
    whole_x = x.clone().requires_grad_()
    whole = [ops.hash_encode(whole_x, table, levels)]
    whole += torch.autograd.grad(whole[0], whole_x, grad_y)
    leaf = table.clone().requires_grad_()
    whole_table = torch.autograd.grad(ops.hash_encode(x, leaf, levels), leaf, grad_y)[0]
    buffer = torch.zeros_like(table)  # receives the contributions of the points in their order
    for begin in range(0, n, part):
        some = slice(begin, begin + part)
        part_x = x[some].clone().requires_grad_()
        y = ops.hash_encode(part_x, table, levels)
        assert torch.equal(whole[0][some], y)
        assert torch.equal(whole[1][some], torch.autograd.grad(y, part_x, grad_y[some])[0])
        _ngp.hash_encode_into(x[some], leaf, levels, grad_buffer=buffer).backward(grad_y[some])
    assert torch.equal(whole_table, buffer)


def test_precomputed_output_keeps_its_gradient() -> None:
    levels = make_levels(3)
    x = torch.rand(40, 3, requires_grad=True)
    table = torch.randn(levels.n_entries, 2, requires_grad=True)
    y = ops.hash_encode(x, table, levels)
    again = _ngp.hash_encode_into(x, table, levels, precomputed=y.detach())
    assert torch.equal(y, again)
    grad_y = torch.randn_like(y)
    for a, b in zip(*(torch.autograd.grad(out, [x, table], grad_y) for out in (y, again)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("half_table", [None, torch.bfloat16])
@pytest.mark.parametrize("n_features", [1, 2, 4, 8])
def test_gradient_buffer_is_added_to(n_features: int, half_table: torch.dtype | None) -> None:
    levels = make_levels(3)
    x = torch.rand(500, 3, requires_grad=True)
    table = torch.randn(levels.n_entries, n_features, requires_grad=True)
    half = None if half_table is None else table.detach().to(half_table)
    y = _ngp.hash_encode_into(x, table, levels, half_table=half)
    grad_y = torch.randn(y.shape).to(y.dtype)
    grad_x, grad_table = torch.autograd.grad(y, [x, table], grad_y)
    start = torch.randn_like(table)
    buffer = start.clone()
    y = _ngp.hash_encode_into(x, table, levels, half_table=half, grad_buffer=buffer)
    y.backward(grad_y)
    assert table.grad is None
    assert torch.equal(x.grad, grad_x)
    torch.testing.assert_close(buffer, start + grad_table, rtol=1e-5, atol=1e-5)
    assert torch.equal(buffer != start, grad_table != 0)


def test_half_positions_run_in_fp32() -> None:
    levels = make_levels(3)
    table = torch.randn(levels.n_entries, 2)
    x = torch.rand(40, 3).half()
    assert torch.equal(ops.hash_encode(x, table, levels), ops.hash_encode(x.float(), table, levels))


@pytest.mark.cpu_only
def test_registered_op_is_twice_differentiable() -> None:
    levels = make_levels(2, n_levels=2, log2_hashmap_size=3)
    x = safe_positions(levels, 3).double().requires_grad_()
    table = torch.randn(levels.n_entries, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, table: Tensor, weights: Tensor) -> Tensor:
        return torch.ops.hashgrid.hash_encode(x, table, weights, *levels.arguments, 1, 0)

    assert gradcheck(function, (x, table, weights)) and gradgradcheck(function, (x, table, weights))


@pytest.mark.parametrize("loss", [torch.sum, lambda t: t.square().sum()])
def test_third_derivative_raises(loss) -> None:
    levels = make_levels(2)
    x = torch.rand(5, 2, requires_grad=True)
    table = torch.randn(levels.n_entries, 2, requires_grad=True)
    y = ops.hash_encode(x, table, levels, "smoothstep")
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(loss(first), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice, not three times"):
        (second.sum() + x.sum()).backward()


def test_functional_grad() -> None:
    levels = make_levels(2)
    x, table = torch.rand(5, 2), torch.randn(levels.n_entries, 2)
    grads = torch.func.grad(lambda x, table: ops.hash_encode(x, table, levels).square().sum(), argnums=(0, 1))(x, table)
    leaves = x.clone().requires_grad_(), table.clone().requires_grad_()
    expected = torch.autograd.grad(ops.hash_encode(*leaves, levels).square().sum(), leaves)
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, b)


def one_or_each(numbers: st.SearchStrategy, n: int) -> st.SearchStrategy:
    """A number for all axes, or one each."""
    return numbers | st.lists(numbers, min_size=n, max_size=n)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_configuration_matches_reference_in_fp64(data) -> None:
    n_input_dims = data.draw(st.integers(1, 7))
    levels = make_level_table(
        n_input_dims,
        n_levels=data.draw(st.integers(1, 8)),
        log2_hashmap_size=data.draw(st.integers(0, 11)),
        base_resolution=data.draw(one_or_each(st.integers(1, 24), n_input_dims)),
        per_level_scale=data.draw(one_or_each(st.floats(0.8, 2.5), n_input_dims)),
        convention=data.draw(st.sampled_from(["tcnn", "paper"])),
    )
    n_features = data.draw(st.sampled_from([1, 2, 4, 8]))
    n = data.draw(st.integers(0, 40))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    x = torch.rand(n, n_input_dims, dtype=torch.float64, generator=generator) * 1.4 - 0.2
    table = torch.randn(levels.n_entries, n_features, dtype=torch.float64, generator=generator)
    grad_y = torch.randn(n, levels.n_levels * n_features, dtype=torch.float64, generator=generator)
    weights = (
        torch.rand(levels.n_levels, dtype=torch.float64, generator=generator) if data.draw(st.booleans()) else None
    )
    options = {
        "interpolation": data.draw(st.sampled_from(["linear", "smoothstep", "nearest"])),
        "bounds": data.draw(st.sampled_from(["clamp", "zero", "none"])),
    }
    ours, expected = (
        encoding_and_derivatives(function, torch.float64, x, table, weights, grad_y, levels, **options)
        for function in (ops.hash_encode, reference.hash_encode)
    )
    order = {"grad_x": 1, "second_grad_y": 1, "second_table": 1, "second_x": 2}
    n_additions = 2**n_input_dims + grad_y.shape[1] if n else 0
    magnitudes = grad_y.shape[1] * float(table.abs().max() * grad_y.abs().max()) if n else 0.0
    for name, value in expected.items():
        scale = value.abs().max().item() if value.numel() else 1.0
        # A derivative to x is a difference of terms as large as the level's scale, of a one-entry table exactly 0. Per
        # derivative the weights' magnitudes sum up to 3 times the scale: slopes of a smoothstep are at most 1.5.
        magnitude = magnitudes * (3 * max(map(max, levels.scales))) ** order.get(name, 0)
        rounding = torch.finfo(torch.float64).eps * n_additions * magnitude
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-9 * max(scale, 1.0) + rounding, msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": torch.zeros(5, 2)}, r"`positions` must have shape \[\.\.\., 3\], got \[5, 2\]"),
        ({"positions": torch.zeros(5, 3).double()}, r"must both be float64 or neither, got float64 and float32"),
        ({"positions": torch.zeros(5, 3).int()}, r"`positions` must be float32, float64"),
        ({"table": torch.zeros(4, 2)}, r"`table`|entries"),
        ({"table": torch.zeros(4096, 3)}, r"`table` must have 1, 2, 4 or 8 features per entry, got 3"),
        ({"interpolation": "cubic"}, r"`interpolation` must be one of .*got 'cubic'"),
        ({"bounds": "wrap"}, r"`bounds` must be one of .*got 'wrap'"),
        ({"level_weights": torch.ones(2)}, r"`level_weights` must have shape \[4\], got \[2\]"),
        ({"level_weights": torch.ones(4).double()}, r"`level_weights` must be float32, got float64"),
        ({"half_table": torch.zeros(4, 2).half()}, r"`half_table`|entries"),
        ({"precomputed": torch.zeros(4, 8)}, r"`precomputed` must have one row per position \(5\), got 4"),
    ],
)
def test_errors_name_contract_and_actual(changes: dict, message: str) -> None:
    levels = make_levels(3)
    arguments = {"positions": torch.zeros(5, 3), "table": torch.zeros(levels.n_entries, 2), "levels": levels}
    for function in (ops.hash_encode, _ngp.hash_encode_into):
        if function is ops.hash_encode and {"half_table", "precomputed"} & set(changes):
            continue
        with pytest.raises((ValueError, RuntimeError), match=message):
            function(**arguments | changes)
