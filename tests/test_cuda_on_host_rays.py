"""The CUDA kernels of rays, compositing, occupancy and Adam, emulated on the host, against CPU and reference."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from samples import SAMPLES
from test_adam_step import State, check, sparse_gradient
from test_composite import assert_within_budget, evaluate
from test_march_rays import OPTIONS, scene
from test_occupancy import AABB, make_cameras, make_state
from test_ray_aabb import random_rays
from test_reference_composite import make_samples
from torch import Tensor

from hashgrid import _extension, ops, reference
from hashgrid.modules.occupancy_grid import _frustum_planes

ROOT = Path(__file__).resolve().parents[1]
SIZES = [0, 1, 7, 255, 256, 257, 4099]
FEW = SIZES[:-1]  # each lane of a warp is a fiber of its own
KERNEL_FILES = [
    "counter_uniform",
    "ray_aabb",
    "march_rays",
    "composite",
    "visible_samples",
    "adam_step",
    "occupancy_points",
    "occupancy_visible",
    "occupancy_update",
]


@pytest.fixture(scope="module", autouse=True)
def emulation(cuda_on_host: ModuleType) -> ModuleType:
    return cuda_on_host


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes ``hashgrid.ops`` call the emulated kernels."""
    monkeypatch.setattr(_extension, "ops", lambda: torch.ops.hashgrid_on_host)


def assert_same(actual: object, expected: object) -> None:
    """Equal bits; a tensor or a tuple of tensors."""
    actual, expected = ((x,) if isinstance(x, Tensor) else x for x in (actual, expected))
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def both(name: str, *arguments) -> tuple:
    """Results of the emulated kernel and of the CPU's."""
    return getattr(torch.ops.hashgrid_on_host, name)(*arguments), getattr(torch.ops.hashgrid, name)(*arguments)


def packed(counts: list[int], dtype: torch.dtype = torch.float32, density: float = 1.0) -> dict[str, Tensor]:
    return make_samples(counts, dtype, density) if counts else make_samples([0], dtype) | {"packed_info": EMPTY}


EMPTY = torch.zeros(0, 2, dtype=torch.int64)


@pytest.mark.parametrize("name", KERNEL_FILES)
def test_emulated_op_matches_the_cpu(name: str) -> None:
    for op in [name] + [f"{name}_backward", f"{name}_backward_backward"] * (name == "composite"):
        for arguments in SAMPLES[op]():
            arguments = [x.detach() if isinstance(x, Tensor) else x for x in arguments]
            copies = [x.clone() if isinstance(x, Tensor) else x for x in arguments]
            actual = getattr(torch.ops.hashgrid_on_host, op)(*copies)
            expected = getattr(torch.ops.hashgrid, op)(*arguments)
            torch.testing.assert_close(actual, expected)
            torch.testing.assert_close(copies, arguments)


# ---- rays --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
def test_counter_uniform_has_the_bits_of_the_cpu(n: int) -> None:
    for seed, step in ((0, 0), (-(2**62) - 5, 2**32 - 1)):
        assert_same(*both("counter_uniform", torch.tensor([seed, step]), torch.arange(n) * 2**20 - 17))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", SIZES)
def test_ray_aabb_has_the_bits_of_the_cpu(n: int, dtype: torch.dtype) -> None:
    rays = random_rays(n, dtype)
    assert_same(*both("ray_aabb", *rays, AABB.to(dtype), 0.0, math.inf))
    assert_same(*both("ray_aabb", *rays, AABB.to(dtype), 0.3, 2.1))


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_rays", SIZES)
def test_march_rays_has_the_bits_of_the_reference(n_rays: int, dtype: torch.dtype) -> None:
    for resolution, n_cascades in (((17, 9, 33), 1), ((16, 12, 8), 3)):
        arguments = scene(n_rays, resolution, n_cascades, 0.2, dtype)
        for options in OPTIONS if n_rays < 1000 else OPTIONS[1:2]:
            assert_same(ops.march_rays(*arguments, **options), reference.march_rays(*arguments, **options))


