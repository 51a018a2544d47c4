"""The CUDA kernels of the MLP, emulated on the host, against the reference: values, derivatives, rounding, bits."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from problems.mlp import BF16, FP16
from problems.mlp_on_host import MlpOnHost, check_fused, check_plain

from hashgrid.util.choices import ACTIVATIONS

pytestmark = pytest.mark.full
SIZES = (0, 1, 7, 63, 64, 65, 255, 257, 1031)  # tiles have 16 rows, warps 16 or 32, blocks 128, slices 256


@pytest.fixture(scope="module")
def host(cuda_on_host: ModuleType) -> ModuleType:
    return cuda_on_host


@pytest.fixture
def small_shared(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Gives blocks of the emulated device less shared memory."""
    return lambda n_bytes: monkeypatch.setenv("HASHGRID_EMULATED_SHARED_BYTES", str(n_bytes))


# Input, hidden and output widths: every instance of the kernels, odd sizes, up to three hidden layers.
NETWORKS = (
    *([1, 1], [17, 32], [32, 3]),
    *([3, 16, 1], [32, 16, 16, 16], [17, 32, 3], [3, 40, 40, 17], [32, 64, 64, 64, 3], [16, 64, 16]),
    *([32, 128, 16], [3, 128, 128, 128, 1], [100, 128, 40, 72, 5]),
)


def name_of(widths: list[int]) -> str:
    return "-".join(map(str, widths))


