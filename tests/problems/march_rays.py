"""Rays and occupied cells to march through, options of the march, and the march one step at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

AABB = torch.tensor([-1.0, -1.0, -0.5, 1.0, 1.0, 0.5], dtype=torch.float64)
RESOLUTION = (4, 5, 3)
OPTIONS = [
    {"step_size": 0.013},
    {"step_size": 0.02, "seed": 2**63 + 5, "step": 7, "max_samples_per_ray": 9},
    {"step_size": 0.01, "near": 1.2, "far": 2.1},
    {"step_size": 0.01, "cone_angle": 0.02},
    {"step_size": 0.005, "cone_angle": 1 / 256, "seed": -3, "step": 2**32 + 1},
    {"step_size": 0.7},
]


def make_rays(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Rays from around the box towards it, directions of different lengths, some along an axis."""
    rays_o = torch.randn(n, 3, dtype=dtype) * 2
    rays_d = torch.rand(n, 3, dtype=dtype) - 0.5 - rays_o
    rays_d = rays_d / rays_d.norm(dim=-1, keepdim=True) * (0.5 + torch.rand(n, 1, dtype=dtype))
    rays_o[:3], rays_d[:3] = 0.03, torch.eye(3, dtype=dtype) * -1.1
    return rays_o, rays_d


def random_cells(n_cells: int = math.prod(RESOLUTION), occupied: float = 0.4) -> list[bool]:
    return (torch.rand(n_cells) < occupied).tolist()


def pack(cells: list[bool]) -> Tensor:
    data = [0] * ((len(cells) + 7) // 8)
    for cell, is_occupied in enumerate(cells):
        data[cell >> 3] |= is_occupied << (cell & 7)
    return torch.tensor(data, dtype=torch.uint8)


def scene(n_rays: int, resolution: tuple[int, int, int], n_cascades: int, occupied: float, dtype: torch.dtype) -> tuple:
    """Positional arguments of march_rays, rays of every kind included."""
    rays_o, rays_d = make_rays(max(n_rays, 12))
    rays_o[4], rays_d[5], rays_d[6] = math.nan, 0, torch.tensor([1.0, math.nan, 0])
    rays_o[7], rays_o[8, 0] = 100, math.inf
    bits = pack(random_cells(n_cascades * math.prod(resolution), occupied))
    return rays_o[:n_rays].to(dtype), rays_d[:n_rays].to(dtype), AABB.to(dtype), bits, resolution, n_cascades


def brute_force_hash(seed: int, step: int, index: int) -> float:
    def mix(h: int) -> int:
        h ^= h >> 16
        h = h * 0x7FEB352D % 2**32
        h ^= h >> 15
        h = h * 0x846CA68B % 2**32
        return h ^ (h >> 16)

    h = mix(seed % 2**32 ^ 0x9E3779B9)
    h = mix(h ^ (seed >> 32) % 2**32)
    h = mix(h ^ step % 2**32)
    return (mix(h ^ index % 2**32) >> 8) / 2**24


def brute_force_march(o: list[float], d: list[float], cells: list[bool], n_cascades: int, options: dict) -> list[tuple]:
    """One ray, one whole step at a time.

    With equal steps skipping is an optimisation that must not show. Growing steps can enter a coarser cascade within a
    cell they skip, so that there the exit from the cell belongs to the definition.
    """
    low, high = AABB[:3].tolist(), AABB[3:].tolist()
    centre = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
    half = [(b - a) / 2 for a, b in zip(low, high, strict=True)]

    def box_low(c: int) -> list[float]:
        return [m - h * 2**c for m, h in zip(centre, half, strict=True)]

    def cell_size(c: int) -> list[float]:
        return [2 * h * 2**c / n for h, n in zip(half, RESOLUTION, strict=True)]

    t0, t1 = options.get("near", 0.0), options.get("far", math.inf)
    for axis in range(3):
        a = centre[axis] - half[axis] * 2 ** (n_cascades - 1)
        b = centre[axis] + half[axis] * 2 ** (n_cascades - 1)
        if d[axis] == 0:
            if not a <= o[axis] <= b:
                return []
            continue
        enter, leave = sorted([(a - o[axis]) / d[axis], (b - o[axis]) / d[axis]])
        t0, t1 = max(t0, enter), min(t1, leave)

    step_size, cone_angle = options["step_size"], options.get("cone_angle", 0.0)
    max_step = max(step_size, math.hypot(*cell_size(n_cascades - 1)))

    def step(t: float) -> float:
        return min(max(t * cone_angle, step_size), max_step)

    t_begin = t0
    if options.get("seed") is not None:
        t_begin += brute_force_hash(options["seed"], options["step"], options["ray"]) * step(t0)
    t, k, t_empty, samples = t_begin, 0, -math.inf, []
    while (middle := t + step(t) / 2) < t1 and len(samples) < options.get("max_samples_per_ray", 1024):
        p = [a + b * middle for a, b in zip(o, d, strict=True)]
        c = 0
        while c < n_cascades - 1 and (
            any(abs(x - m) > h * 2**c for x, m, h in zip(p, centre, half, strict=True)) or step(t) > min(cell_size(c))
        ):
            c += 1
        index, t_exit = c, math.inf
        for axis, (a, s, n) in enumerate(zip(box_low(c), cell_size(c), RESOLUTION, strict=True)):
            cell = min(max(math.floor((p[axis] - a) / s), 0), n - 1)
            index = index * n + cell
            if d[axis] != 0:
                t_exit = min(t_exit, (a + (cell + (d[axis] > 0)) * s - o[axis]) / d[axis])
        if cone_angle == 0 or middle >= t_empty:
            if cells[index]:
                samples.append((t, t + step(t)))
            else:
                t_empty = t_exit
        k += 1
        t = t_begin + k * step_size if cone_angle == 0 else t + step(t)
    return samples