@pytest.mark.usefixtures("on_host")
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


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("n_rays", SIZES)
def test_march_rays_fixed_has_the_bits_of_the_reference(n_rays: int) -> None:
    arguments = scene(n_rays, (16, 12, 8), 2, 0.2, torch.float32)
    options = {"step_size": 0.03, "seed": torch.tensor([4]), "step": torch.tensor([9])}
    total = len(reference.march_rays(*arguments, **options)[0])
    for n_samples, n_in_use in ((0, n_rays), (total // 3, n_rays), (total + 50, n_rays // 2), (total, n_rays + 3)):
        options |= {"n_samples": n_samples, "n_rays": torch.tensor([n_in_use])}
        assert_same(ops.march_rays_fixed(*arguments, **options), reference.march_rays_fixed(*arguments, **options))


# ---- compositing -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize(("n_rays", "n_features"), [(n, 3) for n in FEW] + [(n, c) for n in (0, 7) for c in (0, 1, 33)])
def test_composite_stays_within_the_error_budget(n_rays: int, n_features: int) -> None:
    counts = [(0, 3, 40, 1, 32, 33, 7)[i % 7] for i in range(n_rays)]
    for density in (0.1, 20.0):
        samples = packed(counts, torch.float32, density)
        samples["features"] = torch.rand(len(samples["sigmas"]), n_features)
        exact = evaluate(reference.composite, samples, torch.float64)
        theirs = evaluate(reference.composite, samples, torch.float32)
        assert_within_budget(evaluate(ops.composite, samples, torch.float32), theirs, exact)
        for a, b in zip(evaluate(ops.composite, samples, torch.float64), exact, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("counts", [[700] * 6, [4000, 50, 49], [1] * 4099], ids=lambda counts: str(sum(counts)))
def test_composite_of_long_rays_and_of_many(counts: list[int]) -> None:
    samples = make_samples(counts, torch.float32, 0.5)
    exact = evaluate(reference.composite, samples, torch.float64)
    theirs = evaluate(reference.composite, samples, torch.float32)
    assert_within_budget(evaluate(ops.composite, samples, torch.float32), theirs, exact)


@pytest.mark.parametrize("second", [[5, 3], [4, 90], [4, -1], [-4, 4]])
def test_composite_shows_rays_that_do_not_lie_back_to_back(second: list[int]) -> None:
    sigmas, features, t_starts, t_ends, _ = make_samples([4, 4, 2], torch.float32).values()
    arguments = sigmas, features, t_starts, t_ends, torch.tensor([[0, 4], second, [8, 2]]), 1e-4
    outputs = torch.ops.hashgrid_on_host.composite(*arguments)
    for output in (*outputs[:3], outputs[4]):
        assert output[0].isfinite().all() and output[1].isnan().all()
    gradients = torch.ops.hashgrid_on_host.composite_backward(outputs[0], None, None, None, None, *arguments)
    assert gradients[0][:4].isfinite().all() and gradients[0][5:].isnan().any()
    with pytest.raises(RuntimeError, match="back to back"):
        torch.ops.hashgrid_on_host.visible_samples(sigmas, *arguments[2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_rays", SIZES)
def test_visible_samples_are_those_of_the_cpu(n_rays: int, dtype: torch.dtype) -> None:
    counts = [(0, 3, 70, 1, 32, 33, 7)[i % 7] if n_rays < 1000 else i % 3 for i in range(n_rays)]
    for density in (0.5, 30.0):
        sigmas, _, *rest = packed(counts, dtype, density).values()
        assert_same(*both("visible_samples", sigmas, *rest, 1e-3))


def test_samples_behind_a_hidden_one_stay_hidden() -> None:
    """Even where a negative density would let light through again, in a later group of lanes."""
    samples = make_samples([100, 20], torch.float32, 0.1)
    samples["sigmas"][10], samples["sigmas"][40] = 1e4, -2e4
    sigmas, features, *rest = samples.values()
    index, kept_info = torch.ops.hashgrid_on_host.visible_samples(sigmas, *rest, 1e-4)
    assert kept_info.tolist() == [[0, 11], [11, 20]]
    weights = torch.ops.hashgrid_on_host.composite(sigmas, features, *rest, 1e-4)[3]
    assert not weights[11:100].any() and torch.equal(weights.nonzero().squeeze(-1), index)
    assert_same(*both("visible_samples", sigmas, *rest, 1e-4))


# ---- Adam --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 37])
@pytest.mark.parametrize("skip_zero", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adam_step_stays_within_the_error_budget(width: int, skip_zero: bool, dtype: torch.dtype) -> None:
    for n_rows in SIZES if width == 2 else FEW[1:]:
        grad = sparse_gradient((n_rows, width), 0.3, dtype)
        make = lambda dtype: State((n_rows, width), dtype, skip_zero, True, torch.bfloat16)  # noqa: B023, E731
        ours, theirs, exact = make(dtype), make(dtype), make(torch.float64)
        for name in ("param", "exp_avg", "exp_avg_sq", "ema"):
            setattr(exact, name, getattr(ours, name).double().clone())
        cleared = grad.clone()
        ours.step(ops.adam_step, cleared, skip_zero, zero_grad=True)
        theirs.step(reference.adam_step, grad.clone(), skip_zero)
        exact.step(reference.adam_step, grad.double(), skip_zero)
        shadow = ours.shadow
        for state in (ours, theirs, exact):
            state.shadow = None
        check(ours, theirs, exact)
        assert not cleared.any()
        touched = grad.ne(0).any(-1) if skip_zero else torch.ones(n_rows, dtype=torch.bool)
        assert torch.equal(shadow[touched], ours.param.to(torch.bfloat16)[touched])


@pytest.mark.parametrize("width", [2, 4, 8])
def test_adam_step_takes_rows_that_are_not_aligned(width: int) -> None:
    def state() -> list[Tensor]:
        torch.manual_seed(3)
        return [torch.randn(50 * width + 1)[1:].view(50, width) for _ in range(3)] + [torch.rand(50 * width + 1)[1:]]

    results = []
    for library in (torch.ops.hashgrid_on_host, torch.ops.hashgrid):
        param, grad, avg, sq = state()
        steps = torch.arange(50, dtype=torch.int32)
        sq = sq.view(50, width)
        options = 0.9, 0.99, 1e-15, 0.0, True, None, None, 0.0, None, None, False
        library.adam_step(param, grad, avg, sq, steps, torch.tensor(0.01), *options)
        results.append((param, avg, sq, steps))
    torch.testing.assert_close(results[0], results[1])


# ---- occupancy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", SIZES)
def test_occupancy_points_have_the_bits_of_the_cpu(n: int, dtype: torch.dtype) -> None:
    cells = torch.randint(0, 5 * 8 * 3 * 3, (n,))
    for counter in (None, torch.tensor([3, 4])):
        assert_same(*both("occupancy_points", cells, AABB.to(dtype), [5, 8, 3], 3, counter))


@pytest.mark.parametrize("scale", [1e-3, 1.0])
@pytest.mark.parametrize("n_cells", [*SIZES, 16383, 16385, 100_000])
def test_occupancy_update_has_the_bits_of_the_cpu(n_cells: int, scale: float) -> None:
    density, bits, cells, values = make_state(n_cells, scale)
    ours, theirs = (density.clone(), bits.clone()), (density, bits)
    torch.ops.hashgrid_on_host.occupancy_update(*ours, cells, values, 0.95, 0.01)
    torch.ops.hashgrid.occupancy_update(*theirs, cells, values, 0.95, 0.01)
    assert_same(ours, theirs)


def test_occupancy_ops_name_a_cell_that_does_not_exist() -> None:
    density, bits = torch.zeros(16), torch.zeros(2, dtype=torch.uint8)
    for cell in (-1, 16):
        with pytest.raises(RuntimeError, match=rf"`cells` must lie in 0\.\.15, got {cell}"):
            torch.ops.hashgrid_on_host.occupancy_update(density, bits, torch.tensor([1, cell]), torch.ones(2), 0.9, 1)
        with pytest.raises(RuntimeError, match=rf"`cells` must lie in 0\.\.15, got {cell}"):
            torch.ops.hashgrid_on_host.occupancy_points(torch.tensor([1, cell]), AABB, [4, 2, 2], 1, None)
    with pytest.raises(RuntimeError, match="`cells` must be empty"):
        none = torch.zeros(0), torch.zeros(0, dtype=torch.uint8)
        torch.ops.hashgrid_on_host.occupancy_update(*none, torch.tensor([0]), torch.ones(1), 0.9, 1)


@pytest.mark.parametrize("n_views", [0, 1, 7])
def test_occupancy_visible_has_the_flags_of_the_cpu(n_views: int) -> None:
    planes = _frustum_planes(*make_cameras(n_views), 0.2, 0.0).float()
    for resolution, n_cascades in (([16, 20, 9], 1), ([12, 8, 8], 3), ([1, 1, 7], 1)):
        actual, expected = both("occupancy_visible", planes, AABB, resolution, n_cascades)
        assert (actual != expected).sum() <= 1  # rounding at the border of a view


# ---- all of them -------------------------------------------------------------------------------------------------


def test_every_kernel_was_launched(emulation: ModuleType) -> None:
    for name in KERNEL_FILES:
        for op in [name] + [f"{name}_backward", f"{name}_backward_backward"] * (name == "composite"):
            for arguments in SAMPLES[op]():
                getattr(torch.ops.hashgrid_on_host, op)(
                    *[x.detach() if isinstance(x, Tensor) else x for x in arguments]
                )
    sources = [ROOT / "csrc" / "cuda" / f"{name}.cu" for name in KERNEL_FILES] + [ROOT / "csrc" / "cuda" / "scan.cuh"]
    kernels = {name for path in sources for name in re.findall(r"__global__ void (\w+)\(", path.read_text())}
    assert len(kernels) > 20 and kernels <= set(emulation.launches())
