"""What is drawn of in every step: points with known distances, or points of a surface and off it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.distances import CHUNK, DistanceRecipe, make_pool
from hashgrid.data.draws import draw_rows
from hashgrid.data.mesh import Mesh
from hashgrid.data.points import PointCloud
from hashgrid.data.refresh import Refresh
from hashgrid.ops._ngp.gather_rows import gather_rows
from hashgrid.util.config import Config
from hashgrid.util.optional import optional_import

FIRST_SECONDS = 0.5  # in which the first samples of a run limited by time are made


class Pool:
    """Rows, of which every step draws some.

    Args:
        seed: of everything random.
        device: where they are wanted.
        backend: of drawing, ``"native"`` or ``"reference"``.
    """

    def __init__(self, seed: int, device: torch.device | str, backend: str) -> None:
        self.seed, self.device, self.backend = seed, torch.device(device), backend

    def draw(self, step: int, n: int, n_rows: int, stream: int = 0) -> Tensor:
        """Numbers [n] of rows below ``n_rows``: a function of the seed, the step and the stream."""
        return draw_rows(self.seed, step, n, n_rows, self.device, stream, self.backend)


class DistancePool(Pool):
    """Points with known distances, of which every step draws some.

    A pool that is ``refreshed``, for runs limited by time, begins with what half a second makes; another process fills
    it meanwhile, and then replaces the oldest samples by new ones. Another one is complete from the start and stays as
    it is: what is drawn of it is a function of (seed, step).

    Args:
        mesh: where the distances come from.
        recipe: which points.
        seed, device, backend: as of :class:`Pool`.
        refreshed: whether samples are replaced.
    """

    def __init__(
        self,
        mesh: Mesh,
        recipe: DistanceRecipe,
        seed: int = 0,
        device: torch.device | str = "cpu",
        backend: str = "native",
        refreshed: bool = False,
    ) -> None:
        super().__init__(seed, device, backend)
        self.mesh, self.recipe = mesh, recipe
        self.refreshed = refreshed and recipe.refresh_share > 0
        self._refresh: Refresh | None = None
        points, distances = make_pool(mesh, recipe, seed, FIRST_SECONDS if self.refreshed else math.inf)
        self.n_made = len(points)  # samples so far; the latest `pool` of them are kept
        self.n_chunks = math.ceil(self.n_made / CHUNK)
        self.points = torch.empty(recipe.pool, 3, device=device)
        self.distances = torch.empty(recipe.pool, device=device)
        self.points[: self.n_made], self.distances[: self.n_made] = points.to(device), distances.to(device)
        if self.refreshed:
            self._start()

    def _start(self) -> None:
        """Lets another process make the chunks after those that are here."""
        size = min(CHUNK, self.recipe.pool)
        n_urgent = max(0, math.ceil(self.recipe.pool / CHUNK) - self.n_chunks)
        self._refresh = Refresh(self.mesh, self.recipe, self.seed, self.n_chunks, size, n_urgent)

    def state(self) -> dict[str, Tensor]:
        """What a run that goes on needs: nothing of a pool that stays as it is."""
        if not self.refreshed:
            return {}
        made = torch.tensor([self.n_made, self.n_chunks])
        return {"points": self.points, "distances": self.distances, "made": made}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes over what :meth:`state` gave, if the pool is refreshed and was; the next chunk is the one after."""
        if not self.refreshed or state.get("points", self.points[:0]).shape != self.points.shape:
            return
        self.close()
        self.points.copy_(state["points"])
        self.distances.copy_(state["distances"])
        self.n_made, self.n_chunks = state["made"].tolist()
        self._start()

    def sample(self, n: int, step: int) -> tuple[Tensor, Tensor]:
        """Random samples of a step: points [n, 3] and distances [n]. Takes in what the other process has made."""
        chunk = None if self._refresh is None else self._refresh.poll()
        if chunk is not None:
            self._take_in(*chunk)
        rows = self.draw(step, n, min(self.n_made, len(self.points)))
        return gather_rows([self.points], rows), gather_rows([self.distances.unsqueeze(1)], rows).squeeze(1)

    def _take_in(self, points: np.ndarray, distances: np.ndarray) -> None:
        """Puts new samples into the free part of the pool or the place of the oldest ones."""
        index = torch.arange(self.n_made, self.n_made + len(points)) % len(self.points)
        index = index.to(self.device)
        self.points.index_copy_(0, index, torch.from_numpy(points).to(self.device))
        self.distances.index_copy_(0, index, torch.from_numpy(distances).to(self.device))
        self.n_made += len(points)
        self.n_chunks += 1

    def close(self) -> None:
        """Ends the process that makes new samples."""
        if self._refresh is not None:
            self._refresh.close()


