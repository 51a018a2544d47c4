"""Every op at n elements against the reference: sizes around a block of a CUDA kernel."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType

import torch
from host.redirect import has_tensor_cores
from torch import Tensor

from hashgrid import ops, reference
from hashgrid.levels import LevelTable, make_level_table
from hashgrid.nn.occupancy_grid import _frustum_planes
from hashgrid.ops import _ngp
from problems.adam_step import State, check_state, sparse_gradient
from problems.composite import check_composite_budget, composite_and_derivatives, make_samples, with_alphas
from problems.hash_encode import orders_of, safe_positions
from problems.jets import check_jets
from problems.line_integrals import check_budget, integrals_and_derivatives, make_problem
from problems.march_rays import scene
from problems.mlp import make_params
from problems.mlp_on_host import MlpOnHost, check_fused, check_plain
from problems.occupancy import AABB, make_cameras, make_state
from problems.occupancy_values import cells_of_field, values_in_parts
from problems.pixel_loss import loss_and_gradients, pixels
from problems.radiance_mlp import networks, radiance_and_gradients, radiance_by_mlp
from problems.ray_aabb import random_rays
from problems.render_rays import check_rendering, rays_into_field
from problems.sample_rays import random_views
from problems.sphere_trace import rough, strange_rays

MANY = 1000  # what is much for a Python reference or for fibers takes one variant instead of several
DTYPES = (torch.float32, torch.float64)


# ---- hash encoding, spherical harmonics, frequencies --------------------------------------------------------------


def check_derivatives(
    function: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    inputs: list[Tensor],
    in_fp64: bool = True,
) -> None:
    """Values, first and second derivatives to all of ``inputs``, of which the first holds points:
    |ours - f64| <= 2 |PyTorch fp32 - f64| + one rounding, PyTorch's error being the largest for a few orders of the
    points. A few points have several cotangents, as one number alone may be right by luck. Unless it takes fp32 only,
    the function has to be right in fp64, too.
    """
    n = len(inputs[0])
    seeds = range(6 if n < 8 else 1)

    def run(
        function: Callable[..., Tensor], dtype: torch.dtype, seed: int, order: Tensor | None = None
    ) -> list[Tensor]:
        order = torch.arange(n) if order is None else order
        leaves = [x.to(dtype).requires_grad_() for x in (inputs[0][order], *inputs[1:])]
        y = function(*leaves)
        generator = torch.Generator().manual_seed(seed)
        grad_y = torch.randn(y.shape, generator=generator)[order].to(y.dtype).requires_grad_()
        grads = torch.autograd.grad(y, leaves, grad_y, create_graph=True, materialize_grads=True)
        cotangents = [torch.randn(g.shape, generator=generator).to(g.dtype) for g in grads]
        cotangents[0] = cotangents[0][order]
        pulled = sum((g * cotangent).sum() for g, cotangent in zip(grads, cotangents, strict=True))
        second = torch.autograd.grad(pulled, [grad_y, *leaves], materialize_grads=True)
        results = [x.detach().double() for x in (y, *grads, *second)]
        for i in (*outputs, 1, 2 + len(inputs)):
            results[i] = results[i][order.argsort()]
        return results

    outputs = (0, 1 + len(inputs))  # y and the gradient to its cotangent
    truths = [run(plain, torch.float64, seed) for seed in seeds]
    ours = [run(function, torch.float32, seed) for seed in seeds]
    theirs = [[run(plain, torch.float32, seed, order) for seed in seeds] for order in orders_of(n)]
    for i in range(len(truths[0])):
        assert ours[0][i].shape == truths[0][i].shape, i
        if truths[0][i].numel() == 0:
            continue
        exact = torch.stack([results[i] for results in truths])
        error, *others = (
            (torch.stack([results[i] for results in runs]) - exact).abs().max().item() for runs in (ours, *theirs)
        )
        rounding = exact.abs().max().item() * torch.finfo(torch.float32).eps
        assert error <= 2 * max(others) + rounding, f"tensor {i}: {error} > 2 * {max(others)} + {rounding}"
    for i, (a, exact) in enumerate(zip(run(function, torch.float64, 0), truths[0], strict=True) if in_fp64 else ()):
        scale = exact.abs().max().item() if exact.numel() else 0.0
        torch.testing.assert_close(a, exact, rtol=0, atol=1e-9 * scale, msg=lambda m, i=i: f"fp64 tensor {i}: {m}")


def encode(
    library: ModuleType, levels: LevelTable, interpolation: str, half_table: Tensor | None = None
) -> Callable[..., Tensor]:
    def function(x: Tensor, table: Tensor, weights: Tensor) -> Tensor:
        if half_table is None:
            return library.hash_encode(x, table, levels, interpolation, level_weights=weights)
        return _ngp.hash_encode_into(x, table, levels, interpolation, level_weights=weights, half_table=half_table)

    return function


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def hash_encode_case(n: int) -> None:
    levels = make_level_table(3, n_levels=8, log2_hashmap_size=8, base_resolution=6, per_level_scale=1.3)
    inputs = [safe_positions(levels, n), torch.randn(levels.n_entries, 2), torch.rand(levels.n_levels)]
    for interpolation in ("linear", "smoothstep") if n < MANY else ("smoothstep",):
        check_derivatives(encode(ops, levels, interpolation), encode(reference, levels, interpolation), inputs)
    box = make_level_table(3, 4, 8, base_resolution=(6, 3, 9), per_level_scale=(1.3, 1.7, 1.1))
    of_box = [safe_positions(box, n), torch.randn(box.n_entries, 2), torch.rand(box.n_levels)]
    check_derivatives(encode(ops, box, "smoothstep"), encode(reference, box, "smoothstep"), of_box)
    with deterministic():
        check_derivatives(encode(ops, levels, "linear"), encode(reference, levels, "linear"), inputs)
        check_derivatives(encode(ops, box, "linear"), encode(reference, box, "linear"), of_box)
    # Neighbours on a line share cells.
    line = torch.lerp(*torch.rand(2, 1, 3), torch.linspace(0, 1, n)[:, None])
    table, grad_y = inputs[1].requires_grad_(), torch.randn(n, 16)
    truth, theirs, ours = (
        torch.autograd.grad(library.hash_encode(line.to(dtype), table.to(dtype), levels), table, grad_y.to(dtype))[0]
        for library, dtype in ((reference, torch.float64), (reference, torch.float32), (ops, torch.float32))
    )
    allowed = 2 * (theirs - truth).abs().max() + truth.abs().max() * torch.finfo(torch.float32).eps
    assert (ours - truth).abs().max() <= allowed


def hash_encode_jet_case(n: int) -> None:
    for base_resolution in (6, (6, 5, 3)):
        levels = make_level_table(3, 3, 8, base_resolution, per_level_scale=1.3)
        inputs = [safe_positions(levels, n), torch.randn(n, 2, 3), torch.randn(levels.n_entries, 2)]
        ours, theirs = (
            lambda *inputs, op=library.hash_encode_jet, levels=levels: op(*inputs, levels, "smoothstep")
            for library in (ops, reference)
        )
        check_jets(ours, theirs, [tensor.double() for tensor in inputs], 2)


def sh_encode_case(n: int) -> None:
    directions = torch.nn.functional.normalize(torch.randn(n, 3), dim=-1)
    check_derivatives(lambda d: ops.sh_encode(d, 4), lambda d: reference.sh_encode(d, 4), [directions])


def frequency_encode_case(n: int) -> None:
    x = torch.rand(n, 3)
    for pi in (True, False):
        ours, theirs = (partial(o.frequency_encode, n_frequencies=6, pi=pi) for o in (ops, reference))
        check_derivatives(ours, theirs, [x])


# ---- MLP ----------------------------------------------------------------------------------------------------------


def mlp_case(n: int) -> None:
    """A second derivative of the MLP takes no kernel of its own."""
    for activation in ("relu", "softplus"):
        problem = MlpOnHost([17, 32, 3], n, True, activation, "sigmoid")
        check_fused(problem)
        check_plain(problem)


def mlp_jet_case(n: int) -> None:
    weights, biases = make_params([17, 32, 3], True)
    for operators in (None, torch.randn(3, 2)):
        n_seconds = 2 if operators is None else 3
        inputs = [torch.rand(n, 17), torch.randn(n, 2, 17), torch.randn(n, n_seconds, 17)]
        ours, theirs = (
            lambda x, v, a, *params, op=library.mlp_jet, operators=operators: op(
                x, v, params[:2], params[2:], "sine", "sigmoid", a, operators
            )
            for library in (ops, reference)
        )
        check_jets(ours, theirs, [*(tensor.double() for tensor in inputs), *weights, *biases], 3, 40)


def hash_encode_mlp_case(n: int) -> None:
    """It has the bits of the two ops, which the cases above look at."""
    levels = make_level_table(3, n_levels=8, log2_hashmap_size=8, base_resolution=6, per_level_scale=1.3)
    x, table = torch.rand(n, 3), torch.randn(levels.n_entries, 2)
    weights = [torch.randn(32, 16), torch.randn(3, 32)]
    y = _ngp.hash_encode_mlp(x, table, levels, weights, compute_dtype=torch.bfloat16)
    assert torch.equal(y, ops.mlp(ops.hash_encode(x, table, levels), weights, compute_dtype=torch.bfloat16))


def radiance_field_case(n: int) -> None:
    """Of the ops above, with the same roundings."""
    levels = make_level_table(3, n_levels=8, log2_hashmap_size=8, base_resolution=6, per_level_scale=1.3)
    x, rays, ray_features = torch.rand(n, 3), torch.randint(5, (n,)), torch.randn(5, 16)
    density, color = [torch.randn(32, 16), 0.1 * torch.randn(16, 32)], [torch.randn(64, 32), 0.1 * torch.randn(3, 64)]
    for half in (torch.float16, torch.bfloat16):
        table = torch.randn(levels.n_entries, 2)
        for half_table in (None, table.to(half)):
            sigmas, colors = _ngp.radiance_field(
                x, ray_features, rays, table, levels, density, color, half_table=half_table, compute_dtype=half
            )
            encoded = _ngp.hash_encode_into(x, table, levels, half_table=half_table)
            geometry = ops.mlp(encoded, density, compute_dtype=half)
            inputs = torch.cat((geometry, ray_features[rays]), dim=1)
            assert torch.equal(colors, ops.mlp(inputs, color, output_activation="sigmoid", compute_dtype=half))
            torch.testing.assert_close(sigmas, geometry[:, 0].exp(), rtol=1e-6, atol=0)


def render_rays_case(n: int) -> None:
    """What its own tests look at, at these sizes; many rays in one dtype. One kernel evaluates no hidden sample."""
    in_one = has_tensor_cores(torch.ops.hashgrid_on_host)
    for half in (torch.bfloat16,) if n > MANY else (torch.float16, torch.bfloat16):
        arguments = rays_into_field(n, density=20.0, compute_dtype=half)
        for half_table in (None, arguments["table"].to(half)):
            n_evaluated, n_visible = check_rendering(arguments | {"half_table": half_table})
            assert n_evaluated == n_visible if in_one else n_evaluated >= n_visible


def occupancy_values_case(n: int) -> None:
    """Of the ops above, with the same roundings."""
    for half in (torch.float16, torch.bfloat16):
        arguments = cells_of_field(n, compute_dtype=half)
        for half_table in (None, arguments["table"].to(half)):
            arguments["half_table"] = half_table
            torch.testing.assert_close(
                _ngp.occupancy_values(**arguments), values_in_parts(arguments), rtol=2e-6, atol=0
            )


def radiance_mlp_case(n: int) -> None:
    """What its own tests look at, at these sizes; many rows in one dtype."""
    arguments, grads = networks(n), (torch.randn(n), torch.randn(n, 3))
    for half in (torch.bfloat16,) if n > MANY else (torch.float16, torch.bfloat16):
        ours = radiance_and_gradients(_ngp.radiance_mlp, arguments, grads, compute_dtype=half)
        theirs = radiance_and_gradients(radiance_by_mlp, arguments, grads, compute_dtype=half)
        assert torch.equal(ours[1], theirs[1])
        for a, b in zip(ours, theirs, strict=True):
            # rounded sums of fp32 differ in the last bit, and then their half by one of its units
            torch.testing.assert_close(a, b, rtol=0, atol=2**-8 * b.abs().max().item() if n else 0)


# ---- rays ---------------------------------------------------------------------------------------------------------


def assert_same(actual: object, expected: object) -> None:
    """Equal bits; a tensor or a tuple of tensors."""
    actual, expected = ((x,) if isinstance(x, Tensor) else x for x in (actual, expected))
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def counter_uniform_case(n: int) -> None:
    index = torch.arange(n) * 2**20 - 17
    for seed, step in ((0, 0), (-(2**62) - 5, 2**32 - 1)):
        assert_same(ops.counter_uniform(seed, step, index), reference.counter_uniform(seed, step, index))


def sample_positions_case(n: int) -> None:
    for dtype in DTYPES:
        rays, (begin, end) = torch.randn(2, 9, 3, dtype=dtype), torch.rand(2, n, dtype=dtype)
        arguments = *rays, torch.randint(9, (n,)), begin, end
        assert_same(_ngp.sample_positions(*arguments), reference.sample_positions(*arguments))


def pixel_loss_case(n: int) -> None:
    tensors = pixels(n)
    for n_rays in (None, torch.tensor([n // 2])):
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
            ours = loss_and_gradients(_ngp.pixel_loss, tensors, dtype, n_rays=n_rays)
            exact = loss_and_gradients(reference.pixel_loss, tensors, torch.float64, n_rays=n_rays)
            for a, b in zip(ours, exact, strict=True):
                scale = b.abs().max().item() if b.numel() else 0.0
                torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * scale)


def sample_rays_case(n: int) -> None:
    """Of views of several sizes, the last of one pixel."""
    for n_channels in (3, 4):
        views = random_views([(5, 4), (300, 1), (1, 1)], n_channels)
        assert_same(_ngp.sample_rays(7, 3, n, *views), reference.sample_rays(7, 3, n, *views))


def ray_aabb_case(n: int) -> None:
    for dtype in DTYPES:
        arguments = *random_rays(n, dtype), AABB.to(dtype)
        for limits in ({}, {"near": 0.3, "far": 2.1}):
            assert_same(ops.ray_aabb(*arguments, **limits), reference.ray_aabb(*arguments, **limits))


def sphere_trace_case(n: int) -> None:
    for dtype in DTYPES:
        rays = strange_rays(n, dtype)
        assert_same(ops.sphere_trace(rough, *rays), reference.sphere_trace(rough, *rays))


def march_rays_case(n: int) -> None:
    one = {"resolution": (17, 9, 33), "n_cascades": 1, "step_size": 0.03, "cone_angle": 0.02}
    three = {"resolution": (16, 12, 8), "n_cascades": 3, "step_size": 0.05, "seed": 2**63 + 5, "step": 7}
    bricks = {"resolution": (16, 32, 48), "n_cascades": 2, "step_size": 0.04}
    for dtype, options in itertools.product(DTYPES, (one, bricks, three) if n < MANY else (bricks, three)):
        occupied = 0.002 if options is bricks else 0.2
        rays_o, rays_d, aabb, bits, *_ = scene(n + 12, options["resolution"], options["n_cascades"], occupied, dtype)
        order = torch.arange(n + 12).roll(-12 if n < 12 else 0)[:n]  # the first twelve are strange ones
        samples = ops.march_rays(rays_o[order], rays_d[order], aabb, bits, **options)
        assert_same(samples, reference.march_rays(rays_o[order], rays_d[order], aabb, bits, **options))
        assert len(samples[0]) > 0 or n == 0 or options is bricks
    for dtype, n_samples in itertools.product(DTYPES, (len(samples[0]) // 2, len(samples[0]) + 40)):
        arguments = rays_o[order].to(dtype), rays_d[order].to(dtype), aabb.to(dtype), bits
        fixed = options | {"n_samples": n_samples, "n_rays": torch.tensor([n - 1])}
        assert_same(ops.march_rays(*arguments, **fixed), reference.march_rays(*arguments, **fixed))


# ---- compositing --------------------------------------------------------------------------------------------------


def packed(n_rays: int, dtype: torch.dtype, density: float) -> dict[str, Tensor]:
    """Rays around the width of a warp; of many most are short."""
    lengths = (3, 0, 40, 1, 32, 33, 7) if n_rays < MANY else (3, 0, 5, 1)
    counts = [lengths[i % len(lengths)] for i in range(n_rays)]
    none = {"packed_info": torch.zeros(0, 2, dtype=torch.int64)}
    return make_samples(counts, dtype, density) if counts else make_samples([0], dtype) | none


def composite_case(n: int) -> None:
    """Of a few rays, a sum is one number and PyTorch's error luck: there many draws share a budget."""
    kinds = itertools.product(((3, 0.1), (5, 20.0)), (False, True)) if n < MANY else (((3, 1.0), False),)
    for (n_features, density), of_alphas in kinds:
        draws = []
        for _ in range(16 if n < 32 else 1):
            samples = packed(n, torch.float32, density)
            samples["features"] = torch.rand(len(samples["sigmas"]), n_features)
            samples = with_alphas(samples) if of_alphas else samples
            exact = composite_and_derivatives(reference.composite, samples, torch.float64)
            theirs = composite_and_derivatives(reference.composite, samples, torch.float32)
            draws.append((composite_and_derivatives(ops.composite, samples, torch.float32), theirs, exact))
            for a, b in zip(composite_and_derivatives(ops.composite, samples, torch.float64), exact, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        pooled = (
            [torch.cat([x.flatten() for x in tensors]) for tensors in zip(*runs, strict=True)]
            for runs in zip(*draws, strict=True)
        )
        check_composite_budget(*pooled)


def line_integrals_case(n: int) -> None:
    """One channel and several, each with values and lengths that have derivatives."""
    lengths = (3, 0, 40, 1, 32, 33, 7)
    for n_channels in (1, 5):
        problem = make_problem([lengths[i % len(lengths)] for i in range(n)], n_channels, torch.float32)
        exact = integrals_and_derivatives(reference.line_integrals, problem, torch.float64)
        theirs = integrals_and_derivatives(reference.line_integrals, problem, torch.float32)
        check_budget(integrals_and_derivatives(ops.line_integrals, problem, torch.float32), theirs, exact)
        for a, b in zip(integrals_and_derivatives(ops.line_integrals, problem, torch.float64), exact, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def visible_samples_case(n: int) -> None:
    """Those that composite counts, in either precision."""
    for dtype in DTYPES:
        samples = packed(n, dtype, 30.0)
        sigmas, _, *rest = samples.values()
        index, kept_info = _ngp.visible_samples(sigmas, *rest, 1e-3)
        weights = ops.composite(**samples, early_stop_eps=1e-3)[3]
        assert torch.equal(index, (weights > 0).nonzero().squeeze(-1))
        if dtype == torch.float64:
            assert_same((index, kept_info), reference.visible_samples(sigmas, *rest, 1e-3))


def window_samples_case(n: int) -> None:
    for dtype in DTYPES:
        samples = packed(n, dtype, 30.0)
        sigmas, _, *rest = samples.values()
        rays = torch.rand(len(rest[-1]), 3, dtype=dtype), torch.randn(len(rest[-1]), 3, dtype=dtype)
        for begin, end in ((0, 3), (2, 33), (33, 100)):
            window = *rays, sigmas, *rest, begin, end, 1e-3
            assert_same(_ngp.window_samples(*window), reference.window_samples(*window))


# ---- occupancy, Adam ----------------------------------------------------------------------------------------------


def occupancy_points_case(n: int) -> None:
    cells = torch.randint(0, 5 * 8 * 3 * 3, (n,))
    for dtype, seed in itertools.product(DTYPES, (None, 3)):
        arguments = cells, AABB.to(dtype), (5, 8, 3), 3, seed, 4
        assert_same(_ngp.occupancy_points(*arguments), reference.occupancy_points(*arguments))


def occupancy_visible_case(n: int) -> None:
    """A grid has at least one cell; without cameras none is seen."""
    planes = _frustum_planes(*make_cameras(3 if n > 0 else 0), 0.2, 0.0).float()
    arguments = planes, AABB, (max(n, 1), 1, 1)
    actual, expected = _ngp.occupancy_visible(*arguments), reference.occupancy_visible(*arguments)
    assert (actual != expected).sum() <= n // 1000  # rounding at the border of a view


def occupancy_update_case(n: int) -> None:
    for scale in (1e-3, 1.0):
        density, bits, cells, values = make_state(n, scale)
        if n > 0 and len(cells) == 0:
            cells, values = torch.zeros(1, dtype=torch.int64), torch.full((1,), scale)
        ours, expected = (density.clone(), bits.clone()), (density, bits)
        _ngp.occupancy_update(*ours, cells, values)
        reference.occupancy_update(*expected, cells, values)
        assert_same(ours, expected)


def adam_step_case(n: int, width: int = 2) -> None:
    for skip_zero, dtype in itertools.product((False, True), DTYPES):
        grad = sparse_gradient((n, width), 0.3, dtype)
        ours, theirs = (State((n, width), dtype, skip_zero, True, torch.bfloat16) for _ in range(2))
        exact = State((n, width), torch.float64, skip_zero, True)
        for name in ("param", "exp_avg", "exp_avg_sq", "ema"):
            setattr(exact, name, getattr(ours, name).double().clone())
        cleared = grad.clone()
        ours.step(ops.adam_step, cleared, skip_zero, zero_grad=True)
        theirs.step(reference.adam_step, grad.clone(), skip_zero)
        exact.step(reference.adam_step, grad.double(), skip_zero)
        half_copy, touched = ours.half_copy, grad.ne(0).any(-1) if skip_zero else torch.ones(n, dtype=torch.bool)
        assert torch.equal(half_copy[touched], ours.param.to(torch.bfloat16)[touched]) and not cleared.any()
        for state in (ours, theirs):
            state.half_copy = None
        check_state(ours, theirs, exact)


# ---- all of them --------------------------------------------------------------------------------------------------

CASES = (
    *(hash_encode_case, sh_encode_case, frequency_encode_case, mlp_case),
    *(hash_encode_jet_case, mlp_jet_case),
    *(hash_encode_mlp_case, radiance_field_case, radiance_mlp_case, render_rays_case),
    *(counter_uniform_case, sample_rays_case, ray_aabb_case, sphere_trace_case, march_rays_case),
    *(
        line_integrals_case,
        sample_positions_case,
        composite_case,
        pixel_loss_case,
        visible_samples_case,
        window_samples_case,
    ),
    *(occupancy_points_case, occupancy_values_case, occupancy_visible_case, occupancy_update_case, adam_step_case),
)
