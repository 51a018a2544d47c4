"""What the layers for other libraries' code cost: milliseconds, beside hashgrid's own modules and plain PyTorch.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/marks/compat.py

Pairs are compared in value first, then timed in turns, and the median is taken. Writes results/compat.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import hashgrid
from hashgrid.compat import nerfacc, nerfacc_0_3, nerfstudio, tinycudann, torch_ngp
from hashgrid.ops import composite
from hashgrid.util.files import atomic_write_json
from hashgrid.util.info import describe

RESULTS = Path(__file__).parent / "results" / "compat.json"
GRID = {"otype": "HashGrid", "n_levels": 16, "n_features_per_level": 2, "log2_hashmap_size": 19, "base_resolution": 16}
GRID["per_level_scale"] = 1.3819
NETWORK = {"otype": "FullyFusedMLP", "n_neurons": 64, "n_hidden_layers": 2}
Pair = tuple[str, dict[str, Callable[[], object]]]


def milliseconds(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median of each, called in turns after one call that does not count."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            if turn:
                found[name].append(1e3 * (time.perf_counter() - begin))
    return {name: round(statistics.median(values), 3) for name, values in found.items()}


def step(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Forward and backward of a mean square."""

    def run() -> Tensor:
        module.zero_grad(set_to_none=True)
        module(x).square().mean().backward()
        return next(module.parameters()).grad

    return run


def tables_and_networks() -> Iterator[Pair]:
    x = torch.rand(4096, 3)
    layers = tinycudann.NetworkWithInputEncoding(3, 16, GRID, NETWORK)
    own = nn.Sequential(
        hashgrid.HashGrid(3, n_levels=16, n_features_per_level=2, log2_hashmap_size=19, per_level_scale=1.3819),
        hashgrid.FusedMLP(32, 16, n_hidden_layers=2, n_neurons=64),
    )
    yield "tiny-cuda-nn: 4096 points", {"layer": step(layers, x), "HashGrid, FusedMLP": step(own, x)}
    step(layers, x)()
    params = [layers.params]
    both = torch.optim.Adam(params), hashgrid.optim.Adam(params)
    yield f"Adam, {len(layers.params)} parameters", {"torch.optim": both[0].step, "hashgrid.optim": both[1].step}


def encoders() -> Iterator[Pair]:
    x = torch.rand(16384, 3)
    ngp = torch_ngp.GridEncoder(3, num_levels=16, level_dim=2, log2_hashmap_size=19, desired_resolution=2048)
    yield "torch-ngp: GridEncoder, 16384 points", {"layer": step(ngp, x)}
    studio = nerfstudio.HashEncoding(16, 16, 2048, 19, 2, implementation="torch")
    yield "nerfstudio: HashEncoding, 16384 points", {"layer": step(studio, x)}


def rays(n: int) -> tuple[Tensor, Tensor]:
    """Origins and unit directions [n, 3] from a sphere around the unit cube into it."""
    random = torch.Generator().manual_seed(0)
    origins = 0.5 + 1.5 * nn.functional.normalize(torch.randn(n, 3, generator=random), dim=1)
    return origins, nn.functional.normalize(torch.rand(n, 3, generator=random) - origins, dim=1)