@dataclass(frozen=True)
class PointRecipe(Config):
    """Where a field is looked at that is to vanish at points."""

    point_batch: int = 1 << 11  # on the surface, and as many near it
    uniform_batch: int = 1 << 11  # anywhere in the cube
    near_pool: int = 1 << 17  # that points near the surface are drawn from
    uniform_pool: int = 1 << 18  # that uniform points are drawn from
    point_neighbors: int = 50  # the distance to which is the standard deviation of points near the surface


class PointBatch(NamedTuple):
    """What one step looks at."""

    x: Tensor  # [2 B + U, 3], B points on the surface, B near it and U anywhere in the cube
    normals: Tensor  # [B, 3], those of the first
    signs: Tensor  # [B + U], sides of the others: -1 inside, 1 outside, 0 where the points do not say


class PointPool(Pool):
    """Points of a surface, and points off it whose side is known, of which every step draws some: near the surface,
    normally distributed around its points, and anywhere in the cube.

    Losses over a surface alone allow more surfaces than the one through the points, and a hash grid, in which distant
    places have no parameters in common, comes up with them. So points off the surface have the side that the winding
    number of the oriented points says.

    Args:
        cloud: the points.
        recipe: how many of which.
        seed, device, backend: as of :class:`Pool`.
    """

    def __init__(
        self,
        cloud: PointCloud,
        recipe: PointRecipe,
        seed: int = 0,
        device: torch.device | str = "cpu",
        backend: str = "native",
    ) -> None:
        super().__init__(seed, device, backend)
        self.recipe = recipe
        generator = np.random.default_rng(seed)
        index = generator.integers(len(cloud.points), size=recipe.near_pool)
        reach = spread(cloud.points, recipe.point_neighbors)[index, None]
        near = cloud.points[index] + reach * generator.normal(size=(recipe.near_pool, 3))
        off = np.concatenate([near.clip(0, 1), generator.random((recipe.uniform_pool, 3))])
        arrays = (cloud.points, cloud.normals, off, signs(cloud, off))
        self.points, self.normals, self.off, self.signs = (torch.from_numpy(x).float().to(device) for x in arrays)

    def sample(self, step: int) -> PointBatch:
        """The points of one step, a function of (seed, step)."""
        recipe = self.recipe
        on = self.draw(step, recipe.point_batch, len(self.points), 0)
        near = self.draw(step, recipe.point_batch, recipe.near_pool, 1)
        uniform = self.draw(step, recipe.uniform_batch, recipe.uniform_pool, 2)
        off = torch.cat([near, recipe.near_pool + uniform])
        return PointBatch(torch.cat([self.points[on], self.off[off]]), self.normals[on], self.signs[off])


def spread(points: np.ndarray, k: int) -> np.ndarray:
    """Distance [N] of each of the points [N, 3] to its ``k``-th neighbour: how far around it Gropp et al. (2020,
    section 5) draw more."""
    tree = optional_import("scipy.spatial").cKDTree(points)
    return tree.query(points, k=[min(k, len(points) - 1) + 1], workers=-1)[0][:, 0]


def signs(cloud: PointCloud, x: np.ndarray) -> np.ndarray:
    """Sides [Q] of points [Q, 3] by the winding number of the oriented points (Barill et al. 2018): -1 inside, 1
    outside, 0 where it does not say. A point stands for an eighth of the disc that reaches to its 8th neighbour."""
    igl = optional_import("igl")
    areas = np.pi * spread(cloud.points, 8) ** 2 / 8
    winding = igl.fast_winding_number(cloud.points, cloud.normals, areas, x)
    return (winding < 0.25) * 1.0 - (winding > 0.75)
