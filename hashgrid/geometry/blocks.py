"""Boxes that a scene is cut into, and how much of a point, or of a place on a ray, belongs to each."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from hashgrid.geometry.rays import Rays
from hashgrid.ops import ray_aabb

NEAREST_STEPS = 12  # by which the nearest places of a ray and a box approach each other


@dataclass(frozen=True)
class Cut:
    """A box cut into equal blocks, neighbours of which overlap.

    Attributes:
        whole: corners of the box, the lower one first, in any coordinates.
        grid: number of blocks along each axis.
        overlap: width of what two neighbours share, as a share of the side of a block.

    Raises:
        ValueError: the box is none, there is no block along an axis, or the overlap is not in 0..1.

    Example:
        >>> cut = Cut((0.0, 0.0, 0.0, 4.0, 2.0, 2.0), (2, 1, 1), 0.1)
        >>> [cut.box(number) for number in cut.numbers()]
        [(0.0, 0.0, 0.0, 2.1, 2.0, 2.0), (1.9, 0.0, 0.0, 4.0, 2.0, 2.0)]
    """

    whole: tuple[float, ...]
    grid: tuple[int, ...]
    overlap: float = 0.1

    def __post_init__(self) -> None:
        low, high = self.whole[:3], self.whole[3:]
        if len(self.whole) != 6 or not all(a < b for a, b in zip(low, high, strict=True)):
            raise ValueError(f"`bounds` must be two corners, the lower one first, got {list(self.whole)}")
        if len(self.grid) != 3 or min(self.grid) < 1:
            raise ValueError(f"`grid` must be three numbers of blocks, at least 1 along each axis, got {self.grid}")
        if not 0 <= self.overlap <= 1:
            raise ValueError(f"`overlap` must be in 0..1, a share of the side of a block, got {self.overlap}")

    def numbers(self) -> list[tuple[int, ...]]:
        """The number of each block along each axis."""
        return list(itertools.product(*map(range, self.grid)))

    def edge(self, axis: int, i: int) -> float:
        """Where block ``i`` begins along an axis, the same number that its neighbour ends at."""
        low, high, n = self.whole[axis], self.whole[axis + 3], self.grid[axis]
        return low if i == 0 else high if i == n else low + (high - low) * i / n

    def core(self, number: tuple[int, ...]) -> tuple[float, ...]:
        """The block alone, [6]: all of them fill the box without overlapping."""
        return tuple(self.edge(axis, number[axis] + side) for side in (0, 1) for axis in range(3))

    def margins(self) -> tuple[float, float, float]:
        """How far a block reaches into its neighbours along each axis."""
        whole, grid = self.whole, self.grid
        return tuple(0.5 * self.overlap * (whole[i + 3] - whole[i]) / grid[i] for i in range(3))  # type: ignore[return-value]

    def box(self, number: tuple[int, ...]) -> tuple[float, ...]:
        """The block with what it shares with its neighbours, [6]."""
        core, margins = self.core(number), self.margins()
        inner = [number[i] > 0 for i in range(3)], [number[i] < self.grid[i] - 1 for i in range(3)]
        return tuple(
            core[3 * side + i] + (2 * side - 1) * margins[i] * inner[side][i] for side in (0, 1) for i in range(3)
        )

    def edges(self, number: tuple[int, ...]) -> tuple[float, ...]:
        """The core, [6], infinite where it has no neighbour: space outside of the box belongs to who is next to it."""
        core = self.core(number)
        low = (core[i] if number[i] > 0 else -torch.inf for i in range(3))
        return (*low, *(core[3 + i] if number[i] < self.grid[i] - 1 else torch.inf for i in range(3)))


def shares(points: Tensor, edges: Tensor, margins: Tensor) -> Tensor:
    """How much of points [S, 3] belongs to a block [S]: it falls linearly from 1 to 0 over what two neighbours share,
    and is 1 in sum over all blocks of a cut, to rounding.

    Args:
        points: where.
        edges: [6] as of :meth:`Cut.edges`.
        margins: [3] as of :meth:`Cut.margins`.
    """
    share = torch.ones_like(points[:, 0])
    for axis, margin in enumerate(margins.tolist()):
        x, (low, high) = points[:, axis], edges[axis::3].tolist()
        # a block ends by the same ramp that its neighbour begins with, so that what is rounded cancels
        share = share * (_ramp(x, low, margin) - _ramp(x, high, margin))
    return share


def _ramp(x: Tensor, edge: float, margin: float) -> Tensor:
    """From 0 to 1 about an edge, where it may be infinite."""
    if margin == 0:
        return (x >= edge).to(x.dtype)
    return ((x - edge) / (2 * margin) + 0.5).clamp(0, 1)


def span(rays: Rays, whole: Tensor) -> tuple[Tensor, Tensor]:
    """Distances [R] at which rays of unit direction enter and leave a box [6]; twice where they come nearest to it for
    those that miss it. What is before or behind belongs to the same blocks as these places."""
    enter, leave = ray_aabb(rays.origins, rays.directions, whole)
    missed = ~enter.isfinite()
    if not bool(missed.any()):
        return enter, leave
    origins, directions, (low, high) = rays.origins[missed], rays.directions[missed], whole.split(3)
    t = torch.zeros_like(origins[:, 0])
    for _ in range(NEAREST_STEPS):
        nearest = (origins + t[:, None] * directions).clamp(low, high)
        t = ((nearest - origins) * directions).sum(-1).clamp(min=0)
    return enter.masked_scatter(missed, t), leave.masked_scatter(missed, t)


def crosses(rays: Rays, whole: Tensor, box: Tensor) -> Tensor:
    """Whether something on rays belongs to a block [R] bool: they cross its ``box`` [6], or miss the ``whole`` [6] and
    come nearest to it there."""
    hit = ray_aabb(rays.origins, rays.directions, box)[0].isfinite()
    enter, leave = span(rays, whole)
    nearest = (rays.origins + enter[:, None] * rays.directions).clamp(*whole.split(3))
    low, high = box.split(3)
    return hit | ((enter == leave) & ((nearest >= low) & (nearest <= high)).all(-1))
