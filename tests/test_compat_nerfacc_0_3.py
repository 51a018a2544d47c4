"""nerfacc 0.3's functions against an independent twin of its kernels (problems/nerfacc_0_3_twin.py)."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from problems import nerfacc_0_3_twin as twin
from torch import Tensor

import hashgrid.compat
from hashgrid import reference
from hashgrid.compat import nerfacc_0_3 as nerfacc
from hashgrid.compat.nerfacc_0_3 import ContractionType, OccupancyGrid, ray_marching

BOX = torch.tensor([-1.0, -1.25, -0.75, 1.0, 1.25, 1.5])
KINDS = {"aabb": ContractionType.AABB, "tanh": ContractionType.UN_BOUNDED_TANH}
KINDS["sphere"] = ContractionType.UN_BOUNDED_SPHERE


def rays(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """From around the box, and one in five from within, to places in it; the last one along an axis."""
    origins = torch.nn.functional.normalize(torch.randn(n, 3, dtype=dtype), dim=1) * 3
    origins[::5] /= 6
    directions = torch.nn.functional.normalize(torch.rand(n, 3, dtype=dtype) - 0.5 - origins, dim=1)
    directions[-1] = torch.tensor([0.0, 1.0, 0.0])
    return origins, directions


def occupancy(kind: str, share: float = 0.3) -> OccupancyGrid:
    grid = OccupancyGrid(BOX, (6, 5, 9), KINDS[kind])
    grid._binary = torch.rand(6, 5, 9) < share
    return grid


def limits(o: Tensor, d: Tensor) -> np.ndarray:
    return np.array([twin.crossing(*ray, BOX.double().numpy()) for ray in zip(o.numpy(), d.numpy(), strict=True)])


def walk(o: Tensor, d: Tensor, bounds: np.ndarray, step: float, cone: float, grid: OccupancyGrid | None) -> Tensor:
    """Ray, begin and end of all samples, [S, 3]."""
    cells = {} if grid is None else {"box": grid.roi_aabb.double().numpy(), "binary": grid.binary.numpy()}
    if grid is not None:
        cells["kind"] = next(kind for kind, value in KINDS.items() if value is grid.contraction_type)
    rows = []
    for i, (near, far) in enumerate(bounds):
        found = twin.march(o[i].numpy(), d[i].numpy(), near, far, step, cone, **cells)
        rows += [(i, *sample) for sample in found]
    return torch.tensor(rows, dtype=torch.float64).view(-1, 3)


def table(ray_indices: Tensor, t_starts: Tensor, t_ends: Tensor) -> Tensor:
    assert ray_indices.dtype == torch.int64
    return torch.cat((ray_indices[:, None].double(), t_starts.double(), t_ends.double()), dim=1)


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """hashgrid's ops, or their twins in plain PyTorch."""
    if request.param == "reference":
        monkeypatch.setattr("hashgrid.compat.nerfacc_0_3_march.ops", reference)
        for name in ("_traverse.march_rays", "_traverse.ray_aabb", "volrend.composite"):
            monkeypatch.setattr(f"hashgrid.compat.nerfacc.{name}", getattr(reference, name.partition(".")[2]))


# ---- marching --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("cone", [0.0, 0.03])
@pytest.mark.parametrize("kind", ["aabb", "tanh", "sphere", "none"])
def test_march(kind: str, cone: float) -> None:
    o, d = rays(20)
    grid = None if kind == "none" else occupancy(kind)
    step = 0.0371
    far = 8.0
    if kind == "aabb":
        bounds = limits(o, d)
        found = ray_marching(o, d, scene_aabb=BOX, grid=grid, render_step_size=step, cone_angle=cone)
    else:
        bounds = np.tile([0.2, far], (len(o), 1))
        how = {"near_plane": 0.2, "far_plane": far, "render_step_size": step, "cone_angle": cone}
        found = ray_marching(o, d, grid=grid, **how)
    expected = walk(o, d, bounds, step, cone, grid)
    assert len(expected) > 150 and found[1].shape == (len(expected), 1)
    torch.testing.assert_close(table(*found), expected, rtol=0, atol=1e-9)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("cone", [0.0, 0.02])
