"""nerfacc 0.3 by the description of its kernels: one ray, step or sample at a time, in fp64 and Python."""

from __future__ import annotations

import math

import numpy as np


def contracted(x: np.ndarray, box: np.ndarray, kind: str) -> np.ndarray:
    """A point [3] in the unit cube; kind "aabb", "tanh" or "sphere"."""
    unit = (x - box[:3]) / (box[3:] - box[:3])
    if kind == "aabb":
        return unit
    if kind == "tanh":
        return np.array([0.5 * math.tanh(u - 0.5) + 0.5 for u in unit])
    z = 2 * unit - 1
    norm = math.sqrt(z @ z)
    return 0.5 + 0.25 * (z if norm <= 1 else (2 - 1 / norm) * z / norm)


def value_at(x: np.ndarray, box: np.ndarray, values: np.ndarray, kind: str) -> float:
    """Of the cell in which a point lies, 0 outside of a box."""
    unit = contracted(x, box, kind)
    if kind == "aabb" and ((unit < 0).any() or (unit > 1).any()):
        return 0
    size = np.array(values.shape)
    return values[tuple(np.clip((unit * size).astype(int), 0, size - 1))]


def march(
    o: np.ndarray,
    d: np.ndarray,
    near: float,
    far: float,
    step: float,
    cone: float,
    box: np.ndarray | None = None,
    binary: np.ndarray | None = None,
    kind: str = "aabb",
) -> list[tuple[float, float]]:
    """Begins and ends of a ray's samples."""

    def length(t: float) -> float:
        return min(max(t * cone, step), 1e10)

    samples, begin = [], near
    end = begin + length(begin)
    middle = (begin + end) / 2
    while middle < far:
        x = o + d * middle
        free = binary is not None and not value_at(x, box, binary, kind)
        if not free:
            samples.append((begin, end))
        if free and kind == "aabb":
            # whole smallest steps up to the side of the cell, also of one outside of the box
            side = (box[3:] - box[:3]) / np.array(binary.shape)
            cell = np.floor((x - box[:3]) / side)
            with np.errstate(divide="ignore"):
                walls = (box[:3] + (cell + (d > 0)) * side - x) / d
            goal = min(middle + max(walls.min(), 0), far)
            middle += step
            while middle < goal:
                middle += step
            begin, end = middle - length(middle) / 2, middle + length(middle) / 2
        else:
            begin, end = end, end + length(end)
            middle = (begin + end) / 2
    return samples


def crossing(o: np.ndarray, d: np.ndarray, box: np.ndarray) -> tuple[float, float]:
    """Where a ray enters a box and leaves it, 1e10 if it misses it."""
    with np.errstate(divide="ignore"):
        first, last = np.sort(np.stack(((box[:3] - o) / d, (box[3:] - o) / d)), axis=0)
    enters, leaves = first.max(), last.min()
    return (max(enters, 0), leaves) if enters <= leaves else (1e10, 1e10)


def transmittances(alphas: np.ndarray, counts: list[int]) -> np.ndarray:
    """Up to each sample of rays of so many samples."""
    result, i = np.empty_like(alphas), 0
    for count in counts:
        passed = 1.0
        for _ in range(count):
            result[i] = passed
            passed *= 1 - alphas[i]
            i += 1
    return result


def resampled(starts: np.ndarray, ends: np.ndarray, weights: np.ndarray, n: int) -> np.ndarray:
    """Edges [n + 1] of new samples of one ray, which share its weight but for half of one at either end."""
    weights = weights + max(1e-5 - weights.sum(), 0) / len(weights)
    edges, i, before = [], 0, 0.0
    for j in range(n + 1):
        wanted = (j + 0.5) / (n + 1) * weights.sum()
        while wanted >= before + weights[i]:
            before += weights[i]
            i += 1
        edges.append(starts[i] + (wanted - before) / weights[i] * (ends[i] - starts[i]))
    return np.array(edges)


def distortion(starts: np.ndarray, ends: np.ndarray, weights: np.ndarray) -> float:
    """Of one ray."""
    middle = (starts + ends) / 2
    pairs = np.abs(middle[:, None] - middle) * weights[:, None] * weights
    return pairs.sum() + (weights**2 * (ends - starts)).sum() / 3
