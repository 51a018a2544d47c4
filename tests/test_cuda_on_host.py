"""The CUDA kernels, compiled for the host and emulated thread by thread, against the float64 reference.

Most of their tests are those of the ops, which run on these kernels too (see conftest.py). Here: that every kernel is
launched, sizes around a block, the deterministic table gradient, and that faults planted in the sources are found.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hashgrid import ops, reference
from hashgrid.levels import LevelTable, make_level_table

ROOT = Path(__file__).resolve().parents[1]
SIZES = (0, 1, 7, 255, 256, 257, 4099)


@pytest.fixture(autouse=True)
def emulated(cuda_on_host, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hashgrid._extension.ops", lambda: torch.ops.hashgrid_on_host)
    return cuda_on_host


def check(
    function: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: list[Tensor], second: bool = True
) -> None:
    """Values, first and second derivatives to all of ``inputs``: |ours - f64| <= 2 |PyTorch fp32 - f64| + one rounding.

    Of a tensor with a handful of elements, PyTorch's largest error is a matter of luck: there the factor is 8.
    """

    def run(function: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        y = function(*leaves)
        generator = torch.Generator().manual_seed(1)
        grad_y = torch.randn(y.shape, generator=generator).to(dtype).requires_grad_()
        grads = torch.autograd.grad(y, leaves, grad_y, create_graph=True, materialize_grads=True)
        found = [y, *grads]
        if second:
            pulled = sum((g * torch.randn(g.shape, generator=generator).to(dtype)).sum() for g in grads)
            found += torch.autograd.grad(pulled, [grad_y, *leaves], materialize_grads=True)
        return [x.detach().double() for x in found]

    truth, theirs, ours = run(plain, torch.float64), run(plain, torch.float32), run(function, torch.float32)
    for i, (a, b, exact) in enumerate(zip(ours, theirs, truth, strict=True)):
        assert a.shape == exact.shape, i
        if exact.numel() == 0:
            continue
        error, allowed = ((x - exact).abs().max().item() for x in (a, b))
        rounding = exact.abs().max().item() * torch.finfo(torch.float32).eps
        factor = 2 if exact.numel() >= 8 else 8
        assert error <= factor * allowed + rounding, f"tensor {i}: {error} > {factor} * {allowed} + {rounding}"


@pytest.mark.parametrize("n_dims", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("n", SIZES)
def test_hash_encode_sizes(n: int, n_dims: int) -> None:
    # level scales 9 and 19: a point in the middle half of a cell of the first keeps away from the borders of both
    levels = make_level_table(n_dims, n_levels=2, log2_hashmap_size=8, base_resolution=10, per_level_scale=2)
    x = ((torch.randint(0, 18, (n, n_dims)) + 0.7 + 0.1 * torch.rand(n, n_dims)) / 19).clamp(max=1)
    inputs = [x, torch.randn(levels.n_entries, 2), torch.rand(2)]
    for interpolation in ("linear", "smoothstep"):
        ours, plain = (
            functools.partial(_encode, library.hash_encode, levels, interpolation) for library in (ops, reference)
        )
        check(ours, plain, inputs, second=n < 4099 or n_dims == 3)


def _encode(function, levels: LevelTable, interpolation: str, x: Tensor, table: Tensor, weights: Tensor) -> Tensor:
    return function(x, table, levels, interpolation, level_weights=weights)


@pytest.mark.parametrize("n", SIZES)
def test_sh_and_frequency_sizes(n: int) -> None:
    directions = torch.nn.functional.normalize(torch.randn(n, 3), dim=-1)
    check(lambda d: ops.sh_encode(d, 4), lambda d: reference.sh_encode(d, 4), [directions])
    check(lambda x: ops.frequency_encode(x, 6), lambda x: reference.frequency_encode(x, 6), [torch.rand(n, 3)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_deterministic_table_gradient_is_exact_in_any_order(dtype: torch.dtype) -> None:
    levels = make_level_table(3, n_levels=3, log2_hashmap_size=6, base_resolution=4, per_level_scale=2)
    x, grad_y = (
        torch.rand(3000, 3, dtype=dtype),
        torch.randn(3000, 6, dtype=dtype) * 10.0 ** torch.randint(-6, 6, (3000, 1)),
    )

    def gradients(order: Tensor) -> list[Tensor]:
        table = torch.randn(
            levels.n_entries, 2, dtype=dtype, generator=torch.Generator().manual_seed(0)
        ).requires_grad_()
        positions = x[order].requires_grad_()
        y = ops.hash_encode(positions, table, levels)
        first = torch.autograd.grad(y, [table, positions], grad_y[order], create_graph=True)
        (second,) = torch.autograd.grad(first[1].square().sum(), table)
        return [first[0].detach(), second]

    torch.use_deterministic_algorithms(True)
    try:
        one, other = gradients(torch.arange(3000)), gradients(torch.randperm(3000))
    finally:
        torch.use_deterministic_algorithms(False)
    plain = gradients(torch.arange(3000))
    for a, b, c in zip(one, other, plain, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-5 * c.abs().max().item())


def test_deterministic_table_gradient_shows_a_gradient_that_is_not_finite() -> None:
    levels = make_level_table(2, n_levels=1, log2_hashmap_size=6, base_resolution=4)
    table = torch.randn(levels.n_entries, 2, requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        y = ops.hash_encode(torch.rand(5, 2), table, levels)
        (grad,) = torch.autograd.grad(y, table, torch.full_like(y, torch.inf))
    finally:
        torch.use_deterministic_algorithms(False)
    assert grad.isnan().any() and (grad.isnan() | (grad == 0)).all()


def test_every_kernel_is_launched(emulated) -> None:
    """By the tests of this file; it runs last of them that are not about faults."""
    kernels = set()
    for op in ("hash_encode", "sh_encode", "frequency_encode"):
        path = ROOT / "csrc" / "cuda" / f"{op}.cu"
        kernels |= set(re.findall(r"__global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(", path.read_text()))
    assert kernels and kernels <= set(emulated.launches()), sorted(kernels - set(emulated.launches()))


SIZES_TEST = "test_cuda_on_host.test_hash_encode_sizes(257, 3)"
FRAGMENT_TEST = (
    "test_cuda_on_host_mlp.check_fused(test_cuda_on_host_mlp.Problem([32, 64, 3], 65, True, 'relu', 'none'))"
)
ADD_ROW = "#endif\n#pragma unroll\n  for (int f = 0; f < kF; ++f) {};"
BARRIER = "    if (static_cast<int>(threadIdx.x) < half)"
# op, (file, text, other text), test that has to fail
FAULTS = {
    "atomic": (
        "hash_encode",
        (
            "cuda/atomics.cuh",
            ADD_ROW.format("atomicAdd(target + f, values[f])"),
            ADD_ROW.format("target[f] = values[f]"),
        ),
        SIZES_TEST,
    ),
    "barrier": ("hash_encode", ("cuda/hash_encode.cu", "    __syncthreads();\n" + BARRIER, BARRIER), SIZES_TEST),
    "corner": (
        "hash_encode",
        ("core/grid_point.h", "? 1u : 1u << n_dims;", "? 1u : (1u << n_dims) - 1u;"),
        SIZES_TEST,
    ),
    "fragment": (
        "mlp",
        ("cuda/mma.cuh", "mma_m16n8k16(sum, a, b0, b1,", "mma_m16n8k16(sum, {a[0], a[2], a[1], a[3]}, b0, b1,"),
        FRAGMENT_TEST,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(fault: str, tmp_path: Path) -> None:
    """One of the tests of the sound kernels, in a process of its own, on kernels with one line broken."""
    op, patch, test = FAULTS[fault]
    code = f"""
import sys
sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT)!r}]
from pathlib import Path
import torch
from host.build import build, load
import test_cuda_on_host, test_cuda_on_host_mlp
from hashgrid import _extension
load(build(Path({str(tmp_path)!r}), patch={patch!r}, only={op!r}))
_extension.ops = lambda: torch.ops.hashgrid_on_host
torch.manual_seed(0)
try:
    {test}
except AssertionError as error:
    print("found:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("found: tensor"), done.stdout
