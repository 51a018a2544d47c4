"""Reference ray marching, box intersection and random numbers against plain Python."""

from __future__ import annotations

import math
import random

import pytest
import torch
from problems.march_rays import AABB, RESOLUTION, brute_force_hash, brute_force_march, make_rays, pack, random_cells

from hashgrid.reference import counter_uniform, march_rays, ray_aabb


@pytest.mark.parametrize(
    ("n_cascades", "options"),
    [
        (1, {"step_size": 0.05}),
        (1, {"step_size": 0.031, "near": 0.4, "far": 2.0, "seed": 2**40 + 7, "step": 3}),
        (1, {"step_size": 0.05, "max_samples_per_ray": 5}),
        (1, {"step_size": 0.02, "cone_angle": 0.05, "seed": 1, "step": 0}),
        (3, {"step_size": 0.05}),
        (3, {"step_size": 0.02, "cone_angle": 0.1}),
        (2, {"step_size": 0.45}),
    ],
)
def test_march_matches_plain_python(n_cascades: int, options: dict) -> None:
    # outer cascades are full: skipping one of their empty cells would step over a part of the box inside
    cells = random_cells() + [True] * (n_cascades - 1) * math.prod(RESOLUTION)
    rays_o, rays_d = make_rays(40)
    t_starts, t_ends, ray_indices, packed_info = march_rays(
        rays_o, rays_d, AABB, pack(cells), RESOLUTION, n_cascades, **options
    )
    expected = [
        brute_force_march(o, d, cells, n_cascades, options | {"ray": ray})
        for ray, (o, d) in enumerate(zip(rays_o.tolist(), rays_d.tolist(), strict=True))
    ]
    assert packed_info[:, 1].tolist() == [len(samples) for samples in expected]
    assert packed_info[:, 0].tolist() == [sum(map(len, expected[:ray])) for ray in range(len(expected))]
    assert ray_indices.tolist() == [ray for ray, samples in enumerate(expected) for _ in samples]
    flat = torch.tensor([sample for samples in expected for sample in samples], dtype=torch.float64)
    torch.testing.assert_close(torch.stack([t_starts, t_ends], dim=-1), flat, rtol=0, atol=1e-12)
    assert len(flat) > 100


def test_march_in_fp32_matches_fp64_up_to_border_samples() -> None:
    bits = pack(random_cells())
    rays_o, rays_d = make_rays(200)
    options = {"resolution": RESOLUTION, "step_size": 0.02}
    exact = march_rays(rays_o, rays_d, AABB, bits, **options)
    single = march_rays(rays_o.float(), rays_d.float(), AABB.float(), bits, **options)
    assert single[0].dtype == torch.float32
    assert abs(len(exact[0]) - len(single[0])) <= 0.002 * len(exact[0])