def marches() -> Iterator[Pair]:
    random = torch.Generator().manual_seed(1)
    coarse = torch.rand(16, 16, 16, generator=random) < 0.1
    occupied = coarse.repeat_interleave(8, 0).repeat_interleave(8, 1).repeat_interleave(8, 2)  # 128^3
    origins, directions = rays(4096)
    estimator = nerfacc.OccGridEstimator(roi_aabb=[0.0, 0.0, 0.0, 1.0, 1.0, 1.0], resolution=128)
    estimator.binaries = occupied[None]
    sample = lambda: estimator.sampling(origins, directions, render_step_size=1.5e-3)  # noqa: E731
    ray_indices, starts, ends = sample()
    n = len(starts)
    yield f"nerfacc: sampling, 4096 rays, {n} samples", {"layer": sample}
    sigmas, colors = torch.rand(n, generator=random).requires_grad_(), torch.rand(n, 3, generator=random)

    def render(weights: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            sigmas.grad = None
            found = nerfacc.accumulate_along_rays(weights(), colors, ray_indices, 4096)
            found.sum().backward()
            return sigmas.grad

        return run

    sample = lambda: estimator.sampling(origins, directions, render_step_size=1.5e-3, cone_angle=1e-3)  # noqa: E731
    yield "nerfacc: sampling, steps that grow", {"layer": sample}
    counts = torch.bincount(ray_indices, minlength=4096)
    column = torch.arange(n) - (counts.cumsum(0) - counts)[ray_indices]
    info = torch.stack((counts.cumsum(0) - counts, counts), dim=1)

    def by_layer() -> Tensor:
        return nerfacc.render_weight_from_density(starts, ends, sigmas, ray_indices=ray_indices, n_rays=4096)[0]

    def by_padding() -> Tensor:
        thickness = torch.zeros(4096, int(counts.max())).index_put((ray_indices, column), sigmas * (ends - starts))
        weights = torch.exp(thickness - thickness.cumsum(1)) * -torch.expm1(-thickness)
        return weights[ray_indices, column]

    def by_op() -> Tensor:
        return composite(sigmas, colors, starts, ends, info, 0.0)[3]

    ways = {"layer": by_layer, "plain PyTorch, padded rays": by_padding, "hashgrid.ops.composite": by_op}
    yield f"nerfacc: weights and colours of {n} samples", {name: render(way) for name, way in ways.items()}

    def gradient(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            sigmas.grad = None
            function().sum().backward()
            return sigmas.grad

        return run

    spread = lambda: nerfacc.distortion(sigmas, starts, ends, ray_indices, 4096)  # noqa: E731
    yield f"nerfacc: distortion of {n} weights", {"layer": gradient(spread)}
    for name in ("exclusive_sum", "exclusive_prod"):
        scan = lambda name=name: getattr(nerfacc, name)(sigmas, packed_info=info)  # noqa: E731
        yield f"nerfacc: {name} of {n} samples", {"layer": gradient(scan)}
    edges = nerfacc.RayIntervals(vals=torch.linspace(0, 1, 65).repeat(4096, 1))
    places = lambda: nerfacc.importance_sampling(edges, edges.vals.square(), 64)[0].vals  # noqa: E731
    yield "nerfacc: importance_sampling, 4096 rays, 64 intervals from 64", {"layer": places}

    for kind in (nerfacc_0_3.ContractionType.AABB, nerfacc_0_3.ContractionType.UN_BOUNDED_SPHERE):
        old = nerfacc_0_3.OccupancyGrid([0.0, 0.0, 0.0, 1.0, 1.0, 1.0], 128, kind)
        old._binary.copy_(occupied)
        steps = {"grid": old, "near_plane": 0.1, "far_plane": 4.0, "render_step_size": 1.5e-3}
        look = lambda steps=steps: nerfacc_0_3.ray_marching(origins, directions, **steps)  # noqa: E731
        yield f"nerfacc 0.3: ray_marching, 4096 rays, {kind.name}, {len(look()[0])} samples", {"layer": look}

    cells = torch.randint(0, 256, (128**3 // 8,), dtype=torch.uint8, generator=random)
    cells &= torch.randint(0, 256, cells.shape, dtype=torch.uint8, generator=random)
    cells &= torch.randint(0, 256, cells.shape, dtype=torch.uint8, generator=random)
    centred = 2 * origins - 1, directions
    box = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0])
    bounds = torch_ngp.near_far_from_aabb(*centred, box)
    march = lambda: torch_ngp.march_rays_train(*centred, 1.0, cells, 1, 128, *bounds, max_steps=512)  # noqa: E731
    _, _, deltas, found = march()
    yield f"torch-ngp: march_rays_train, 4096 rays, {len(deltas)} samples", {"layer": march}
    sigmas, colors = torch.rand(len(deltas), requires_grad=True), torch.rand(len(deltas), 3)
    seen = lambda: torch_ngp.composite_rays_train(sigmas, colors, deltas, found)[2]  # noqa: E731
    yield f"torch-ngp: composite_rays_train of {len(deltas)} samples", {"layer": gradient(seen)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.manual_seed(0)
    results: dict[str, object] = {"environment": dict(describe()), "rounds": args.rounds}
    for group in (tables_and_networks, encoders, marches):
        for name, functions in group():
            values = [function() for function in functions.values()] if "nerfacc" in name else []
            for value in values[1:]:
                torch.testing.assert_close(value, values[0], rtol=1e-3, atol=1e-6)
            results[name] = milliseconds(functions, args.rounds)
            print(name, results[name], flush=True)
            atomic_write_json(RESULTS, results)


if __name__ == "__main__":
    main()
