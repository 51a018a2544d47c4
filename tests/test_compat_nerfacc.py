"""nerfacc's functions against loops over rays and samples in float64, and against finite differences."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import hashgrid.compat
from hashgrid.compat import nerfacc
from hashgrid.compat.nerfacc import pdf as nerfacc_pdf
from hashgrid.compat.nerfacc._rows import Rows
from hashgrid.compat.nerfacc.estimators import prop_net

COUNTS = (0, 3, 1, 0, 40, 33, 0, 1100, 32, 2, 0)  # one row, several, and rows of rows


def rays_of(counts: tuple[int, ...] = COUNTS) -> Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def looped(x: Tensor, rays: Tensor, kind: str, exclusive: bool) -> Tensor:
    """A scan in Python's floats, in the order of the samples."""
    neutral = 0.0 if kind == "sum" else 1.0
    outputs, value, before = [], neutral, None
    for ray, sample in zip(rays.tolist(), x.tolist(), strict=True):
        value, before = (value if ray == before else neutral), ray
        after = value + sample if kind == "sum" else value * sample
        outputs.append(value if exclusive else after)
        value = after
    return torch.tensor(outputs, dtype=torch.float64)


SCANS = {
    (kind, exclusive): getattr(nerfacc, f"{'exclusive' if exclusive else 'inclusive'}_{kind}")
    for kind in ("sum", "prod")
    for exclusive in (False, True)
}


@pytest.fixture(params=SCANS, ids=lambda key: f"{key[0]}-{'exclusive' if key[1] else 'inclusive'}")
def scan(request: pytest.FixtureRequest) -> tuple[Callable, str, bool]:
    return SCANS[request.param], *request.param


# ---- pack_info -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_pack_info(dtype: torch.dtype) -> None:
    packed = nerfacc.pack_info(rays_of().to(dtype), len(COUNTS))
    first = [sum(COUNTS[:i]) for i in range(len(COUNTS))]
    assert packed.dtype == dtype and packed.tolist() == [list(pair) for pair in zip(first, COUNTS, strict=True)]
    assert nerfacc.pack_info(rays_of().to(dtype)).tolist() == packed[:-1].tolist()  # up to the last that has samples
    assert nerfacc.pack_info(rays_of((0,)).to(dtype), 2).tolist() == [[0, 0], [0, 0]]
    assert nerfacc.pack_info(rays_of((0,)).to(dtype)).shape == (0, 2)


# ---- scans -----------------------------------------------------------------------------------------------------------


def test_scan(scan: tuple[Callable, str, bool]) -> None:
    function, kind, exclusive = scan
    torch.manual_seed(0)
    rays = rays_of()
    x = torch.rand(len(rays), dtype=torch.float64) * 0.2 + 0.9
    expected = looped(x, rays, kind, exclusive)
    packed = nerfacc.pack_info(rays, len(COUNTS))
    for arguments in ({"indices": rays}, {"packed_info": packed}, {"packed_info": packed.int()}):
        torch.testing.assert_close(function(x, **arguments), expected, rtol=1e-12, atol=0)
        single = function(x.float(), **arguments)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), expected, rtol=2e-5, atol=0)
    rows = x[:1200].view(3, 2, 200)
    made = function(rows)
    again = looped(x[:1200], torch.arange(6).repeat_interleave(200), kind, exclusive)
    torch.testing.assert_close(made.flatten(), again, rtol=1e-12, atol=0)


def test_scan_of_rays_anywhere(scan: tuple[Callable, str, bool]) -> None:
    """Rays out of order with gaps between them; what is of none becomes zero."""
    function, kind, exclusive = scan
    x = torch.rand(12, dtype=torch.float64) + 0.5
    packed = torch.tensor([[7, 4], [0, 0], [1, 2], [4, 1], [12, 0]])
    expected = torch.zeros(12, dtype=torch.float64)
    for first, count in packed.tolist():
        part = slice(first, first + count)
        expected[part] = looped(x[part], torch.zeros(count), kind, exclusive)
    torch.testing.assert_close(function(x, packed_info=packed), expected, rtol=1e-12, atol=0)


def test_scan_has_derivatives(scan: tuple[Callable, str, bool]) -> None:
    """First and second, also where factors are zero: one in a row, two in a row."""
    function, kind, _ = scan
    torch.manual_seed(0)
    rays = rays_of((0, 3, 1, 38, 2))
    x = torch.rand(len(rays), dtype=torch.float64) * 0.5 + 0.75
    x[[1, 7, 30, 34]] = 0
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function(x, indices=rays), x)
    assert torch.autograd.gradgradcheck(lambda x: function(x, indices=rays), x, fast_mode=True)
    packed = torch.tensor([[4, 38], [0, 2]])
    assert torch.autograd.gradcheck(lambda x: function(x, packed_info=packed), x)


@pytest.mark.parametrize("planted", [math.nan, math.inf])
def test_scan_keeps_rays_apart(scan: tuple[Callable, str, bool], planted: float) -> None:
    function, *_ = scan
    rays = rays_of()
    x = torch.rand(len(rays)) + 0.5
    clean = function(x, indices=rays)
    x[rays == 4] = planted
    x.requires_grad_()
    made = function(x, indices=rays)
    others = rays != 4
    assert torch.equal(made[others], clean[others]) and not made[rays == 4][1:].isfinite().any()
    (made * others).nan_to_num().sum().backward()
    assert x.grad is not None and x.grad[others].isfinite().all()