def test_march_does_not_accumulate_rounding() -> None:
    rays_o, rays_d = torch.tensor([[-200.0, 0, 0]]), torch.tensor([[1.0, 0, 0]])
    aabb = torch.tensor([-200.0, -1, -1, 200, 1, 1])
    t_starts = march_rays(
        rays_o, rays_d, aabb, torch.tensor([1], dtype=torch.uint8), (1, 1, 1), step_size=0.1, max_samples_per_ray=10**6
    )[0]
    assert len(t_starts) == 4000
    torch.testing.assert_close(t_starts.double(), torch.arange(4000).double() * 0.1, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("far", [math.inf, 5.0])
@pytest.mark.parametrize("cone_angle", [0.0, 0.1])
def test_march_ends_on_degenerate_rays(far: float, cone_angle: float) -> None:
    nan = math.nan
    rays_o = torch.tensor([[0.0, 0, 0], [nan, 0, 0], [0, 0, 0], [9, 9, 9], [0, 0, 0]])
    rays_d = torch.tensor([[0.0, 0, 0], [1, 0, 0], [nan, 0, 0], [1, 0, 0], [1, 0, 0]])
    for bits in (torch.zeros(8, dtype=torch.uint8), torch.full((8,), 255, dtype=torch.uint8)):
        options = {"step_size": 0.1, "far": far, "cone_angle": cone_angle}
        counts = march_rays(rays_o, rays_d, AABB.float(), bits, RESOLUTION, **options)[3][:, 1]
        assert not counts[1:4].any() and bool(counts[4]) == bool(bits.any())
    # around a box 1e9 away, which has no size in fp32
    far_away = rays_o + 1e9, rays_d, AABB.float() + 1e9, bits, RESOLUTION
    assert len(march_rays(*far_away, step_size=1e-3, cone_angle=1e-9)[0]) == 0


def test_march_without_rays() -> None:
    outputs = march_rays(torch.zeros(0, 3), torch.zeros(0, 3), AABB, pack(random_cells()), RESOLUTION, step_size=0.1)
    assert [list(output.shape) for output in outputs] == [[0], [0], [0], [0, 2]]
    assert [output.dtype for output in outputs] == [torch.float32, torch.float32, torch.int64, torch.int64]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rays_d": torch.zeros(2, 3)}, r"`rays_d` must have the shape of `rays_o`, \[1, 3\], got \[2, 3\]"),
        ({"aabb": torch.zeros(2, 3)}, r"`aabb` must have shape \[6\], got \[2, 3\]"),
        ({"bits": torch.zeros(7, dtype=torch.uint8)}, r"`bits` must be uint8 of shape \[8\].*got torch.uint8 \[7\]"),
        ({"resolution": (4, 5)}, "`resolution` must be three positive numbers"),
        ({"step_size": 0.0}, "`step_size` must be positive and finite, got 0.0"),
    ],
)
def test_march_errors_name_contract_and_actual(changes: dict, message: str) -> None:
    arguments = {"rays_o": torch.zeros(1, 3), "rays_d": torch.ones(1, 3), "aabb": AABB, "resolution": RESOLUTION}
    with pytest.raises(ValueError, match=message):
        march_rays(**arguments | {"bits": torch.zeros(8, dtype=torch.uint8), "step_size": 0.1} | changes)


@pytest.mark.parametrize(
    ("o", "d", "limits", "expected"),
    [
        ((-3, 0, 0), (1, 0, 0), {}, (2, 4)),
        ((-3, 0, 0), (2, 0, 0), {}, (1, 2)),
        ((-3, 0, 0), (-1, 0, 0), {}, (math.inf, math.inf)),
        ((0, 0, 0), (0, 0, -1), {}, (0, 0.5)),
        ((0, 0, 0), (0, 0, -1), {"near": 0.2, "far": 0.3}, (0.2, 0.3)),
        ((-3, 0, 0), (1, 0, 0), {"far": 1.5}, (math.inf, math.inf)),
        ((-3, 0, 0), (1, 0, 0), {"near": 4.5}, (math.inf, math.inf)),
        ((-3, 1.5, 0), (1, 0, 0), {}, (math.inf, math.inf)),
        ((-3, 1.5, 0), (1, -0.0, 0), {}, (math.inf, math.inf)),
        ((-3, 1, 0), (1, 0, 0), {}, (2, 4)),
        ((-3, math.nan, 0), (1, 0, 0), {}, (math.inf, math.inf)),
    ],
)
def test_ray_aabb(o: tuple, d: tuple, limits: dict, expected: tuple) -> None:
    t_min, t_max = ray_aabb(torch.tensor([o]).double(), torch.tensor([d]).double(), AABB, **limits)
    assert (t_min.item(), t_max.item()) == pytest.approx(expected)


def test_counter_uniform_matches_python_integers() -> None:
    generator = random.Random(0)
    indices = [0, 1, 2**31, 2**32 - 1, 2**32 + 5, -1] + [generator.randrange(2**40) for _ in range(20)]
    for seed, step in [(0, 0), (1, 0), (2**63 + 12345, 7), (-1, 2**32 + 3)]:
        u = counter_uniform(seed, step, torch.tensor(indices))
        assert u.dtype == torch.float32
        assert u.tolist() == [brute_force_hash(seed, step, index) for index in indices]


def test_counter_uniform_is_uniform_and_independent() -> None:
    u = torch.stack([counter_uniform(seed, step, torch.arange(20000)) for seed in (0, 1) for step in (0, 1)]).double()
    assert (u >= 0).all() and (u < 1).all()
    assert (u.mean(-1) - 0.5).abs().max() < 0.01
    assert (torch.corrcoef(u) - torch.eye(4)).abs().max() < 0.03
