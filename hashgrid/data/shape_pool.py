"""Points of many shapes with known distances, of which every step draws some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.distances import CHUNK, DistanceRecipe, make_chunk
from hashgrid.data.mesh import Mesh
from hashgrid.data.pools import Pool
from hashgrid.util.config import Config


@dataclass(frozen=True)
class ShapeSampleRecipe(Config):
    """Which points of each shape's cube are samples. Lengths are in units of the cube."""

    pool: int = 1 << 19  # samples of all shapes, computed before training
    least_pool: int = 1 << 13  # of one shape
    near: float = 0.7  # of the samples, half of them at each of
    near_scales: tuple[float, float] = (1 / 48, 1 / 192)  # distances from the surface; the rest is anywhere

    def check(self) -> None:
        super().check()
        if self.pool < 1 or self.least_pool < 1 or not 0 <= self.near <= 1:
            got = f"{self.pool}, {self.least_pool} and {self.near}"
            raise ValueError(f"`pool` and `least_pool` must be positive and `near` in [0, 1], got {got}")


@dataclass(frozen=True)
class CloudRecipe(Config):
    """What an encoder is given of a shape."""

    n_points: int = 1 << 10  # of a cloud
    cloud_pool: int = 1 << 12  # points of each shape's surface that clouds are drawn from
    noise: float = 0.002  # standard deviation of clouds in training along each axis
    half_share: float = 0.5  # of the clouds in training, cut in half by a plane

    def check(self) -> None:
        super().check()
        if not 1 <= self.n_points <= self.cloud_pool:
            raise ValueError(f"`n_points` must be in 1..`cloud_pool`, got {self.n_points} and {self.cloud_pool}")


def draw_clouds(pool: Tensor, recipe: CloudRecipe) -> Tensor:
    """Clouds [B, n_points, 3] out of points [B, P, 3] of surfaces, some of them only from one side of a random plane
    through the middle of the shape; by PyTorch's random numbers."""
    direction = torch.nn.functional.normalize(torch.randn(len(pool), 1, 3), dim=-1).to(pool)
    middle = (pool.amax(1, keepdim=True) + pool.amin(1, keepdim=True)) / 2
    half = torch.rand(len(pool), 1) < recipe.half_share
    seen = (((pool - middle) * direction).sum(-1) > 0).cpu() & half
    rows = (torch.rand(pool.shape[:2]) + seen).topk(recipe.n_points, dim=1).indices.to(pool.device)
    cloud = pool.gather(1, rows[..., None].expand(-1, -1, 3))
    return cloud + recipe.noise * torch.randn(cloud.shape).to(pool)


class ShapePool(Pool):
    """Points of shapes with signed distances, near their surfaces on two scales (Park et al. 2019, section 5) and
    anywhere in their cubes.

    Args:
        meshes: S of them.
        recipe: which points.
        seed, device, backend: as of :class:`Pool`.
    """

    def __init__(
        self,
        meshes: Sequence[Mesh],
        recipe: ShapeSampleRecipe,
        seed: int = 0,
        device: torch.device | str = "cpu",
        backend: str = "native",
    ) -> None:
        super().__init__(seed, device, backend)
        self.n_each = max(recipe.least_pool, recipe.pool // len(meshes))
        made = [_samples(mesh, recipe, self.n_each, seed) for mesh in meshes]
        self.points = torch.from_numpy(np.concatenate([points for points, _ in made])).to(device)  # [S * n_each, 3]
        self.distances = torch.from_numpy(np.concatenate([distances for _, distances in made])).to(device)

    def sample(self, step: int, shapes: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Points [B, n, 3] and signed distances [B, n] of shapes [B]: a function of the seed and the step."""
        rows = self.draw(step, len(shapes) * n, self.n_each).view(len(shapes), n) + self.n_each * shapes[:, None]
        return self.points[rows], self.distances[rows]


def _samples(mesh: Mesh, recipe: ShapeSampleRecipe, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [n, 3] of one shape and signed distances [n]."""
    scales = [DistanceRecipe(surface=0.0, near=recipe.near, near_scale=scale) for scale in recipe.near_scales]
    starts = range(0, n, CHUNK // 2)
    chunks = [make_chunk(mesh, scales[i % 2], min(CHUNK // 2, n - start), i, seed) for i, start in enumerate(starts)]
    return tuple(np.concatenate(parts) for parts in zip(*chunks, strict=True))  # type: ignore[return-value]
