"""What slopes of signed distances are held to: the eikonal loss, and that of curvature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from hashgrid.fields.coordinate import CoordinateConfig
from hashgrid.ops._backend import backend_ops

if TYPE_CHECKING:
    from hashgrid.fields.surface_field import SurfaceField


@dataclass(frozen=True)
class SlopeConfig(CoordinateConfig):
    """How slopes are taken, and the weights of what they are held to."""

    # of the mean square by which slopes differ from 1; with the papers' 0.1 a ball of 1.5 is off by .15 after 150 steps
    # instead of .08: what holds slopes in place holds the surface, too
    eikonal_weight: float = 0.01
    eikonal_points: int = 256  # anywhere in the box where they are looked at, beside the samples of rays
    # of distances: exact, or differences over a cell of the finest level there is, blind to noise below it
    gradients: Literal["analytic", "numeric"] = "analytic"
    # of the mean size of the Laplacian at as many samples of rays; it falls with the cells. The procedural scene after
    # 1500 steps: 26.9 dB and bumps of 11 degrees with it, 25.7 and 14 without; with .003 things come late
    curvature_weight: float = 1e-3

    def check(self) -> None:
        super().check()
        for name in ("eikonal_weight", "eikonal_points", "curvature_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}")


def slope_losses(field: SurfaceField, unit: Tensor, gradients: Tensor, step: int) -> Tensor | float:
    """The eikonal loss (Gropp et al. 2020) of ``gradients`` [S, 3] at points ``unit`` [S, 3] of the cube, and of others
    anywhere in it in each ``step``; and that of the curvature (Li et al. 2023, eq. 11)."""
    config = field.config
    if not (config.eikonal_weight or config.curvature_weight):
        return 0.0
    counter = torch.arange(3 * config.eikonal_points, device=unit.device)
    drawn = backend_ops(field.backend).counter_uniform(0, step, counter).view(-1, 3)
    gradients = torch.cat((gradients, field.surface(drawn.to(gradients.dtype))[1]))
    loss = config.eikonal_weight * (gradients.norm(dim=-1) - 1).square().mean()
    if config.curvature_weight:
        loss = loss + config.curvature_weight * field.cell * config.base_resolution * curvature(field, unit)
    return loss


def curvature(field: SurfaceField, unit: Tensor) -> Tensor:
    """Mean size of the Laplacian of distances in the scene at points [S, 3] of the cube, of about as many of them as
    the eikonal loss looks at."""
    step = max(1, len(unit) // max(field.config.eikonal_points, 1))
    second = field.distance.central_differences(unit[::step], field.cell, field.level_weights)[2]
    return (field.side * field.inverse_extent.square() * second).sum(-1).abs().mean()