@pytest.mark.parametrize("widths", NETWORKS, ids=name_of)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("compute_dtype", [BF16, FP16])
def test_fused_matches_reference(host: ModuleType, widths: list[int], bias: bool, compute_dtype: torch.dtype) -> None:
    for n in SIZES if compute_dtype == BF16 else (0, 1, 7, 255, 256, 257):
        check_fused(MlpOnHost(widths, n, bias, "relu", "sigmoid" if bias else "none"), compute_dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("widths", [[7, 32, 20, 5], [32, 64, 64, 3]], ids=["odd", "even"])
@pytest.mark.parametrize("compute_dtype", [BF16, FP16])
def test_fused_activations_match_reference(
    host: ModuleType, activation: str, widths: list[int], compute_dtype: torch.dtype
) -> None:
    for n in (7, 129):
        check_fused(MlpOnHost(widths, n, True, activation, activation), compute_dtype)


@pytest.mark.parametrize("shared_bytes", [100_000, 40_000, 30_000, 20_000])
@pytest.mark.parametrize("bias", [False, True])
def test_fused_with_less_shared_memory(
    host: ModuleType, small_shared: Callable[[int], None], shared_bytes: int, bias: bool
) -> None:
    """Fewer warps, then sums in global memory."""
    small_shared(shared_bytes)
    for compute_dtype in (BF16, FP16):
        check_fused(MlpOnHost([17, 48, 64, 3], 257, bias, "silu", "none"), compute_dtype)


def test_wider_networks_than_fused_are_rounded(host: ModuleType) -> None:
    before = host.launches()
    for compute_dtype in (BF16, FP16):
        check_fused(MlpOnHost([5, 200, 3], 65, True, "relu", "none"), compute_dtype)
        check_fused(MlpOnHost([150, 32, 3], 65, True, "tanh", "sigmoid"), compute_dtype)
    name = "mlp_fused_forward_kernel"
    assert host.launches().get(name, 0) == before.get(name, 0)


@pytest.mark.parametrize(("widths", "n"), [([37, 19], 300), ([5, 3], 128 * 256 + 700)], ids=["few", "many"])
@pytest.mark.parametrize("compute_dtype", [BF16, FP16])
def test_fused_rounds_the_factors_and_nothing_else(
    host: ModuleType, widths: list[int], n: int, compute_dtype: torch.dtype
) -> None:
    """Exact enough to miss any row: with many, blocks take several batches of rows in turn."""
    problem = MlpOnHost(widths, n, True, "relu", "none")
    ours = problem.emulated(torch.float32, compute_dtype)
    x, weight, g = (t.float().to(compute_dtype).double() for t in (problem.x, problem.weights[0], problem.grad_y))
    bias = problem.biases[0].float().double()
    exact = [x @ weight.T + bias, g @ weight, g.T @ x, problem.grad_y.float().double().sum(0)]
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("widths", ([100, 128, 40, 72, 5], [32, 200, 16]), ids=name_of)
@pytest.mark.parametrize("bias", [False, True])
def test_plain_matches_reference(host: ModuleType, widths: list[int], bias: bool) -> None:
    for n in SIZES:
        check_plain(MlpOnHost(widths, n, bias, "relu", "sigmoid" if bias else "none"))


@pytest.mark.parametrize("compute_dtype", [None, BF16, FP16])
def test_gradients_asked_for_alone(host: ModuleType, compute_dtype: torch.dtype | None) -> None:
    problem = MlpOnHost([17, 40, 40, 3], 300, True, "softplus", "exp")
    both = problem.emulated(torch.float32, compute_dtype)
    only_x = problem.emulated(torch.float32, compute_dtype, (True, False))
    only_params = problem.emulated(torch.float32, compute_dtype, (False, True))
    assert torch.equal(only_x[1], both[1])
    for a, b in zip(only_params[2:], both[2:], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("compute_dtype", [None, BF16, FP16])
def test_nan_and_infinity_stay_in_their_rows(
    host: ModuleType, activation: str, compute_dtype: torch.dtype | None
) -> None:
    problem = MlpOnHost([3, 31, 5], 40, False, activation, "none")
    clean = problem.emulated(torch.float32, compute_dtype)
    problem.x[3, 1], problem.x[8, 0], problem.x[20, 2] = torch.nan, torch.inf, -torch.inf
    y, grad_x, *_ = problem.emulated(torch.float32, compute_dtype)
    expected = problem.reference(torch.float32)[0]
    assert torch.equal(y.isnan(), expected.isnan()) and torch.equal(y.isinf(), expected.isinf())
    good = torch.ones(40, dtype=torch.bool)
    good[[3, 8, 20]] = False
    assert torch.equal(y[good], clean[0][good]) and torch.equal(grad_x[good], clean[1][good])


@pytest.mark.parametrize("compute_dtype", [None, BF16, FP16])
def test_many_partial_sums(host: ModuleType, compute_dtype: torch.dtype | None) -> None:
    """More rows than one block of rows per partial sum."""
    problem = MlpOnHost([2, 8, 1], 128 * 256 + 700, True, "relu", "none")
    if compute_dtype is None:
        check_plain(problem)
    else:
        check_fused(problem, compute_dtype)


def test_unaligned_rows(host: ModuleType) -> None:
    """Widths that would be read in pairs, at addresses that are no multiple of a pair."""
    problem = MlpOnHost([4, 16, 2], 70, False, "relu", "none")
    ours = problem.emulated(torch.float32, BF16)
    ops = torch.ops.hashgrid_on_host
    storage = [torch.empty(t.numel() + 1) for t in (problem.x, problem.grad_y)]
    x, grad_y = (s[1:].view(t.shape).copy_(t) for s, t in zip(storage, (problem.x, problem.grad_y), strict=True))
    weights = [w.float() for w in problem.weights]
    assert torch.equal(ops.mlp(x, weights, [], 1, 0, 1), ours[0])
    grad_x, flat = ops.mlp_backward(grad_y, x, weights, [], 1, 0, 1, True, True)
    assert torch.equal(grad_x, ours[1])
    assert torch.equal(flat, torch.cat([g.flatten() for g in ours[2:]]))


def test_errors_are_those_of_the_cpu(host: ModuleType) -> None:
    ops = torch.ops.hashgrid_on_host
    with pytest.raises(RuntimeError, match=r"`weights\[1\]` must be float32, got float64"):
        ops.mlp(torch.zeros(5, 3), [torch.zeros(4, 3), torch.zeros(2, 4).double()], [], 1, 0, 0)
    with pytest.raises(RuntimeError, match=r"`grad_y` must have shape \[5, 2\]"):
        ops.mlp_backward(torch.zeros(5, 3), torch.zeros(5, 3), [torch.zeros(2, 3)], [], 1, 0, 0, True, True)
