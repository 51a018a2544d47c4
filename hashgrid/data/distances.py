"""Points with signed distances, and the loss over them."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.mesh import Mesh
from hashgrid.data.refresh import Refresh
from hashgrid.fields.distance import Field
from hashgrid.ops._ngp.gather_rows import gather_rows
from hashgrid.sdf.config import SdfConfig
from hashgrid.sdf.trainer import Progress
from hashgrid.train.checkpoint import load_checkpoint, save_checkpoint
from hashgrid.train.losses import eikonal, mape, truncated_l1

CHUNK = 1 << 14  # samples made together, from one seed
FIRST_SECONDS = 0.5  # in which the first samples of a run limited by time are made


def make_chunk(mesh: Mesh, config: SdfConfig, n: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Chunk ``index`` of the endless sequence of samples: points [n, 3] and their signed distances [n], float32.

    On the surface, near it, and anywhere in the cube. Near the surface points are moved along each axis by a logistic
    distribution (Müller et al. 2022, section 5.2).
    """
    generator = np.random.default_rng([config.seed, index])
    n_surface, n_near = round(n * config.surface), round(n * config.near)
    on_surface = mesh.sample_surface(n_surface + n_near, generator)[0]
    near = on_surface[n_surface:] + generator.logistic(0.0, config.near_scale, (n_near, 3))
    uniform = generator.random((n - n_surface - n_near, 3))
    off = np.concatenate([near.clip(0.0, 1.0), uniform])
    distances = np.concatenate([np.zeros(n_surface), mesh.signed_distance(off)])
    return np.concatenate([on_surface[:n_surface], off]).astype(np.float32), distances.astype(np.float32)


def chunk_sizes(config: SdfConfig) -> list[int]:
    """Samples in each chunk of the pool."""
    return [min(CHUNK, config.pool - begin) for begin in range(0, config.pool, CHUNK)]


def make_pool(mesh: Mesh, config: SdfConfig) -> tuple[Tensor, Tensor]:
    """The first ``config.pool`` samples of the sequence: points [pool, 3] and signed distances [pool].

    With ``config.cache`` they are read from a file in that folder where it has them, and else written to it.
    """
    path = None
    if config.cache is not None:
        key = hashlib.sha256(mesh.vertices.tobytes() + mesh.faces.tobytes() + _recipe(config).encode()).hexdigest()
        path = Path(config.cache) / f"{Path(mesh.name).stem}-{key[:16]}.safetensors"
        if path.exists():
            tensors = load_checkpoint(path).tensors
            return tensors["points"], tensors["distances"]
    chunks = [make_chunk(mesh, config, size, index) for index, size in enumerate(chunk_sizes(config))]
    points, distances = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*chunks, strict=True))
    if path is not None:
        save_checkpoint(path, {"points": points, "distances": distances}, {"recipe": _recipe(config)})
    return points, distances


def _first_chunks(mesh: Mesh, config: SdfConfig, sizes: list[int]) -> tuple[Tensor, Tensor, int]:
    """Points and distances of the chunks that `FIRST_SECONDS` suffice for, one at least, and their number."""
    begin, chunks = time.perf_counter(), [make_chunk(mesh, config, sizes[0], 0)]
    while len(chunks) < len(sizes) and time.perf_counter() - begin < FIRST_SECONDS:
        chunks.append(make_chunk(mesh, config, sizes[len(chunks)], len(chunks)))
    points, distances = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*chunks, strict=True))
    return points, distances, len(chunks)


def _recipe(config: SdfConfig) -> str:
    """What samples depend on besides the mesh."""
    names = ("seed", "pool", "surface", "near", "near_scale")
    return json.dumps({name: getattr(config, name) for name in names})


class DistanceSamples:
    """A loss over points with known distances.

    In runs limited by time training begins with what half a second makes; another process fills the pool meanwhile, and
    then replaces the oldest samples by new ones. Runs limited by steps alone wait for the first pool and keep it: they
    give the same field every time.

    Args:
        mesh: where the distances come from.
        config: the recipe.
        device: where the field lives.
    """

    def __init__(self, mesh: Mesh, config: SdfConfig, device: torch.device) -> None:
        self.config = config
        self.loss_name = {"mape": "MAPE", "truncated_l1": "L1"}[config.loss]
        self._generator = torch.Generator().manual_seed(config.seed)
        self._refresh: Refresh | None = None
        refreshed = config.refresh_share > 0 and (config.steps is None or config.time_limit is not None)
        sizes = chunk_sizes(config)
        if refreshed and config.cache is None:
            points, distances, n_chunks = _first_chunks(mesh, config, sizes)
        else:
            points, distances = make_pool(mesh, config)
            n_chunks = len(sizes)
        self.n_made = len(points)  # samples so far; the latest `pool` of them are kept
        self.points = torch.empty(config.pool, 3, device=device)
        self.distances = torch.empty(config.pool, device=device)
        self.points[: self.n_made], self.distances[: self.n_made] = points.to(device), distances.to(device)
        if refreshed:
            self._refresh = Refresh(mesh, config, n_chunks, min(CHUNK, config.pool), n_urgent=len(sizes) - n_chunks)

    @property
    def n_replaced(self) -> int:
        """Samples that have taken an older one's place."""
        return max(0, self.n_made - len(self.points))

    def loss(self, field: Field, progress: Progress, level_weights: Tensor | None) -> tuple[Tensor, int]:
        config = self.config
        if self._refresh is not None:
            self._replace(self._refresh)
        n_there = min(self.n_made, len(self.points))
        index = torch.randint(n_there, (config.batch,), generator=self._generator).to(self.points.device)
        points = gather_rows([self.points], index)
        target = gather_rows([self.distances.unsqueeze(1)], index).squeeze(1)
        # the gradient costs three times the distance; the indices are random, so that any part of them will do
        n_eikonal = round(config.batch * config.eikonal_share) if config.eikonal_weight > 0 else 0
        distance = field(points[n_eikonal:], level_weights)
        if n_eikonal > 0:
            with_gradient, gradient = field.gradient(points[:n_eikonal], level_weights)
            distance = torch.cat([with_gradient, distance])
        if config.loss == "mape":
            loss = mape(distance, target, config.mape_offset)
        else:
            loss = truncated_l1(distance, target, config.truncation)
        if n_eikonal > 0:
            loss = loss + config.eikonal_weight * eikonal(gradient)
        return loss, config.batch

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

    def close(self) -> None:
        """Ends the process that makes new samples."""
        if self._refresh is not None:
            self._refresh.close()
