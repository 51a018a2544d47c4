"""Modules cast to half precision: parameters are read as the values they then have, everything else stays fp32."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hashgrid import FusedMLP, HashGrid, NetworkWithInputEncoding, OccupancyGrid
from hashgrid.fields.ngp import Ngp, NgpConfig
from hashgrid.geometry.rays import At, Rays
from hashgrid.optim import Adam

AABB = torch.tensor([-1.001, -1.0, -1.0, 1.0, 1.0, 1.003])
HALF = [torch.float16, torch.bfloat16]
BACKENDS = ["native", "reference"]


def make_field(backend: str, **options: bool) -> nn.Module:
    torch.manual_seed(0)
    grid = HashGrid(
        3, n_levels=4, log2_hashmap_size=8, base_resolution=4, max_resolution=32, backend=backend, **options
    )
    nn.init.normal_(grid.table)
    mlp = FusedMLP(8, 2, 16, 2, activation="softplus", bias=True, backend=backend)
    return NetworkWithInputEncoding(grid, mlp)


def gradients(field: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    x = x.detach().clone().requires_grad_()
    y = field(x)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    params = list(field.parameters())[:-1]  # the last bias does not change the slope
    second = torch.autograd.grad(slope.float().square().mean(), params, retain_graph=True)
    assert all(grad.dtype == param.dtype for grad, param in zip(second, params, strict=True))
    assert all(grad.isfinite().all() for grad in second)
    y.square().mean().backward()
    return torch.cat([y.detach(), slope.detach().float()], dim=-1), [param.grad for param in field.parameters()]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_parameters_are_read_as_their_values(backend: str, dtype: torch.dtype) -> None:
    field = make_field(backend).to(dtype)
    exact = copy.deepcopy(field).float()
    x = torch.rand(20, 3).to(dtype)  # of half precision themselves, so that both casts are the same positions
    with torch.no_grad():
        assert field(x).dtype == torch.float32 and torch.equal(field(x), exact(x.float()))
        assert torch.equal(field(x.float()), exact(x.float()))
    for given in (x, x.float()):
        field.zero_grad()
        exact.zero_grad()
        values, grads = gradients(field, given)
        y, expected = gradients(exact, given)
        torch.testing.assert_close(values, y)
        for grad, want in zip(grads, expected, strict=True):
            assert grad.dtype == dtype
            torch.testing.assert_close(grad, want.to(dtype))


@pytest.mark.parametrize("options", [{"compute_dtype": torch.float16}, {"accumulate_grad": True}])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_tables_with_options(backend: str, options: dict) -> None:
    field, plain = (make_field(backend, **chosen).half() for chosen in (options, {}))
    x = torch.rand(20, 3)
    for (y, grads), (want, expected) in [(gradients(field, x), gradients(plain, x))]:
        torch.testing.assert_close(y, want)
        torch.testing.assert_close(grads, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compute_dtype_means_the_same_of_half_weights(backend: str) -> None:
    for compute_dtype in (None, torch.float32, torch.bfloat16):
        mlp = FusedMLP(8, 2, 16, 2, compute_dtype=compute_dtype, backend=backend).half()
        exact = copy.deepcopy(mlp).float()
        x = torch.rand(9, 8)
        torch.testing.assert_close(mlp(x), exact(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_radiance_field(backend: str) -> None:
    model = Ngp(NgpConfig(n_levels=4, log2_hashmap_size=8, compute_dtype="float32"), AABB, backend=backend)
    half = copy.deepcopy(model).half()
    assert torch.equal(half.aabb, AABB) and torch.equal(half.inverse_extent, model.inverse_extent)
    exact = copy.deepcopy(half).float()
    points, directions = torch.rand(9, 3) - 0.5, nn.functional.normalize(torch.rand(2, 3) - 0.5, dim=-1)
    rays = torch.arange(9) % 2
    for recorded in (False, True):
        with torch.set_grad_enabled(recorded):
            at = At(Rays(points[:2], directions), model.unit(points), rays)
            results = (each.radiance(at) for each in (half, exact))
            for got, want in zip(*results, strict=True):
                assert got.dtype == torch.float32
                torch.testing.assert_close(got, want)


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
@pytest.mark.parametrize("backend", BACKENDS)
def test_occupancy_grids_keep_their_box_and_densities(backend: str, cast: Callable[[nn.Module], nn.Module]) -> None:
    grid = OccupancyGrid(AABB, 8, backend=backend)
    grid.update(lambda x: x[:, 0].exp(), step=0)
    other = cast(nn.Sequential(copy.deepcopy(grid)))[0]
    assert torch.equal(other.aabb, AABB) and torch.equal(other.density, grid.density)
    assert other.aabb.dtype == other.density.dtype == torch.float32
    for each in (grid, other):
        each.update(lambda x: x[:, 1].exp().half(), step=1)
    assert torch.equal(other.density, grid.density) and torch.equal(other.bits, grid.bits)
    assert other.to("meta").density.is_meta


@pytest.mark.parametrize("dtype", [*HALF, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_default_dtypes(backend: str, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    try:
        field, grid = make_field(backend), OccupancyGrid(AABB.tolist(), 8, backend=backend)
        x = torch.rand(7, 3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert field(x).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert grid.update(lambda x: x[:, 0].exp(), step=0) == grid.n_cells


@pytest.mark.parametrize("backend", BACKENDS)
def test_our_optimiser_wants_fp32_parameters(backend: str) -> None:
    field = make_field(backend).half()
    optimizer = Adam(field.parameters(), backend=backend)
    gradients(field, torch.rand(5, 3))
    with pytest.raises(ValueError, match=r"`params` must be float32 or float64, got torch\.float16.*`compute_dtype`"):
        optimizer.step()
