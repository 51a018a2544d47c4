"""What only the CUDA kernels do: sums that depend on no order if asked for, NaN for errors, vectors of rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from problems.composite import check_composite_budget, composite_and_derivatives, make_samples
from torch import Tensor

from hashgrid import ops, reference
from hashgrid.levels import make_level_table
from hashgrid.ops import _ngp

pytestmark = pytest.mark.every_kernel(cuda_only=True)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("op", ["mlp", "ray_aabb"])
def test_ops_call_the_kernels_the_fixture_names(kernels: str, request: pytest.FixtureRequest, op: str) -> None:
    """Without this, all tests of this kind could pass on the CPU's kernels."""
    call = {"mlp": lambda: ops.mlp(torch.ones(3, 2), [torch.ones(2, 2)]), "ray_aabb": lambda: ops.ray_aabb(*rays)}[op]
    rays = torch.zeros(3, 3), torch.ones(3, 3), torch.tensor([-1.0, -1, -1, 1, 1, 1])
    if kernels == "cuda_on_host":
        host = request.getfixturevalue("cuda_on_host")
        before = sum(host.launches().values())
        call()
        assert sum(host.launches().values()) > before
    else:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
        assert any(f"{op}_" in event.name and "_kernel" in event.name for event in profile.events())


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_deterministic_table_gradient_is_exact_in_any_order(dtype: torch.dtype) -> None:
    levels = make_level_table(3, n_levels=3, log2_hashmap_size=6, base_resolution=4, per_level_scale=2)
    x, grad_y = (
        torch.rand(3000, 3, dtype=dtype),
        torch.randn(3000, 6, dtype=dtype) * 10.0 ** torch.randint(-6, 6, (3000, 1)),
    )
    table = torch.randn(levels.n_entries, 2, dtype=dtype, requires_grad=True)

    def gradients(library, order: Tensor) -> list[Tensor]:
        positions = x[order].requires_grad_()
        y = library.hash_encode(positions, table, levels)
        first = torch.autograd.grad(y, [table, positions], grad_y[order], create_graph=True)
        (second,) = torch.autograd.grad(first[1].square().sum(), table)
        return [first[0].detach(), second]

    one, other = gradients(ops, torch.arange(3000)), gradients(ops, torch.randperm(3000))
    for a, b, c in zip(one, other, gradients(reference, torch.arange(3000)), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-5 * c.abs().max().item())


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("values", [(torch.inf, torch.inf), (torch.nan, 1.0), (1.0, torch.nan)], ids=str)
def test_deterministic_table_gradient_shows_a_gradient_that_is_not_finite(values: tuple[float, float]) -> None:
    """Whatever finite value follows in the row."""
    levels = make_level_table(2, n_levels=1, log2_hashmap_size=6, base_resolution=4)
    table = torch.randn(levels.n_entries, 2, requires_grad=True)
    y = ops.hash_encode(torch.rand(5, 2), table, levels)
    (grad,) = torch.autograd.grad(y, table, torch.tensor([values] * 5))
    assert grad.isnan().any() and (grad.isnan() | (grad == 0)).all()


@pytest.mark.parametrize("n_features", [1, 2])
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_rows_are_added_in_pairs_where_these_are_aligned(n_features: int, shift: int) -> None:
    """Levels that begin at any row, and gradient buffers that begin anywhere; the emulation stops at a vector that is
    not aligned."""
    levels = make_level_table(3, n_levels=3, log2_hashmap_size=6, base_resolution=3, per_level_scale=1.6)
    levels = replace(levels, offsets=tuple(offset + shift for offset in levels.offsets))
    x, table = torch.rand(500, 3), torch.randn(levels.n_entries, n_features, requires_grad=True)
    grad_y = torch.randn(500, 3 * n_features)
    expected = torch.autograd.grad(reference.hash_encode(x, table, levels), table, grad_y)[0]
    for begin in range(4):
        buffer = torch.zeros(begin + table.numel())[begin:].view_as(table)
        _ngp.hash_encode_into(x, table, levels, grad_buffer=buffer).backward(grad_y)
        torch.testing.assert_close(buffer, expected, rtol=1e-5, atol=1e-5)