@pytest.mark.parametrize("step", [0.05, 0.9])  # shorter and longer than cells
def test_march_from_before_the_box(step: float, cone: float) -> None:
    o, d = rays(30)
    grid = occupancy("aabb")
    t_min, t_max = torch.rand(30, dtype=torch.float64), 3 + torch.rand(30, dtype=torch.float64)
    how = {"grid": grid, "render_step_size": step, "cone_angle": cone}
    # the limits of rays count, not the box
    found = ray_marching(o, d, t_min, t_max, BOX, **how)
    expected = walk(o, d, torch.stack((t_min, t_max), 1).numpy(), step, cone, grid)
    torch.testing.assert_close(table(*found), expected, rtol=0, atol=1e-9)
    planes = ray_marching(o, d, t_min * 0, t_max * 2, near_plane=t_min, far_plane=3.5, **how)
    again = ray_marching(o, d, t_min, t_max.clamp(max=3.5) * 0 + 3.5, **how)
    assert torch.equal(table(*planes), table(*again))


@pytest.mark.parametrize("kind, cone", [("aabb", 0.0), ("aabb", 0.03), ("sphere", 0.03)])
def test_march_in_fp32(kind: str, cone: float) -> None:
    o, d = rays(40, torch.float32)
    grid = occupancy(kind)
    found = table(*ray_marching(o, d, grid=grid, far_plane=5.0, render_step_size=0.04, cone_angle=cone))
    step, cone = np.float32(0.04).item(), np.float32(cone).item()
    expected = walk(o.double(), d.double(), np.tile([0, 5.0], (40, 1)), step, cone, grid)
    # rounding decides about middles on the sides of cells: there are none on these rays
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_march_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    o, d = rays(30)
    how = {"grid": occupancy("sphere"), "far_plane": 9.0, "render_step_size": 0.1, "cone_angle": 0.01}
    whole = ray_marching(o, d, **how)
    monkeypatch.setattr("hashgrid.compat.nerfacc_0_3_march._STEPS", 100)
    assert torch.equal(table(*whole), table(*ray_marching(o, d, **how)))


def test_march_of_nothing() -> None:
    o, d = rays(20)
    for kind in KINDS:
        for cone in (0.0, 0.01):
            how = {"grid": occupancy(kind), "render_step_size": 0.1, "cone_angle": cone}
            assert len(ray_marching(o[:0], d[:0], far_plane=3.0, **how)[0]) == 0
            assert len(ray_marching(o, d, torch.ones(20), torch.ones(20) * 0.5, **how)[0]) == 0
            assert len(ray_marching(o + 20, d * 0 + 1, scene_aabb=BOX, **how)[0]) == 0
            # NaN stays with its ray
            near = torch.where(torch.arange(20) == 3, torch.nan, torch.zeros(20))
            whole, holed = (table(*ray_marching(o, d, t, t * 0 + 4, **how)) for t in (near.nan_to_num(0), near))
            assert torch.equal(whole[whole[:, 0] != 3], holed)
    with pytest.raises(ValueError, match="rays have .* steps; give `scene_aabb`"):
        ray_marching(o, d)
    with pytest.raises(ValueError, match="only one of"):
        ray_marching(o, d, far_plane=1.0, sigma_fn=lambda *x: x[0], alpha_fn=lambda *x: x[0])
    with pytest.raises(ValueError, match="`sigma_fn` must return shape"):
        ray_marching(o, d, far_plane=1.0, sigma_fn=lambda *x: x[2])
    with pytest.raises(ValueError, match="`render_step_size` must be positive"):
        ray_marching(o, d, render_step_size=0.0)
    with pytest.raises(ValueError, match="`t_max` must have shape"):
        ray_marching(o, d, torch.zeros(20), torch.zeros(3))


