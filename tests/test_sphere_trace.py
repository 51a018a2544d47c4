"""Sphere tracing against roots in closed form, and the native kernels against the reference, bit for bit."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from problems.sphere_trace import rough, strange_rays, unit_rays
from torch import Tensor

from hashgrid import _extension, ops, reference

pytestmark = pytest.mark.every_kernel

EPSILON = 2e-4
Field = Callable[[Tensor], Tensor]


@pytest.fixture(params=[ops, reference], ids=["native", "reference"])
def library(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


# ---- fields, and their first roots found otherwise -------------------------------------------------------------------


def sphere(x: Tensor, radius: float = 0.7) -> Tensor:
    return x.norm(dim=-1) - radius


def plane(x: Tensor, height: float = 0.1) -> Tensor:
    return x @ x.new_tensor([0.48, 0.6, 0.64]) - height


def box(x: Tensor, side: float = 0.5) -> Tensor:
    outside = x.abs() - side
    return outside.clamp(min=0).norm(dim=-1) + outside.amax(-1).clamp(max=0)


def torus(x: Tensor, minor: float = 0.25) -> Tensor:
    ring = x[:, :2].norm(dim=-1) - 0.6
    return torch.stack((ring, x[:, 2]), -1).norm(dim=-1) - minor


def sphere_polynomial(o: np.ndarray, d: np.ndarray, radius: float) -> np.ndarray:
    return np.array([d @ d, 2 * o @ d, o @ o - radius**2])


def plane_polynomial(o: np.ndarray, d: np.ndarray, height: float) -> np.ndarray:
    normal = np.array([0.48, 0.6, 0.64])
    return np.array([normal @ d, normal @ o - height])


def torus_polynomial(o: np.ndarray, d: np.ndarray, minor: float) -> np.ndarray:
    """(|x|^2 + R^2 - r^2)^2 = 4 R^2 (x^2 + y^2)."""
    inner = np.array([d @ d, 2 * o @ d, o @ o + 0.36 - minor**2])
    o2, d2 = o[:2], d[:2]
    return np.polysub(np.polymul(inner, inner), 4 * 0.36 * np.array([d2 @ d2, 2 * o2 @ d2, o2 @ o2]))


def box_roots(o: np.ndarray, d: np.ndarray, side: float) -> np.ndarray:
    a, b = (-side - o) / d, (side - o) / d
    enter, leave = np.minimum(a, b).max(), np.maximum(a, b).min()
    return np.array([enter, leave] if enter <= leave else [])


POLYNOMIALS = {"sphere": sphere_polynomial, "plane": plane_polynomial, "torus": torus_polynomial}
SHAPES: dict[str, tuple[Callable[..., Tensor], float]] = {
    "sphere": (sphere, 0.7),
    "plane": (plane, 0.1),
    "box": (box, 0.5),
    "torus": (torus, 0.25),
}


def first_roots(name: str, size: float, rays: tuple[Tensor, ...]) -> Tensor:
    """[R] fp64, inf where a ray has no root between its limits."""
    result = []
    for o, d, t_min, t_max in zip(*(x.double().numpy() for x in rays), strict=True):
        if name == "box":
            roots = box_roots(o, d, size)
        else:
            roots = np.roots(POLYNOMIALS[name](o, d, size))
            roots = roots.real[np.abs(roots.imag) < 1e-7]
        roots = roots[(roots >= t_min) & (roots <= t_max)]
        result.append(roots.min() if len(roots) else math.inf)
    return torch.tensor(result, dtype=torch.float64)


def check_roots(
    library: ModuleType,
    name: str,
    scale: float,
    rays: tuple[Tensor, ...],
    step_scale: float = 1.0,
    margin: float = 2e-3,
) -> None:
    """Rays that meet surfaces ``margin`` inside and outside the shape at much the same t, or neither, have to tell."""
    shape, size = SHAPES[name]
    exact, *around = (first_roots(name, size + shift, rays) for shift in (0.0, -margin, margin))
    speed = rays[1].double().norm(dim=-1)
    clear = ((around[0] - around[1]).abs() * speed < 0.1) | (around[0].isinf() & around[1].isinf())
    assert clear.double().mean() > 0.95
    trace = library.sphere_trace(lambda x: scale * shape(x, size), *rays, step_scale=step_scale)
    assert torch.equal(trace.hit[clear], exact.isfinite()[clear])
    assert torch.equal(trace.hit, trace.t.isfinite())
    found = clear & trace.hit
    assert 0.2 < found.double().mean() < 0.9
    error = ((trace.t - exact).abs() * speed)[found]
    assert error.max() < 0.1 and error.quantile(0.99) < 20 * EPSILON / scale and error.median() < EPSILON / 10
    points = rays[0][found] + trace.t[found, None] * rays[1][found]
    assert (scale * shape(points, size)).abs().max() <= 1.5 * EPSILON


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SHAPES)
def test_sphere_trace_finds_first_roots(library: ModuleType, name: str, dtype: torch.dtype) -> None:
    check_roots(library, name, 1.0, unit_rays(600, dtype))


@pytest.mark.parametrize("name", SHAPES)
def test_sphere_trace_finds_roots_of_flat_fields(library: ModuleType, name: str) -> None:
    """Gradient .3: three times the steps, and the distances only seem small."""
    check_roots(library, name, 0.3, unit_rays(600), margin=5e-3)


@pytest.mark.parametrize("name", SHAPES)
def test_sphere_trace_goes_back_behind_the_surface(library: ModuleType, name: str) -> None:
    """Gradient 2: steps lead through the surface. Rays whose chord is so short that they leave it again are lost, which
    step_scale heals."""
    rays = unit_rays(600)
    check_roots(library, name, 2.0, rays, step_scale=0.5)
    shape, size = SHAPES[name]
    thick = (first_roots(name, size - 0.2, rays) * 0).isfinite() if name != "plane" else torch.ones(600).bool()
    exact = first_roots(name, size, rays)
    trace = library.sphere_trace(lambda x: 2 * shape(x, size), *rays)
    found = thick & trace.hit
    assert found.sum() >= (0.98 if name in ("plane", "sphere") else 0.6) * (thick & exact.isfinite()).sum() > 20
    points = rays[0][found] + trace.t[found, None] * rays[1][found]
    assert (2 * shape(points, size)).abs().max() <= 1.5 * EPSILON
    if name in ("plane", "sphere"):
        torch.testing.assert_close(trace.t[found].double(), exact[found], rtol=0, atol=2e-3)


def test_sphere_trace_meets_planes_exactly(library: ModuleType) -> None:
    """The last step follows the angle: 1e-5 where the last evaluation was up to 2e-4 / cos(angle) away."""
    rays = unit_rays(500)
    trace = library.sphere_trace(plane, *rays)
    exact, speed = first_roots("plane", 0.1, rays), rays[1].norm(dim=-1)
    steep = ((rays[1] @ torch.tensor([0.48, 0.6, 0.64])).abs() / speed > 0.1) & exact.isfinite()
    assert steep.sum() > 200 and trace.hit[steep].all()
    assert ((trace.t - exact).abs() * speed)[steep].max() < 2e-5


def test_sphere_trace_from_inside_meets_the_exit(library: ModuleType) -> None:
    rays_o = torch.nn.functional.normalize(torch.randn(300, 3), dim=-1) * torch.rand(300, 1) * 0.5
    rays_d = torch.randn(300, 3)
    rays = rays_o, rays_d, torch.zeros(300), torch.full((300,), math.inf)
    trace = library.sphere_trace(sphere, *rays)
    assert trace.hit.all()
    exact = first_roots("sphere", 0.7, rays)
    torch.testing.assert_close(trace.t.double(), exact, rtol=1e-4, atol=1e-5)
    steep = library.sphere_trace(lambda x: 2 * sphere(x), *rays)
    assert steep.hit.all()
    assert ((steep.t - exact).abs() * rays_d.norm(dim=-1)).max() < 1e-3


def test_sphere_trace_begins_on_the_surface(library: ModuleType) -> None:
    """Of either sign: a hit at t_min, of one evaluation."""
    rays_o = torch.tensor([[0.0, 0, 0.7 + 1e-4], [0, 0, 0.7 - 1e-4]])
    rays_d = torch.tensor([[0.0, 1, 0]]).expand(2, 3)
    trace = library.sphere_trace(sphere, rays_o, rays_d, torch.zeros(2), torch.ones(2))
    assert trace.hit.tolist() == [True, True] and trace.t.tolist() == [0, 0] and trace.n_evaluations.tolist() == [1, 1]


def test_sphere_trace_grazing_rays(library: ModuleType) -> None:
    """Rays along a sphere, from .01 above to .01 below its surface: those above by more than epsilon pass."""
    height = torch.linspace(-0.01, 0.01, 401, dtype=torch.float64)
    rays_o = torch.stack((torch.full_like(height, -1.0), torch.zeros_like(height), 0.7 + height), dim=-1)
    rays_d = torch.tensor([[1.0, 0, 0]]).expand(401, 3)
    limits = torch.zeros(401), torch.full((401,), 2.0)
    trace = library.sphere_trace(sphere, rays_o.float(), rays_d, *limits, max_steps=1000)
    assert trace.hit[height < -1e-6].all() and not trace.hit[height > EPSILON * 1.01].any()
    exact = 1 - (0.49 - (0.7 + height).square()).clamp(min=0).sqrt()
    error = (trace.t - exact).abs()
    assert error[height < -1e-3].max() < 5e-3 and error[trace.hit].max() < 0.05
    few = library.sphere_trace(sphere, rays_o.float(), rays_d, *limits, max_steps=20)
    assert (
        few.n_evaluations.max() == 20
        and not few.hit[few.n_evaluations == 20][height[few.n_evaluations == 20] > 0].any()
    )


@pytest.mark.parametrize(
    ("t_max", "scale", "hit"),
    [(0.5, 1.0, True), (0.49, 1.0, False), (0.5001, 1.5, True), (0.5001, 1.99, True), (0.49, 1.9, False)],
)
def test_sphere_trace_limits(library: ModuleType, t_max: float, scale: float, hit: bool) -> None:
    """A surface just in front of t_max is found, also by a field that is too steep; one behind it is not."""
    rays_o, rays_d = torch.tensor([[0.0, 0, 0.5]]), torch.tensor([[0.0, 0, -1]])
    trace = library.sphere_trace(lambda x: scale * x[:, 2], rays_o, rays_d, torch.zeros(1), torch.tensor([t_max]))
    assert trace.hit.item() == hit
    assert trace.t.item() == (pytest.approx(0.5, abs=2e-4) if hit else math.inf) and trace.n_evaluations.item() <= 6


def test_sphere_trace_never_asks_for_dead_rays(library: ModuleType) -> None:
    """Missed boxes, no direction, coordinates or limits that are not finite."""
    rays_o, rays_d = torch.zeros(9, 3), torch.ones(9, 3)
    t_min, t_max = torch.full((9,), 0.1), torch.full((9,), 5.0)
    t_min[0] = t_max[0] = math.inf
    t_min[1] = 6
    t_min[2], t_max[3] = math.nan, math.nan
    rays_o[4, 1], rays_d[5, 2] = math.nan, math.inf
    rays_d[6], rays_d[7], t_min[8] = 0, 3e38, -math.inf

    def field(x: Tensor) -> Tensor:
        raise AssertionError("asked")

    trace = library.sphere_trace(field, rays_o, rays_d, t_min, t_max)
    assert not trace.hit.any() and trace.t.isinf().all() and not trace.n_evaluations.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_sphere_trace_ends_at_distances_that_are_not_finite(library: ModuleType, bad: float) -> None:
    rays = unit_rays(300)
    clean = library.sphere_trace(sphere, *rays)

    def field(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 0.1, bad, sphere(x))

    trace = library.sphere_trace(field, *rays)
    points = rays[0] + clean.t[:, None] * rays[1]
    assert not trace.hit[points[:, 0] > 0.11].any()
    assert 20 < trace.hit.sum() and torch.equal(trace.t[trace.hit], clean.t[trace.hit])
    nowhere = library.sphere_trace(lambda x: torch.full_like(x[:, 0], bad), *rays)
    assert not nowhere.hit.any() and nowhere.n_evaluations.max() == 1


def test_sphere_trace_ends_at_jumps_and_far_away(library: ModuleType) -> None:
    """Where no number between two signs is left, or the next step is less than the rounding of t."""
    rays_o, rays_d = torch.zeros(1, 3), torch.tensor([[0.0, 0, 1]])
    limits = torch.zeros(1), torch.full((1,), math.inf)
    jump = library.sphere_trace(lambda x: torch.where(x[:, 2] < 0.3, 0.07, -5.0), rays_o, rays_d, *limits)
    assert jump.hit.item() and abs(jump.t.item() - 0.3) < 1e-7 and jump.n_evaluations.item() < 60
    near = library.sphere_trace(lambda x: (1e7 - x[:, 2]).clamp(min=0.2), rays_o, rays_d, *limits)
    assert near.hit.item() and near.t.item() == 1e7 and near.n_evaluations.item() <= 3
    none = library.sphere_trace(lambda x: torch.ones_like(x[:, 0]), rays_o, rays_d, *limits, max_steps=40)
    assert not none.hit.item() and none.n_evaluations.item() == 40


def test_sphere_trace_counts_evaluations(library: ModuleType) -> None:
    """As the field sees them; on the CPU for live rays only."""
    asked = []

    def field(x: Tensor) -> Tensor:
        asked.append(len(x))
        assert not torch.is_grad_enabled()
        return sphere(x)

    rays = unit_rays(200)
    trace = library.sphere_trace(field, *(x.requires_grad_() for x in rays))
    assert trace.n_evaluations.sum() == sum(asked) and trace.n_evaluations.max() == len(asked)
    assert not trace.t.requires_grad and sorted(asked, reverse=True) == asked


def test_sphere_trace_t_is_in_units_of_the_direction(library: ModuleType) -> None:
    """Doubling directions halves t, bit for bit, as limits are halved too."""
    rays_o, rays_d, t_min, t_max = unit_rays(200)
    one = library.sphere_trace(torus, rays_o, rays_d, t_min, t_max)
    two = library.sphere_trace(torus, rays_o, rays_d * 2, t_min / 2, t_max / 2)
    assert torch.equal(one.t, two.t * 2) and torch.equal(one.n_evaluations, two.n_evaluations)


# ---- native against the reference ------------------------------------------------------------------------------------


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 7, 255, 256, 257, 9001])
def test_sphere_trace_equals_reference(n: int, dtype: torch.dtype) -> None:
    rays = strange_rays(n, dtype)
    for field, options in ((rough, {}), (sphere, {"max_steps": 7}), (box, {"epsilon": 0.0, "step_scale": 1.7})):
        actual, expected = (lib.sphere_trace(field, *rays, **options) for lib in (ops, reference))
        assert_same(actual, expected)
        assert actual.t.dtype == dtype and actual.t.shape == actual.hit.shape == actual.n_evaluations.shape == (n,)
        assert n < 200 or 0.1 < actual.hit.double().mean() < 0.9


def test_sphere_trace_is_the_same_for_any_compaction(monkeypatch: pytest.MonkeyPatch) -> None:
    rays = strange_rays(500, torch.float32)
    expected = ops.sphere_trace(rough, *rays)
    for interval in (3, 1000):
        monkeypatch.setitem(sys.modules["hashgrid.ops.sphere_trace"]._STEPS_PER_COMPACTION, "cpu", interval)
        assert_same(ops.sphere_trace(rough, *rays), expected)


@pytest.mark.cpu_only
def test_sphere_trace_is_the_same_for_any_number_of_threads() -> None:
    rays = strange_rays(20000, torch.float32)
    results = []
    for n_threads in (1, 2, 5):
        before = torch.get_num_threads()
        torch.set_num_threads(n_threads)
        results.append(ops.sphere_trace(rough, *rays))
        torch.set_num_threads(before)
    for result in results[1:]:
        assert_same(result, results[0])


def test_sphere_trace_takes_strides_and_half_precision(library: ModuleType) -> None:
    rays = unit_rays(64)
    expected = library.sphere_trace(sphere, *rays)
    wide = torch.full((65, 9), math.nan)
    wide[1:, 1:4], wide[1:, 4:7], wide[1:, 7], wide[1:, 8] = rays
    assert_same(library.sphere_trace(sphere, wide[1:, 1:4], wide[1:, 4:7], wide[1:, 7], wide[1:, 8]), expected)
    spread = library.sphere_trace(lambda x: torch.stack((sphere(x), x[:, 0]), -1)[:, 0], *rays)
    assert_same(spread, expected)
    half = library.sphere_trace(lambda x: sphere(x).half(), *(x.half() for x in rays))
    assert half.t.dtype == torch.float32 and half.hit.any()


def test_sphere_trace_field_may_keep_its_points_and_return_views(library: ModuleType) -> None:
    kept = []

    def field(x: Tensor) -> Tensor:
        kept.append((x, x.clone()))
        return x[:, 2]

    rays = unit_rays(50)
    assert_same(library.sphere_trace(field, *rays), library.sphere_trace(lambda x: x[:, 2].clone(), *rays))
    assert all(torch.equal(a, b) for a, b in kept)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rays_o": torch.zeros(2, 4)}, r"`rays_o` must have shape \[R, 3\], got \[2, 4\]"),
        ({"rays_d": torch.ones(1, 3)}, r"`rays_d` must have the shape of `rays_o`, \[2, 3\], got \[1, 3\]"),
        ({"t_min": torch.zeros(3)}, r"`t_min` must have shape \[2\], one per ray, got \[3\]"),
        ({"t_max": torch.zeros(2, 1)}, r"`t_max` must have shape \[2\], one per ray, got \[2, 1\]"),
        ({"rays_o": torch.zeros(2, 3).int()}, "`rays_o` must be of a floating-point dtype, got torch.int32"),
        ({"max_steps": 0}, "`max_steps` must be at least 1, got 0"),
        ({"epsilon": -1.0}, "`epsilon` must be a distance, 0 or more, got -1"),
        ({"epsilon": math.nan}, "`epsilon` must be a distance, 0 or more, got nan"),
        ({"step_scale": 0.0}, "`step_scale` must be positive, got 0"),
        ({"field": lambda x: x[:, :1]}, r"`field` must return distances \[A\] .*got \[2, 1\] of \[2, 3\]; .*squeeze"),
        ({"field": lambda x: x[0, 0]}, r"`field` must return distances \[A\] of points \[A, 3\], got \[\]"),
        ({"field": lambda x: x[:, 0].double()}, "`field` must return distances of the points' dtype, torch.float32"),
        ({"field": lambda x: 1.0}, "`field` must return a tensor of distances, got float"),
    ],
)
def test_sphere_trace_errors_name_contract_and_actual(library: ModuleType, changes: dict, message: str) -> None:
    arguments = {"field": sphere, "rays_o": torch.zeros(2, 3), "rays_d": torch.ones(2, 3)}
    arguments |= {"t_min": torch.zeros(2), "t_max": torch.ones(2)}
    with pytest.raises(ValueError, match=message):
        library.sphere_trace(**arguments | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distances": torch.zeros(3)}, r"`distances` must have shape \[2\], got \[3\]"),
        ({"rays": torch.zeros(2, dtype=torch.int32)}, "`rays` must be int64, got int32"),
        ({"state": torch.zeros(4, 4)}, r"`state` must have shape \[4, 5\], got \[4, 4\]"),
        ({"status": torch.zeros(4, dtype=torch.int64)}, "`status` must be uint8, got int64"),
    ],
)
def test_sphere_trace_op_checks_its_state(changes: dict, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        _extension.ops().sphere_trace(*(op_arguments() | changes).values())


def op_arguments() -> dict:
    return {
        "distances": torch.ones(2),
        "rays": torch.tensor([1, 3]),
        "rays_o": torch.zeros(4, 3),
        "rays_d": torch.ones(4, 3),
        "speed": torch.ones(4),
        "t_max": torch.ones(4),
        "state": torch.zeros(4, 5),
        "status": torch.zeros(4, dtype=torch.uint8),
        "n_evaluations": torch.zeros(4, dtype=torch.int32),
        "epsilon": 1e-4,
        "step_scale": 1.0,
    }


def test_sphere_trace_op_marks_rays_that_do_not_exist() -> None:
    arguments = op_arguments() | {"rays": torch.tensor([-1, 4])}
    assert _extension.ops().sphere_trace(*arguments.values()).isnan().all()
    assert not arguments["state"].any() and not arguments["n_evaluations"].any()
