"""The hash encoding at points that every precision sees in the same cells, and how far results may be off."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid import ops, reference
from hashgrid.levels import LevelTable, make_level_table

MARGIN = 4e-3  # of a cell: fp32 and fp64 agree on the cell of points this far from its borders


def make_levels(n_input_dims: int = 3, **options) -> LevelTable:
    """Dense and hashed levels, sizes that are powers of two and not."""
    defaults = {"n_levels": 4, "log2_hashmap_size": 9, "base_resolution": 3, "per_level_scale": 1.7}
    return make_level_table(n_input_dims, **defaults | options)


def safe_positions(
    levels: LevelTable, n: int, low: float = 0.0, high: float = 1.0, clamp: bool = False, margin: float = MARGIN
) -> Tensor:
    """[n, D] fp32 points in [low, high] that keep away from the cell borders of every level, and from 0 and 1."""
    accepted: list[Tensor] = []
    while sum(len(x) for x in accepted) < n or not accepted:
        x = low + (high - low) * torch.rand(max(4 * n, 16), levels.n_input_dims)
        safe = ((x - 0).abs() > 1e-4).all(-1) & ((x - 1).abs() > 1e-4).all(-1)
        seen = x.double().clamp(0, 1) if clamp else x.double()
        for scale in levels.scales:
            cell = seen * torch.tensor(scale, dtype=torch.float64) + levels.shift
            safe &= ((cell - cell.round()).abs() >= margin).all(-1)
        accepted.append(x[safe])
    return torch.cat(accepted)[:n]


def encoding_and_derivatives(
    function, dtype: torch.dtype, x, table, weights, grad_y, levels, **options
) -> dict[str, Tensor]:
    """Output and all first gradients in ``dtype``, then the second ones of the position gradient, as fp64."""
    x, table = (t.to(dtype).requires_grad_() for t in (x, table))
    weights = None if weights is None else weights.to(dtype).requires_grad_()
    y = function(x, table, levels, level_weights=weights, **options)
    grad_y = grad_y.to(y.dtype).requires_grad_()
    inputs = {"x": x, "table": table} | ({} if weights is None else {"weights": weights})
    grads = torch.autograd.grad(y, list(inputs.values()), grad_y, create_graph=True, materialize_grads=True)
    results = {"y": y} | {f"grad_{name}": grad for name, grad in zip(inputs, grads, strict=True)}
    if grads[0].requires_grad:
        second = torch.autograd.grad(
            grads[0], [grad_y, *inputs.values()], torch.ones_like(x).cumsum(-1), materialize_grads=True
        )
        results |= {f"second_{name}": grad for name, grad in zip(["grad_y", *inputs], second, strict=True)}
    return {name: value.detach().double() for name, value in results.items()}


def orders_of(n: int) -> list[Tensor]:
    """A few orders of ``n`` points, the given one first."""
    generator = torch.Generator().manual_seed(0)
    return [torch.arange(n), *(torch.randperm(n, generator=generator) for _ in range(3))]


def reference_in_several_orders(
    dtype: torch.dtype, x, table, weights, grad_y, levels, **options
) -> list[dict[str, Tensor]]:
    """Results of the reference for a few orders of the points: sums over points have no order of their own, and how
    much rounding one order costs is luck."""
    results = []
    for order in orders_of(len(x)):
        result = encoding_and_derivatives(
            reference.hash_encode, dtype, x[order], table, weights, grad_y[order], levels, **options
        )
        back = order.argsort()
        per_point = ("y", "grad_x", "second_grad_y", "second_x")
        results.append({name: value[back] if name in per_point else value for name, value in result.items()})
    return results


def check_encoding_budget(
    ours: dict[str, Tensor], theirs: list[dict[str, Tensor]], truth: dict[str, Tensor], eps: float
) -> None:
    """|ours - f64| <= 2 |PyTorch - f64| + one rounding, in the largest element of every tensor and over all orders."""
    for name, exact in truth.items():
        assert ours[name].shape == exact.shape, name
        if exact.numel() == 0:
            continue
        error, *others = ((other[name] - exact).abs().max().item() for other in (ours, *theirs))
        allowed = max(others)
        rounding = exact.abs().max().item() * eps
        assert error <= 2 * allowed + rounding, f"{name}: {error} > 2 * {allowed} + {rounding}"


def check_nonfinite_positions(bounds: str, bad: float, dtype: torch.dtype) -> None:
    """Checks that they give NaN, and no gradient to table or level weights."""
    levels = make_levels(3)
    x = safe_positions(levels, 100).to(dtype)
    x[17, 1] = bad
    good = torch.arange(100) != 17
    table = torch.randn(levels.n_entries, 2, dtype=dtype).requires_grad_()
    weights = torch.rand(levels.n_levels, dtype=dtype, requires_grad=True)
    y = ops.hash_encode(x, table, levels, bounds=bounds, level_weights=weights)
    assert y[17].isnan().all() and torch.equal(
        y[good], ops.hash_encode(x[good], table, levels, "linear", bounds, weights)
    )
    clean = ops.hash_encode(x[good], table, levels, bounds=bounds, level_weights=weights)
    for grad, expected in zip(
        torch.autograd.grad(y, [table, weights], torch.ones_like(y)),
        torch.autograd.grad(clean.sum(), [table, weights]),
        strict=True,
    ):
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-5)
        assert grad.isfinite().all()


def check_huge_positions(magnitude: float, dtype: torch.dtype) -> None:
    """Checks values and gradients of points far outside: on all axes, and on one.

    "clamp" gives them what the border has, "zero" nothing, and "none" a mean of table entries, of cells that end at
    2^30; where even the product with a level's scale overflows, it may be NaN.
    """
    levels = make_levels(3)
    far = torch.tensor([[-1, -1, -1], [1, 1, 1], [1, 0, 0], [0, -1, 0]], dtype=dtype)
    x = torch.where(far != 0, far * magnitude, torch.tensor([0.31, 0.42, 0.77], dtype=dtype)).requires_grad_()
    table = torch.randn(levels.n_entries, 2, dtype=dtype, requires_grad=True)
    overflows = magnitude * max(map(max, levels.scales)) > torch.finfo(dtype).max
    exact = [t.detach().double().requires_grad_() for t in (x, table)]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for bounds in ("clamp", "zero", "none"):
        y = ops.hash_encode(x, table, levels, bounds=bounds)
        grad_x, grad_table = torch.autograd.grad(y.sum(), [x, table])
        largest = table.detach().abs().max()
        if bounds == "zero":
            assert not y.any() and not grad_x.any() and not grad_table.any()
            continue
        if bounds == "none":
            assert ((y.abs() <= largest) | (y.isnan() & overflows)).all()
            if overflows:
                continue
        else:
            assert torch.equal(y, ops.hash_encode(x.detach().clamp(0, 1), table, levels))
            assert not grad_x[far != 0].any() and grad_x[far == 0].all()
        # the weights of a point's corners add up to 1 in every level
        begins = zip(levels.offsets, levels.sizes, strict=True)
        sums = torch.stack([grad_table[begin : begin + size].sum(0) for begin, size in begins])
        torch.testing.assert_close(sums, torch.full_like(sums, len(x)), rtol=tolerance, atol=0)
        if bounds == "none" and dtype == torch.float32:
            continue  # fp32 and fp64 do not see these points in the same cells
        expected = reference.hash_encode(exact[0], exact[1], levels, bounds=bounds)
        gradients = torch.autograd.grad(expected.sum(), exact)
        for ours, truth in zip((y, grad_x, grad_table), (expected, *gradients), strict=True):
            torch.testing.assert_close(ours.double(), truth, rtol=0, atol=tolerance * truth.abs().max().item())