def test_stratified() -> None:
    o, d = rays(200)
    ray, t_starts, _ = ray_marching(
        o, d, t_min=o[:, 0] * 0 + 1, t_max=o[:, 0] * 0 + 1.5, stratified=True, render_step_size=0.1
    )
    first = t_starts[:, 0][torch.cat((torch.ones(1).bool(), ray[1:] != ray[:-1]))]
    assert len(first) == 200 and first.min() >= 1 and first.max() <= 1.1 and 0.02 < first.std() < 0.04


@pytest.mark.parametrize("alphas", [False, True])
def test_march_of_what_is_visible(alphas: bool) -> None:
    o, d = rays(20)
    ray, t_starts, t_ends = ray_marching(o, d, scene_aabb=BOX, render_step_size=0.1)

    def fn(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor) -> Tensor:
        return (t_starts * 7 + ray_indices[:, None]).sin().abs() * (0.3 if alphas else 4)

    dense = fn(t_starts, t_ends, ray)
    alpha = dense if alphas else 1 - (-dense * (t_ends - t_starts)).exp()
    counts = ray.bincount(minlength=20).tolist()
    passed = torch.from_numpy(twin.transmittances(alpha[:, 0].numpy(), counts))
    kept = (passed >= 0.2) & (alpha[:, 0] >= 0.1)
    how = {"scene_aabb": BOX, "render_step_size": 0.1, "early_stop_eps": 0.2, "alpha_thre": 0.1}
    found = ray_marching(o, d, alpha_fn=fn if alphas else None, sigma_fn=None if alphas else fn, **how)
    assert 0 < kept.sum() < len(kept)
    assert torch.equal(table(*found), table(ray[kept], t_starts[kept], t_ends[kept]))


def test_box() -> None:
    o, d = rays(50)
    o[10:20] += 9 * d[10:20]  # the box is behind
    o[20:30] += 4
    t_min, t_max = nerfacc.ray_aabb_intersect(o[:-1], d[:-1], BOX)
    expected = torch.from_numpy(limits(o[:-1], d[:-1]))
    torch.testing.assert_close(torch.stack((t_min, t_max), dim=1), expected, rtol=1e-12, atol=1e-12)
    assert (t_min == 1e10).any() and (t_max < 0).any()


# ---- grids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_contraction(kind: str) -> None:
    x = torch.randn(60, 3, dtype=torch.float64) * 2
    unit = nerfacc.contract(x, BOX, KINDS[kind])
    expected = np.stack([twin.contracted(point, BOX.double().numpy(), kind) for point in x.numpy()])
    np.testing.assert_allclose(unit.numpy(), expected, atol=1e-14)
    torch.testing.assert_close(nerfacc.contract_inv(unit, BOX, KINDS[kind]), x)
    values = torch.rand(6, 5, 9)
    found = nerfacc.query_grid(x, BOX, values, KINDS[kind])
    at = [twin.value_at(point, BOX.double().numpy(), values.numpy(), kind) for point in x.numpy()]
    assert found.tolist() == [float(value) for value in at]
    assert (found == 0).any() == (kind == "aabb")


def test_contraction_far_away() -> None:
    corner = torch.ones(1, 3)
    cube = torch.tensor([0.0, 0, 0, 1, 1, 1])
    assert nerfacc.contract_inv(corner, cube, KINDS["tanh"]).tolist() == [[1e10, 1e10, 1e10]]
    assert nerfacc.contract_inv(torch.tensor([[1, 0.5, 0.5]]), cube, KINDS["sphere"])[0, 0] > 1e9
    far = torch.tensor([[1e9, 0, 0]])
    torch.testing.assert_close(nerfacc.contract(far, cube * 2 - 1, KINDS["sphere"]), torch.tensor([[1.0, 0.5, 0.5]]))
    with pytest.raises(ValueError, match="`roi` must have shape"):
        nerfacc.contract(corner, cube[:3])


