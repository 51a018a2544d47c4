"""Volume compositing of packed samples: the eager reference, torch.compile, the native kernels, on a GPU nerfacc."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hashgrid import ops, reference
from hashgrid.bench import harness, peers
from hashgrid.bench.harness import COMPILED, EAGER, OURS, Case, Contender

N_CHANNELS = 3


def main(argv: Sequence[str] | None = None) -> Path:
    """Measures forward, and forward + backward to densities and colours; returns the JSON file."""
    options = harness.parser(__doc__)
    options.add_argument("--rays", type=int, default=None, help="2^13 if none, 2^16 on a GPU")
    options.add_argument("--samples-per-ray", type=int, default=32, help="the mean; rays have 0 to twice as many")
    args = options.parse_args(argv)
    args.rays = harness.size(args, args.rays, 1 << 13, 1 << 16, 64)
    suite = harness.Suite("composite", "sample", args)

    samples = make_samples(args.rays, args.samples_per_ray, suite.device)
    n_samples = samples[0].shape[0]
    per_ray = args.rays / max(n_samples, 1)
    implementations: dict[str, Callable] = {EAGER: reference.composite}
    if not args.no_compile:
        implementations[COMPILED] = torch.compile(reference.composite, dynamic=True)
    implementations[OURS] = ops.composite
    for backward in (False, True):
        contenders = [Contender(name, _run(f, samples, backward)) for name, f in implementations.items()]
        if suite.peers:
            contenders.append(peers.nerfacc_composite(samples, backward))
        # forward: sigma, t0, t1, C channels in, a weight out; per ray 16 bytes of packed_info in, C + 3 sums out.
        # backward: the same in, with the C + 2 gradients of a ray; C + 1 gradients of a sample out.
        moved = 16 + 4 * N_CHANNELS + per_ray * (16 + 4 * (N_CHANNELS + 3))
        formula = "16 + 4 C + R / S (28 + 4 C)"
        if backward:
            moved += 12 + 4 * N_CHANNELS + 4 * (N_CHANNELS + 1) + per_ray * (16 + 4 * (N_CHANNELS + 2))
            formula += " + 16 + 8 C + R / S (24 + 4 C)"
        name = "forward" + (" + backward" if backward else "")
        wide = [x.double() if x.is_floating_point() else x for x in samples]
        truth = _run(reference.composite, wide, backward)
        limit = suite.rates.limit(moved, formula)
        suite.run(Case(name, n_samples, contenders, tolerance=1e-3, limit=limit, truth=truth))
    return suite.write()


def make_samples(n_rays: int, mean: int, device: torch.device) -> tuple[Tensor, ...]:
    """Densities, colours, t_starts, t_ends and packed_info; rays become opaque at various depths."""
    counts = torch.randint(0, 2 * mean + 1, (n_rays,))
    packed_info = torch.stack((counts.cumsum(0) - counts, counts), dim=1)
    n_samples = int(counts.sum())
    rank = torch.arange(n_samples) - packed_info[:, 0].repeat_interleave(counts)
    step = 3**0.5 / 1024
    t_starts = 1 + step * rank
    sigmas = torch.rand(n_rays).repeat_interleave(counts) * torch.rand(n_samples) * 4 / (mean * step)
    colors = torch.rand(n_samples, N_CHANNELS)
    return tuple(x.to(device) for x in (sigmas, colors, t_starts, t_starts + step, packed_info))


def _run(composite: Callable, samples: Sequence[Tensor], backward: bool) -> Callable[[], Sequence[Tensor]]:
    sigmas, colors, *rest = samples
    leaves = sigmas.clone().requires_grad_(), colors.clone().requires_grad_()

    def forward() -> Sequence[Tensor]:
        with torch.no_grad():
            return composite(sigmas, colors, *rest)[:3]

    def forward_backward() -> Sequence[Tensor]:
        outputs = composite(*leaves, *rest)[:3]
        return torch.autograd.grad(outputs, leaves, [torch.ones_like(y) for y in outputs])

    return forward_backward if backward else forward


if __name__ == "__main__":
    main()
