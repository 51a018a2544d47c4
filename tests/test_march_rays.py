"""Native ray marching against the reference, bit for bit, and against a plain Python loop."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems.march_rays import AABB, OPTIONS, RESOLUTION, brute_force_march, make_rays, pack, random_cells, scene
from torch import Tensor

from hashgrid import _extension, ops, reference

pytestmark = pytest.mark.every_kernel


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("resolution", "n_cascades"), [((16, 16, 16), 1), ((17, 9, 33), 1), ((16, 12, 8), 3)])
@pytest.mark.parametrize("options", OPTIONS)
def test_march_equals_reference(
    options: dict, resolution: tuple[int, int, int], n_cascades: int, dtype: torch.dtype
) -> None:
    for occupied in (0.05, 0.5):
        arguments = scene(400, resolution, n_cascades, occupied, dtype)
        actual = ops.march_rays(*arguments, **options)
        assert_same(actual, reference.march_rays(*arguments, **options))
        assert len(actual[0]) > 20


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.full)])
@pytest.mark.parametrize(
    ("resolution", "n_cascades"), [((48, 20, 64), 1), ((4, 8, 24), 1), ((32, 64, 32), 3), ((16, 48, 32), 2)]
)
@pytest.mark.parametrize("options", [*OPTIONS[:3], {"step_size": 0.0003, "seed": 5}])
def test_march_past_empty_bricks_equals_reference(
    options: dict, resolution: tuple[int, int, int], n_cascades: int, dtype: torch.dtype
) -> None:
    """Few cells, so that most bricks of 4^3 have none; the reference knows of no bricks."""
    n_cells = n_cascades * math.prod(resolution)
    for occupied in (0, 20 / n_cells, 600 / n_cells):
        arguments = list(scene(300, resolution, n_cascades, 0.5, dtype))
        arguments[3] = pack(random_cells(n_cells, occupied))
        actual = ops.march_rays(*arguments, **options)
        assert_same(actual, reference.march_rays(*arguments, **options))
    assert len(actual[0]) > 0


@pytest.mark.parametrize("n_rays", [0, 1, 7, 15, 16, 17, 511, 512, 513])
def test_march_of_any_number_of_rays(n_rays: int) -> None:
    arguments = scene(n_rays, (8, 8, 8), 1, 0.3, torch.float32)
    assert_same(
        ops.march_rays(*arguments, step_size=0.05, seed=1), reference.march_rays(*arguments, step_size=0.05, seed=1)
    )


@pytest.mark.parametrize("options", OPTIONS[:2] + OPTIONS[3:4])
def test_march_matches_plain_python(options: dict) -> None:
    cells = random_cells()
    rays_o, rays_d = make_rays(30)
    actual = ops.march_rays(rays_o, rays_d, AABB, pack(cells), RESOLUTION, **options)
    expected = [
        brute_force_march(o, d, cells, 1, options | {"ray": ray})
        for ray, (o, d) in enumerate(zip(rays_o.tolist(), rays_d.tolist(), strict=True))
    ]
    assert actual[3][:, 1].tolist() == [len(samples) for samples in expected]
    flat = torch.tensor([sample for samples in expected for sample in samples], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(actual[:2], dim=-1), flat, rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    resolution=st.tuples(*[st.integers(1, 20)] * 3),
    n_cascades=st.integers(1, 4),
    occupied=st.floats(0, 1),
    step_size=st.floats(0.005, 1.0),
    cone_angle=st.sampled_from([0.0, 0.0, 0.01, 0.2]),
    limit=st.sampled_from([1, 5, 1024]),
    jitter=st.sampled_from([None, 0, 12345]),
)
def test_march_properties(seed, resolution, n_cascades, occupied, step_size, cone_angle, limit, jitter) -> None:
    torch.manual_seed(seed)
    arguments = scene(50, resolution, n_cascades, occupied, torch.float64)
    rays_o, rays_d, aabb, bits = arguments[:4]
    t_starts, t_ends, ray_indices, packed_info = ops.march_rays(
        *arguments, step_size=step_size, cone_angle=cone_angle, max_samples_per_ray=limit, seed=jitter
    )
    starts, counts = packed_info.unbind(-1)
    assert torch.equal(starts, counts.cumsum(0) - counts)
    assert torch.equal(ray_indices, torch.arange(50).repeat_interleave(counts))
    assert counts.max() <= limit

    steps = t_ends - t_starts
    assert (steps >= step_size * (1 - 1e-9)).all() and (t_starts >= 0).all()
    same_ray = ray_indices[1:] == ray_indices[:-1]
    assert (t_starts[1:] >= t_ends[:-1] - 1e-9)[same_ray].all()

    # the middle of a sample lies in an occupied cell of one of the boxes, up to rounding at borders
    middle = ((t_starts + t_ends) / 2).unsqueeze(-1) * rays_d[ray_indices] + rays_o[ray_indices]
    low, high = aabb.view(2, 3)
    flags = (bits.unsqueeze(-1) >> torch.arange(8) & 1).flatten().bool()
    hit = torch.zeros(len(middle), dtype=torch.bool)
    for cascade in range(n_cascades):
        half = (high - low) / 2 * 2**cascade
        for nudge in torch.cartesian_prod(*[torch.tensor([-1e-9, 0, 1e-9], dtype=torch.float64)] * 3):
            position = (middle + nudge - (low + high) / 2 + half) / (2 * half) * torch.tensor(resolution)
            inside = ((position > -1e-6) & (position < torch.tensor(resolution) + 1e-6)).all(-1)
            index = torch.full((len(middle),), cascade)
            for axis in range(3):
                index = index * resolution[axis] + position[:, axis].floor().long().clamp(0, resolution[axis] - 1)
            hit |= inside & flags[index]
    assert hit.all()


@pytest.mark.cpu_only
def test_march_does_not_depend_on_the_number_of_threads() -> None:
    arguments = scene(3000, (16, 16, 16), 2, 0.2, torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for n_threads in (1, 2, 16):
            torch.set_num_threads(n_threads)
            results.append(ops.march_rays(*arguments, step_size=0.02, seed=3))
    finally:
        torch.set_num_threads(before)
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def test_march_does_not_depend_on_a_ray_s_neighbours() -> None:
    arguments = scene(100, (16, 16, 16), 1, 0.2, torch.float32)
    together = ops.march_rays(*arguments, step_size=0.02)
    for ray in (0, 9, 50, 99):
        alone = ops.march_rays(arguments[0][ray : ray + 1], arguments[1][ray : ray + 1], *arguments[2:], step_size=0.02)
        start, count = together[3][ray].tolist()
        assert torch.equal(alone[0], together[0][start : start + count])


@pytest.mark.full
@pytest.mark.cpu_only
def test_march_is_the_same_on_every_instruction_set(tmp_path: Path) -> None:
    script = (
        "import sys, torch\n"
        "from hashgrid import ops\n"
        "arguments, options = torch.load(sys.argv[1])\n"
        "torch.save([ops.march_rays(*a, **o) for a in arguments for o in options], sys.argv[2])\n"
    )
    arguments = [scene(300, (16, 12, 9), n_cascades, 0.2, torch.float32) for n_cascades in (1, 3)]
    torch.save((arguments, OPTIONS), tmp_path / "in.pt")
    expected = [ops.march_rays(*a, **o) for a in arguments for o in OPTIONS]
    for capability in _extension.require().available_cpu_capabilities():
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "in.pt"), str(tmp_path / "out.pt")],
            env=os.environ | {"HASHGRID_CPU_CAPABILITY": capability},
            cwd=Path(__file__).resolve().parents[1],
            check=True,
        )
        for actual, wanted in zip(torch.load(tmp_path / "out.pt"), expected, strict=True):
            assert_same(actual, wanted)


@pytest.mark.full
def test_march_counts_as_many_steps_as_a_float_can_tell_apart() -> None:
    rays_o, rays_d = torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.5, 0.5]]), torch.tensor([[1.0, 0, 0], [1.0, 0, 0]])
    aabb = torch.tensor([0.0, 0, 0, 64, 1, 1])
    bits = pack([False] * 63 + [True])
    options = {"step_size": 2.0**-18, "max_samples_per_ray": 5}
    actual = ops.march_rays(rays_o, rays_d, aabb, bits, (64, 1, 1), **options)
    assert_same(actual, reference.march_rays(rays_o, rays_d, aabb, bits, (64, 1, 1), **options))
    assert actual[3][:, 1].tolist() == [5, 5] and (actual[0] >= 63 - 1e-5).all()


@pytest.mark.parametrize("cone_angle", [0.0, 1e-9])
def test_march_ends_where_a_step_does_not_change_t(cone_angle: float) -> None:
    """Rays that begin inside take their 1024 steps from 0; of the others t is 1e12 where they enter, and they end."""
    rays_o, rays_d = make_rays(20, torch.float32)
    box, bits = AABB.float(), pack([True] * math.prod(RESOLUTION))
    options = {"resolution": RESOLUTION, "step_size": 1e-3, "cone_angle": cone_angle}
    inside = ((rays_o > box[:3]) & (rays_o < box[3:])).all(-1)
    assert 2 < inside.sum() < 18
    t_starts, t_ends, ray_indices, packed_info = ops.march_rays(rays_o, rays_d * 1e-12, box, bits, **options)
    assert packed_info[:, 1].tolist() == [1024 * int(begins) for begins in inside]
    steps = (1e-3 * torch.arange(1024)).repeat(int(inside.sum()))
    torch.testing.assert_close(t_starts, steps, rtol=2e-5, atol=0)
    torch.testing.assert_close(t_ends, steps + 1e-3, rtol=2e-5, atol=0)
    assert torch.equal(ray_indices, inside.nonzero().squeeze(-1).repeat_interleave(1024))
    # around a box 1e9 away, which has no size in fp32
    assert len(ops.march_rays(rays_o + 1e9, rays_d, box + 1e9, bits, **options)[0]) == 0


@pytest.mark.parametrize("cone_angle", [0.0, 1e-9])
def test_march_with_steps_around_the_rounding_of_t(cone_angle: float) -> None:
    """From half a unit in the last place of t to eight: t never goes back, and samples stay within the box."""
    rays_o, rays_d = torch.zeros(5, 3), torch.tensor([[1.0, 0, 0]]).repeat(5, 1)
    rays_o[:, 0] = -torch.tensor([1024.0, 4096.0, 8192.0, 12000.0, 16384.0])
    options = {"resolution": RESOLUTION, "step_size": 1e-3, "cone_angle": cone_angle}
    bits = pack([True] * math.prod(RESOLUTION))
    actual = ops.march_rays(rays_o, rays_d, AABB.float(), bits, **options)
    assert_same(actual, reference.march_rays(rays_o, rays_d, AABB.float(), bits, **options))
    t_starts, t_ends, ray_indices, packed_info = actual
    assert packed_info[0, 1] == 1024 and packed_info[:, 1].max() <= 1024
    same_ray = ray_indices[1:] == ray_indices[:-1]
    assert (t_starts.diff() >= 0)[same_ray].all() and (t_ends >= t_starts).all()
    x = rays_o[ray_indices, 0] + (t_starts + t_ends) / 2
    assert (x.abs() <= 1.01).all()


def test_march_takes_strides_half_precision_and_unaligned_bits() -> None:
    rays_o, rays_d = make_rays(40, torch.float32)
    bits = pack(random_cells())
    shifted = torch.zeros(len(bits) + 1, dtype=torch.uint8)[1:].copy_(bits)
    expected = ops.march_rays(rays_o, rays_d, AABB.float(), bits, RESOLUTION, step_size=0.05)
    actual = ops.march_rays(
        rays_o.T.contiguous().T, rays_d.repeat(1, 2)[:, :3], AABB, shifted, list(RESOLUTION), step_size=0.05
    )
    assert_same(actual, expected)
    half = ops.march_rays(rays_o.half(), rays_d.half(), AABB, bits, RESOLUTION, step_size=0.05)
    assert half[0].dtype == torch.float32


def test_march_takes_seed_and_step_from_tensors() -> None:
    arguments = scene(50, (8, 8, 8), 1, 0.3, torch.float32)
    for seed, step in ((5, 7), (-(2**62), 2**32 - 1)):
        expected = ops.march_rays(*arguments, step_size=0.05, seed=seed, step=step)
        for library in (ops, reference):
            tensors = {"seed": torch.tensor([seed]), "step": torch.tensor([step])}
            assert_same(library.march_rays(*arguments, step_size=0.05, **tensors), expected)


@pytest.mark.parametrize(
    ("n_rays", "dtype"), [(n, torch.float32) for n in (0, 1, 7, 255, 256, 257)] + [(1100, torch.float64)]
)
def test_march_fixed_keeps_the_first_rays_that_fit(n_rays: int, dtype: torch.dtype) -> None:
    arguments = scene(n_rays, (16, 12, 8), 2, 0.2, dtype)
    options = {"step_size": 0.06, "seed": 4, "step": 9}
    t_starts, t_ends, ray_indices, packed_info = ops.march_rays(*arguments, **options)
    counts, total = packed_info[:, 1], len(t_starts)
    for n_samples in {0, 1, total // 3, total, total + 50}:
        for in_use in {n_rays + 3, n_rays // 2}:
            n_in_use = torch.tensor([in_use])
            actual = ops.march_rays(*arguments, n_samples=n_samples, n_rays=n_in_use, **options)
            assert_same(actual, reference.march_rays(*arguments, n_samples=n_samples, n_rays=n_in_use, **options))
            wanted, n_complete = actual[4].tolist()
            assert wanted == int(counts[:in_use].sum()) and n_complete <= min(in_use, n_rays)
            n_kept = int(counts[:n_complete].sum())
            assert n_kept <= n_samples
            if n_complete < min(in_use, n_rays):  # the next ray would not have fitted
                assert n_kept + counts[n_complete] > n_samples
            assert torch.equal(actual[3][:n_complete], packed_info[:n_complete])
            assert not actual[3][n_complete:, 1].any() and (actual[3][n_complete:, 0] == n_kept).all()
            for values, marched in zip(actual[:3], (t_starts, t_ends, ray_indices), strict=True):
                assert len(values) == (n_samples if n_rays else 0) and torch.equal(values[:n_kept], marched[:n_kept])
            assert torch.equal(actual[0][n_kept:], actual[1][n_kept:])
            assert (actual[2] < max(n_rays, 1)).all()


def test_march_fixed_fills_up_from_the_origins_where_nothing_is_hit() -> None:
    rays_o, rays_d, aabb, bits, *sizes = scene(9, (4, 4, 4), 1, 0.5, torch.float32)
    result = ops.march_rays(rays_o, rays_d, aabb, torch.zeros_like(bits), *sizes, n_samples=20, step_size=0.1)
    assert not result[0].any() and not result[1].any() and not result[3].any()
    assert result[2].tolist() == [i % 9 for i in range(20)] and result[4].tolist() == [0, 9]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rays_d": torch.zeros(2, 3)}, r"`rays_d` must have the shape of `rays_o`, \[1, 3\], got \[2, 3\]"),
        ({"aabb": torch.zeros(2, 3)}, r"`aabb` must have shape \[6\], got \[2, 3\]"),
        ({"bits": torch.zeros(7, dtype=torch.uint8)}, r"`bits` must have shape \[8\], got \[7\]"),
        ({"bits": torch.zeros(8, dtype=torch.int64)}, "`bits` must be uint8, got int64"),
        ({"resolution": (4, 5)}, "`resolution` must be three positive numbers"),
        ({"resolution": (4, 5, 0)}, "`resolution` must be three positive numbers"),
        ({"resolution": (2000, 2000, 2000)}, r"must have less than 2\^31 cells"),
        ({"n_cascades": 0}, r"`n_cascades` must be in 1\.\.16, got 0"),
        ({"step_size": 0.0}, "`step_size` must be positive and finite, got 0"),
        ({"cone_angle": -1.0}, "`cone_angle` must be non-negative and finite, got -1"),
    ],
)
def test_march_errors_name_contract_and_actual(changes: dict, message: str) -> None:
    arguments = {"rays_o": torch.zeros(1, 3), "rays_d": torch.ones(1, 3), "aabb": AABB, "resolution": RESOLUTION}
    with pytest.raises(RuntimeError, match=message):
        ops.march_rays(**arguments | {"bits": torch.zeros(8, dtype=torch.uint8), "step_size": 0.1} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_samples": -1}, "`n_samples` must not be negative, got -1"),
        ({"n_rays": torch.tensor([1, 2])}, r"`n_rays` must have shape \[1\], got \[2\]"),
        ({"n_rays": torch.tensor([1.0])}, "`n_rays` must be int64, got float32"),
    ],
)
def test_march_fixed_errors_name_contract_and_actual(changes: dict, message: str) -> None:
    arguments = scene(5, (4, 4, 4), 1, 0.5, torch.float32)
    with pytest.raises(RuntimeError, match=message):
        ops.march_rays(*arguments, **{"n_samples": 9, "step_size": 0.1} | changes)


def test_rays_in_use_are_counted_in_results_of_known_size_only() -> None:
    arguments = scene(5, (4, 4, 4), 1, 0.5, torch.float32)
    for library in (ops, reference):
        with pytest.raises(ValueError, match="`n_rays` must come with `n_samples`"):
            library.march_rays(*arguments, step_size=0.1, n_rays=torch.tensor([3]))


def test_counter_uniform_equals_reference() -> None:
    index = torch.cat([torch.arange(5000), torch.tensor([2**31, 2**32 + 5, -1, -(2**40)])])
    for seed, step in [(0, 0), (2**63 + 12345, 7), (-1, 2**32 + 3)]:
        expected = reference.counter_uniform(seed, step, index)
        assert torch.equal(ops.counter_uniform(seed, step, index), expected)
        assert torch.equal(ops.counter_uniform(seed, step, index.view(-1, 2)), expected.view(-1, 2))
    seed, step = torch.tensor([-3]), torch.tensor([2**32 - 1])
    for library in (ops, reference):
        assert torch.equal(library.counter_uniform(seed, step, index), reference.counter_uniform(-3, 2**32 - 1, index))
    with pytest.raises(RuntimeError, match="`index` must be int64, got int32"):
        ops.counter_uniform(0, 0, index.int())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS)
def test_limits_per_ray_equal_those_of_each_ray_alone(options: dict, dtype: torch.dtype) -> None:
    arguments = scene(40, (16, 12, 8), 2, 0.5, dtype)
    near, far = torch.rand(40, dtype=dtype) * 3, 1 + torch.rand(40, dtype=dtype) * 3
    near[10:13], far[13:16] = -1.0, torch.tensor([math.inf, -1.0, 0.0], dtype=dtype)
    near[16], far[17] = math.nan, math.nan
    options = {**options, "near": near, "far": far}
    actual = ops.march_rays(*arguments, **options)
    assert_same(actual, reference.march_rays(*arguments, **options))
    assert len(actual[0]) > 0 and actual[3][16:18, 1].tolist() == [0, 0]
    t_starts, t_ends, ray_indices, _ = actual
    assert (t_starts >= near[ray_indices]).all() and ((t_starts + t_ends) / 2 <= far[ray_indices]).all()
    if "seed" in options:  # the shift of a ray depends on its number
        return
    for ray in (*range(16), *range(18, 40)):
        alone = arguments[0][ray : ray + 1], arguments[1][ray : ray + 1], *arguments[2:]
        expected = ops.march_rays(*alone, **{**options, "near": near[ray].item(), "far": far[ray].item()})
        assert_same([x[ray_indices == ray] for x in actual[:2]], expected[:2])


@pytest.mark.parametrize("library", [ops, reference])
def test_limits_may_be_given_in_several_ways(library) -> None:
    arguments = scene(30, (8, 8, 8), 1, 0.5, torch.float32)
    expected = library.march_rays(*arguments, step_size=0.05, near=1.25, far=2.5)
    whole = library.march_rays(*arguments, step_size=0.05)
    near, far = torch.full((30,), 1.25), torch.full((30,), 2.5)
    for limits in ((near, far), (near.double(), 2.5), (1.25, far), (torch.tensor(1.25), torch.tensor(2.5))):
        assert_same(library.march_rays(*arguments, step_size=0.05, near=limits[0], far=limits[1]), expected)
        fixed = library.march_rays(
            *arguments, step_size=0.05, near=limits[0], far=limits[1], n_samples=len(expected[0])
        )
        assert_same(fixed[:4], expected)
    assert_same(library.march_rays(*arguments, step_size=0.05, near=None, far=None), whole)
    for limits, message in (
        ({"near": near[:29]}, r"`near` must be a number or have shape \[30\], one per ray, got \[29\]"),
        ({"far": far[:, None]}, r"`far` must be a number or have shape \[30\], one per ray, got \[30, 1\]"),
        ({"near": math.nan}, "`near` must be a distance, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            library.march_rays(*arguments, step_size=0.05, **limits)