@pytest.mark.parametrize("kind", KINDS)
def test_grid_follows_a_function(kind: str) -> None:
    grid = OccupancyGrid(BOX.tolist(), [6, 5, 9], KINDS[kind])
    asked: list[Tensor] = []

    def fn(x: Tensor) -> Tensor:
        asked.append(x)
        return (x[:, :1] > 0).float() * 0.5

    assert not grid.binary.any()
    grid.every_n_step(1, fn)
    assert not asked  # no multiple of 16
    grid.every_n_step(0, fn)
    unit = nerfacc.contract(asked[0], BOX, KINDS[kind])
    cells = (unit * grid.resolution).long()
    if kind == "sphere":
        assert len(cells) < 6 * 5 * 9 and ((unit - 0.5).norm(dim=1) < 0.5).all()
    else:
        every = torch.cartesian_prod(torch.arange(6), torch.arange(5), torch.arange(9))
        assert torch.equal(cells, every)
    occupied = torch.zeros(6, 5, 9, dtype=torch.bool)
    occupied[tuple(cells[asked[0][:, 0] > 0].T)] = True
    assert torch.equal(grid.binary, occupied) and torch.equal(grid.occs, occupied.flatten() * 0.5)
    assert grid.query_occ(asked[0]).tolist() == (asked[0][:, 0] > 0).tolist()
    # nothing is there any more: values fade
    grid.every_n_step(16, lambda x: asked.append(x) or x[:, 0] * 0, occ_thre=0.48)  # type: ignore[func-returns-value]
    seen = torch.zeros_like(occupied)
    seen[tuple((nerfacc.contract(asked[1], BOX, KINDS[kind]) * grid.resolution).long().T)] = True
    torch.testing.assert_close(grid.occs, torch.where(seen, 0.475, 0.5).flatten() * occupied.flatten())
    assert torch.equal(grid.binary, occupied)  # the mean is the threshold
    state = grid.state_dict()
    assert sorted(state) == ["_binary", "_roi_aabb", "occs", "resolution"]
    OccupancyGrid(BOX, (6, 5, 9)).load_state_dict(state)
    with pytest.raises(RuntimeError, match="training"):
        grid.eval().every_n_step(0, fn)


def test_grid_looks_at_some_cells() -> None:
    grid = OccupancyGrid(BOX, 8)
    grid.every_n_step(0, lambda x: x[:, :1] * 0 + 1)
    grid._binary[1:] = False  # 64 occupied cells
    asked: list[Tensor] = []
    grid.every_n_step(256, lambda x: asked.append(x) or x[:, :1] * 0, ema_decay=0.5)  # type: ignore[func-returns-value]
    assert len(asked[0]) == 8**3 // 4 + 64
    # once, also where a cell was chosen twice
    assert set(grid.occs.tolist()) == {0.5, 1.0} and (grid.occs[:64] == 0.5).all() and grid.binary.all()


def test_grid_of_ones_own() -> None:
    class Mine(nerfacc.Grid):
        pass

    with pytest.raises(NotImplementedError, match="_roi_aabb"):
        Mine().roi_aabb  # noqa: B018
    mine = Mine()
    mine._roi_aabb, mine._binary, mine._contraction_type = BOX, torch.ones(2, 2, 2).bool(), ContractionType.AABB
    o, d = rays(5)
    assert len(ray_marching(o, d, scene_aabb=BOX, grid=mine, render_step_size=0.1)[0]) > 0


# ---- rendering -------------------------------------------------------------------------------------------------------

COUNTS = [3, 0, 1, 6, 0]


