"""The hash encoding along directions: jets against reverse mode in float64, gradients, contracts."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from problems.jets import check_jets, jet_by_reverse_mode, results_and_gradients
from torch import Tensor
from torch.autograd import gradcheck

from hashgrid import ops, reference
from hashgrid.levels import LevelTable, make_level_table
from hashgrid.util.choices import INTERPOLATIONS

pytestmark = pytest.mark.every_kernel


def make_levels(n_dims: int, n_levels: int = 3, boxes: bool = False) -> LevelTable:
    """Dense levels, then hashed ones; of cubes, or of boxes whose axes have vertices of their own."""
    return make_level_table(n_dims, n_levels, 7, (3, 2, 4, 3)[:n_dims] if boxes else 3, None, 1.7, "tcnn")


def problem(levels: LevelTable, n: int, n_directions: int, n_features: int = 2) -> list[Tensor]:
    """fp64 positions, directions, table, level weights; positions keep away from the borders of all cells."""
    n_dims = levels.n_input_dims
    x = torch.rand(200 * n + 200, n_dims, dtype=torch.float64)
    scales = torch.tensor(levels.scales, dtype=torch.float64)
    fractions = (x.unsqueeze(1) * scales + levels.shift) % 1
    x = x[((fractions > 4e-3) & (fractions < 1 - 4e-3)).all(-1).all(-1)][:n]
    assert len(x) == n
    return [
        x.float().double(),
        torch.randn(n, n_directions, n_dims, dtype=torch.float64),
        torch.randn(levels.n_entries, n_features, dtype=torch.float64),
        torch.rand(levels.n_levels, dtype=torch.float64),
    ]


def call(op: Any, levels: LevelTable, options: tuple[str, str], *inputs: Tensor) -> Any:
    positions, directions, table, *level_weights = inputs
    return op(positions, directions, table, levels, *options, *level_weights)


@pytest.mark.cpu_only
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("bounds", ["clamp", "zero", "none"])
def test_reference_matches_reverse_mode(interpolation: str, bounds: str) -> None:
    levels = make_levels(3, boxes=bounds == "zero")
    x, directions, table, level_weights = problem(levels, 9, 2)
    x[:3, 0] += 1  # outside
    jets = reference.hash_encode_jet(x, directions, table, levels, interpolation, bounds, level_weights)
    expected = jet_by_reverse_mode(
        lambda x: reference.hash_encode(x, table, levels, interpolation, bounds, level_weights), x, directions
    )
    for a, b in zip(jets, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    assert (jets[2].abs().max() > 1) == (interpolation != "nearest")


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("n_dims", "boxes"), [(1, False), (2, False), (3, False), (4, False), (2, True), (3, True)])
def test_matches_reference(interpolation: str, n_dims: int, boxes: bool) -> None:
    levels = make_levels(n_dims, boxes=boxes)
    for n, n_directions, n_features, bounds in ((0, 1, 2, "clamp"), (1, 3, 8, "zero"), (301, 2, 1, "clamp")):
        inputs = problem(levels, n, n_directions, n_features)
        inputs[0][: n // 4, 0] += 1  # outside
        options = interpolation, bounds
        ours, theirs = (partial(call, library.hash_encode_jet, levels, options) for library in (ops, reference))
        check_jets(ours, theirs, inputs, 2)


@pytest.mark.parametrize("n_dims", [2, 3])
def test_gradcheck_in_every_input(n_dims: int) -> None:
    levels = make_levels(n_dims, 2)
    inputs = [tensor.requires_grad_() for tensor in problem(levels, 4, 2)]
    assert gradcheck(partial(call, ops.hash_encode_jet, levels, ("smoothstep", "clamp")), inputs)


def test_gradients_reach_only_the_corners() -> None:
    levels = make_levels(2)
    x, directions, table, _ = problem(levels, 3, 1)
    grads = []
    for op in (reference.hash_encode, ops.hash_encode_jet):
        leaf = table.clone().requires_grad_()
        along = (directions,) if op is ops.hash_encode_jet else ()
        result = op(x, *along, leaf, levels, "smoothstep")
        (grad,) = torch.autograd.grad(sum(t.sum() for t in result) if along else result.sum(), leaf)
        grads.append(grad != 0)
    assert torch.equal(*grads)


def test_missing_gradients_are_zero() -> None:
    """A loss of one of the three results, and gradients of some of the inputs."""
    levels = make_levels(2)
    inputs = problem(levels, 5, 2)[:3]
    for i in range(3):
        for wanted in range(3):
            grads = []
            for op in (ops.hash_encode_jet, reference.hash_encode_jet):
                leaves = [t.clone().requires_grad_(j == wanted) for j, t in enumerate(inputs)]
                result = call(op, levels, ("smoothstep", "clamp"), *leaves)[i].square().sum()
                grads.append(torch.autograd.grad(result + 0 * leaves[wanted].sum(), leaves[wanted])[0])
            torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


def test_points_that_are_not_finite() -> None:
    levels = make_levels(2)
    x, directions, table, _ = problem(levels, 5, 2)
    x[2, 1] = torch.nan
    table.requires_grad_()
    results = ops.hash_encode_jet(x, directions, table, levels, "smoothstep")
    assert all(t[2].isnan().all() and t[[0, 1, 3, 4]].isfinite().all() for t in results)
    (grad,) = torch.autograd.grad(sum(t.sum() for t in results), table)
    assert grad.isfinite().all()


@pytest.mark.cpu_only
def test_gradients_are_the_same_for_any_number_of_threads() -> None:
    levels = make_levels(2, 1)
    inputs = problem(levels, 1000, 2)
    cotangents = [torch.randn(1000, 2), *torch.randn(2, 1000, 2, 2)]
    threads = torch.get_num_threads()
    try:
        runs = []
        for n in (1, 2, 16):
            torch.set_num_threads(n)
            op = partial(call, ops.hash_encode_jet, levels, ("smoothstep", "clamp"))
            runs.append(results_and_gradients(op, inputs, cotangents, torch.float32))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.cpu_only
def test_second_order_raises() -> None:
    levels = make_levels(2)
    x, directions, table, _ = problem(levels, 5, 2)
    result = ops.hash_encode_jet(x.requires_grad_(), directions, table, levels, "smoothstep")[2]
    (grad,) = torch.autograd.grad(result.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="hash_encode_jet can be differentiated once"):
        grad.sum().backward()


@pytest.mark.cpu_only
@pytest.mark.parametrize("op", [ops.hash_encode_jet, reference.hash_encode_jet])
def test_bad_input(op: Any) -> None:
    levels = make_levels(2)
    x, directions, table, _ = problem(levels, 5, 2)
    with pytest.raises(ValueError, match=r"`directions` must have shape \[K, 2\] or \[5, K, 2\], got \[2, 3\]"):
        op(x, torch.ones(2, 3), table, levels)
    with pytest.raises(ValueError, match=r"`positions` must have shape \[..., 2\], got \[5, 3\]"):
        op(torch.rand(5, 3), directions, table, levels)
    with pytest.raises(ValueError, match="`interpolation` must be"):
        op(x, directions, table, levels, "cubic")
