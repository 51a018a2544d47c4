"""The native ops of the occupancy grid against the reference, and the grid itself."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from problems.occupancy import AABB, make_cameras, make_state
from torch import Tensor

from hashgrid import OccupancyGrid, reference
from hashgrid.ops import _ngp

pytestmark = pytest.mark.every_kernel


# ---- occupancy_update --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 1.0])  # threshold: the mean, max_threshold
@pytest.mark.parametrize("n_cells", [0, 1, 7, 8, 61, 16383, 16385, 100_000])
def test_occupancy_update_equals_reference(n_cells: int, scale: float) -> None:
    density, bits, cells, values = make_state(n_cells, scale)
    expected = density.clone(), bits.clone()
    reference.occupancy_update(*expected, cells, values)
    _ngp.occupancy_update(density, bits, cells, values)
    assert torch.equal(density, expected[0]) and torch.equal(bits, expected[1])


@pytest.mark.cpu_only
def test_occupancy_update_does_not_depend_on_the_number_of_threads() -> None:
    state = make_state(200_000, 1e-3)
    before = torch.get_num_threads()
    try:
        results = []
        for n_threads in (1, 2, 16):
            torch.set_num_threads(n_threads)
            density, bits = state[0].clone(), state[1].clone()
            _ngp.occupancy_update(density, bits, *state[2:])
            results.append((density, bits))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(r[0], results[0][0]) and torch.equal(r[1], results[0][1]) for r in results)


def test_occupancy_update_without_visible_cell() -> None:
    density, bits = torch.full((9,), -1.0), torch.full((2,), 255, dtype=torch.uint8)
    _ngp.occupancy_update(density, bits, torch.arange(9), torch.ones(9))
    assert (density == -1).all() and not bits.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"density": torch.zeros(2, 4)}, r"`density` must have shape \[n_cells\], got \[2, 4\]"),
        ({"density": torch.zeros(16, dtype=torch.float64)}, "`density` must be float32, got float64"),
        ({"bits": torch.zeros(3, dtype=torch.uint8)}, r"`bits` must have shape \[2\], got \[3\]"),
        ({"values": torch.zeros(3)}, r"`cells` and `values` must have the same shape \[M\], got \[2\] and \[3\]"),
        ({"cells": torch.tensor([0, 16])}, r"`cells` must lie in 0\.\.15, got 16"),
        ({"cells": torch.tensor([-1, 0])}, r"`cells` must lie in 0\.\.15, got -1"),
        ({"decay": -1.0}, "`decay` must not be negative, got -1"),
    ],
)
def test_occupancy_update_errors_name_contract_and_actual(changes: dict, message: str) -> None:
    arguments = {
        "density": torch.zeros(16),
        "bits": torch.zeros(2, dtype=torch.uint8),
        "cells": torch.tensor([1, 5]),
        "values": torch.zeros(2),
    }
    with pytest.raises(RuntimeError, match=message):
        _ngp.occupancy_update(**arguments | changes)


# ---- occupancy_points, occupancy_visible -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", [None, 3])
def test_occupancy_points_equal_reference_and_lie_in_their_cells(seed: int | None, dtype: torch.dtype) -> None:
    resolution, n_cascades = (5, 8, 3), 3
    cells = torch.arange(n_cascades * math.prod(resolution))
    points = _ngp.occupancy_points(cells, AABB.to(dtype), resolution, n_cascades, seed, 4)
    assert torch.equal(points, reference.occupancy_points(cells, AABB.to(dtype), resolution, n_cascades, seed, 4))
    low, high = AABB.to(dtype).view(2, 3)
    for cell, point in zip(cells.tolist(), points, strict=True):
        cascade, x, y, z = cell // 120, cell // 24 % 5, cell // 3 % 8, cell % 3
        half = (high - low) / 2 * 2**cascade
        side = 2 * half / torch.tensor(resolution)
        offset = (point - (low + high) / 2 + half) / side - torch.tensor([x, y, z])
        assert (offset > -1e-5).all() and (offset < 1 + 1e-5).all()
        if seed is None:
            torch.testing.assert_close(offset, torch.full((3,), 0.5, dtype=dtype), rtol=0, atol=1e-5)
    if seed is not None:
        assert not torch.equal(points, _ngp.occupancy_points(cells, AABB.to(dtype), resolution, n_cascades, seed, 5))


def test_occupancy_points_errors_name_contract_and_actual() -> None:
    with pytest.raises(RuntimeError, match=r"`cells` must lie in 0\.\.63, got 64"):
        _ngp.occupancy_points(torch.tensor([64]), AABB, (4, 4, 4))
    with pytest.raises(RuntimeError, match=r"`aabb` must have shape \[6\], got \[2, 3\]"):
        _ngp.occupancy_points(torch.tensor([0]), AABB.view(2, 3), (4, 4, 4))


@pytest.mark.parametrize(("resolution", "n_cascades"), [((16, 20, 9), 1), ((12, 8, 8), 3)])
def test_marked_cells_are_those_no_camera_sees(resolution: tuple[int, int, int], n_cascades: int) -> None:
    cameras = make_cameras(3)
    grids = [OccupancyGrid(AABB, resolution, n_cascades, backend=backend) for backend in ("native", "reference")]
    for grid in grids:
        grid.mark_invisible_cells(*cameras, near=0.2, margin=0.0)
    density = grids[0].density
    assert (density != grids[1].density).sum() <= 2  # rounding at the border of a view
    assert 0.05 < (density < 0).float().mean() < 0.95
    assert grids[0].occupied_fraction == pytest.approx((density >= 0).float().mean().item())

    # no point of a marked cell projects into an image
    c2w, intrinsics, sizes = cameras
    cells = (density < 0).nonzero().squeeze(-1)
    for step in range(4):
        points = _ngp.occupancy_points(cells, AABB, resolution, n_cascades, 5, step)
        for pose, (fx, fy, cx, cy), (width, height) in zip(c2w, intrinsics.tolist(), sizes.tolist(), strict=True):
            x, y, z = ((points - pose[:, 3]) @ pose[:, :3]).unbind(-1)
            u, v = cx - fx * x / z, cy + fy * y / z
            assert not ((z < -0.2) & (u > 0) & (u < width) & (v > 0) & (v < height)).any()


def test_cells_at_the_edge_of_a_view_have_the_bits_of_rounded_products() -> None:
    """A plane per cell that its sphere touches to the last bit: products fused into sums decide some otherwise."""
    extent, n = AABB[3:] - AABB[:3], 6
    side = extent / n
    coordinates = torch.cartesian_prod(*[torch.arange(float(n))] * 3)
    centres = ((AABB[:3] + AABB[3:]) / 2 - extent / 2) + (coordinates + 0.5) * side
    xx, yy, zz = side * side
    radius = 0.5 * (xx + yy + zz).sqrt()
    normals = torch.nn.functional.normalize(torch.randn(len(centres), 3), dim=-1)

    def along(points: Tensor) -> Tensor:
        x, y, z = (normals * points).unbind(-1)
        return x + y + z

    planes = torch.zeros(len(centres), 5, 4)
    planes[:, :, 3] = 1.0
    planes[:, 0] = torch.cat([normals, (-radius - along(centres))[:, None]], dim=-1)
    expected = along(centres) + planes[:, 0, 3] >= -radius
    seen = [_ngp.occupancy_visible(planes[i : i + 1], AABB, (n, n, n))[i] for i in range(len(centres))]
    assert torch.equal(torch.stack(seen), expected)


def test_mark_invisible_cells_without_camera_and_with_a_broken_one() -> None:
    grid = OccupancyGrid(AABB, 8)
    c2w, intrinsics, sizes = make_cameras(2)
    c2w[0] = math.nan
    grid.mark_invisible_cells(c2w, intrinsics, sizes)
    assert 0 < grid.occupied_fraction < 1
    grid.mark_invisible_cells(c2w[:0], intrinsics[:0], sizes[:0])
    assert grid.occupied_fraction == 0
    with pytest.raises(ValueError, match=r"`intrinsics` must have shape \[2, 4\], got \[2, 3\]"):
        grid.mark_invisible_cells(c2w, intrinsics[:, :3], sizes)


# ---- OccupancyGrid -----------------------------------------------------------------------------------------------


def ball(points: Tensor) -> Tensor:
    return 40.0 * (points.norm(dim=-1) < 0.4)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_grid_finds_the_occupied_cells(backend: str) -> None:
    grid = OccupancyGrid(AABB, (16, 16, 16), backend=backend)
    assert grid.occupied_fraction == 1
    for step in (0, 16):
        assert grid.update(ball, step) == grid.n_cells
    centres = _ngp.occupancy_points(torch.arange(grid.n_cells), AABB, grid.resolution)
    occupied = (grid.bits.unsqueeze(-1) >> torch.arange(8) & 1).flatten().bool()
    diagonal = ((AABB[3:] - AABB[:3]) / 16).norm() / 2
    assert occupied[centres.norm(dim=-1) < 0.4 - diagonal].all()
    assert not occupied[centres.norm(dim=-1) > 0.4 + diagonal].any()
    # later a part of the cells is evaluated; what has become empty goes, what is there stays
    n = grid.update(ball, 256)
    assert 0.2 * grid.n_cells < n < 0.55 * grid.n_cells
    for step in range(257, 500):
        grid.update(lambda points: torch.zeros(len(points), 1), step)
    assert grid.density.max() < 1e-3


def test_backends_agree_bit_for_bit() -> None:
    grids = [OccupancyGrid(AABB, (8, 9, 10), 2, backend=backend) for backend in ("native", "reference")]
    evaluated: list[list[Tensor]] = [[], []]
    for grid, positions in zip(grids, evaluated, strict=True):

        def density(points: Tensor, positions: list[Tensor] = positions) -> Tensor:
            positions.append(points)
            return ball(points)

        for step in (0, 16, 256, 272):
            grid.update(density, step, step_size=0.01, seed=9, chunk=500)
    assert all(torch.equal(a, b) for a, b in zip(*evaluated, strict=True))
    assert torch.equal(grids[0].density, grids[1].density) and torch.equal(grids[0].bits, grids[1].bits)
    rays_o, rays_d = torch.randn(50, 3) * 2, torch.randn(50, 3)
    samples = [grid.march(rays_o, rays_d, seed=1) for grid in grids]
    assert torch.equal(samples[0].t_starts, samples[1].t_starts)
    assert [s.backend for s in samples] == ["native", "reference"]


def test_update_chooses_each_cell_once_and_leaves_invisible_ones() -> None:
    grid = OccupancyGrid(AABB, (16, 16, 16))
    grid.mark_invisible_cells(*make_cameras(2))
    visible = int((grid.density >= 0).sum())
    assert grid.update(ball, 0) == visible < grid.n_cells
    seen: list[Tensor] = []
    n = grid.update(lambda points: seen.append(points) or ball(points), 300, uniform_fraction=1.0)
    assert n == visible == len(torch.cat(seen).unique(dim=0))
    assert grid.update(ball, 300, uniform_fraction=0.0, occupied_fraction=0.0) == 0
    assert (grid.density < 0).sum() == grid.n_cells - visible


def test_update_scales_thickness_with_the_cascade() -> None:
    grid = OccupancyGrid(AABB, 4, n_cascades=3)
    grid.update(lambda points: torch.full((len(points),), 2.0), 0)
    expected = torch.tensor([2.0, 4.0, 8.0]) * grid.default_step_size
    torch.testing.assert_close(grid.density.view(3, -1), expected.unsqueeze(-1).expand(3, 64))
    assert grid.default_step_size == pytest.approx(2.5 * math.sqrt(3) / 1024)


def test_grid_state_travels() -> None:
    grid = OccupancyGrid(AABB, (6, 7, 8), 2)
    grid.update(ball, 0)
    other = OccupancyGrid(AABB, (6, 7, 8), 2)
    other.load_state_dict(grid.state_dict())
    assert sorted(grid.state_dict()) == ["aabb", "bits", "density"]
    for twin in (other, copy.deepcopy(grid)):
        assert torch.equal(twin.bits, grid.bits) and twin.occupied_fraction == grid.occupied_fraction
    with torch.device("meta"):
        assert OccupancyGrid(AABB.tolist(), 8).density.is_meta
    assert "resolution=(6, 7, 8), n_cascades=2" in repr(grid)


def test_march_through_the_grid() -> None:
    grid = OccupancyGrid(AABB, 32)
    grid.update(ball, 0)
    rays_o, rays_d = torch.tensor([[3.0, 0, 0], [3.0, 0, 0]]), torch.tensor([[-1.0, 0, 0], [1.0, 0, 0]])
    samples = grid.march(rays_o, rays_d)
    assert samples.packed_info[1].tolist() == [samples.n_samples, 0]
    positions = samples.positions(rays_o, rays_d)
    assert positions.norm(dim=-1).max() < 0.5
    assert samples.t_starts[0] == pytest.approx(2.6, abs=0.1) and samples.t_ends[-1] == pytest.approx(3.4, abs=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 0}, "`resolution` and `n_cascades` must be positive, got 0 and 1"),
        ({"n_cascades": 0}, "`resolution` and `n_cascades` must be positive, got 8 and 0"),
        ({"aabb": [0, 0, 0, 1, 1]}, r"`aabb` must be two corners \[6\], the lower one first"),
        ({"aabb": [0, 0, 0, 1, 1, 0]}, r"`aabb` must be two corners \[6\], the lower one first"),
        ({"backend": "cuda"}, r"`backend` must be one of \('native', 'reference'\), got 'cuda'"),
    ],
)
def test_grid_errors_name_contract_and_actual(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OccupancyGrid(**{"aabb": AABB, "resolution": 8} | changes)


def test_update_errors_name_contract_and_actual() -> None:
    grid = OccupancyGrid(AABB, 4)
    with pytest.raises(ValueError, match=r"`density_fn` must return \[64\] values, got \[64, 2\]"):
        grid.update(lambda points: torch.zeros(len(points), 2), 0)
    with pytest.raises(ValueError, match=r"`uniform_fraction` must be in \[0, 1\], got 1.5"):
        grid.update(ball, 0, uniform_fraction=1.5)


@pytest.mark.cpu_only
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_nan_densities_are_refused_and_nothing_is_lost(backend: str) -> None:
    grid = OccupancyGrid(AABB, 8, backend=backend)
    grid.update(lambda x: x[:, 0].exp(), step=0)
    before = grid.density.clone(), grid.bits.clone()
    with pytest.raises(ValueError, match="`density_fn` must give densities, got NaN for 512 of 512 cells"):
        grid.update(lambda x: torch.full_like(x[:, 0], math.nan), step=1)
    with pytest.raises(ValueError, match="`density_fn` must give densities, got NaN for 1 of 512 cells"):
        grid.update(lambda x: torch.where(torch.arange(len(x)) == 11, math.nan, x[:, 0]), step=1, chunk=512)
    with pytest.raises(ValueError, match="`values` must give densities, got NaN for 1 of 3 cells"):
        grid.raise_cells(torch.arange(3), torch.tensor([1.0, math.nan, 2.0]))
    assert torch.equal(grid.density, before[0]) and torch.equal(grid.bits, before[1])
