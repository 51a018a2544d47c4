"""Parts of cones as Gaussians and as points: against points drawn in them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hashgrid.fields.mip import Mip, MipConfig
from hashgrid.fields.zip import Zip, ZipConfig
from hashgrid.geometry.frustums import conical_frustums, covariances, diagonals, multisamples
from hashgrid.geometry.rays import At, Rays
from hashgrid.nn.encodings import IntegratedFrequency

N = 200_000


def part_of_a_cone() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Where it begins, ends, its radius at a distance of 1, its direction, and points [N, 3] drawn evenly in it."""
    generator = torch.Generator().manual_seed(0)
    starts, ends, radii = (torch.tensor([x], dtype=torch.float64) for x in (2.0, 3.0, 0.1))
    direction = torch.nn.functional.normalize(torch.tensor([[0.3, -0.5, 0.8]], dtype=torch.float64), dim=1)
    u, v, w = torch.rand(3, N, generator=generator, dtype=torch.float64)
    t = (starts**3 + u * (ends**3 - starts**3)) ** (1 / 3)
    right = torch.linalg.cross(direction, torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64))
    right = torch.nn.functional.normalize(right, dim=1)
    up = torch.linalg.cross(direction, right)
    rho, angle = radii * t * v.sqrt(), 2 * math.pi * w
    points = t[:, None] * direction + (rho * angle.cos())[:, None] * right + (rho * angle.sin())[:, None] * up
    return starts, ends, radii, direction, points


def test_gaussians_have_the_mean_and_the_covariance_of_the_part() -> None:
    starts, ends, radii, direction, points = part_of_a_cone()
    gaussians = conical_frustums(starts, ends, radii)
    torch.testing.assert_close((gaussians.t[:, None] * direction)[0], points.mean(0), atol=3e-3, rtol=0)
    ours = covariances(gaussians, direction)[0]
    torch.testing.assert_close(ours, points.mT.cov(), atol=5e-4, rtol=0)
    torch.testing.assert_close(diagonals(gaussians, direction)[0], ours.diagonal())


def test_gaussians_of_float32_far_away_do_not_cancel() -> None:
    """The means of the textbook's form are wrong by a tenth there."""
    starts = torch.tensor([1000.0])
    ours = conical_frustums(starts, starts + 0.1, torch.tensor([1e-3]))
    exact = conical_frustums(starts.double(), (starts + 0.1).double(), torch.tensor([1e-3], dtype=torch.float64))
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=0)


def test_gradients_of_parts_at_the_origin_are_finite() -> None:
    """Those of the fraction as it is printed are 0 / 0 in float32, from distances of 1e-10 on."""
    starts, ends = torch.tensor([0.0, 1e-30, 0.0]).requires_grad_(), torch.tensor([0.0, 2e-30, 1e-12]).requires_grad_()
    sum(x.sum() for x in conical_frustums(starts, ends, torch.tensor([1e-3, 1e-3, 1e10]))).backward()
    assert starts.grad.isfinite().all() and ends.grad.isfinite().all()


def test_the_integrated_encoding_is_the_mean_over_the_part() -> None:
    """Exactly over the Gaussian, nearly over the frustum, which is none. Waves of its mean alone miss by far."""
    starts, ends, radii, direction, points = part_of_a_cone()
    gaussians = conical_frustums(starts, ends, radii)
    mean = gaussians.t[:, None] * direction
    encoding = IntegratedFrequency(3, 3)
    waves = encoding(mean, variances=diagonals(gaussians, direction))
    root = torch.linalg.cholesky(covariances(gaussians, direction)[0])
    normal = torch.randn(N, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) @ root.mT + mean
    for drawn, tolerance in ((normal, 0.01), (points, 0.04)):
        expected = encoding(drawn, variances=torch.zeros_like(drawn)).mean(0)
        torch.testing.assert_close(waves[0], expected, atol=tolerance, rtol=0)
    assert float((encoding(mean, variances=torch.zeros_like(mean))[0] - expected).abs().max()) > 0.1


def test_six_points_have_the_mean_and_the_spread_of_the_part() -> None:
    starts, ends, radii, direction, _ = part_of_a_cone()
    gaussians = conical_frustums(starts, ends, radii)
    for turns in (None, torch.tensor([0.7], dtype=torch.float64)):
        t, offsets, _ = multisamples(starts, ends, radii, direction, turns)
        torch.testing.assert_close(t.mean(1), gaussians.t)
        torch.testing.assert_close(t.var(1, unbiased=False), gaussians.t_variances)
        assert float((offsets @ direction[0]).abs().max()) < 1e-12
        assert float(offsets.mean(1).norm()) < 0.1 * float(radii * gaussians.t)
        spread = offsets.square().sum(-1).mean(1)
        torch.testing.assert_close(spread, 2 * gaussians.r_variances, rtol=1e-3, atol=0)


def test_a_field_of_cones_sees_less_detail_of_wide_ones() -> None:
    """Far detail fades, instead of turning into noise: colours of wide cones change less from place to place."""
    torch.manual_seed(0)
    box = torch.tensor([-1.0, -1, -1, 1, 1, 1])
    for field in (Mip(MipConfig(), box), Zip(ZipConfig(log2_hashmap_size=12), box)):
        if isinstance(field, Zip):
            torch.nn.init.normal_(field.grid.table)
        origins = torch.rand(500, 3) - 0.5
        directions = torch.nn.functional.normalize(torch.randn(500, 3), dim=1)
        changes = []
        for radius in (1e-5, 0.3):
            rays = Rays(origins, directions, radii=torch.full((500,), radius))
            t = torch.full((500,), 0.2)
            at = At(rays, field.unit(origins + 0.2 * directions), torch.arange(500), (t, t + 1e-3))
            with torch.no_grad():
                changes.append(float(field.encode(at).std(0).mean()))
        assert changes[1] < 0.7 * changes[0], (type(field).__name__, changes)