def test_march_rays_sums_many_chunks_of_rays() -> None:
    """More chunks of rays than the block that sums them has threads."""
    n_rays = 1024 * 257 + 5
    rays_o, rays_d = torch.tensor([[0.5, 0.5, -1.0]]), torch.tensor([[0.0, 0, 1]])
    aabb = torch.tensor([0.0, 0, 0, 1, 1, 1])
    rays_o, rays_d = rays_o.repeat(n_rays, 1), rays_d.repeat(n_rays, 1)
    rays_o[::3, 0] = 7
    result = ops.march_rays(rays_o, rays_d, aabb, torch.tensor([1], dtype=torch.uint8), (1, 1, 1), step_size=0.4)
    starts, counts = result[3].unbind(-1)
    assert torch.equal(starts, counts.cumsum(0) - counts) and len(result[0]) == counts.sum() > n_rays
    assert torch.equal(result[2], torch.arange(n_rays).repeat_interleave(counts))


def test_composite_carries_sums_over_many_groups_of_samples() -> None:
    samples = make_samples([2500, 50, 49], torch.float32, 0.5)
    exact = composite_and_derivatives(reference.composite, samples, torch.float64)
    theirs = composite_and_derivatives(reference.composite, samples, torch.float32)
    check_composite_budget(composite_and_derivatives(ops.composite, samples, torch.float32), theirs, exact)


@pytest.mark.parametrize("second", [[5, 3], [4, 90], [4, -1], [-4, 4]])
def test_composite_shows_rays_that_do_not_lie_back_to_back(second: list[int]) -> None:
    samples = make_samples([4, 4, 2], torch.float32) | {"packed_info": torch.tensor([[0, 4], second, [8, 2]])}
    samples["sigmas"].requires_grad_()
    outputs = ops.composite(**samples)
    for output in (*outputs[:3], outputs[4]):
        assert output[0].isfinite().all() and output[1].isnan().all()
    (gradient,) = torch.autograd.grad(outputs[0].nan_to_num().sum(), samples["sigmas"])
    assert gradient[:4].isfinite().all() and gradient[5:].isnan().any()
    sigmas, features, *rest = (x.detach() for x in samples.values())
    with pytest.raises(RuntimeError, match="back to back"):
        _ngp.visible_samples(sigmas, *rest)


def test_samples_behind_a_hidden_one_stay_hidden() -> None:
    """Even where a negative density would let light through again, in a later group of lanes."""
    samples = make_samples([100, 20], torch.float32, 0.1)
    samples["sigmas"][10], samples["sigmas"][40] = 1e4, -2e4
    sigmas, features, *rest = samples.values()
    index, kept_info = _ngp.visible_samples(sigmas, *rest, 1e-4)
    assert kept_info.tolist() == [[0, 11], [11, 20]]
    weights = ops.composite(sigmas, features, *rest, 1e-4)[3]
    assert not weights[11:100].any() and torch.equal(weights.nonzero().squeeze(-1), index)


@pytest.mark.parametrize("width", [2, 4, 8])
def test_adam_step_takes_rows_that_are_not_aligned(width: int) -> None:
    """Views that begin one element behind a multiple of a row: no vector of the row can be loaded."""
    tensors = [torch.randn(50 * width + 1) for _ in range(3)] + [torch.rand(50 * width + 1)]
    results = []
    for library in (ops, reference):
        param, grad, avg, sq = (t.clone()[1:].view(50, width) for t in tensors)
        steps = torch.arange(50, dtype=torch.int32)
        library.adam_step(param, grad, avg, sq, steps, torch.tensor(0.01), 0.9, 0.99, 1e-15, 0.0, True)
        results.append((param, avg, sq, steps))
    torch.testing.assert_close(*results)


def test_occupancy_ops_name_a_cell_that_does_not_exist() -> None:
    aabb = torch.tensor([-1.0, -1.5, -0.5, 1.0, 1.0, 0.5])
    density, bits = torch.zeros(16), torch.zeros(2, dtype=torch.uint8)
    for cell in (-1, 16):
        with pytest.raises(RuntimeError, match=rf"`cells` must lie in 0\.\.15, got {cell}"):
            _ngp.occupancy_update(density, bits, torch.tensor([1, cell]), torch.ones(2))
        with pytest.raises(RuntimeError, match=rf"`cells` must lie in 0\.\.15, got {cell}"):
            _ngp.occupancy_points(torch.tensor([1, cell]), aabb, (4, 2, 2))
    with pytest.raises(RuntimeError, match="`cells` must be empty"):
        none = torch.zeros(0), torch.zeros(0, dtype=torch.uint8)
        _ngp.occupancy_update(*none, torch.tensor([0]), torch.ones(1))
