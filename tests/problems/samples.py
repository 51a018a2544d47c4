"""Sample inputs of every op in ``torch.ops.hashgrid``, in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import hashgrid.ops._ngp  # noqa: F401
from hashgrid.levels import make_level_table
from hashgrid.ops.hash_encode import encoding_options

Arguments = tuple[Any, ...]

N_POINTS, N_RAYS, N_CHANNELS = 9, 5, 3
LEVELS = make_level_table(3, n_levels=3, log2_hashmap_size=7, base_resolution=4, max_resolution=16)
LINEAR = encoding_options(LEVELS, "linear", "clamp")
SMOOTHSTEP = encoding_options(LEVELS, "smoothstep", "zero")
NEAREST = encoding_options(LEVELS, "nearest", "none")
BOX = make_level_table(3, n_levels=3, log2_hashmap_size=7, base_resolution=(4, 5, 2), max_resolution=(16, 9, 4))
BOXED = encoding_options(BOX, "smoothstep", "clamp")
RESOLUTION = (4, 5, 6)
N_CELLS = 2 * 4 * 5 * 6  # two cascades
AABB = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)


def _leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def _hash_encode() -> Iterator[Arguments]:
    for dtype, options in ((torch.float32, LINEAR), (torch.float64, SMOOTHSTEP), (torch.float64, NEAREST)):
        positions = torch.rand(N_POINTS, 3, dtype=dtype).requires_grad_()
        table = _leaf(LEVELS.n_entries, 2, dtype=dtype)
        yield positions, table, None, *options
        yield positions, table, torch.rand(3, dtype=dtype).requires_grad_(), *options
    yield torch.rand(N_POINTS, 3), _leaf(LEVELS.n_entries, 4), None, *LINEAR  # as in training: the table only
    yield torch.rand(N_POINTS, 3).requires_grad_(), _leaf(BOX.n_entries, 2), None, *BOXED


def _hash_encode_backward() -> Iterator[Arguments]:
    for dtype, options in ((torch.float32, LINEAR), (torch.float64, NEAREST)):
        positions, table = (
            torch.rand(N_POINTS, 3, dtype=dtype).requires_grad_(),
            _leaf(LEVELS.n_entries, 2, dtype=dtype),
        )
        weights = torch.rand(3, dtype=dtype).requires_grad_()
        yield _leaf(N_POINTS, 6, dtype=dtype), positions, table, weights, *options, True, True, True, False
    positions, table = torch.rand(N_POINTS, 3), torch.randn(LEVELS.n_entries, 2)
    yield torch.randn(N_POINTS, 6), positions, table, None, *LINEAR, False, True, False, False
    table, weights = torch.randn(BOX.n_entries, 2), torch.rand(3)
    yield torch.randn(N_POINTS, 6), positions, table, weights, *BOXED, True, True, True, False


def _hash_encode_accumulate_table_gradient() -> Iterator[Arguments]:
    cotangent, features = torch.randn(N_POINTS, 3), torch.randn(N_POINTS, 6)
    for second in ((None, None), (cotangent, None), (cotangent, features)):
        table, grad_y = torch.zeros(LEVELS.n_entries, 2), torch.randn(N_POINTS, 6)
        weights = None if second[0] is None else torch.rand(3)
        yield table, *second, grad_y, torch.rand(N_POINTS, 3), weights, *LINEAR, False


def _hash_encode_backward_backward() -> Iterator[Arguments]:
    grad_y, positions, table = torch.randn(N_POINTS, 6), torch.rand(N_POINTS, 3), torch.randn(LEVELS.n_entries, 2)
    cotangents = torch.randn(N_POINTS, 3), torch.randn(LEVELS.n_entries, 2), torch.randn(3)
    yield *cotangents, grad_y, positions, table, torch.rand(3), *LINEAR, True, True, True, False
    yield cotangents[0], None, None, grad_y, positions, table, None, *LINEAR, False, True, False, False
    table = torch.randn(BOX.n_entries, 2)
    yield cotangents[0], None, None, grad_y, positions, table, None, *BOXED, True, True, False, False
    table = torch.randn(LEVELS.n_entries, 2)
    tensors = [t.double() for t in (*cotangents, grad_y, positions, table, torch.rand(3))]
    yield *tensors, *NEAREST, True, True, True, False


def _mlp_params(bias: bool) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    shapes = ((8, 5), (8, 8), (3, 8))
    return _leaf(N_POINTS, 5), [_leaf(*s) for s in shapes], [_leaf(s[0]) for s in shapes] if bias else []


def _mlp() -> Iterator[Arguments]:
    yield *_mlp_params(bias=False), 1, 0, 0  # relu
    yield *_mlp_params(bias=True), 3, 5, 2  # silu, sigmoid


def _hash_encode_mlp() -> Iterator[Arguments]:
    for half, n_features, options in ((torch.float16, 2, LINEAR), (torch.bfloat16, 4, SMOOTHSTEP)):
        table = torch.randn(LEVELS.n_entries, n_features)
        weights = [torch.randn(*s) for s in ((16, 3 * n_features), (5, 16))]
        for rows, biases in ((table, []), (table.to(half), [torch.randn(16), torch.randn(5)])):
            for factors in (1, 2):
                yield torch.rand(N_POINTS, 3), rows, None, *options, weights, biases, 1, 0, factors
    weights = [torch.randn(16, 6), torch.randn(5, 16)]
    yield torch.rand(N_POINTS, 3), torch.randn(BOX.n_entries, 2), None, *BOXED, weights, [], 1, 0, 2


def _radiance_field() -> Iterator[Arguments]:
    for half, factors in ((torch.bfloat16, 1), (torch.float16, 2)):
        density, color = ([torch.randn(*s) for s in shapes] for shapes in (((24, 6), (16, 24)), ((32, 20), (3, 32))))
        for table in (torch.randn(LEVELS.n_entries, 2), torch.randn(LEVELS.n_entries, 2).to(half)):
            rays = torch.randint(N_RAYS, (N_POINTS,))
            yield torch.rand(N_POINTS, 3), table, torch.randn(N_RAYS, 4), rays, *LINEAR, density, color, 5, factors


def _render_rays() -> Iterator[Arguments]:
    for _, table, features, _, *field in _radiance_field():
        rays_o, rays_d = torch.rand(N_RAYS, 3) - 0.5, torch.randn(N_RAYS, 3)
        bits = torch.full((N_CELLS // 8,), 255, dtype=torch.uint8)
        march = (0.1, 0.0, 0.0, float("inf"), 1024, 1e-4)
        box = torch.tensor(AABB)
        yield rays_o, rays_d, features, box, bits, list(RESOLUTION), 2, 2 * box, table, *field, *march


def _occupancy_values() -> Iterator[Arguments]:
    for positions, table, _, _, *levels, density, _, _, factors in _radiance_field():
        cells, counter = torch.arange(len(positions)), torch.tensor([1, 2])
        box = torch.tensor(AABB)
        yield cells, box, list(RESOLUTION), 2, counter, 2 * box, table, *levels, density, factors, 0.1


def _radiance_networks() -> tuple[list[Tensor], list[Tensor]]:
    return [_leaf(*s) for s in ((24, 6), (16, 24))], [_leaf(*s) for s in ((32, 20), (3, 32))]


def _radiance_mlp() -> Iterator[Arguments]:
    for factors in (1, 2):
        rays = torch.randint(N_RAYS, (N_POINTS,))
        yield _leaf(N_POINTS, 6), torch.randn(N_RAYS, 4), rays, *_radiance_networks(), 5, factors


def _radiance_mlp_backward() -> Iterator[Arguments]:
    for x, ray_features, rays, *networks, activation, factors in _radiance_mlp():
        weights = ([weight.detach() for weight in network] for network in networks)
        grads = torch.randn(N_POINTS), torch.randn(N_POINTS, 3)
        yield *grads, x.detach(), ray_features, rays, *weights, activation, factors, factors == 1, True


def _mlp_backward() -> Iterator[Arguments]:
    for bias in (False, True):
        x, weights, biases = _mlp_params(bias)
        params = [p.detach() for p in weights], [p.detach() for p in biases]
        yield torch.randn(N_POINTS, 3), x.detach(), *params, 3, 0, 0, True, True
        yield torch.randn(N_POINTS, 3), x.detach(), *params, 1, 0, 1, False, True


def _mlp_backward_backward() -> Iterator[Arguments]:
    for bias in (False, True):
        x, weights, biases = _mlp_params(bias)
        params = [p.detach() for p in weights], [p.detach() for p in biases]
        cotangent, grad_y = torch.randn(N_POINTS, 5), torch.randn(N_POINTS, 3)
        yield cotangent, None, grad_y, x.detach(), *params, 1, 0, False, True, True
        yield cotangent, None, grad_y, x.detach(), *params, 4, 6, True, False, True
        for output_activation in (0, 5):
            yield (
                cotangent,
                torch.randn(N_POINTS, 3),
                grad_y,
                x.detach(),
                *params,
                3,
                output_activation,
                False,
                True,
                True,
            )


def _mlp_with_gradient() -> Iterator[Arguments]:
    for bias in (False, True):
        x, weights, biases = _mlp_params(bias)
        params = [p.detach() for p in weights], [p.detach() for p in biases]
        yield torch.randn(N_POINTS, 3), x.detach(), *params, 3, 0


def _mlp_jet() -> Iterator[Arguments]:
    for bias in (False, True):
        x, weights, biases = _mlp_params(bias)
        weights = [(0.3 * weight.detach()).requires_grad_() for weight in weights]  # derivatives multiply them up
        accelerations = _leaf(N_POINTS, 2, 5) if bias else None
        yield x, _leaf(N_POINTS, 2, 5), accelerations, None, weights, biases, 8 if bias else 6, 5 if bias else 0
        yield x, _leaf(N_POINTS, 2, 5), None, torch.randn(1, 2), weights, biases, 4, 0


def _mlp_jet_backward() -> Iterator[Arguments]:
    for x, directions, accelerations, operators, weights, biases, *options in _mlp_jet():
        every, n_seconds = accelerations is not None, 2 if operators is None else 1
        of_first = torch.randn(N_POINTS, 2, 3) if every else None
        grads = torch.randn(N_POINTS, 3), of_first, torch.randn(N_POINTS, n_seconds, 3)
        rows = x.detach(), directions.detach(), accelerations.detach() if every else None, operators
        params = [p.detach() for p in weights], [p.detach() for p in biases]
        yield *grads, *rows, *params, *options, every, every, every, True


def _hash_encode_jet() -> Iterator[Arguments]:
    for dtype, options in ((torch.float32, LINEAR), (torch.float32, SMOOTHSTEP), (torch.float64, NEAREST)):
        positions = torch.rand(N_POINTS, 3, dtype=dtype).requires_grad_()
        yield positions, _leaf(N_POINTS, 2, 3, dtype=dtype), _leaf(LEVELS.n_entries, 2, dtype=dtype), *options


def _hash_encode_jet_backward() -> Iterator[Arguments]:
    for needs in ((True, True, True), (False, False, True)):
        grads = torch.randn(N_POINTS, 6) if needs[0] else None, *torch.randn(2, N_POINTS, 2, 6)
        positions, table = torch.rand(N_POINTS, 3), torch.randn(LEVELS.n_entries, 2)
        yield *grads, positions, torch.randn(N_POINTS, 2, 3), table, *SMOOTHSTEP, *needs, False


def _sh_encode() -> Iterator[Arguments]:
    for degree, dtype in ((1, torch.float32), (4, torch.float64)):
        yield torch.nn.functional.normalize(torch.randn(N_POINTS, 3, dtype=dtype), dim=1).requires_grad_(), degree


def _sh_encode_backward() -> Iterator[Arguments]:
    for dtype in (torch.float32, torch.float64):
        yield _leaf(N_POINTS, 16, dtype=dtype), _leaf(N_POINTS, 3, dtype=dtype), 4


def _frequency_encode() -> Iterator[Arguments]:
    for dtype in (torch.float32, torch.float64):
        yield from ((_leaf(N_POINTS, 2, dtype=dtype), 5, pi) for pi in (True, False))


def _frequency_encode_backward() -> Iterator[Arguments]:
    for dtype in (torch.float32, torch.float64):
        yield from ((_leaf(N_POINTS, 20, dtype=dtype), _leaf(N_POINTS, 2, dtype=dtype), 5, pi) for pi in (True, False))


def _rays() -> tuple[Tensor, Tensor, Tensor]:
    origins = torch.nn.functional.normalize(torch.randn(N_RAYS, 3), dim=1) * 2
    return origins, torch.nn.functional.normalize(-origins, dim=1), torch.tensor(AABB)


def _ray_aabb() -> Iterator[Arguments]:
    yield *_rays(), 0.0, float("inf")


def _sphere_trace() -> Iterator[Arguments]:
    origins, directions, _ = _rays()
    rays = torch.tensor([0, 2, 4])
    state, status, n_evaluations = torch.zeros(N_RAYS, 5), torch.zeros(N_RAYS).byte(), torch.zeros(N_RAYS).int()
    speed, t_max = directions.norm(dim=1), torch.full((N_RAYS,), 4.0)
    yield torch.rand(3), rays, origins, directions, speed, t_max, state, status, n_evaluations, 1e-4, 1.0


def _march_rays() -> Iterator[Arguments]:
    bits = torch.full((-(-N_CELLS // 8),), 0b01101101, dtype=torch.uint8)
    counter, limits = torch.tensor([7, 3]), torch.tensor([0.1, 4.0]).repeat(N_RAYS, 1)
    yield *_rays(), bits, list(RESOLUTION), 2, 0.1, 0.0, 0.0, float("inf"), None, None, None, 1024, None
    yield *_rays(), bits, list(RESOLUTION), 2, 0.1, 1 / 64, 0.1, 4.0, limits, counter, None, 8, None
    yield *_rays(), bits, list(RESOLUTION), 2, 0.1, 0.0, 0.0, 4.0, None, counter, torch.tensor([4]), 8, 20


def _samples() -> tuple[Tensor, Tensor, Tensor]:
    """t_starts, t_ends [S] and packed_info [R, 2]; the second ray has no samples."""
    counts = torch.tensor([4, 0, 1, 3, 2])
    t_starts = torch.cat([0.3 * torch.arange(int(count)) for count in counts]) + 0.5
    return t_starts, t_starts + 0.3, torch.stack((counts.cumsum(0) - counts, counts), dim=1)


def _composite() -> Iterator[Arguments]:
    t_starts, t_ends, packed_info = _samples()
    sigmas = torch.rand(len(t_starts)).requires_grad_()
    for are_alphas in (False, True):
        yield sigmas, _leaf(len(t_starts), N_CHANNELS), t_starts, t_ends, packed_info, 1e-4, are_alphas, are_alphas


def _composite_gradients() -> tuple[Tensor | None, ...]:
    n_samples = len(_samples()[0])
    of_rays = torch.randn(N_RAYS, N_CHANNELS), torch.randn(N_RAYS), None
    return *of_rays, torch.randn(n_samples), torch.randn(N_RAYS), torch.randn(n_samples)


def _composite_backward() -> Iterator[Arguments]:
    for sigmas, features, *rest, _ in _composite():
        grads = tuple(g if g is None else g.requires_grad_() for g in _composite_gradients())
        yield *grads, sigmas, features, *rest


def _composite_backward_backward() -> Iterator[Arguments]:
    for sigmas, features, *rest, _ in _composite():
        cotangents = torch.randn(len(sigmas)), torch.randn(len(sigmas), N_CHANNELS)
        yield *cotangents, *_composite_gradients(), sigmas.detach(), features.detach(), *rest


def _line_integrals() -> Iterator[Arguments]:
    t_starts, t_ends, packed_info = _samples()
    for n_channels, dtype in ((1, torch.float32), (3, torch.float32), (2, torch.float64)):
        steps = (t_ends - t_starts).to(dtype).requires_grad_()
        yield _leaf(len(t_starts), n_channels, dtype=dtype), steps, packed_info


def _line_integrals_backward() -> Iterator[Arguments]:
    for values, steps, packed_info in _line_integrals():
        n_channels = values.shape[1]
        grad_sums = _leaf(N_RAYS, n_channels, dtype=values.dtype)
        yield grad_sums, values, steps, packed_info, n_channels != 2, n_channels != 1


def _visible_samples() -> Iterator[Arguments]:
    t_starts, t_ends, packed_info = _samples()
    yield 20 * torch.rand(len(t_starts)), t_starts, t_ends, packed_info, 1e-2


def _window_samples() -> Iterator[Arguments]:
    for sigmas, *rest, eps in _visible_samples():
        for begin, end in ((0, 3), (2, 64)):
            yield torch.rand(N_RAYS, 3), torch.randn(N_RAYS, 3), sigmas, *rest, begin, end, eps


def _counter_uniform() -> Iterator[Arguments]:
    yield torch.tensor([7, 3]), torch.arange(N_RAYS)


def _gather_rows() -> Iterator[Arguments]:
    rows, blocks = torch.tensor([6, 0, 3]), [torch.randn(4, 2), torch.randn(3, 2)]
    yield blocks, rows, None, None
    yield blocks, rows, torch.randn(5, 3), torch.tensor([4, 4, 1])


def _visible_cells() -> Iterator[Arguments]:
    for chosen in (None, torch.rand(100) < 0.5):
        yield torch.randn(100), chosen


def _sample_positions() -> Iterator[Arguments]:
    t_starts, t_ends, packed_info = _samples()
    rays = torch.arange(N_RAYS).repeat_interleave(packed_info[:, 1])
    yield torch.randn(N_RAYS, 3), torch.randn(N_RAYS, 3), rays, t_starts, t_ends


def _pixel_loss() -> Iterator[Arguments]:
    for n_rays in (None, torch.tensor([N_RAYS - 1])):
        rest = torch.rand(N_RAYS, N_CHANNELS), torch.rand(N_RAYS, N_CHANNELS)
        yield _leaf(N_RAYS, N_CHANNELS), _leaf(N_RAYS), *rest, n_rays, 0.1


def _sample_rays() -> Iterator[Arguments]:
    sizes, offsets = torch.tensor([[3, 2], [1, 4]]), torch.tensor([0, 6, 10])
    cameras = offsets, sizes, torch.randn(2, 3, 4), torch.rand(2, 4) + 1
    for n_channels, plane in ((3, (None, None)), (4, (torch.randn(10, 2), torch.tensor([[0, 3], [6, 1]])))):
        data = torch.randint(256, (10, n_channels), dtype=torch.uint8)
        yield torch.tensor([7, 3]), N_RAYS, data, *cameras, *plane


def _occupancy_points() -> Iterator[Arguments]:
    cells = torch.arange(0, N_CELLS, 3)
    yield cells, torch.tensor(AABB), list(RESOLUTION), 2, None
    yield cells, torch.tensor(AABB), list(RESOLUTION), 2, torch.tensor([7, 3])


def _occupancy_visible() -> Iterator[Arguments]:
    yield torch.randn(2, 5, 4), torch.tensor(AABB), list(RESOLUTION), 2


def _occupancy_update() -> Iterator[Arguments]:
    bits = torch.zeros(-(-N_CELLS // 8), dtype=torch.uint8)
    yield torch.rand(N_CELLS) - 0.1, bits, torch.arange(0, N_CELLS, 3), torch.rand(-(-N_CELLS // 3)), 0.95, 0.01


def _adam_step() -> Iterator[Arguments]:
    lr = torch.tensor(1e-2)
    for skip_zero, n_steps in ((False, 1), (True, 6)):
        for half, zero_grad in ((None, False), (torch.float16, True), (torch.bfloat16, False)):
            param, grad, exp_avg, ema = (torch.randn(6, 2) for _ in range(4))
            grad[::2] = 0
            steps = torch.full((n_steps,), 3, dtype=torch.int32)
            shared = param, grad, exp_avg, torch.rand(6, 2), steps, lr, 0.9, 0.99, 1e-15, 1e-6, skip_zero
            average = (None, None, 0.0, None) if half is None else (ema, steps.clone(), 0.95, torch.tensor([4]).int())
            yield *shared, *average, None if half is None else param.to(half), zero_grad


def _adam_step_foreach() -> Iterator[Arguments]:
    shapes = ((6, 2), (5,))
    for average in (False, True):
        params, grads, exp_avgs, emas = ([torch.randn(shape) for shape in shapes] for _ in range(4))
        steps, last = ([torch.full((1,), 3, dtype=torch.int32) for _ in shapes] for _ in range(2))
        state = params, grads, exp_avgs, [torch.rand(shape) for shape in shapes], steps
        averages = (emas, last) if average else ([], [])
        yield *state, torch.tensor(1e-2), 0.9, 0.99, 1e-15, 1e-6, *averages, 0.95, torch.tensor([4]).int(), average


SAMPLES: dict[str, Callable[[], Iterator[Arguments]]] = {
    "hash_encode": _hash_encode,
    "hash_encode_backward": _hash_encode_backward,
    "hash_encode_accumulate_table_gradient": _hash_encode_accumulate_table_gradient,
    "hash_encode_backward_backward": _hash_encode_backward_backward,
    "hash_encode_jet": _hash_encode_jet,
    "hash_encode_jet_backward": _hash_encode_jet_backward,
    "hash_encode_mlp": _hash_encode_mlp,
    "radiance_mlp": _radiance_mlp,
    "radiance_mlp_backward": _radiance_mlp_backward,
    "mlp": _mlp,
    "mlp_backward": _mlp_backward,
    "mlp_with_gradient": _mlp_with_gradient,
    "mlp_backward_backward": _mlp_backward_backward,
    "mlp_jet": _mlp_jet,
    "mlp_jet_backward": _mlp_jet_backward,
    "sh_encode": _sh_encode,
    "sh_encode_backward": _sh_encode_backward,
    "frequency_encode": _frequency_encode,
    "frequency_encode_backward": _frequency_encode_backward,
    "ray_aabb": _ray_aabb,
    "sphere_trace": _sphere_trace,
    "march_rays": _march_rays,
    "composite": _composite,
    "composite_backward": _composite_backward,
    "composite_backward_backward": _composite_backward_backward,
    "line_integrals": _line_integrals,
    "line_integrals_backward": _line_integrals_backward,
    "visible_samples": _visible_samples,
    "window_samples": _window_samples,
    "counter_uniform": _counter_uniform,
    "pixel_loss": _pixel_loss,
    "gather_rows": _gather_rows,
    "visible_cells": _visible_cells,
    "sample_positions": _sample_positions,
    "sample_rays": _sample_rays,
    "occupancy_points": _occupancy_points,
    "occupancy_visible": _occupancy_visible,
    "occupancy_update": _occupancy_update,
    "adam_step": _adam_step,
    "adam_step_foreach": _adam_step_foreach,
}

# The CPU composes the radiance field, rays through it and its values in cells of several ops.
CUDA_ONLY = {"radiance_field": _radiance_field, "render_rays": _render_rays, "occupancy_values": _occupancy_values}
# Below sm_80 CUDA's kernels refuse these ops, and `hashgrid.ops` makes the same of others.
TENSOR_CORES_ONLY = {*CUDA_ONLY, "radiance_mlp", "radiance_mlp_backward"}
CPU_ONLY = {"gather_rows", "visible_cells"}
ON_CUDA = {name: samples for name, samples in SAMPLES.items() if name not in CPU_ONLY} | CUDA_ONLY
