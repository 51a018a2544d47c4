"""Multiresolution extraction: the full lattice's mesh from a few per cent of its values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hashgrid.data.mesh import euler_characteristic, is_watertight
from hashgrid.rendering.mise import mise

pytest.importorskip("skimage")


def sphere(x: Tensor) -> Tensor:
    """Distance to a sphere of radius 0.4 in a box of +-0.55."""
    return (1.1 * x - 0.55).norm(dim=-1) - 0.4


@pytest.mark.parametrize(("resolution", "upsamplings", "n_asked"), [(32, 2, 163_261), (16, 3, 138_335)])
def test_as_few_values_as_can_be(resolution: int, upsamplings: int, n_asked: int) -> None:
    asked = []

    def field(x: Tensor) -> Tensor:
        asked.append(x)
        return sphere(x)

    vertices, faces, n = mise(field, resolution, upsamplings)
    points = torch.cat(asked)
    assert n == n_asked == len(points)
    lattice = (points * 128).round().long() @ torch.tensor([129**2, 129, 1])
    assert len(lattice.unique()) == n_asked  # each once
    dense, dense_faces, n_dense = mise(sphere, 128, 0)
    assert n_dense == 2_146_689
    torch.testing.assert_close(vertices, dense, rtol=0, atol=1e-6)
    assert torch.equal(faces, dense_faces)


def test_a_surface_that_leaves_its_cells_is_followed() -> None:
    """A thin ring shows itself to few vertices of the first lattice; logits are no distances."""

    def ring(x: Tensor) -> Tensor:
        p = x - torch.tensor([0.52, 0.491, 0.5])
        return 40 * (torch.hypot(torch.hypot(p[:, 0], p[:, 1]) - 0.3, p[:, 2]) - 0.03).sinh()

    vertices, faces, n_asked = mise(ring, 8, 3, level=0.3)
    dense, dense_faces, n_dense = mise(ring, 64, 0, level=0.3)
    assert n_asked < n_dense / 6 and euler_characteristic(faces.numpy()) == 0
    torch.testing.assert_close(vertices, dense, rtol=0, atol=1e-6)
    assert torch.equal(faces, dense_faces)


def test_vertices_are_as_close_as_linear_interpolation_can_be() -> None:
    """``h^2 / (8 R)`` from a sphere of radius R for a distance, which occupancies cannot reach."""
    radius, n = 0.25, 64
    bound = 1 / n**2 / (8 * radius)
    for field, fits in ((lambda x: (x - 0.5).norm(dim=-1) - radius, True),
                        (lambda x: ((x - 0.5).norm(dim=-1) > radius).float() - 0.5, False)):  # fmt: skip
        vertices = mise(field, n, 0)[0]
        error = float(((vertices - 0.5).norm(dim=-1) - radius).abs().max())
        assert (error <= bound) == fits and error < 0.5 / n * 3**0.5


def test_any_field_gives_a_closed_mesh() -> None:
    def wild(x: Tensor) -> Tensor:
        y = torch.sin(x.double() @ torch.tensor([127.1, 311.7, 74.7], dtype=torch.float64)) * 43758.5453
        return (y - y.floor() - 0.3).float()

    for field in (wild, lambda x: (x - 0.5).abs().amax(-1) - 0.25, lambda x: -torch.ones(len(x))):
        faces = mise(field, 5, 2)[1]
        assert len(faces) and is_watertight(faces.numpy())
    assert mise(lambda x: torch.ones(len(x)), 4, 1)[0].shape == (0, 3)
    with pytest.raises(ValueError, match="the field must be finite"):
        mise(lambda x: x[:, 0] / 0, 4, 1)
    with pytest.raises(ValueError, match="`resolution` must be at least 1"):
        mise(sphere, 0)
