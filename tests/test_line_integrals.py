"""Native line integrals against the definition, the reference and finite differences."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from problems.line_integrals import check_budget, integrals_and_derivatives, make_problem, one_by_one
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from hashgrid import ops, reference

pytestmark = pytest.mark.every_kernel

COUNTS = [[3, 0, 7, 1, 0, 33, 8, 70], [0, 0], [1], [300, 3, 129], [16] * 33]


@pytest.mark.parametrize("n_channels", [0, 1, 3, 9])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_line_integrals_match_the_definition_and_the_reference(counts: list[int], n_channels: int) -> None:
    problem = make_problem(counts, n_channels)
    exact = integrals_and_derivatives(reference.line_integrals, problem, torch.float64)
    torch.testing.assert_close(exact[0], one_by_one(*problem))
    for a, b in zip(integrals_and_derivatives(ops.line_integrals, problem, torch.float64), exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    single = tuple(x.float() if x.is_floating_point() else x for x in problem)
    check_budget(
        integrals_and_derivatives(ops.line_integrals, single, torch.float32),
        integrals_and_derivatives(reference.line_integrals, single, torch.float32),
        integrals_and_derivatives(reference.line_integrals, single, torch.float64),
    )


def test_line_integrals_match_finite_differences() -> None:
    *inputs, packed_info = make_problem([3, 0, 4], 2)
    inputs = [x.requires_grad_() for x in inputs]

    def run(*inputs: Tensor) -> Tensor:
        return ops.line_integrals(*inputs, packed_info)

    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


def test_third_derivatives_are_those_of_the_reference() -> None:
    """The sum of squares of gradients is quartic: it has one more derivative than two."""
    *inputs, packed_info = make_problem([3, 0, 4], 2)
    results = []
    for library in (ops, reference):
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = library.line_integrals(*leaves, packed_info).pow(3).sum()
        for _ in range(3):
            grads = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum(grad.square().sum() for grad in grads)
        results.append(grads)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("behind", [0, 5])
def test_samples_behind_the_last_ray_belong_to_none(behind: int) -> None:
    values, t_starts, t_ends, packed_info = make_problem([3, 2, behind], 2, torch.float32)
    leaves = [x.requires_grad_() for x in (values, t_starts, t_ends)]
    sums = ops.line_integrals(*leaves, packed_info[:2])
    assert torch.equal(sums, ops.line_integrals(*(x[:5] for x in leaves), packed_info[:2]))
    for grad in torch.autograd.grad(sums.square().sum(), leaves):
        assert grad[:5].all() and not grad[5:].any()


@pytest.mark.cpu_only
def test_number_of_threads_changes_no_bit() -> None:
    problem = make_problem([5, 0, 130, 64] * 300, 1, torch.float32)
    n_threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            results.append(integrals_and_derivatives(ops.line_integrals, problem, torch.float32))
    finally:
        torch.set_num_threads(n_threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.cpu_only
def test_short_vectors_keep_the_budget(tmp_path: Path) -> None:
    problem = make_problem([300, 0, 17, 1], 1, torch.float32)
    torch.save(problem, tmp_path / "in.pt")
    script = (
        "import sys, torch; sys.path.insert(0, 'tests')\n"
        "from hashgrid import ops\n"
        "from problems.line_integrals import integrals_and_derivatives\n"
        "results = integrals_and_derivatives(ops.line_integrals, torch.load(sys.argv[1]), torch.float32)\n"
        "torch.save([x.detach() for x in results], sys.argv[2])"
    )
    theirs, exact = (
        integrals_and_derivatives(reference.line_integrals, problem, t) for t in (torch.float32, torch.float64)
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "in.pt"), str(tmp_path / "out.pt")],
        env=os.environ | {"HASHGRID_CPU_CAPABILITY": "default"},
        cwd=Path(__file__).resolve().parents[1],
        check=True,
    )
    check_budget(torch.load(tmp_path / "out.pt"), theirs, exact)


def test_line_integrals_take_strides_and_half_precision() -> None:
    *reals, packed_info = make_problem([3, 5], 2, torch.float32)
    expected = ops.line_integrals(*reals, packed_info)
    assert torch.equal(ops.line_integrals(*(x.repeat_interleave(2, 0)[::2] for x in reals), packed_info), expected)
    half = ops.line_integrals(reals[0].bfloat16(), *reals[1:], packed_info)
    assert half.dtype == torch.float32
    assert torch.equal(half, ops.line_integrals(reals[0].bfloat16().float(), *reals[1:], packed_info))


@pytest.mark.parametrize("library", [ops, reference], ids=["ops", "reference"])
@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(5), r"`values` must have shape \[S, C\], got \[5\]"),
        (1, torch.zeros(4), r"`t_starts` must have shape \[5\], got \[4\]"),
        (2, torch.zeros(5, 1), r"`t_ends` must have shape \[5\], got \[5, 1\]"),
        (3, torch.zeros(2, dtype=torch.int64), r"`packed_info` must have shape \[R, 2\], got \[2\]"),
    ],
)
def test_line_integrals_errors_name_contract_and_actual(library, place: int, value: Tensor, message: str) -> None:
    problem = list(make_problem([2, 3], 2, torch.float32))
    problem[place] = value
    with pytest.raises((RuntimeError, ValueError), match=message):
        library.line_integrals(*problem)


@pytest.mark.parametrize(
    ("packed_info", "message"),
    [([[0, 6]], "`packed_info` must count up to 5 samples"), ([[0, 2], [3, 2]], "ray 1 must start at 2, got start 3")],
)
@pytest.mark.cpu_only
def test_line_integrals_on_the_cpu_refuse_other_orders_of_rays(packed_info: list, message: str) -> None:
    problem = make_problem([2, 3], 2, torch.float32)
    with pytest.raises(RuntimeError, match=message):
        ops.line_integrals(*problem[:3], torch.tensor(packed_info))
