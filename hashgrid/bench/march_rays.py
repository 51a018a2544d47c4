"""Ray marching through an occupancy grid, and the grid's update: the reference, the kernels, on a GPU nerfacc."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hashgrid import ops, reference
from hashgrid.bench import harness, peers
from hashgrid.bench.harness import EAGER, OURS, Case, Contender
from hashgrid.ops import _ngp

STEP = 3**0.5 / 1024
AABB = (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)


def main(argv: Sequence[str] | None = None) -> Path:
    """Measures marching and the update of all cells; returns the JSON file. The march's loop is not compiled."""
    options = harness.parser(__doc__)
    options.add_argument("--rays", type=int, default=None, help="2^12 if none, 2^16 on a GPU")
    options.add_argument("--resolution", type=int, default=None, help="cells per axis, 128 if none")
    args = options.parse_args(argv)
    args.rays = harness.size(args, args.rays, 1 << 12, 1 << 16, 16)
    args.resolution = harness.size(args, args.resolution, 128, 128, 16)
    suite = harness.Suite("march_rays", "sample", args)

    occupied = shell(args.resolution)
    rays_o, rays_d = make_rays(args.rays)
    aabb = torch.tensor(AABB)
    grid = tuple(x.to(suite.device) for x in (rays_o, rays_d, aabb, pack(occupied.flatten())))
    resolution = (args.resolution,) * 3

    def march(implementation: Callable, **options: int) -> Callable[[], Sequence[Tensor]]:
        def run() -> Sequence[Tensor]:
            t_starts, t_ends, _, packed_info, *_ = implementation(*grid, resolution, step_size=STEP, **options)
            return t_starts, t_ends, packed_info

        return run

    n_samples = march(ops.march_rays)()[0].shape[0]
    contenders = [Contender(EAGER, march(reference.march_rays)), Contender(OURS, march(ops.march_rays))]
    if suite.peers:
        contenders.append(peers.nerfacc_march(grid[0], grid[1], grid[2], occupied.to(suite.device), STEP))
    # written: t0, t1 and the ray of a sample; per ray 24 bytes in, packed_info out; the grid stays in cache
    limit = suite.rates.limit(16 + args.rays / n_samples * 40, "16 + 40 R / S")
    suite.run(Case("march", n_samples, contenders, limit=limit))
    contenders = [
        Contender(EAGER, march(reference.march_rays, n_samples=n_samples)),
        Contender(OURS, march(ops.march_rays, n_samples=n_samples)),
    ]
    suite.run(Case("march, size known beforehand", n_samples, contenders, limit=limit))

    n_cells = occupied.numel()
    cells, values = torch.arange(n_cells, device=suite.device), torch.rand(n_cells, device=suite.device) * 0.02
    # reads and writes each density, twice read for the threshold; index and value of each sample; one bit
    limit = suite.rates.limit(4 * 4 + 12 + 1 / 8, "16 + 12 + 1/8")
    contenders = [
        _update(EAGER, reference.occupancy_update, cells, values),
        _update(OURS, _ngp.occupancy_update, cells, values),
    ]
    suite.run(Case("occupancy update, per cell, all cells sampled", n_cells, contenders, limit=limit))
    return suite.write()


def _update(name: str, implementation: Callable, cells: Tensor, values: Tensor) -> Contender:
    n = values.shape[0]

    def state() -> tuple[Tensor, Tensor]:
        return values.flip(0).clone(), torch.zeros(-(-n // 8), dtype=torch.uint8, device=values.device)

    kept = state()

    def run() -> Sequence[Tensor]:
        implementation(*kept, cells, values)
        return kept

    def check() -> Sequence[Tensor]:
        density, bits = state()
        implementation(density, bits, cells, values)
        return density, bits

    return Contender(name, run, check=check)


def shell(resolution: int) -> Tensor:
    """[X, Y, Z] bool: the cells around a sphere's surface, as a trained grid has them."""
    centres = (torch.arange(resolution) + 0.5) / resolution - 0.5
    radius = (centres[:, None, None] ** 2 + centres[None, :, None] ** 2 + centres[None, None, :] ** 2).sqrt()
    return (radius - 0.35).abs() < 2.0 / resolution + 0.01


def pack(flags: Tensor) -> Tensor:
    """``flags`` [n] bool as [ceil(n / 8)] uint8, the first one in the lowest bit."""
    padded = torch.nn.functional.pad(flags, (0, -flags.shape[0] % 8)).view(-1, 8)
    return (padded * 2 ** torch.arange(8)).sum(-1).to(torch.uint8)


def make_rays(n: int) -> tuple[Tensor, Tensor]:
    """Origins on a sphere around the unit cube, directions to points in its middle."""
    origins = 0.5 + 1.5 * torch.nn.functional.normalize(torch.randn(n, 3), dim=1)
    targets = 0.2 + 0.6 * torch.rand(n, 3)
    return origins, torch.nn.functional.normalize(targets - origins, dim=1)


if __name__ == "__main__":
    main()
