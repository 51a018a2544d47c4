"""Runs every op once, forward, backward and second order, at sizes around a block, for compute-sanitizer to watch.

    compute-sanitizer --tool memcheck python tests/cuda/sanitize.py
    python tests/cuda/sanitize.py --device cpu     # that it runs at all
    python tests/cuda/sanitize.py --only mlp composite     # these ops and their derivatives

Results are not looked at here, the tests do that; what counts is which memory the kernels touch.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from host.redirect import has_tensor_cores  # noqa: E402
from problems.samples import AABB, ON_CUDA, SAMPLES, TENSOR_CORES_ONLY  # noqa: E402

from hashgrid import _extension, ops  # noqa: E402
from hashgrid.levels import make_level_table  # noqa: E402
from hashgrid.ops import _ngp
from hashgrid.util.choices import FACTORS  # noqa: E402

SIZES = (1, 255, 257)
RESOLUTION, N_CASCADES = (8, 9, 10), 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--only", nargs="+", choices=list(WORK), metavar="OP", help="ops, of: " + " ".join(WORK))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no further op begins")
    args = parser.parse_args()
    torch.set_default_device(args.device)
    begin, left_out = time.monotonic(), []
    for name, run in tasks(args.only, args.device, args.sizes).items():
        if time.monotonic() - begin > args.seconds:
            left_out.append(name)
            continue
        run()
        print(name, flush=True)
    if args.device != "cpu":
        torch.cuda.synchronize()
    print(f"left out after {args.seconds:g} s: {', '.join(left_out)}" if left_out else "done")


def tasks(only: Sequence[str] | None, device: str, sizes: Sequence[int]) -> dict[str, Callable[[], None]]:
    """What is run by what is said of it: the samples of the ops of each name in `WORK`, then the ops at each size."""
    found: dict[str, Callable[[], None]] = {}
    for op, samples in (ON_CUDA if device != "cpu" else SAMPLES).items():
        # the longest name that fits: hash_encode_mlp is not hash_encode's
        names = [name for name in WORK if op == name or op.startswith(f"{name}_")]
        if only is None or max(names, key=len, default=None) in only:
            found[f"{op}: samples"] = functools.partial(lambda op, samples: run_samples(op, samples()), op, samples)
    for name in only or WORK:
        for n in sizes:
            found[f"{name}: size {n}"] = functools.partial(work, name, n)
    return found


def work(name: str, n: int) -> None:
    torch.manual_seed(n)
    WORK[name](n)


def run_samples(name: str, samples: Iterable[Sequence]) -> None:
    on_gpu = torch.get_default_device().type == "cuda"
    if on_gpu and name in TENSOR_CORES_ONLY and not has_tensor_cores(torch.ops.hashgrid):
        return  # it refuses, and the work below takes others
    op = getattr(_extension.ops(), name)
    for arguments in samples:
        with torch.no_grad():
            op(*arguments)


def twice(y: Tensor | Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    """First derivative to all inputs, then the second one through it."""
    outputs = [y] if isinstance(y, Tensor) else list(y)
    cotangents = [torch.randn_like(t).requires_grad_() for t in outputs]
    first = torch.autograd.grad(outputs, inputs, cotangents, create_graph=True, allow_unused=True)
    smooth = [g for g in first if g is not None and g.requires_grad]
    if smooth:
        torch.autograd.grad(smooth, [*inputs, *cotangents], [torch.randn_like(g) for g in smooth], allow_unused=True)


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def hash_encode(n: int) -> None:
    for dims, features, interpolation, bounds, dtype in (
        (2, 1, "linear", "clamp", torch.float32),
        (3, 2, "linear", "clamp", torch.float32),
        (3, 4, "smoothstep", "zero", torch.float32),
        (4, 8, "linear", "none", torch.float32),
        (5, 2, "nearest", "clamp", torch.float32),
        (3, 2, "smoothstep", "clamp", torch.float64),
    ):
        levels = make_level_table(dims, n_levels=4, log2_hashmap_size=8, base_resolution=3, max_resolution=16)
        x = (1.2 * torch.rand(n, dims, dtype=dtype) - 0.1).requires_grad_()
        table, weights = leaf(levels.n_entries, features, dtype=dtype), leaf(4, dtype=dtype)
        options = {"interpolation": interpolation, "bounds": bounds}
        twice(ops.hash_encode(x, table, levels, level_weights=weights, **options), [x, table, weights])
        twice(ops.hash_encode(x, table, levels, **options), [x, table])
        if dtype == torch.float64:
            continue
        for half in (torch.float16, torch.bfloat16):
            y = _ngp.hash_encode_into(x, table, levels, half_table=table.detach().to(half), **options)
            torch.autograd.grad(y.float().sum(), [x, table])
        torch.use_deterministic_algorithms(True)
        torch.autograd.grad(ops.hash_encode(x, table, levels, **options).sum(), table)
        torch.use_deterministic_algorithms(False)
        buffer = torch.zeros_like(table)
        _ngp.hash_encode_into(x.detach(), table, levels, grad_buffer=buffer, **options).sum().backward()


def hash_encode_jet(n: int) -> None:
    for dims, dtype in ((2, torch.float32), (3, torch.float32), (3, torch.float64)):
        levels = make_level_table(dims, n_levels=4, log2_hashmap_size=8, base_resolution=3, max_resolution=16)
        x = (1.2 * torch.rand(n, dims, dtype=dtype) - 0.1).requires_grad_()
        leaves = [x, leaf(n, 2, dims, dtype=dtype), leaf(levels.n_entries, 2, dtype=dtype)]
        torch.autograd.grad([y.sum() for y in ops.hash_encode_jet(*leaves, levels, "smoothstep")], leaves)


def mlp_jet(n: int) -> None:
    for activation, dtype in (("tanh", torch.float32), ("sine", torch.float64)):
        x, directions = leaf(n, 3, dtype=dtype), leaf(n, 2, 3, dtype=dtype)
        weights = [leaf(32, 3, dtype=dtype), leaf(2, 32, dtype=dtype)]
        jets = ops.mlp_jet(x, directions, weights, None, activation, "none")
        torch.autograd.grad([y.sum() for y in jets], [x, directions, *weights])


def hash_encode_mlp(n: int) -> None:
    for dims, features in ((2, 2), (3, 2), (3, 8), (3, 1)):
        levels = make_level_table(dims, n_levels=4, log2_hashmap_size=8, base_resolution=3, max_resolution=16)
        x, table = 1.2 * torch.rand(n, dims) - 0.1, torch.randn(levels.n_entries, features)
        for half in (torch.float16, torch.bfloat16):
            for width in (48, 128):
                weights = [torch.randn(width, 4 * features), torch.randn(5, width)]
                options = {"biases": [torch.randn(width), torch.randn(5)], "compute_dtype": half}
                _ngp.hash_encode_mlp(x, table, levels, weights, half_table=table.to(half), **options)
                _ngp.hash_encode_mlp(x, table, levels, weights, activation="softplus", **options)


def radiance_field(n: int) -> None:
    levels = make_level_table(3, n_levels=4, log2_hashmap_size=8, base_resolution=3, max_resolution=16)
    x, table, rays = 1.2 * torch.rand(n, 3) - 0.1, torch.randn(levels.n_entries, 2), torch.randint(7, (n,))
    for half in (torch.float16, torch.bfloat16):
        for n_ray_features in (2, 16, 48):
            density = [torch.randn(64, 8), torch.randn(16, 64)]
            color = [torch.randn(64, 16 + n_ray_features), torch.randn(3, 64)]
            for half_table in (None, table.to(half)):
                ray_features = torch.randn(7, n_ray_features)
                _ngp.radiance_field(
                    x, ray_features, rays, table, levels, density, color, half_table=half_table, compute_dtype=half
                )


def render_rays(n: int) -> None:
    levels = make_level_table(3, n_levels=4, log2_hashmap_size=8, base_resolution=3, max_resolution=16)
    table, box = torch.randn(levels.n_entries, 2), torch.tensor([-0.5, -0.5, -0.5, 0.5, 0.5, 0.5])
    density, color = [torch.randn(64, 8), torch.randn(16, 64)], [torch.randn(64, 22), torch.randn(3, 64)]
    rays = 3 * torch.rand(n, 3) - 1.5, torch.randn(n, 3), torch.randn(n, 6)
    for half in (torch.float16, torch.bfloat16):
        for n_cascades in (1, 3):
            bits = torch.randint(256, (n_cascades * 512,), dtype=torch.uint8)
            for half_table in (None, table.to(half)):
                _ngp.render_rays(
                    *rays, box, bits, (16, 16, 16), n_cascades, 4 * box, table, levels, density, color,
                    half_table=half_table, compute_dtype=half, step_size=0.04,
                )  # fmt: skip


def occupancy_values(n: int) -> None:
    levels = make_level_table(3, n_levels=4, log2_hashmap_size=8, base_resolution=3, max_resolution=16)
    table, box = torch.randn(levels.n_entries, 2), torch.tensor([-0.5, -0.5, -0.5, 0.5, 0.5, 0.5])
    for half in (torch.float16, torch.bfloat16):
        for width, n_out in ((64, 16), (24, 1)):
            weights = [torch.randn(width, 8), torch.randn(n_out, width)]
            for half_table in (None, table.to(half)):
                _ngp.occupancy_values(
                    torch.randint(3 * 512, (n,)), box, (8, 8, 8), 3, 1, 2, 4 * box, table, levels, weights,
                    half_table=half_table, compute_dtype=half, step_size=0.04,
                )  # fmt: skip


def radiance_mlp(n: int) -> None:
    for half in (None, torch.float16, torch.bfloat16):
        for n_ray_features, width in ((2, 64), (16, 24), (48, 64)):
            density = [leaf(width, 12), leaf(16, width)]
            color = [leaf(width, 16 + n_ray_features), leaf(width, width), leaf(3, width)]
            x, ray_features, rays = leaf(n, 12), torch.randn(7, n_ray_features), torch.randint(7, (n,))
            frozen = [weight.detach() for weight in density], [weight.detach() for weight in color]
            for networks in ((density, color), frozen):
                sigmas, colors = _ngp.radiance_mlp(x, ray_features, rays, *networks, compute_dtype=half)
                (sigmas.sum() + colors.square().sum()).backward()


def mlp(n: int) -> None:
    networks = (32, 64, 64, 16), (17, 32, 3), (3, 128, 128, 1), (5, 200, 3)
    kinds = [(widths, torch.float32, factor) for widths in networks for factor in FACTORS]
    for widths, dtype, factor in [*kinds, ((3, 40, 5), torch.float64, None)]:
        shapes = [(b, a) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        for bias, activation, output_activation in ((False, "relu", "none"), (True, "silu", "sigmoid")):
            x, weights = leaf(n, widths[0], dtype=dtype), [leaf(*shape, dtype=dtype) for shape in shapes]
            biases = [leaf(shape[0], dtype=dtype) for shape in shapes] if bias else None
            y = ops.mlp(x, weights, biases, activation, output_activation, factor)
            twice(y, [x, *weights, *(biases or [])])


def sh_encode(n: int) -> None:
    for dtype in (torch.float32, torch.float64):
        for degree in (1, 4, 8):
            x = leaf(n, 3, dtype=dtype)
            twice(ops.sh_encode(torch.nn.functional.normalize(x, dim=1), degree), [x])


def frequency_encode(n: int) -> None:
    for dtype in (torch.float32, torch.float64):
        x = leaf(n, 3, dtype=dtype)
        twice(ops.frequency_encode(x, 7), [x])


def rays(n: int) -> tuple[Tensor, Tensor, Tensor]:
    origins = 2 * torch.nn.functional.normalize(torch.randn(n, 3), dim=1)
    return origins, torch.nn.functional.normalize(0.3 * torch.randn(n, 3) - origins, dim=1), torch.tensor(AABB)


def march_rays(n: int) -> None:
    origins, directions, aabb = rays(n)
    n_cells = N_CASCADES * RESOLUTION[0] * RESOLUTION[1] * RESOLUTION[2]
    bits = torch.randint(256, (-(-n_cells // 8),), dtype=torch.uint8)
    ops.ray_aabb(origins, directions, aabb)
    for dtype in (torch.float32, torch.float64):
        grid = origins.to(dtype), directions.to(dtype), aabb.to(dtype), bits, RESOLUTION, N_CASCADES
        for cone_angle, seed in ((0.0, None), (1 / 64, 7)):
            options = {"step_size": 0.05, "cone_angle": cone_angle, "seed": seed, "step": 3}
            ops.march_rays(*grid, **options)
            for n_samples in (1, 255, 40 * n):
                ops.march_rays(*grid, n_samples=n_samples, n_rays=torch.tensor([max(1, n - 2)]), **options)


def sphere_trace(n: int) -> None:
    for dtype in (torch.float32, torch.float64):
        origins, directions, aabb = (x.to(dtype) for x in rays(n))
        for scale in (1.0, 2.5):  # the second goes through the surface and back
            ops.sphere_trace(
                lambda x, scale=scale: scale * (x.norm(dim=1) - 0.5), origins, directions,
                *ops.ray_aabb(origins, directions, aabb),
            )  # fmt: skip


def samples_along(n_rays: int) -> tuple[Tensor, Tensor, Tensor]:
    """t_starts, t_ends and packed_info of rays with 0 to 69 samples, lanes of a warp twice and more."""
    counts = torch.arange(n_rays) * 7 % 70
    packed_info = torch.stack((counts.cumsum(0) - counts, counts), dim=1)
    t_starts = torch.cat([0.1 * torch.arange(int(count)) for count in counts])
    return t_starts, t_starts + 0.1, packed_info


def composite(n: int) -> None:
    t_starts, t_ends, packed_info = samples_along(n)
    for dtype in (torch.float32, torch.float64):
        for channels in (3, 5):
            sigmas = torch.rand(len(t_starts), dtype=dtype).requires_grad_()
            features = leaf(len(t_starts), channels, dtype=dtype)
            twice(ops.composite(sigmas, features, t_starts, t_ends, packed_info), [sigmas, features])
            rest = features, t_starts, t_ends, packed_info
            twice(ops.composite(None, *rest, alphas=sigmas, return_transmittances=True), [sigmas, features])
        for channels in (1, 5):
            values = leaf(len(t_starts), channels, dtype=dtype)
            twice(ops.line_integrals(values, t_starts, t_ends, packed_info), [values])
        sigmas = 20 * torch.rand(len(t_starts), dtype=dtype)
        _ngp.visible_samples(sigmas, t_starts, t_ends, packed_info, 1e-2)
        for begin in (0, 3):
            _ngp.window_samples(*torch.rand(2, n, 3), sigmas, t_starts, t_ends, packed_info, begin, 40, 1e-2)


def occupancy(n: int) -> None:
    resolution = (n, 3, 2)
    cells = torch.arange(0, N_CASCADES * n * 6, 2)
    points = _ngp.occupancy_points(cells, torch.tensor(AABB), resolution, N_CASCADES, seed=7, step=3)
    seen = _ngp.occupancy_visible(torch.randn(3, 5, 4), torch.tensor(AABB), resolution, N_CASCADES)
    density = torch.where(seen, torch.rand(len(seen)), -1.0)
    bits = torch.zeros(-(-len(seen) // 8), dtype=torch.uint8)
    _ngp.occupancy_update(density, bits, cells, points.norm(dim=1))
    ops.counter_uniform(7, 3, cells)


def sample_positions(n: int) -> None:
    for dtype in (torch.float32, torch.float64):
        rays, (begin, end) = torch.randn(2, 9, 3, dtype=dtype), torch.rand(2, n, dtype=dtype)
        _ngp.sample_positions(*rays, torch.randint(9, (n,)), begin, end)


def pixel_loss(n: int) -> None:
    for dtype in (torch.float32, torch.float64):
        for n_rays in (None, torch.tensor([n // 2])):
            tensors = leaf(n, 3, dtype=dtype), leaf(n, dtype=dtype), *torch.rand(2, n, 3, dtype=dtype)
            _ngp.pixel_loss(*tensors, n_rays=n_rays)[0].backward()


def sample_rays(n: int) -> None:
    sizes, offsets = torch.tensor([[5, 4], [300, 1], [1, 1]]), torch.tensor([0, 20, 320, 321])
    cameras = offsets, sizes, torch.randn(3, 3, 4), torch.rand(3, 4) + 1
    lens = torch.randn(321, 2), torch.stack((offsets[:3], sizes[:, 0]), dim=1)
    for n_channels in (3, 4):
        data = torch.randint(256, (321, n_channels), dtype=torch.uint8)
        _ngp.sample_rays(7, 3, n, data, *cameras)
        _ngp.sample_rays(7, 3, n, data, *cameras, *lens)


def adam_step(n: int) -> None:
    for features, dtype in ((1, torch.float32), (2, torch.float32), (3, torch.float32), (4, torch.float32),
                            (8, torch.float32), (2, torch.float64)):  # fmt: skip
        for skip_zero in (False, True):
            param, grad, m, ema = (torch.randn(n, features, dtype=dtype) for _ in range(4))
            grad[::2] = 0
            steps = torch.zeros(n if skip_zero else 1, dtype=torch.int32)
            ops.adam_step(
                param, grad, m, torch.rand_like(m), steps, torch.tensor(1e-2), 0.9, 0.99, 1e-15, 1e-6, skip_zero,
                ema, steps.clone(), 0.95, 4, param.half(), True,
            )  # fmt: skip
        many = [[torch.rand(n, features, dtype=dtype) for _ in range(4)] for _ in range(3)]
        steps = [torch.zeros(1, dtype=torch.int32) for _ in many]
        ops.adam_step(*zip(*many, strict=True), steps, torch.tensor(1e-2), 0.9, 0.99, 1e-15, 1e-6, False)


WORK: dict[str, Callable[[int], None]] = {
    "hash_encode": hash_encode,
    "hash_encode_jet": hash_encode_jet,
    "hash_encode_mlp": hash_encode_mlp,
    "radiance_field": radiance_field,
    "radiance_mlp": radiance_mlp,
    "occupancy_values": occupancy_values,
    "render_rays": render_rays,
    "mlp": mlp,
    "mlp_jet": mlp_jet,
    "sh_encode": sh_encode,
    "frequency_encode": frequency_encode,
    "sphere_trace": sphere_trace,
    "march_rays": march_rays,
    "composite": composite,
    "occupancy": occupancy,
    "pixel_loss": pixel_loss,
    "sample_positions": sample_positions,
    "sample_rays": sample_rays,
    "adam_step": adam_step,
}

if __name__ == "__main__":
    main()
