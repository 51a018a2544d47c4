"""nerfacc's walk through grids by the description of its kernel: one ray and one cell at a time, in fp64 and Python."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

AHEAD = 1e-10  # how far behind a crossing cells are looked up


class Walk(NamedTuple):
    """Samples of a ray [(start, end)], whether each shares its first edge with the one before, and where it got to."""

    samples: list[tuple[float, float]]
    shared: list[bool]
    reached: float


def crossing(o: np.ndarray, d: np.ndarray, box: np.ndarray) -> tuple[float, float] | None:
    """Where a ray enters a box [6] and leaves it; None if it misses it or the box is behind."""
    first, last = -math.inf, math.inf
    for axis in range(3):
        if d[axis] == 0:
            if not box[axis] <= o[axis] <= box[3 + axis]:
                return None
            continue
        a, b = sorted(((box[axis] - o[axis]) / d[axis], (box[3 + axis] - o[axis]) / d[axis]))
        first, last = max(first, a), min(last, b)
    return (first, last) if first <= last and last > 0 else None


def walk(
    o: np.ndarray,
    d: np.ndarray,
    binaries: np.ndarray,
    boxes: np.ndarray,
    near: float,
    far: float,
    step: float,
    cone: float = 0.0,
    limit: int = 0,
    bridges: bool = False,
) -> Walk:
    """One ray. ``bridges``: as in nerfacc, a ray that leaves one box within a sample and enters another, further away,
    in an occupied cell, has samples on the way there."""
    events = []
    for level, box in enumerate(boxes):
        if found := crossing(o, d, box):
            events += [(found[0], 0, level), (found[1], 1, level)]
    events.sort()
    samples: list[tuple[float, float]] = []
    shared: list[bool] = []
    t, joins, behind = near, False, -math.inf

    def length() -> float:
        return min(max(t * cone, step), 1e10)

    def advance(goal: float) -> float:
        dt, at = length(), t  # the same for all steps of the way
        while at + dt / 2 < goal:
            at += dt
        return at

    for (t0, leaving, level), (t1, next_leaving, next_level) in zip(events, events[1:], strict=False):
        if leaving and not next_leaving:
            continue
        grid = next_level if leaving else level
        begin, end = max(t0, near), min(t1, far)
        if begin >= end:
            continue
        apart, behind = behind < begin - 1e-9, end
        if not joins or (apart and not bridges):
            t, joins = (advance(begin) if step > 0 else begin), False
        box, size = boxes[grid], np.array(binaries.shape[1:])
        side = (box[3:] - box[:3]) / size
        cell, last = (
            np.clip(np.floor((o + d * at - box[:3]) / side), 0, size - 1).astype(int)
            for at in (begin + AHEAD, end - AHEAD)
        )
        sign = np.sign(d).astype(int)
        wall = [(box[a] + (cell[a] + (d[a] > 0)) * side[a] - o[a]) / d[a] if d[a] != 0 else math.inf for a in range(3)]
        while not (limit and len(samples) >= limit):
            goal = min(*wall, end)
            occupied = binaries[(grid, *cell)]
            if not occupied:
                t, joins = (advance(goal) if step > 0 else goal), False
            while occupied and not (limit and len(samples) >= limit):
                if step > 0 and t + length() / 2 >= goal:
                    break
                after = t + length() if step > 0 else goal
                samples.append((t, after))
                shared.append(joins)
                t, joins = after, True
                occupied = step > 0  # else a cell has one sample
            axis = int(np.argmin(wall))
            if cell[axis] == last[axis] or wall[axis] >= end:
                break
            cell[axis] += sign[axis]
            wall[axis] += side[axis] / abs(d[axis])
    return Walk(samples, shared, t)