def samples() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rays, begins, ends and packed_info of samples of `COUNTS`."""
    counts = torch.tensor(COUNTS)
    ray = torch.arange(len(COUNTS)).repeat_interleave(counts)
    t_starts = torch.cat([torch.rand(n, 1, dtype=torch.float64).sort(dim=0).values for n in COUNTS])
    packed = torch.stack((counts.cumsum(0) - counts, counts), dim=1).int()
    return ray, t_starts, t_starts + 0.05 * torch.rand_like(t_starts), packed


def expected_transmittances(alphas: Tensor) -> Tensor:
    """Differentiable, ray by ray."""
    return torch.cat([
        torch.cat((part[:1] * 0 + 1, (1 - part[:-1]).cumprod(0))) for part in alphas.split(COUNTS)
    ])  # fmt: skip


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("alphas", [False, True])
def test_weights(alphas: bool, packed: bool) -> None:
    ray, t_starts, t_ends, packed_info = samples()
    of = {"packed_info": packed_info} if packed else {"ray_indices": ray, "n_rays": 5}
    values = (torch.rand_like(t_starts) * (0.9 if alphas else 30)).requires_grad_()
    alpha = values if alphas else 1 - (-values * (t_ends - t_starts)).exp()
    if alphas:
        made = nerfacc.render_weight_from_alpha(values, **of), nerfacc.render_transmittance_from_alpha(values, **of)
    else:
        arguments = t_starts, t_ends, values
        made = (
            nerfacc.render_weight_from_density(*arguments, **of),
            nerfacc.render_transmittance_from_density(*arguments, **of),
        )
    passed = expected_transmittances(alpha)
    np.testing.assert_allclose(passed[:, 0].detach(), twin.transmittances(alpha[:, 0].detach().numpy(), COUNTS))
    factors = torch.rand_like(t_starts)
    for one, other in zip(made, (passed * alpha, passed), strict=True):
        torch.testing.assert_close(one, other)
        grads = [torch.autograd.grad((factors * x.sin()).sum(), values, create_graph=True)[0] for x in (one, other)]
        torch.testing.assert_close(*grads)
        torch.testing.assert_close(
            *(torch.autograd.grad((factors * g).sum(), values, retain_graph=True)[0] for g in grads)
        )
    visible = nerfacc.render_visibility(alpha.detach(), early_stop_eps=0.3, alpha_thre=0.2, **of)
    assert visible.tolist() == ((passed >= 0.3) & (alpha >= 0.2))[:, 0].tolist()
    with pytest.raises(ValueError, match="one of `ray_indices` and `packed_info`"):
        nerfacc.render_weight_from_alpha(values)
    with pytest.raises(ValueError, match=r"`alphas` must have shape \[S, 1\]"):
        nerfacc.render_weight_from_alpha(values[:, 0], **of)


@pytest.mark.parametrize("alphas", [False, True])
def test_rendering(alphas: bool) -> None:
    ray, t_starts, t_ends, _ = samples()
    colors, values = torch.rand(10, 3).double().requires_grad_(), (torch.rand_like(t_starts)).requires_grad_()
    how = {"rgb_alpha_fn" if alphas else "rgb_sigma_fn": lambda *x: (colors, values)}
    background = torch.tensor([0.2, 0.4, 0.8])
    made = nerfacc.rendering(t_starts, t_ends, ray, 5, render_bkgd=background, **how)
    alpha = values if alphas else 1 - (-values * (t_ends - t_starts)).exp()
    weights = (expected_transmittances(alpha) * alpha).split(COUNTS)
    opacities = torch.stack([w.sum(0) for w in weights])
    seen = torch.stack([(w * c).sum(0) for w, c in zip(weights, colors.split(COUNTS), strict=True)])
    middles = ((t_starts + t_ends) / 2).split(COUNTS)
    depths = torch.stack([(w * t).sum(0) for w, t in zip(weights, middles, strict=True)])
    expected = seen + background * (1 - opacities), opacities, depths
    for one, other in zip(made, expected, strict=True):
        torch.testing.assert_close(one, other)
    of = colors, values
    for one, other in zip(*(torch.autograd.grad(sum(x.sum() for x in y), of) for y in (made, expected)), strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="one of `rgb_sigma_fn`"):
        nerfacc.rendering(t_starts, t_ends, ray, 5)


def test_sums_along_rays() -> None:
    weights, values = torch.rand(4, 1), torch.rand(4, 2)
    ray = torch.tensor([2, 0, 2, 2])
    found = nerfacc.accumulate_along_rays(weights, ray, values)
    both = weights * values
    torch.testing.assert_close(found, torch.stack((both[1], both[0] * 0, both[[0, 2, 3]].sum(0))))
    assert nerfacc.accumulate_along_rays(weights[:0], ray[:0], None, 3).tolist() == [[0], [0], [0]]


# ---- rays of samples -------------------------------------------------------------------------------------------------


def test_packing() -> None:
    ray, t_starts, _, packed_info = samples()
    assert torch.equal(nerfacc.pack_info(ray, 5), packed_info)
    assert torch.equal(nerfacc.pack_info(ray), packed_info[:4])  # the last ray that has samples
    assert torch.equal(nerfacc.unpack_info(packed_info, 10), ray)
    with pytest.warns(DeprecationWarning):
        assert torch.equal(nerfacc.unpack_to_ray_indices(packed_info, 10), ray)
    data = torch.rand(10, 2).requires_grad_()
    rows = nerfacc.unpack_data(packed_info, data)
    assert rows.shape == (5, 6, 2)
    expected = torch.zeros(5, 6, 2)
    for i, part in enumerate(data.detach().split(COUNTS)):
        expected[i, : len(part)] = part
    assert torch.equal(rows, expected)
    mask = torch.arange(6) < torch.tensor(COUNTS)[:, None]
    again, info = nerfacc.pack_data(rows, mask)
    assert torch.equal(again, data) and torch.equal(info, packed_info)
    cut = nerfacc.unpack_data(packed_info, data, 4)
    assert torch.equal(cut, rows[:, :4])
    (grad,) = torch.autograd.grad((cut * 2).sum(), data)
    assert grad.sum(1).tolist() == [4.0] * 8 + [0.0] * 2


def test_resampling() -> None:
    ray, t_starts, t_ends, packed_info = samples()
    weights = torch.rand(10, dtype=torch.float64)
    weights[3] = 0.0  # a ray without weight: as if it were even
    weights[6] = 0.0
    info, starts, ends = nerfacc.ray_resampling(packed_info, t_starts, t_ends, weights, 4)
    assert info.tolist() == [[0, 4], [4, 0], [4, 4], [8, 4], [12, 0]]
    parts = [x.split(COUNTS) for x in (t_starts[:, 0], t_ends[:, 0], weights)]
    rows = [[x.numpy() for x in row] for row in zip(*parts, strict=True) if len(row[0])]
    edges = np.stack([twin.resampled(*row, 4) for row in rows])
    np.testing.assert_allclose(starts.view(3, 4), edges[:, :-1])
    np.testing.assert_allclose(ends.view(3, 4), edges[:, 1:])


def test_distortion() -> None:
    ray, t_starts, t_ends, packed_info = samples()
    weights = torch.rand(10, dtype=torch.float64).requires_grad_()
    made = nerfacc.loss_distortion(packed_info, weights, t_starts, t_ends)
    parts = [x.split(COUNTS) for x in (t_starts[:, 0], t_ends[:, 0], weights.detach())]
    rows = [[x.numpy() for x in row] for row in zip(*parts, strict=True)]
    np.testing.assert_allclose(made.detach(), [twin.distortion(*row) for row in rows])
    assert torch.autograd.gradcheck(lambda w: nerfacc.loss_distortion(packed_info, w, t_starts, t_ends), weights)


def test_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "nerfacc"]:
        monkeypatch.delitem(sys.modules, name)
    hashgrid.compat.install("nerfacc_0_3")
    import nerfacc as installed  # type: ignore[import-not-found]
    import nerfacc.ray_marching
    from nerfacc.intersection import ray_aabb_intersect

    assert installed.ray_marching is ray_marching  # the function, though a module has its name
    assert ray_aabb_intersect is installed.ray_aabb_intersect and len(installed.__all__) == 23
    assert all(hasattr(installed, name) for name in installed.__all__)
    with pytest.raises(ModuleNotFoundError):
        import nerfacc.estimators  # noqa: F401
    for name in [name for name in sys.modules if name.partition(".")[0] == "nerfacc"]:
        del sys.modules[name]
