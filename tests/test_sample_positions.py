"""Middles of samples in space: the reference's bits, gradients, contracts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from hashgrid import reference
from hashgrid.ops import _ngp

pytestmark = pytest.mark.every_kernel


def samples(n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """rays_o, rays_d, ray_indices, t_starts, t_ends."""
    t_starts = 5 * torch.rand(n, dtype=dtype)
    rays_o, rays_d = torch.randn(2, 7, 3, dtype=dtype)
    return rays_o, rays_d, torch.randint(7, (n,)), t_starts, t_starts + torch.rand(n, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_has_the_bits_of_the_reference(dtype: torch.dtype) -> None:
    for n in (0, 1, 255, 256, 257, 20000):
        arguments = samples(n, dtype)
        x = _ngp.sample_positions(*arguments)
        assert x.shape == (n, 3) and x.dtype == dtype
        assert torch.equal(x, reference.sample_positions(*arguments))


def test_middles_lie_on_their_rays() -> None:
    rays_o, rays_d, rays, t_starts, t_ends = (t.double() if t.is_floating_point() else t for t in samples(100))
    x = _ngp.sample_positions(rays_o, rays_d, rays, t_starts, t_ends)
    for i in range(0, 100, 7):
        middle = (float(t_starts[i]) + float(t_ends[i])) / 2
        expected = [float(rays_o[rays[i], k]) + middle * float(rays_d[rays[i], k]) for k in range(3)]
        torch.testing.assert_close(x[i], torch.tensor(expected, dtype=torch.float64))


def test_half_precision_is_read_as_fp32() -> None:
    rays_o, rays_d, *rest = samples(50)
    x = _ngp.sample_positions(rays_o.half(), rays_d.half(), *rest)
    assert x.dtype == torch.float32
    assert torch.equal(x, _ngp.sample_positions(rays_o.half().float(), rays_d.half().float(), *rest))


def test_gradients_of_rays_and_distances() -> None:
    rays_o, rays_d, rays, t_starts, t_ends = samples(20, torch.float64)
    leaves = [x.requires_grad_() for x in (rays_o, rays_d, t_starts, t_ends)]
    assert gradcheck(lambda o, d, begin, end: _ngp.sample_positions(o, d, rays, begin, end), leaves)


def test_rays_that_do_not_exist_give_nan() -> None:
    rays_o, rays_d, rays, *distances = samples(40)
    rays[3], rays[30] = 7, -1
    x = _ngp.sample_positions(rays_o, rays_d, rays, *distances)
    assert x[3].isnan().all() and x[30].isnan().all() and x.isfinite().all(1).sum() == 38


def test_bad_input_is_refused() -> None:
    rays_o, rays_d, rays, t_starts, t_ends = samples(4)
    for arguments, message in (
        ((rays_o[:, :2], rays_d, rays, t_starts, t_ends), r"`rays_o` must have shape \[R, 3\], got \[7, 2\]"),
        ((rays_o, rays_d[1:], rays, t_starts, t_ends), r"`rays_d` must have shape \[7, 3\], got \[6, 3\]"),
        ((rays_o, rays_d, rays[1:], t_starts, t_ends), r"`ray_indices` must have shape \[4\], got \[3\]"),
        ((rays_o, rays_d, rays.int(), t_starts, t_ends), "`ray_indices` must be int64, got int32"),
        ((rays_o, rays_d, rays, t_starts, t_ends[1:]), r"`t_ends` must have shape \[4\], got \[3\]"),
    ):
        with pytest.raises(RuntimeError, match=message):
            _ngp.sample_positions(*arguments)
