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


def with_alphas(samples: dict[str, Tensor]) -> dict[str, Tensor | None]:
    """The same samples, of which the alphas are known instead of the densities."""
    thickness = samples["sigmas"] * (samples["t_ends"] - samples["t_starts"])
    return samples | {"sigmas": None, "alphas": -torch.expm1(-thickness)}


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


def composite_of_products(alphas: Tensor, samples: dict, early_stop_eps: float) -> tuple[Tensor, ...]:
    """The outputs from ``T_{i+1} = T_i (1 - alpha_i)``, one sample at a time, in ops that PyTorch differentiates."""
    t0, t1, features = samples["t_starts"], samples["t_ends"], samples["features"]
    middle = (t0 + t1) / 2
    rows, weights, transmittances = [], [], []
    zero = alphas.new_zeros(())
    for start, count in samples["packed_info"].tolist():
        through, row = torch.ones((), dtype=alphas.dtype), [torch.zeros_like(features[0]), zero, zero, zero]
        w: list[Tensor] = []
        for i in range(start, start + count):
            counts = through >= early_stop_eps
            transmittances.append(through if counts else zero)
            w.append(transmittances[-1] * alphas[i])
            spread = sum((w[j - start] * (middle[i] - middle[j]) for j in range(start, i)), zero)
            terms = (
                w[-1] * features[i],
                w[-1],
                w[-1] * middle[i],
                w[-1] ** 2 * (t1[i] - t0[i]) / 3 + 2 * w[-1] * spread,
            )
            row = [total + term for total, term in zip(row, terms, strict=True)]
            through = through * (1 - alphas[i])
        rows.append(row)
        weights += w
    colours, opacities, depths, distortion = (torch.stack(column) for column in zip(*rows, strict=True))
    return colours, opacities, depths, torch.stack(weights), distortion, torch.stack(transmittances)


def composite_and_derivatives(composite, samples: dict, dtype: torch.dtype, **options) -> list[Tensor]:
    """Outputs, gradients and second derivatives in ``dtype``, for cotangents that do not depend on it."""
    samples = {k: v.to(dtype) if v is not None and v.is_floating_point() else v for k, v in samples.items()}
    names = ("sigmas" if samples["sigmas"] is not None else "alphas", "features")
    inputs = [samples[name].clone().requires_grad_() for name in names]
    outputs = composite(**samples | dict(zip(names, inputs, strict=True)), return_transmittances=True, **options)
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
