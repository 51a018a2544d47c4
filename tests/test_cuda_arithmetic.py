"""The CUDA kernels with the arithmetic of a real GPU, emulated: tensor cores cut sums off instead of rounding them, and
expf is a unit in the last place off."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from problems.agreement import RANGES, check_draws
from torch import Tensor

pytestmark = pytest.mark.full
NONE, EXP = 0, 7  # places in ACTIVATIONS
SEEDS = range(12)


@pytest.fixture
def rough(cuda_on_host: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("HASHGRID_EMULATED_MMA", "truncate")
    monkeypatch.setenv("HASHGRID_EMULATED_EXPF", "ulp")
    return cuda_on_host


@pytest.mark.parametrize("name", sorted(RANGES))
def test_ops_agree_with_the_cpu_for_many_draws(name: str, rough: ModuleType) -> None:
    check_draws(name, SEEDS)


@pytest.mark.parametrize("name", sorted(RANGES))
def test_ops_agree_with_the_cpu_for_many_draws_where_sums_are_rounded(
    name: str, cuda_on_host: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASHGRID_EMULATED_MMA", "")
    monkeypatch.setenv("HASHGRID_EMULATED_EXPF", "")
    check_draws(name, SEEDS)


def dot(a: list[float], b: list[float]) -> float:
    """A sum of up to 16 products as the kernels on tensor cores add it up."""
    x, weight = (torch.tensor([values + [0.0] * (16 - len(values))]) for values in (a, b))
    return torch.ops.hashgrid_on_host.mlp(x, [weight], [], NONE, NONE, 1).item()


def test_tensor_cores_cut_off_what_lies_below_the_largest_term(rough: ModuleType) -> None:
    """Fasi et al. 2021, section "Rounding modes": one bit behind fp32's last is kept, and neither it nor what is lost
    rounds anything up."""
    small, one = 2.0**-12, [1.0] + [2.0**-12] * 7
    assert dot(one, [1.0] + [small] * 7) == 1 + 3 * 2**-23  # 7 * 2^-24, rounded to nearest in turn: 1
    assert dot(one, [1.0] + [1.5 * small] * 7) == 1 + 3 * 2**-23
    assert dot(one, [1.0] + [0.5 * small] * 7) == 1
    assert dot(one, [-1.0] + [-small] * 7) == -1 - 3 * 2**-23
    # The other eight products meet the first eight's total, so that 2^-24 is lost.
    assert dot([1.0] + [small] * 15, [1.0] + [small] * 15) == 1 + 7 * 2**-23
    assert dot([float("inf"), 1.0], [1.0, 1.0]) == float("inf")
    assert torch.tensor(dot([float("nan"), 1.0], [1.0, 1.0])).isnan()


def exponentials(x: Tensor) -> Tensor:
    return torch.ops.hashgrid_on_host.mlp(x[:, None], [torch.ones(1, 1)], [], NONE, EXP, 0)[:, 0]


def test_expf_is_off_by_a_unit_in_the_last_place(cuda_on_host: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    x = 0.16 * torch.arange(-500, 501)
    monkeypatch.setenv("HASHGRID_EMULATED_EXPF", "")
    exact = exponentials(x)
    monkeypatch.setenv("HASHGRID_EMULATED_EXPF", "ulp")
    off = exponentials(x).view(torch.int32) - exact.view(torch.int32)
    assert off[x == 0].tolist() == [0]
    assert set(off[x != 0].tolist()) == {-1, 1} and 400 < (off > 0).sum() < 600
