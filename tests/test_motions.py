"""Rigid motions against matrix exponentials, and similarities against known ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hashgrid.geometry.motions import angle_between, cross_matrix, se3_exp, so3_exp, umeyama


def twists(size: float, n: int = 9) -> Tensor:
    """Screw motions by an angle ``size``, with translations of about 1."""
    values = torch.randn(n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return torch.cat((values[:, :3], size * torch.nn.functional.normalize(values[:, 3:], dim=1)), dim=1)


def exponential(twist: Tensor) -> Tensor:
    """By PyTorch's series [N, 4, 4]."""
    matrix = torch.cat((cross_matrix(twist[:, 3:]), twist[:, :3, None]), dim=2)
    return torch.linalg.matrix_exp(torch.nn.functional.pad(matrix, (0, 0, 0, 1)))


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-3, 0.49, 0.51, 2.0, 3.14159, 7.0])
def test_exponentials(size: float) -> None:
    """On both sides of where the series ends, beyond half a turn, and without an angle; gradients, too."""
    ours, theirs = twists(size).requires_grad_(), twists(size).requires_grad_()
    rotation, translation = se3_exp(ours)
    expected = exponential(theirs)
    torch.testing.assert_close(rotation, expected[:, :3, :3], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(translation, expected[:, :3, 3], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(so3_exp(ours[:, 3:]), rotation, rtol=0, atol=0)
    weight = torch.randn(9, 3, 4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weight * torch.cat((rotation, translation[..., None]), 2)).sum(), ours)
    (wanted,) = torch.autograd.grad((weight * expected[:, :3]).sum(), theirs)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-9)


def test_gradients_at_zero_are_finite_in_single_precision() -> None:
    twist = torch.zeros(2, 6, requires_grad=True)
    rotation, translation = se3_exp(twist)
    assert torch.equal(rotation, torch.eye(3).expand(2, 3, 3)) and not translation.any()
    (gradient,) = torch.autograd.grad(rotation[:, 1, 0].sum() + translation[:, 2].sum(), twist)
    assert torch.equal(gradient, torch.tensor([0.0, 0, 1, 0, 0, 1]).expand(2, 6))


@pytest.mark.parametrize("size", [0.0, 1e-7, 0.3, 3.1])
def test_angle_between(size: float) -> None:
    rotation = so3_exp(twists(size)[:, 3:])
    other = so3_exp(twists(1.0)[:, :3])
    expected = torch.full((9,), size, dtype=torch.float64)
    torch.testing.assert_close(angle_between(other, other @ rotation), expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("flat", [False, True])
def test_umeyama_finds_a_known_similarity(flat: bool) -> None:
    """Of points in space, and of points in a plane, where a reflection would do as well."""
    points = torch.randn(12, 3, dtype=torch.float64)
    points[:, 2] *= not flat
    rotation, shift = so3_exp(twists(2.5, 1)[0, 3:]), torch.tensor([5.0, -2.0, 1.0], dtype=torch.float64)
    found = umeyama(points, 0.3 * points @ rotation.T + shift)
    torch.testing.assert_close(found.scale, torch.tensor(0.3, dtype=torch.float64))
    torch.testing.assert_close(found.rotation, rotation)
    torch.testing.assert_close(found.translation, shift)
    poses = torch.cat((so3_exp(points), points[..., None]), dim=2)
    moved = found.poses(poses)
    torch.testing.assert_close(moved[:, :, 3], found.points(points))
    # what lies straight ahead of a camera still does
    ahead = found.points(points - 2 * poses[:, :, 2])
    torch.testing.assert_close(moved[:, :, 3] - 0.6 * moved[:, :, 2], ahead)


def test_umeyama_is_the_nearest_and_no_reflection() -> None:
    points = torch.randn(20, 3, dtype=torch.float64)
    target = points * torch.tensor([1.0, 1.0, -1.0]) + 0.1 * torch.randn(20, 3, dtype=torch.float64)
    found = umeyama(points, target)
    assert float(torch.linalg.det(found.rotation)) == pytest.approx(1)
    least = (found.points(points) - target).square().sum()
    for twist in 0.01 * torch.randn(20, 7, dtype=torch.float64):
        scale, (turn, shift) = found.scale * twist[6].exp(), se3_exp(twist[:6])
        other = found._replace(scale=scale, rotation=turn @ found.rotation, translation=found.translation + shift)
        assert (other.points(points) - target).square().sum() > least


def test_umeyama_says_why_it_cannot() -> None:
    line = torch.arange(5.0)[:, None] * torch.ones(3)
    with pytest.raises(ValueError, match="at least 3 points that are not on one line, got 5"):
        umeyama(line, line)
    with pytest.raises(ValueError, match=r"shape \[N, 3\], got \[5, 3\] and \[4, 3\]"):
        umeyama(line, line[:4])
