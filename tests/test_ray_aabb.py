"""Native ray-box intersection against the reference, bit for bit."""

from __future__ import annotations

import pytest
import torch
from problems.ray_aabb import random_rays

from hashgrid import ops, reference

pytestmark = pytest.mark.every_kernel

AABB = torch.tensor([-1.0, -1.0, -0.5, 1.0, 1.0, 0.5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 7, 4095, 4096, 4097])
def test_ray_aabb_equals_reference(n: int, dtype: torch.dtype) -> None:
    rays_o, rays_d = random_rays(n, dtype)
    for limits in ({}, {"near": 0.3, "far": 2.1}):
        actual = ops.ray_aabb(rays_o, rays_d, AABB, **limits)
        expected = reference.ray_aabb(rays_o, rays_d, AABB.to(dtype), **limits)
        for a, b in zip(actual, expected, strict=True):
            assert a.dtype == dtype and torch.equal(a, b)
    if n > 1000:
        assert 0.1 < actual[0].isfinite().float().mean() < 0.9


def test_ray_aabb_takes_strides_and_half_precision() -> None:
    rays_o, rays_d = random_rays(64)
    wide = torch.zeros(64, 7)
    wide[:, 1:4], wide[:, 4:7] = rays_o, rays_d
    for a, b in zip(ops.ray_aabb(wide[:, 1:4], wide[:, 4:7], AABB), ops.ray_aabb(rays_o, rays_d, AABB), strict=True):
        assert torch.equal(a, b)
    assert ops.ray_aabb(rays_o.half(), rays_d.half(), AABB)[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rays_o": torch.zeros(2, 4)}, r"`rays_o` must have shape \[R, 3\], got \[2, 4\]"),
        ({"rays_d": torch.zeros(1, 3)}, r"`rays_d` must have the shape of `rays_o`, \[2, 3\], got \[1, 3\]"),
        ({"aabb": torch.zeros(2, 3)}, r"`aabb` must have shape \[6\], got \[2, 3\]"),
    ],
)
def test_ray_aabb_errors_name_contract_and_actual(changes: dict, message: str) -> None:
    arguments = {"rays_o": torch.zeros(2, 3), "rays_d": torch.ones(2, 3), "aabb": AABB}
    with pytest.raises(RuntimeError, match=message):
        ops.ray_aabb(**arguments | changes)
