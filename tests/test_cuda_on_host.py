"""Every CUDA kernel, compiled for the host and emulated thread by thread, against the reference around a block's size.

The tests of the ops run on these kernels, too (conftest.py): they know more about each op, these about all kernels.
"""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from host.redirect import take_cuda_ops
from problems.cases import (
    CASES,
    DTYPES,
    adam_step_case,
    assert_same,
    check_derivatives,
    deterministic,
    encode,
)
from problems.hash_encode import safe_positions
from problems.mlp_on_host import MlpOnHost, check_fused, check_plain
from torch import Tensor

from hashgrid import ops, reference
from hashgrid.levels import make_level_table
from hashgrid.ops import _ngp

pytestmark = pytest.mark.full
ROOT = Path(__file__).resolve().parents[1]
SIZES = (0, 1, 7, 255, 256, 257, 4099)


@pytest.fixture(autouse=True)
def emulated(cuda_on_host: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    take_cuda_ops(torch.ops.hashgrid_on_host, monkeypatch.setattr)
    return cuda_on_host


def kernels_of_the_sources() -> set[str]:
    """Names of all ``__global__`` functions, however their attributes are written."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "csrc").rglob("*.cu*")))
    text = re.sub(r"//[^\n]*", "", text)
    heads = [head.split("{")[0].split(";")[0] for head in text.split("__global__")[1:]]
    return {re.sub(r"__launch_bounds__\s*\([^)]*\)+", "", head).split("(")[0].split()[-1] for head in heads}


def test_every_global_function_is_found() -> None:
    """The emulation knows what some line launches: a kernel that none does is missing there."""
    kernels = kernels_of_the_sources()
    assert {"hash_encode_forward_kernel", "mlp_fused_backward_kernel", "scan_rays_kernel"} <= kernels
    text = "\n".join(path.read_text() for path in (ROOT / "csrc" / "cuda").iterdir())
    assert kernels == set(re.findall(r"\b\w+_kernel\b", text))


@pytest.mark.parametrize("n_features", [1, 2, 4, 8])
@pytest.mark.parametrize("n_levels", [1, 5, 16])
def test_levels_that_share_a_warp_change_no_bit(
    monkeypatch: pytest.MonkeyPatch, n_features: int, n_levels: int
) -> None:
    """As many as fill a sector of the output do, where the cache has room for twice their rows."""
    levels = make_level_table(3, n_levels, log2_hashmap_size=8, base_resolution=6, per_level_scale=1.3)
    x, table = safe_positions(levels, 300), torch.randn(levels.n_entries, n_features, requires_grad=True)
    grad_y = torch.randn(300, n_levels * n_features)

    def results(l2_bytes: int) -> tuple[Tensor, Tensor]:
        monkeypatch.setenv("HASHGRID_EMULATED_L2_BYTES", str(l2_bytes))
        y = ops.hash_encode(x, table, levels)
        with deterministic():
            return y.detach(), torch.autograd.grad(y, table, grad_y)[0]

    alone = results(0)
    for n_together in (2, 4, 8):
        assert_same(results(2 * n_together * 256 * n_features * 4), alone)


@pytest.mark.parametrize("n", SIZES)
def test_every_kernel_matches_the_reference(emulated: ModuleType, n: int) -> None:
    """At N > 0 every kernel there is, counted as they run, has taken part."""
    before = emulated.launches()
    assert set(before) == kernels_of_the_sources()
    for case in CASES:
        case(n)
    launched = {name for name, count in emulated.launches().items() if count > before[name]}
    if n > 0:
        assert launched == set(before), f"never launched: {sorted(set(before) - launched)}"


def launch_hash_encode_instances() -> None:
    """Dimensions known to the compiler and others, every number of features, tables of every dtype."""
    for n_dims, n_features in itertools.product((1, 2, 3, 4, 5), (1, 2, 4, 8)):
        levels = make_level_table(n_dims, n_levels=8, log2_hashmap_size=8, base_resolution=6, per_level_scale=1.3)
        inputs = [safe_positions(levels, 9), torch.randn(levels.n_entries, n_features), torch.rand(levels.n_levels)]
        ours, plain = (encode(library, levels, "smoothstep") for library in (ops, reference))
        check_derivatives(ours, plain, inputs)
        with deterministic():
            check_derivatives(ours, plain, inputs)
        for dtype in (torch.float16, torch.bfloat16):
            half_table = inputs[1].to(dtype)
            ours = encode(ops, levels, "smoothstep", half_table)
            check_derivatives(ours, plain, [inputs[0], half_table.float(), inputs[2]], in_fp64=False)


def launch_hash_encode_mlp_instances() -> None:
    """Dimensions, dtypes of the table and of the factors, widths, kinds of activations."""
    choices = itertools.product((2, 3), (False, True), (torch.float16, torch.bfloat16), (20, 100), ("relu", "tanh"))
    for n_dims, stored, dtype, width, activation in choices:
        levels = make_level_table(n_dims, n_levels=8, log2_hashmap_size=8, base_resolution=6, per_level_scale=1.3)
        x, table = torch.rand(9, n_dims), torch.randn(levels.n_entries, 2)
        half_table = table.to(dtype) if stored else None
        weights = [torch.randn(width, 16), torch.randn(3, width)]
        options = {"activation": activation, "compute_dtype": dtype}
        y = _ngp.hash_encode_mlp(x, table, levels, weights, half_table=half_table, **options)
        encoded = _ngp.hash_encode_into(x, table, levels, half_table=half_table)
        assert torch.equal(y, ops.mlp(encoded, weights, activation=activation, compute_dtype=dtype))


def launch_hash_encode_jet_instances() -> None:
    """Dimensions known to the compiler and others."""
    for n_dims, dtype in itertools.product((2, 3, 4), DTYPES):
        levels = make_level_table(n_dims, n_levels=3, log2_hashmap_size=8, base_resolution=6, per_level_scale=1.3)
        tensors = safe_positions(levels, 9), torch.randn(9, 2, n_dims), torch.randn(levels.n_entries, 2)
        leaves = [tensor.to(dtype).requires_grad_() for tensor in tensors]
        runs = []
        for library in (ops, reference):
            results = library.hash_encode_jet(*leaves, levels, "smoothstep")
            grads = torch.autograd.grad(sum(result.square().sum() for result in results), leaves)
            runs.append([*results, *grads])
        for a, b in zip(*runs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * b.abs().max().item())


def launch_other_instances() -> None:
    directions = torch.nn.functional.normalize(torch.randn(9, 3), dim=-1)
    for dtype in DTYPES:
        leaf = directions.to(dtype).requires_grad_()
        y = ops.sh_encode(leaf, 1)
        torch.testing.assert_close(y, torch.full_like(y, 0.28209479177387814))
        assert not torch.autograd.grad(y.sum(), leaf)[0].any()
    for degree in range(2, 9):
        check_derivatives(
            functools.partial(ops.sh_encode, degree=degree),
            functools.partial(reference.sh_encode, degree=degree),
            [directions],
        )
    for widths in ([3, 16, 1], [17, 64, 3], [100, 128, 5]):
        for activation in ("relu", "tanh"):
            problem = MlpOnHost(widths, 9, True, activation, "none")
            check_fused(problem, torch.bfloat16)
            check_fused(problem, torch.float16)
            check_plain(problem)
    for width in (1, 2, 3, 4, 8):
        adam_step_case(9, width)
    for case in CASES:
        case(7)


def test_every_instance_is_launched(emulated: ModuleType) -> None:
    """Those the launchers choose from: numbers of dimensions and features, dtypes, widths, activations."""
    before = emulated.instances()
    launch_hash_encode_instances()
    launch_hash_encode_mlp_instances()
    launch_other_instances()
    launch_hash_encode_jet_instances()
    missing = [name for name, count in emulated.instances().items() if count == before[name]]
    assert len(before) > 200 and not missing
