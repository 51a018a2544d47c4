"""Samples of a mesh that training draws from, and that are replaced meanwhile."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.distances import CHUNK, DistanceRecipe, chunk_sizes, make_chunk, make_pool
from hashgrid.data.draws import draw_rows
from hashgrid.data.mesh import Mesh
from hashgrid.data.refresh import Refresh
from hashgrid.ops._ngp.gather_rows import gather_rows

FIRST_SECONDS = 0.5  # in which the first samples of a run limited by time are made


def _first_chunks(mesh: Mesh, recipe: DistanceRecipe, seed: int, sizes: list[int]) -> tuple[Tensor, Tensor, int]:
    """Points and distances of the chunks that `FIRST_SECONDS` suffice for, one at least, and their number."""
    begin, chunks = time.perf_counter(), [make_chunk(mesh, recipe, sizes[0], 0, seed)]
    while len(chunks) < len(sizes) and time.perf_counter() - begin < FIRST_SECONDS:
        chunks.append(make_chunk(mesh, recipe, sizes[len(chunks)], len(chunks), seed))
    points, distances = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*chunks, strict=True))
    return points, distances, len(chunks)


class DistancePool:
    """Points with known distances, of which every step draws some.

    A pool that is ``refreshed``, for runs limited by time, begins with what half a second makes; another process fills
    it meanwhile, and then replaces the oldest samples by new ones. Another one is complete from the start and stays as
    it is: what is drawn of it is a function of (seed, step).

    Args:
        mesh: where the distances come from.
        recipe: which points.
        seed: of everything random.
        device: where the samples are wanted.
        backend: of drawing, ``"native"`` or ``"reference"``.
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
        self.mesh, self.recipe, self.seed, self.backend = mesh, recipe, seed, backend
        self.refreshed = refreshed and recipe.refresh_share > 0
        self._refresh: Refresh | None = None
        sizes = chunk_sizes(recipe)
        if self.refreshed and recipe.cache is None:
            points, distances, self.n_chunks = _first_chunks(mesh, recipe, seed, sizes)
        else:
            points, distances = make_pool(mesh, recipe, seed)
            self.n_chunks = len(sizes)
        self.n_made = len(points)  # samples so far; the latest `pool` of them are kept
        self.points = torch.empty(recipe.pool, 3, device=device)
        self.distances = torch.empty(recipe.pool, device=device)
        self.points[: self.n_made], self.distances[: self.n_made] = points.to(device), distances.to(device)
        if self.refreshed:
            self._start()

    def _start(self) -> None:
        """Lets another process make the chunks after those that are here."""
        n_urgent, size = max(0, len(chunk_sizes(self.recipe)) - self.n_chunks), min(CHUNK, self.recipe.pool)
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

    @property
    def n_replaced(self) -> int:
        """Samples that have taken an older one's place."""
        return max(0, self.n_made - len(self.points))

    def sample(self, n: int, step: int) -> tuple[Tensor, Tensor]:
        """Random samples of a step: points [n, 3] and distances [n]. Takes in what the other process has made."""
        if self._refresh is not None:
            self._replace(self._refresh)
        n_there = min(self.n_made, len(self.points))
        rows = draw_rows(self.seed, step, n, n_there, self.points.device, backend=self.backend)
        return gather_rows([self.points], rows), gather_rows([self.distances.unsqueeze(1)], rows).squeeze(1)

    def _replace(self, refresh: Refresh) -> None:
        """Puts new samples, where there are some, into the free part of the pool or the place of the oldest ones."""
        chunk = refresh.poll()
        if chunk is None:
            return
        points, distances = (torch.from_numpy(part).to(self.points.device) for part in chunk)
        index = torch.arange(self.n_made, self.n_made + len(points)) % len(self.points)
        index = index.to(self.points.device)
        self.points.index_copy_(0, index, points)
        self.distances.index_copy_(0, index, distances)
        self.n_made += len(points)
        self.n_chunks += 1

    def close(self) -> None:
        """Ends the process that makes new samples."""
        if self._refresh is not None:
            self._refresh.close()
