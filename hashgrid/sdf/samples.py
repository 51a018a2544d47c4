"""Points with signed distances, and the loss over them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hashgrid.sdf.config import SdfConfig
from hashgrid.sdf.mesh import Mesh
from hashgrid.sdf.model import Field
from hashgrid.sdf.trainer import Progress


def make_pool(mesh: Mesh, config: SdfConfig, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points [n, 3] and their signed distances [n], fp32: on the surface, near it, and anywhere in the cube.

    Near the surface points are moved along each axis by a logistic distribution (Müller et al. 2022, section 5.2).
    """
    generator = np.random.default_rng(seed)
    n_surface, n_near = round(n * config.surface), round(n * config.near)
    surface = mesh.sample_surface(n_surface, generator)[0]
    near = mesh.sample_surface(n_near, generator)[0] + generator.logistic(0.0, config.near_scale, (n_near, 3))
    uniform = generator.random((n - n_surface - n_near, 3))
    off = np.concatenate([near.clip(0.0, 1.0), uniform])
    distances = np.concatenate([np.zeros(n_surface), mesh.signed_distance(off)])
    return torch.from_numpy(np.concatenate([surface, off])).float(), torch.from_numpy(distances).float()


class DistanceSamples:
    """The mean absolute percentage error (Müller et al. 2022, section 5.2) at points with known distances.

    Args:
        mesh: where the distances come from.
        config: the recipe.
        device: where the field lives.
    """

    loss_name = "MAPE"

    def __init__(self, mesh: Mesh, config: SdfConfig, device: torch.device) -> None:
        self.config = config
        self.points, self.distances = (x.to(device) for x in make_pool(mesh, config, config.pool, config.seed))
        self._generator = torch.Generator().manual_seed(config.seed)

    def loss(self, field: Field, progress: Progress, level_weights: Tensor | None) -> tuple[Tensor, int]:
        config = self.config
        index = torch.randint(len(self.points), (config.batch,), generator=self._generator).to(self.points.device)
        target = self.distances.index_select(0, index)
        error = (field(self.points.index_select(0, index), level_weights) - target).abs()
        return (error / (target.abs() + config.mape_offset)).mean(), config.batch

    def close(self) -> None:
        pass