def test_sums_do_not_lose_digits_of_earlier_rays() -> None:
    rays = torch.tensor([0, 1, 1])
    assert nerfacc.exclusive_sum(torch.tensor([1e8, 0.5, 0.25]), indices=rays).tolist() == [0, 0, 0.5]


def test_scan_of_nothing(scan: tuple[Callable, str, bool]) -> None:
    function, *_ = scan
    x, none = torch.rand(0, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    for arguments in ({"indices": none}, {"packed_info": none.view(0, 2)}, {"packed_info": torch.zeros(3, 2).long()}):
        made = function(x, **arguments)
        assert made.shape == (0,)
        made.sum().backward()
    assert x.grad is not None and function(torch.rand(3, 0)).shape == (3, 0)
    assert torch.equal(function(torch.rand(4), packed_info=none.view(0, 2)), torch.zeros(4))


@pytest.mark.parametrize("counts", [(1,) * 500, (0,) * 300 + (700,) + (0,) * 300, (5,) * 90])
def test_matrix_of_rows_is_small(counts: tuple[int, ...]) -> None:
    rays = rays_of(counts)
    rows = Rows(nerfacc.pack_info(rays, len(counts)), len(rays))
    assert rows.n_rows * rows.width <= 4 * len(rays)
    x = torch.rand(len(rays), dtype=torch.float64)
    expected = looped(x, rays, "sum", False)
    torch.testing.assert_close(rows.scan(x, "sum", exclusive=False), expected, rtol=1e-12, atol=0)


# ---- volume rendering ------------------------------------------------------------------------------------------------


def samples(counts: tuple[int, ...] = COUNTS, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    torch.manual_seed(1)
    n = sum(counts)
    t_starts = (torch.rand(n, dtype=dtype) + 0.3).cumsum(0)
    t_ends = t_starts + torch.rand(n, dtype=dtype) * 0.3
    return {"t_starts": t_starts, "t_ends": t_ends, "sigmas": torch.rand(n, dtype=dtype) * 0.6}


def rendered(alphas: Tensor, rays: Tensor, prefix: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weights and transmittances, in a loop."""
    trans = looped(1 - alphas, rays, "prod", True)
    trans = trans if prefix is None else trans * prefix
    return trans * alphas, trans


@pytest.mark.parametrize("prefixed", [False, True])
def test_weights(prefixed: bool) -> None:
    rays, s = rays_of(), samples()
    alphas = 1 - (-s["sigmas"] * (s["t_ends"] - s["t_starts"])).exp()
    prefix = torch.rand(len(rays), dtype=torch.float64) if prefixed else None
    weights, trans = rendered(alphas, rays, prefix)
    seen = trans >= 0.3
    packed = nerfacc.pack_info(rays, len(COUNTS))
    backwards = torch.tensor([[len(rays) - n - first, n] for first, n in packed.tolist()])
    for place in ({"ray_indices": rays}, {"ray_indices": rays, "n_rays": len(COUNTS)}, {"packed_info": packed}):
        place = {**place, "prefix_trans": prefix}
        made = nerfacc.render_weight_from_density(*s.values(), **place)
        torch.testing.assert_close(made, (weights, trans, alphas), rtol=1e-10, atol=0)
        torch.testing.assert_close(nerfacc.render_transmittance_from_density(*s.values(), **place), made[1:])
        made_alpha = nerfacc.render_weight_from_alpha(alphas, **place)
        torch.testing.assert_close(made_alpha, (weights, trans), rtol=1e-10, atol=0)
        torch.testing.assert_close(nerfacc.render_transmittance_from_alpha(alphas, **place), trans)
        visible = nerfacc.render_visibility_from_alpha(alphas, **place, early_stop_eps=0.3, alpha_thre=0.1)
        assert torch.equal(visible, seen & (alphas >= 0.1)) and visible.any() and not visible.all()
        visible = nerfacc.render_visibility_from_density(*s.values(), **place, early_stop_eps=0.3, alpha_thre=0.1)
        assert torch.equal(visible, seen & (alphas >= 0.1))
        visible = nerfacc.render_visibility_from_alpha(alphas, **place, early_stop_eps=0.3)
        assert torch.equal(visible, seen)
    # rays that lie in another order than they are listed take plain products
    made = nerfacc.render_transmittance_from_alpha(alphas.flip(0), packed_info=backwards)
    torch.testing.assert_close(made.flip(0), looped((1 - alphas).flip(0), rays.flip(0), "prod", True).flip(0))


def test_weights_of_rays_of_one_length() -> None:
    rays, s = rays_of((50,) * 6), samples((50,) * 6)
    s = {name: x.view(6, 50) for name, x in s.items()}
    alphas = 1 - (-s["sigmas"] * (s["t_ends"] - s["t_starts"])).exp()
    weights, trans = (x.view(6, 50) for x in rendered(alphas.flatten(), rays))
    made = nerfacc.render_weight_from_density(*s.values())
    torch.testing.assert_close(made, (weights, trans, alphas), rtol=1e-10, atol=0)
    torch.testing.assert_close(nerfacc.render_weight_from_alpha(alphas), (weights, trans), rtol=1e-10, atol=0)
    one = nerfacc.render_transmittance_from_alpha(alphas[0])  # a vector alone is one ray
    torch.testing.assert_close(one, trans[0], rtol=1e-10, atol=0)


def test_weights_have_derivatives() -> None:
    counts = (2, 0, 35, 1)
    rays, s = rays_of(counts), samples(counts)
    inputs = [x.requires_grad_() for x in s.values()]
    prefix = torch.rand(len(rays), dtype=torch.float64, requires_grad=True)

    def of_density(prefix: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        return nerfacc.render_weight_from_density(*inputs, ray_indices=rays, prefix_trans=prefix)

    def of_density_alone(sigmas: Tensor) -> tuple[Tensor, ...]:  # by a kernel
        distances = s["t_starts"].detach(), s["t_ends"].detach()
        return nerfacc.render_weight_from_density(*distances, sigmas, ray_indices=rays)

    def of_alpha(alphas: Tensor, prefix: Tensor) -> tuple[Tensor, ...]:
        return nerfacc.render_weight_from_alpha(alphas, ray_indices=rays, prefix_trans=prefix)

    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(of_density, (prefix, *inputs), fast_mode=True)
        assert check(of_density_alone, inputs[-1:], fast_mode=True)
    alphas = torch.rand(len(rays), dtype=torch.float64) * 0.5
    alphas[[0, 10]] = 1.0  # nothing is seen behind these
    alphas.requires_grad_()
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(of_alpha, (alphas, prefix), fast_mode=True)


def test_weights_in_single_precision() -> None:
    rays, s = rays_of(), samples(dtype=torch.float32)
    s["sigmas"][::7] *= 1000
    wide = [x.double() for x in s.values()]
    made = nerfacc.render_weight_from_density(*s.values(), ray_indices=rays)
    expected = nerfacc.render_weight_from_density(*wide, ray_indices=rays)
    for a, b in zip(made, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-6)
    s["sigmas"][:] = 1e-8  # opacities of next to nothing keep their digits
    alphas = nerfacc.render_weight_from_density(*s.values(), ray_indices=rays)[2]
    torch.testing.assert_close(alphas, s["sigmas"] * (s["t_ends"] - s["t_starts"]), rtol=1e-5, atol=0)


EMPTY = {"rgb_sigma_fn": lambda t_starts, t_ends, ray_indices: (torch.zeros(3, 0, 3), t_starts)}


def field(kind: str, s: dict[str, Tensor], colors: Tensor) -> dict[str, Callable]:
    alphas = 1 - (-s["sigmas"] * (s["t_ends"] - s["t_starts"])).exp()
    values = {"rgb_sigma_fn": s["sigmas"], "rgb_alpha_fn": alphas}[kind]
    return {kind: lambda t_starts, t_ends, ray_indices: (colors, values)}


@pytest.mark.parametrize("kind", ["rgb_sigma_fn", "rgb_alpha_fn"])
@pytest.mark.parametrize("expected_depths", [False, True])
def test_rendering(kind: str, expected_depths: bool) -> None:
    rays, s, n_rays = rays_of(), samples(), len(COUNTS)
    colors, behind = torch.rand(len(rays), 3, dtype=torch.float64), torch.tensor([0.2, 0.5, 1.0]).double()
    weights, _ = rendered(1 - (-s["sigmas"] * (s["t_ends"] - s["t_starts"])).exp(), rays)
    made = nerfacc.rendering(
        s["t_starts"], s["t_ends"], rays, n_rays, **field(kind, s, colors), render_bkgd=behind,
        expected_depths=expected_depths,
    )  # fmt: skip
    assert set(made[3]) == {"weights", "alphas", "trans", "rgbs"} | ({"sigmas"} if kind == "rgb_sigma_fn" else set())
    torch.testing.assert_close(made[3]["weights"], weights, rtol=1e-10, atol=0)
    for ray in range(n_rays):
        w, here = weights[rays == ray], rays == ray
        opacity = w.sum()
        depth = (w * (s["t_starts"] + s["t_ends"])[here] / 2).sum()
        if expected_depths:
            depth = depth / opacity.clamp_min(torch.finfo(torch.float64).eps)
        color = (w[:, None] * colors[here]).sum(0) + behind * (1 - opacity)
        for a, b in zip(made[:3], (color, opacity[None], depth[None]), strict=True):
            torch.testing.assert_close(a[ray], b)


@pytest.mark.parametrize("kind", ["rgb_sigma_fn", "rgb_alpha_fn"])
def test_rendering_has_derivatives(kind: str) -> None:
    """By a kernel, and those of distances, without: the same numbers."""
    counts = (2, 0, 12, 1)
    rays, s = rays_of(counts), samples(counts)
    colors = torch.rand(len(rays), 3, dtype=torch.float64, requires_grad=True)

    def render(t_starts: Tensor, t_ends: Tensor, colors: Tensor, density: Tensor) -> tuple[Tensor, ...]:
        outputs = nerfacc.rendering(t_starts, t_ends, rays, 4, **{kind: lambda *x: (colors, density)})
        return *outputs[:3], *(outputs[3][name] for name in ("weights", "trans", "alphas"))

    distances, density = (s["t_starts"], s["t_ends"]), s["sigmas"].requires_grad_()
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda *x: render(*distances, *x), (colors, density), fast_mode=True)
    expected = render(*distances, colors, density)
    moving = tuple(x.requires_grad_() for x in distances)
    assert torch.autograd.gradcheck(render, (*moving, colors, density), fast_mode=True)
    torch.testing.assert_close(render(*moving, colors, density), expected, rtol=1e-9, atol=1e-12)


def test_rendering_of_rays_of_one_length_and_of_nothing() -> None:
    s = {name: x.view(4, 10) for name, x in samples((10,) * 4).items()}
    colors = torch.rand(4, 10, 3, dtype=torch.float64)
    made = nerfacc.rendering(s["t_starts"], s["t_ends"], **field("rgb_sigma_fn", s, colors))
    flat = {name: x.flatten() for name, x in s.items()}
    functions = field("rgb_sigma_fn", flat, colors.flatten(0, 1))
    again = nerfacc.rendering(flat["t_starts"], flat["t_ends"], rays_of((10,) * 4), **functions)
    torch.testing.assert_close(made[:3], again[:3])
    moved = s["t_starts"].clone().requires_grad_()  # no kernel
    again = nerfacc.rendering(moved, s["t_ends"], **field("rgb_sigma_fn", s, colors))
    torch.testing.assert_close(again[:3], made[:3])
    torch.testing.assert_close(again[3]["weights"], made[3]["weights"])
    assert made[3]["trans"].shape == (4, 10) and nerfacc.rendering(*(torch.zeros(3, 0),) * 2, **EMPTY)[0].shape == (
        3,
        3,
    )
    nothing = samples((0,))
    functions = field("rgb_sigma_fn", nothing, torch.zeros(0, 3, dtype=torch.float64))
    behind = torch.ones(3, dtype=torch.float64)
    arguments = (nothing["t_starts"], nothing["t_ends"], rays_of((0,)))
    made = nerfacc.rendering(*arguments, 2, **functions, render_bkgd=behind)
    assert made[0].tolist() == [[1, 1, 1]] * 2 and made[1].tolist() == made[2].tolist() == [[0], [0]]
    assert nerfacc.rendering(*arguments, **functions)[0].shape == (0, 3)


def test_accumulate_along_rays() -> None:
    rays = torch.tensor([2, 0, 2, 2])
    weights = torch.tensor([1.0, 2, 3, 4])
    values = torch.arange(8.0).view(4, 2)
    expected = [[4.0, 6.0], [0.0, 0.0], [36.0, 44.0]]
    assert nerfacc.accumulate_along_rays(weights, values, rays, 3).tolist() == expected
    assert nerfacc.accumulate_along_rays(weights, values, rays).tolist() == expected
    assert nerfacc.accumulate_along_rays(weights, None, rays, 4).tolist() == [[2], [0], [8], [0]]
    assert nerfacc.accumulate_along_rays(weights.view(2, 2), values.view(2, 2, 2)).tolist() == [[4, 7], [36, 43]]
    outputs = torch.ones(3, 2)
    nerfacc.accumulate_along_rays_(weights, values, rays, outputs)
    assert outputs.tolist() == [[5, 7], [1, 1], [37, 45]]
    outputs = torch.ones(2, 1)
    nerfacc.accumulate_along_rays_(weights.view(2, 2), outputs=outputs)
    assert outputs.tolist() == [[4], [8]]


def test_one_ray_of_nan_stays_alone() -> None:
    rays, s = rays_of(), samples()
    s["sigmas"][rays == 4] = math.nan
    s["sigmas"].requires_grad_()
    for kind in ("rgb_sigma_fn", "rgb_alpha_fn"):
        functions = field(kind, s, torch.ones(len(rays), 3, dtype=torch.float64))
        colors = nerfacc.rendering(s["t_starts"], s["t_ends"], rays, len(COUNTS), **functions)[0]
        others = torch.arange(len(COUNTS)) != 4
        assert colors[others].isfinite().all() and colors[4].isnan().all()
        (grad,) = torch.autograd.grad(colors[others].sum(), s["sigmas"])
        assert grad[rays != 4].isfinite().all()
    trans, _ = nerfacc.render_transmittance_from_density(*s.values(), ray_indices=rays)
    assert (trans[rays == 4] == torch.tensor([1.0] + [0.0] * 39)).all()  # a kernel stops at a NaN


# ---- searching and drawing -------------------------------------------------------------------------------------------


def neighbours(sequence: list[float], value: float) -> tuple[int, int]:
    above = sum(x <= value for x in sequence[:-1])
    return max(above - 1, 0), above


def sequences(counts: tuple[int, ...]) -> nerfacc.RayIntervals:
    """Rising along each ray, without gaps."""
    rays = rays_of(counts)
    vals = torch.rand(len(rays), dtype=torch.float64)
    for ray in range(len(counts)):
        vals[rays == ray] = vals[rays == ray].sort()[0]
    edge = torch.arange(len(rays))
    packed = nerfacc.pack_info(rays, len(counts))
    first, last = packed[:, 0][rays], packed.sum(dim=1)[rays] - 1
    return nerfacc.RayIntervals(vals, packed, rays, edge != last, edge != first)


def batched(x: nerfacc.RayIntervals, n: int) -> nerfacc.RayIntervals:
    return nerfacc.RayIntervals(x.vals.view(-1, n))


@pytest.mark.parametrize("flat_sequence", [False, True])
@pytest.mark.parametrize("flat_values", [False, True])
def test_searchsorted(flat_sequence: bool, flat_values: bool) -> None:
    torch.manual_seed(0)
    sequence = sequences((4, 1, 30, 7, 2) if flat_sequence else (9,) * 5)
    values = sequences((12, 40, 0, 3, 9) if flat_values else (8,) * 5)
    values.vals = values.vals * 1.4 - 0.2
    values.vals[3], values.vals[39] = sequence.vals[2], math.nan  # equal to one; beyond everything
    left, right = nerfacc.searchsorted(
        sequence if flat_sequence else batched(sequence, 9), values if flat_values else batched(values, 8)
    )
    assert left.shape == right.shape == (values.vals.shape if flat_values else (5, 8))
    assert sequence.packed_info is not None and values.ray_indices is not None
    for i, (ray, value) in enumerate(zip(values.ray_indices.tolist(), values.vals.tolist(), strict=True)):
        first, count = sequence.packed_info[ray].tolist()
        at = neighbours(sequence.vals[first : first + count].tolist(), math.inf if math.isnan(value) else value)
        found = left.flatten()[i].item(), right.flatten()[i].item()
        assert found == (tuple(x + first for x in at) if flat_values else at)


def test_searchsorted_without_rays_of_values() -> None:
    torch.manual_seed(0)
    sequence, values = sequences((5, 6)), sequences((2, 3))
    expected = nerfacc.searchsorted(sequence, values)
    values.ray_indices = None
    for made, again in zip(nerfacc.searchsorted(sequence, values), expected, strict=True):
        assert torch.equal(made, again)
    empty = nerfacc.RaySamples(torch.zeros(0).double(), torch.zeros(2, 2).long())
    assert nerfacc.searchsorted(sequence, empty)[0].shape == (0,)


def drawn(edges: list[float], cdfs: list[float], n: int, shift: float) -> tuple[list[float], list[float]]:
    """Samples of a ray and the edges around them."""
    middles = []
    for i in range(n):
        u = cdfs[0] + (i + shift) * (cdfs[-1] - cdfs[0]) / n
        low, high = neighbours(cdfs, u)
        rise = cdfs[high] - cdfs[low]
        part = (u - cdfs[low]) / rise if rise >= 1e-10 else 0.5
        middles.append(edges[low] + part * (edges[high] - edges[low]))
    if n == 1:
        return middles, [edges[0], edges[-1]]
    inner = [(a + b) / 2 for a, b in zip(middles, middles[1:], strict=False)]
    first = max(middles[0] - (middles[1] - middles[0]) / 2, edges[0])
    last = min(middles[-1] + (middles[-1] - middles[-2]) / 2, edges[-1])
    return middles, [first, *inner, last]


def shifts(n: int, stratified: bool, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Where in their share samples of each ray lie: in the middle, or where a replaced generator says."""
    if not stratified:
        return [0.5] * n
    numbers = torch.rand(n, dtype=torch.float64)
    monkeypatch.setattr(torch, "rand_like", lambda x: numbers.view_as(x))
    return numbers.tolist()


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("n", [1, 6])
def test_importance_sampling(flat: bool, stratified: bool, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    counts = (3, 1, 9, 4) if flat else (7,) * 4
    intervals, cdfs = sequences(counts), sequences(counts).vals
    cdfs[-3:] = cdfs[-3]  # nothing there
    shift = shifts(4, stratified, monkeypatch)
    if flat:
        made, samples = nerfacc.importance_sampling(intervals, cdfs, n, stratified)
    else:
        made, samples = nerfacc.importance_sampling(batched(intervals, 7), cdfs.view(4, 7), n, stratified)
    assert made.vals.shape == (4, n + 1) and samples.vals.shape == (4, n)
    for ray in range(4):
        here = intervals.ray_indices == ray
        middles, edges = drawn(intervals.vals[here].tolist(), cdfs[here].tolist(), n, shift[ray])
        torch.testing.assert_close(
            samples.vals[ray], torch.tensor(middles, dtype=torch.float64), rtol=1e-10, atol=1e-10
        )
        torch.testing.assert_close(made.vals[ray], torch.tensor(edges, dtype=torch.float64), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_importance_sampling_of_a_number_for_each_ray(
    flat: bool, stratified: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    counts = (3, 1, 9, 0, 4) if flat else (7,) * 5
    intervals, cdfs = sequences(counts), sequences(counts).vals
    numbers = torch.tensor([2, 1, 7, 0, 3])
    shift = shifts(5, stratified, monkeypatch)
    given = (intervals, cdfs) if flat else (batched(intervals, 7), cdfs.view(5, 7))
    made, samples = nerfacc.importance_sampling(*given, numbers, stratified)
    expected: list[list[float]] = [[], []]
    is_left, is_right = [], []
    for ray, n in enumerate(numbers.tolist()):
        if n:
            here = intervals.ray_indices == ray
            parts = drawn(intervals.vals[here].tolist(), cdfs[here].tolist(), n, shift[ray])
            expected = [[*a, *b] for a, b in zip(expected, parts, strict=True)]
            is_left += [True] * n + [False]
            is_right += [False] + [True] * n
    torch.testing.assert_close(samples.vals, torch.tensor(expected[0], dtype=torch.float64), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(made.vals, torch.tensor(expected[1], dtype=torch.float64), rtol=1e-10, atol=1e-10)
    assert made.is_left is not None and made.is_right is not None
    assert made.is_left.tolist() == is_left and made.is_right.tolist() == is_right
    for x, n in ((samples, numbers), (made, torch.tensor([3, 2, 8, 0, 4]))):
        assert x.ray_indices is not None and torch.equal(x.ray_indices, rays_of(tuple(n.tolist())))
        assert x.packed_info is not None and torch.equal(x.packed_info, nerfacc.pack_info(x.ray_indices, 5))
    nothing = nerfacc.importance_sampling(*given, torch.zeros(5).long())
    assert nothing[0].vals.shape == nothing[1].vals.shape == (0,)


def test_samples_of_weights() -> None:
    """The private function of nerfacc's tests; stratified samples stay in their share."""
    torch.manual_seed(0)
    edges = torch.rand(3, 11, dtype=torch.float64).sort(dim=1)[0].requires_grad_()
    weights = torch.rand(3, 10, dtype=torch.float64, requires_grad=True)
    cdfs = torch.cat((torch.zeros(3, 1), weights.detach().cumsum(1) / weights.detach().sum(1, keepdim=True)), dim=1)
    made, samples = nerfacc.importance_sampling(nerfacc.RayIntervals(edges.detach()), cdfs.double(), 6)
    ends = edges.detach()[:, :1].clone(), edges.detach()[:, -1:].clone()
    again, middles = nerfacc_pdf._sample_from_weighted(edges, weights, 6, False, *ends)
    torch.testing.assert_close((again.detach(), middles.detach()), (made.vals, samples.vals), rtol=0, atol=1e-6)
    assert torch.autograd.gradcheck(
        lambda edges, weights: nerfacc_pdf._sample_from_weighted(edges, weights, 6, False, *ends), (edges, weights)
    )
    for _ in range(20):
        middles = nerfacc_pdf._sample_from_weighted(torch.tensor([[0.0, 1.0]]), torch.ones(1, 1), 4, True)[1]
        assert (middles * 4).floor().tolist() == [[0, 1, 2, 3]]


# ---- losses and proposals --------------------------------------------------------------------------------------------


def test_distortion() -> None:
    counts = (3, 0, 40, 1)
    rays, s = rays_of(counts), samples(counts)
    weights = torch.rand(len(rays), dtype=torch.float64, requires_grad=True)
    made = nerfacc.distortion(weights, s["t_starts"], s["t_ends"], rays, 4)
    middles, widths = (s["t_starts"] + s["t_ends"]) / 2, s["t_ends"] - s["t_starts"]
    pairs = weights[:, None] * weights * (middles[:, None] - middles).abs() * (rays[:, None] == rays)
    expected = torch.zeros(4, dtype=torch.float64)
    for ray in range(4):
        expected[ray] = pairs[rays == ray].sum() + (weights.square() * widths / 3)[rays == ray].sum()
    torch.testing.assert_close(made, expected[:, None])
    assert torch.equal(made, nerfacc.distortion(weights, s["t_starts"], s["t_ends"], rays))
    assert torch.autograd.gradcheck(
        nerfacc.distortion, (weights, s["t_starts"].requires_grad_(), s["t_ends"].requires_grad_(), rays, 4)
    )
    far = [(x.detach() + 4096 * (x is not weights)).float() for x in (weights, s["t_starts"], s["t_ends"])]
    expected = nerfacc.distortion(*(x.double() for x in far), rays, 4)
    torch.testing.assert_close(nerfacc.distortion(*far, rays, 4).double(), expected, rtol=3e-5, atol=0)
    here = slice(3, 43)
    rows = (x[here].view(1, 40) for x in (weights, s["t_starts"], s["t_ends"]))
    torch.testing.assert_close(nerfacc.distortion(*rows), made[2:3])


def test_loss_of_proposals() -> None:
    """Against sums over all intervals that touch one another; rays behind one another give the same."""
    torch.manual_seed(0)
    query, key = batched(sequences((21,) * 3), 21), batched(sequences((9,) * 3), 9)
    key.vals = key.vals * 2 - 0.5  # the others lie within
    cdfs, key_cdfs = sequences((21,) * 3).vals.view(3, 21), sequences((9,) * 3).vals.view(3, 9).requires_grad_()
    expected = torch.zeros(3, 20, dtype=torch.float64)
    for ray in range(3):
        for i in range(20):
            begin, end = query.vals[ray, i : i + 2].tolist()
            bound, w = 0.0, (cdfs[ray, i + 1] - cdfs[ray, i]).item()
            for j in range(8):
                if key.vals[ray, j] < end and key.vals[ray, j + 1] > begin:
                    bound += (key_cdfs[ray, j + 1] - key_cdfs[ray, j]).item()
            expected[ray, i] = max(0.0, w - bound) ** 2 / (w + 1e-7)
    within = (query.vals[:, :-1] >= key.vals[:, :1]) & (query.vals[:, 1:] < key.vals[:, -1:])
    assert within.sum() > 30 and (expected[within] > 0).any()
    made = prop_net._pdf_loss(query, cdfs, key, key_cdfs)
    torch.testing.assert_close(made[within], expected[within], rtol=1e-9, atol=1e-12)
    other = prop_net._lossfun_outer(query.vals, cdfs.diff(dim=1), key.vals, key_cdfs.diff(dim=1))
    torch.testing.assert_close(other[within], expected[within], rtol=1e-4, atol=1e-12)
    made[within].sum().backward()
    assert key_cdfs.grad is not None and key_cdfs.grad.abs().sum() > 0

    packed = nerfacc.pack_info(rays_of((21,) * 3))
    edge = torch.arange(63)
    flat = nerfacc.RayIntervals(query.vals.flatten(), packed, None, edge % 21 != 20, edge % 21 != 0)
    again = prop_net._pdf_loss(flat, cdfs.flatten(), key, key_cdfs)
    torch.testing.assert_close(again, made.flatten())


def test_proposals_learn() -> None:
    """A network that knows nothing finds a wall at a distance of 3, and samples gather there."""
    torch.manual_seed(0)
    logits = torch.zeros(50, requires_grad=True)  # density of distances 0.1 n

    def proposal(t_starts: Tensor, t_ends: Tensor) -> Tensor:
        return logits.exp()[(5 * (t_starts + t_ends)).long().clamp(0, 49)]

    def wall(t_starts: Tensor, t_ends: Tensor) -> Tensor:
        return (((t_starts + t_ends) / 2 - 3).abs() < 0.2).float() * 20

    optimizer = torch.optim.Adam([logits], lr=0.2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1000)
    estimator = nerfacc.PropNetEstimator(optimizer, scheduler)
    losses, near = [], []
    for step in range(60):
        learns = step % 2 == 0
        t_starts, t_ends = estimator.sampling(
            [proposal], [24], 16, 8, 0.5, 5.0, "uniform", stratified=True, requires_grad=learns
        )
        assert t_starts.shape == t_ends.shape == (8, 16) and not t_starts.requires_grad
        assert len(estimator.prop_cache) == (2 if learns else 0)
        trans, _ = nerfacc.render_transmittance_from_density(t_starts, t_ends, wall(t_starts, t_ends))
        loss = estimator.update_every_n_steps(trans, learns, loss_scaler=2.0)
        losses += [loss] if learns else []
        near.append((((t_starts + t_ends) / 2 - 3).abs() < 0.4).float().mean().item())
        assert isinstance(loss, float) and estimator.prop_cache == []
    assert losses[-1] < 0.2 * losses[0] and sum(near[-10:]) > 2 * sum(near[:10])
    assert scheduler.last_epoch == 60
    assert estimator.compute_loss(trans) == 0  # nothing is left to learn from


@pytest.mark.parametrize("kind", ["uniform", "lindisp"])
def test_samples_divide_what_is_between_planes(kind: str) -> None:
    t_starts, t_ends = nerfacc.PropNetEstimator().sampling([], [], 4, 2, 0.5, 4.0, kind)
    edges = torch.cat((t_starts, t_ends[:, -1:]), dim=1)
    shares = [0, 0.25, 0.5, 0.75, 1]
    expected = [0.5 + 3.5 * s if kind == "uniform" else 1 / (2 - 1.75 * s) for s in shares]
    torch.testing.assert_close(edges, torch.tensor([expected] * 2))


def test_proposals_learn_ever_more_seldom() -> None:
    learns = prop_net.get_proposal_requires_grad_fn(target=3.0, num_steps=10)
    steps = [step for step in range(40) if learns(step)]
    assert (
        steps[0] == 1
        and steps[1] - steps[0] < 4
        and all(b - a == 4 for a, b in zip(steps[-5:-1], steps[-4:], strict=True))
    )


# ---- names and errors ------------------------------------------------------------------------------------------------


def test_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "nerfacc"]:
        monkeypatch.delitem(sys.modules, name)
    assert hashgrid.compat.install("nerfacc") is nerfacc
    for part in ("pack", "scan", "volrend", "pdf", "losses", "data_specs", "estimators.base", "estimators.prop_net"):
        assert importlib.import_module(f"nerfacc.{part}") is importlib.import_module(f"hashgrid.compat.nerfacc.{part}")
    assert set(nerfacc.__all__) <= set(dir(nerfacc)) and not [name for name in sys.modules if name == "nerfacc._rows"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "nerfacc"]:
        monkeypatch.delitem(sys.modules, name)


ONES, RAYS = torch.ones(3), torch.tensor([0, 0, 1])
EDGES, FLAT = nerfacc.RayIntervals(torch.ones(1, 3)), nerfacc.RaySamples(torch.ones(3))
PACKED = nerfacc.RayIntervals(torch.ones(3), torch.tensor([[0, 2], [2, 1], [3, 0]]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nerfacc.pack_info(ONES), r"`ray_indices` must be int64 or int32, got torch.float32"),
        (lambda: nerfacc.pack_info(RAYS[None]), r"`ray_indices` must have shape \[S\], got \[1, 3\]"),
        (lambda: nerfacc.pack_info(RAYS, 1), r"`ray_indices` must be rays 0..0 of `n_rays`, got 0..1"),
        (lambda: nerfacc.inclusive_sum(ONES, RAYS[:, None]), r"`packed_info` must have shape \[R, 2\].*got \[3, 1\]"),
        (lambda: nerfacc.inclusive_sum(ONES, torch.tensor([[1, 3]])), r"within the 3 samples, got .* to sample 4"),
        (
            lambda: nerfacc.inclusive_sum(ONES, torch.tensor([[-1, 3]])),
            r"within the 3 samples, got rays from sample -1",
        ),
        (lambda: nerfacc.inclusive_sum(ONES, torch.tensor([[0, -1]])), r"the shortest of -1"),
        (lambda: nerfacc.inclusive_sum(ONES, indices=RAYS[:2]), r"`indices` must have shape \[3\], got \[2\]"),
        (lambda: nerfacc.inclusive_sum(ONES[None], indices=RAYS), r"`inputs` must have shape \[S\].*\[1, 3\]; flatten"),
        (lambda: nerfacc.inclusive_sum(ONES, torch.tensor([[0, 3]]), RAYS), "exclude each other"),
        (lambda: nerfacc.exclusive_prod(torch.tensor(1.0)), "`inputs` must have at least one dimension"),
        (lambda: nerfacc.render_weight_from_density(ONES, ONES[:2], ONES), r"`t_ends` must have the shape of `sigmas`"),
        (lambda: nerfacc.render_weight_from_alpha(ONES, None, RAYS, 2, ONES[:1]), "`prefix_trans` must have the shape"),
        (lambda: nerfacc.render_weight_from_alpha(ONES[None], None, RAYS), r"`alphas` must have shape \[S\] beside"),
        (lambda: nerfacc.render_weight_from_alpha(ONES, RAYS[None, :2], RAYS), "exclude each other"),
        (
            lambda: nerfacc.accumulate_along_rays(ONES, ONES, RAYS, 2),
            r"`values` must have shape \[3, 'D'\].*\[..., None",
        ),
        (
            lambda: nerfacc.accumulate_along_rays(ONES, None, RAYS, 1),
            r"`ray_indices` must be rays 0..0 of `n_rays`, got",
        ),
        (lambda: nerfacc.accumulate_along_rays(ONES[None], None, RAYS, 2), r"`weights` must have shape \[S\]"),
        (lambda: nerfacc.accumulate_along_rays_(ONES, None, RAYS), r"`outputs` must have shape \[R, 1\], got None"),
        (lambda: nerfacc.rendering(ONES, ONES, RAYS, 2), "one of `rgb_sigma_fn` and `rgb_alpha_fn`"),
        (lambda: nerfacc.rendering(ONES, ONES, RAYS, 2, lambda *x: (ONES, ONES)), r"`rgbs` must have shape \[3, 'C'\]"),
        (lambda: nerfacc.rendering(ONES, ONES, RAYS, 2, lambda *x: (ONES, ONES[:1])), "`sigmas` must have the shape"),
        (lambda: nerfacc.rendering(ONES[:2], ONES[:2], RAYS, 2), "`t_starts` must have the shape of `ray_indices`"),
        (
            lambda: nerfacc.searchsorted(EDGES, FLAT),
            r"`packed_info` must be given with flat `vals`, got None; pack_info",
        ),
        (
            lambda: nerfacc.searchsorted(EDGES, nerfacc.RaySamples(torch.ones(2, 3))),
            r"`values` must have shape \[1, 'n'",
        ),
        (lambda: nerfacc.searchsorted(EDGES, PACKED), "`values` must be of the 1 rays of `sorted_sequence`, got ray 1"),
        (
            lambda: nerfacc.importance_sampling(EDGES, ONES, 2),
            r"`cdfs` must have the shape of `intervals.vals`, \[1, 3",
        ),
        (lambda: nerfacc.importance_sampling(EDGES, ONES[None], 0), "`n_intervals_per_ray` must be positive, got 0"),
        (lambda: nerfacc.importance_sampling(EDGES, ONES[None], RAYS), r"`n_intervals_per_ray` must have shape \[1\]"),
        (lambda: nerfacc.importance_sampling(PACKED, ONES, 2), "`intervals` must have an edge of every ray"),
        (lambda: nerfacc_pdf._sample_from_weighted(ONES, ONES, 2), r"`bins` must have shape \[4\], got \[3\]"),
        (lambda: nerfacc.distortion(ONES, ONES, ONES, RAYS[:2], 2), "`ray_indices` must have the shape of `weights`"),
        (lambda: nerfacc.PropNetEstimator().sampling([], [1], 2, 1, 0.1, 1.0), "`prop_samples` must have 0 numbers"),
        (lambda: nerfacc.PropNetEstimator().sampling([], [], 2, 1, 0.1, 1.0, "log"), "`sampling_type` must be one of"),
        (lambda: nerfacc.PropNetEstimator().update_every_n_steps(ONES[None], True), "`optimizer` must be given"),
    ],
)
def test_wrong_arguments_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
