"""Planes of features: against PyTorch's own bilinear sampling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hashgrid import HashGrid
from hashgrid.levels import dense_level_table
from hashgrid.nn.planes import Lines, Planes, PlanesAndLines, PlanesMean

RESOLUTIONS = (9, (12, 7, 4))  # vertices: one number for all axes, or one per axis
N_FEATURES = 16


def sampled(planes: Planes, x: Tensor) -> Tensor:
    """The same by grid_sample, whose images have a row per vertex of the second axis of a pair."""
    columns = []
    for i, resolution in enumerate(RESOLUTIONS):
        sides = (resolution,) * 3 if isinstance(resolution, int) else resolution
        product = torch.ones(1, dtype=x.dtype)
        for plane, (a, b) in zip(planes.planes, planes.axes, strict=True):
            per_level = [sides[a] * sides[b]] * (N_FEATURES // 8)
            offset = sum(r[a] * r[b] * (N_FEATURES // 8) for r in planes.resolutions[:i])
            parts = plane.table[offset : offset + sum(per_level)].split(per_level)  # [r_b * r_a, 8] each
            image = torch.cat([part.T.reshape(8, sides[b], sides[a]) for part in parts])
            grid = (2 * x[:, [a, b]] - 1)[None, None]  # [1, 1, N, 2], in [-1, 1]
            product = product * F.grid_sample(image[None], grid, align_corners=True)[0, :, 0].T
        columns.append(product)
    return torch.cat(columns, dim=1)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_planes_of_any_sides_match_grid_sample(backend: str) -> None:
    torch.manual_seed(0)
    planes = Planes(3, RESOLUTIONS, N_FEATURES, backend=backend).double()
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    x = torch.cat((torch.rand(200, 3), corners)).double().requires_grad_()
    y, expected = planes(x), sampled(planes, x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    inputs = (x, *planes.parameters())
    grads, wanted = (torch.autograd.grad(out.square().sum(), inputs) for out in (y, expected))
    for name, grad, want in zip(("x", "xy", "xz", "yz"), grads, wanted, strict=True):
        # at the ends of an axis the slope is that of a side, which the two choose differently
        rows = slice(200) if name == "x" else slice(None)
        torch.testing.assert_close(grad[rows], want[rows], rtol=1e-11, atol=1e-11)


def test_table_has_the_product_of_both_sides() -> None:
    boxes, cubes = Planes(3, ((64, 64, 8),), 8), Planes(3, (64,), 8)
    n_boxes, n_cubes = (sum(plane.table.shape[0] for plane in planes.planes) for planes in (boxes, cubes))
    assert n_boxes == 64 * 64 + 2 * 64 * 8 and n_cubes == 3 * 64 * 64


def test_wrong_number_of_axes() -> None:
    with pytest.raises(ValueError, match=r"`resolutions\[1\]` must be an integer or 3 of them, got \(8, 8\)"):
        Planes(3, (16, (8, 8)))


def vertices(sides: tuple[int, ...]) -> Tensor:
    """Points [n_x * n_y * ..., D] of a grid whose outermost vertices lie on the cube's sides."""
    return torch.cartesian_prod(*[torch.linspace(0, 1, n, dtype=torch.float64) for n in sides])


def test_lines_are_a_sum_of_outer_products() -> None:
    """At the vertices of three lines, whose tables are the factors."""
    sides = (4, 5, 6)
    lines = Lines(3, (sides,), 8).double()
    factors = [line.table.detach() for line in lines.planes]
    expected = torch.einsum("ir,jr,kr->ijkr", *factors)
    torch.testing.assert_close(lines(vertices(sides)).detach().view(*sides, 8), expected)


def test_planes_and_lines_are_the_decomposition_into_vectors_and_matrices() -> None:
    sides = (4, 5, 6)
    grids = PlanesAndLines(3, (sides,), 4).double()
    y = grids(vertices(sides)).detach().view(*sides, 3, 4)
    terms = {(0, 1): "jir,kr->ijkr", (0, 2): "kir,jr->ijkr", (1, 2): "kjr,ir->ijkr"}  # rows are of the second axis
    for i, ((a, b), rule) in enumerate(terms.items()):
        plane, line = (grid.table.detach() for grid in grids.products[i].planes)
        torch.testing.assert_close(y[..., i, :], torch.einsum(rule, plane.view(sides[b], sides[a], 4), line))
    assert PlanesAndLines(1, (4,), 8)(torch.rand(5, 1)).shape == Planes(1, (4,), 8)(torch.rand(5, 1)).shape == (5, 8)
    assert PlanesAndLines(2, (4,), 8)(torch.rand(5, 2)).shape == (5, 8)
    assert PlanesAndLines(4, (4,), 8)(torch.rand(5, 4)).shape == (5, 48)


def test_dense_grid_has_its_entries_at_its_vertices() -> None:
    sides = (4, 5, 6)
    levels = dense_level_table([(2, 2, 2), sides])
    grid = HashGrid(3, n_features_per_level=2, level_table=levels).double()
    assert len(grid.table) == 8 + 4 * 5 * 6
    table = grid.table.detach()[8:].view(6, 5, 4, 2).permute(2, 1, 0, 3)  # x is fastest
    torch.testing.assert_close(grid(vertices(sides)).detach()[:, 2:].view(*sides, 2), table)


def test_mean_of_planes_is_that_of_what_each_says() -> None:
    mean, product = PlanesMean(3, (9, 17), 8), Planes(3, (9, 17), 8)
    mean.load_state_dict(product.state_dict())
    x = torch.rand(50, 3)
    parts = torch.stack(product.parts(x))
    torch.testing.assert_close(mean(x), parts.mean(0))
    torch.testing.assert_close(product(x), parts.prod(0))


def test_resampled_planes_say_the_same() -> None:
    """With a vertex between any two everywhere; and of a part of the cube, at the vertices."""
    x = torch.rand(200, 3, dtype=torch.float64)
    for planes in (Planes(3, ((5, 4, 3),), 16).double(), Planes(3, ((5, 4, 3),), 4, axes=[(0, 1, 2), (1,)]).double()):
        before = planes(x).detach()
        planes.resample((9, 7, 5))
        assert planes.resolutions == ((9, 7, 5),)
        torch.testing.assert_close(planes(x).detach(), before)
        low, high = torch.tensor([[0.25, 0.0, 0.5], [0.75, 0.5, 1.0]], dtype=torch.float64)
        inside = torch.lerp(low, high, vertices((5, 4, 3)))
        expected = planes(inside).detach()
        planes.resample((5, 4, 3), low, high)
        torch.testing.assert_close(planes(vertices((5, 4, 3))).detach(), expected)
    with pytest.raises(ValueError, match="planes must have one resolution to be resampled, got 2"):
        Planes(3, (4, 8), 4).resample(16)


def test_pictures_are_the_planes_as_images() -> None:
    planes = Planes(3, (9, (12, 7, 4)), N_FEATURES)
    pictures = planes.pictures(2)  # of y and z
    assert [tuple(picture.shape) for picture in pictures] == [(9, 9, 8)] * 2 + [(4, 7, 8)] * 2
    assert torch.equal(torch.cat([picture.flatten(0, 1) for picture in pictures]), planes.planes[2].table)
