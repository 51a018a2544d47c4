"""torch-ngp's grid, ray marching and compositing from their formulas: the grid and the sums in fp64 by plain PyTorch,
the march ray by ray in NumPy's fp32."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

PRIMES = (1, 2654435761, 805459861, 3674653429, 2097192037)
F = np.float32


def grid(
    x: Tensor, table: Tensor, offsets: list[int], growth: float, base: int, tiled: bool, align: bool, smooth: bool
) -> Tensor:
    """Features [N, L * C] of ``x`` [N, D] in [0, 1]."""
    n_dims, outputs = x.shape[1], []
    inside = ((x >= 0) & (x <= 1)).all(dim=1, keepdim=True)
    for level, (begin, end) in enumerate(zip(offsets, offsets[1:], strict=False)):
        size = end - begin
        power = F(np.exp2(np.float64(F(level) * F(np.log2(growth)))))
        scale = float(F(np.float64(power) * base - 1))
        resolution = math.ceil(scale) + 1
        position = x * scale + (0 if align else 0.5)
        cell = position.detach().floor()
        t = position - cell
        t = t * t * (3 - 2 * t) if smooth else t
        total = torch.zeros(len(x), table.shape[1], dtype=x.dtype)
        for corner in itertools.product((0, 1), repeat=n_dims):
            vertex = cell.long() + torch.tensor(corner)
            stride, index = 1, torch.zeros(len(x), dtype=torch.int64)
            for axis in range(n_dims):
                if stride > size:
                    break
                index = index + vertex[:, axis] * stride
                stride *= resolution if align else resolution + 1
            if stride > size and not tiled:
                index = torch.zeros_like(index)
                for axis in range(n_dims):
                    index = index ^ (vertex[:, axis] * PRIMES[axis] & 0xFFFFFFFF)
            weight = torch.stack([t[:, a] if bit else 1 - t[:, a] for a, bit in enumerate(corner)]).prod(dim=0)
            total = total + weight[:, None] * table[index % size + begin]
        outputs.append(torch.where(inside, total, torch.zeros_like(total)))
    return torch.cat(outputs, dim=1)


def morton(cell: list[int]) -> int:
    return sum((int(c) >> bit & 1) << (3 * bit + axis) for axis, c in enumerate(cell) for bit in range(10))


def march(
    o: np.ndarray, d: np.ndarray, bound: float, bits: np.ndarray, n_cascades: int, side: int, start: float, far: float,
    most: int, dt_gamma: float, max_steps: int,
) -> list[tuple[float, float, float]]:  # fmt: skip
    """Distance, step and distance from the end of the step before of each sample of one ray."""
    smallest = F(2 * math.sqrt(3) / max_steps)
    largest = F(2 * math.sqrt(3) * 2 ** (n_cascades - 1) / side)

    def step(t: F) -> F:
        return min(max(F(t * F(dt_gamma)), smallest), largest)

    t = last = F(start)
    samples: list[tuple[float, float, float]] = []
    while t < far and len(samples) < most:
        x = np.clip(o + t * d, F(-bound), F(bound))
        exponent = max(math.frexp(np.abs(x).max())[1], math.frexp(step(t) * side * 0.5)[1])
        level = min(max(exponent, 0), n_cascades - 1)
        half = F(min(2.0**level, bound))
        cell = np.clip(F(0.5) * (x / half + F(1)) * F(side), 0, side - 1).astype(np.int64)
        index = level * side**3 + morton(list(cell))
        if bits[index // 8] >> (index % 8) & 1:
            before, t = t, F(t + step(t))
            samples.append((float(before), float(step(before)), float(t - last)))
            last = t
            continue
        border = ((cell + F(0.5) + np.copysign(F(0.5), d)) * F(2 / side) - F(1)) * half
        leaves = t + max(F(0), ((border - x) / d).min())
        while True:
            t = F(t + step(t))
            if not t < leaves:
                break
    return samples


def composite(sigmas: Tensor, rgbs: Tensor, deltas: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Opacity, depth and colour [3] of one ray's samples."""
    transmittance, t = torch.ones((), dtype=sigmas.dtype), 0.0
    opacity, depth, color = sigmas.sum() * 0, sigmas.sum() * 0, rgbs.sum(dim=0) * 0
    for sigma, rgb, (dt, dz) in zip(sigmas, rgbs, deltas.tolist(), strict=True):
        alpha = 1 - torch.exp(-sigma * dt)
        weight, t = alpha * transmittance, t + dz
        opacity, depth, color = opacity + weight, depth + weight * t, color + weight * rgb
        transmittance = transmittance * (1 - alpha)
        if transmittance < threshold:
            break
    return opacity, depth, color
