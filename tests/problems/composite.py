"""Samples along rays, the definition of compositing one at a time, derivatives, and how far results may be off."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def make_samples(counts: list[int], dtype: torch.dtype = torch.float64, density: float = 1.0) -> dict[str, Tensor]:
    """Random samples with gaps between them."""
    n_samples = sum(counts)
    t_starts = torch.cat([torch.rand(n, dtype=dtype).add(0.2).cumsum(0) for n in counts])
    count = torch.tensor(counts)
    return {
        "sigmas": torch.rand(n_samples, dtype=dtype) * density,
        "features": torch.rand(n_samples, 3, dtype=dtype),
        "t_starts": t_starts,
        "t_ends": t_starts + 0.2 * torch.rand(n_samples, dtype=dtype) + 0.01,
        "packed_info": torch.stack([count.cumsum(0) - count, count], dim=-1),
    }


def brute_force_composite(samples: dict[str, Tensor], early_stop_eps: float) -> tuple[Tensor, ...]:
    """Straight from the definition, one ray and sample at a time."""
    sigmas, t0, t1 = (samples[name].tolist() for name in ("sigmas", "t_starts", "t_ends"))
    features = samples["features"]
    weights = torch.zeros(len(sigmas), dtype=torch.float64)
    rows = []
    for start, count in samples["packed_info"].tolist():
        ray = range(start, start + count)
        for i in ray:
            transmittance = math.exp(-math.fsum(sigmas[j] * (t1[j] - t0[j]) for j in range(start, i)))
            if transmittance >= early_stop_eps:
                weights[i] = transmittance * (1 - math.exp(-sigmas[i] * (t1[i] - t0[i])))
        w = weights.tolist()
        middle = [(a + b) / 2 for a, b in zip(t0, t1, strict=True)]
        colour = sum((w[i] * features[i].double() for i in ray), torch.zeros(features.shape[1], dtype=torch.float64))
        distortion = sum(w[i] ** 2 * (t1[i] - t0[i]) for i in ray) / 3
        distortion += 2 * sum(w[i] * w[j] * (middle[i] - middle[j]) for i in ray for j in range(start, i))
        rows.append((colour, sum(w[i] for i in ray), sum(w[i] * middle[i] for i in ray), distortion))
    colours, opacities, depths, distortions = zip(*rows, strict=True)
    scalars = [torch.tensor(values, dtype=torch.float64) for values in (opacities, depths, distortions)]
    return torch.stack(colours), scalars[0], scalars[1], weights, scalars[2]


def composite_and_derivatives(composite, samples: dict[str, Tensor], dtype: torch.dtype, **options) -> list[Tensor]:
    """Outputs, gradients and second derivatives in ``dtype``, for cotangents that do not depend on it."""
    samples = {k: v.to(dtype) if v.is_floating_point() else v for k, v in samples.items()}
    inputs = [samples[name].clone().requires_grad_() for name in ("sigmas", "features")]
    outputs = composite(**samples | dict(zip(("sigmas", "features"), inputs, strict=True)), **options)
    generator = torch.Generator().manual_seed(1)

    def random_like(tensors) -> list[Tensor]:
        return [torch.rand(t.shape, generator=generator, dtype=torch.float64).to(dtype) for t in tensors]

    cotangents = [g.requires_grad_() for g in random_like(outputs)]
    grads = torch.autograd.grad(outputs, inputs, cotangents, create_graph=True)
    second = torch.autograd.grad(grads, [*cotangents, *inputs], random_like(grads))
    return [*outputs, *grads, *second]


def check_composite_budget(ours: list[Tensor], theirs: list[Tensor], exact: list[Tensor]) -> None:
    """Twice the error of PyTorch in fp32 and one rounding; three where a tensor is so small that PyTorch is lucky."""
    for a, b, e in zip(ours, theirs, exact, strict=True):
        if e.numel() > 0:
            roundings = 3 if e.numel() < 100 else 1
            budget = 2 * (b - e).abs().max() + roundings * torch.finfo(torch.float32).eps * e.abs().max()
            assert (a - e).abs().max() <= budget
