"""What a field is fitted to: samples of `hashgrid.data`, and the losses over them."""

from __future__ import annotations

from dataclasses import fields
from typing import TypeVar

import torch
from torch import Tensor

from hashgrid.data.distances import DistancePool, DistanceRecipe
from hashgrid.data.mesh import Mesh
from hashgrid.data.points import PointCloud, PointPool, PointRecipe
from hashgrid.fields.distance import Field
from hashgrid.sdf.config import SdfConfig
from hashgrid.sdf.trainer import Progress
from hashgrid.train import losses
from hashgrid.util.choices import check_option

POINT_LOSSES = ("siren", "igr")
T = TypeVar("T")


def _recipe(kind: type[T], config: SdfConfig) -> T:
    """The fields of a recipe that the configuration has."""
    return kind(**{field.name: getattr(config, field.name) for field in fields(kind)})  # type: ignore[arg-type]


class DistanceSamples(DistancePool):
    """A loss over points with known distances.

    Args:
        mesh: where the distances come from.
        config: the recipe.
        device: where the field lives.
    """

    def __init__(self, mesh: Mesh, config: SdfConfig, device: torch.device) -> None:
        self.config = config
        self.loss_name = {"mape": "MAPE", "truncated_l1": "L1"}[config.loss]
        timed = config.steps is None or config.time_limit is not None
        super().__init__(mesh, _recipe(DistanceRecipe, config), config.seed, device, timed, config.backend)

    def loss(self, field: Field, progress: Progress, level_weights: Tensor | None) -> tuple[Tensor, int]:
        config = self.config
        points, target = self.sample(config.batch, progress.step)
        # the gradient costs three times the distance; the indices are random, so that any part of them will do
        n_eikonal = round(config.batch * config.eikonal_share) if config.eikonal_weight > 0 else 0
        distance = field(points[n_eikonal:], level_weights)
        if n_eikonal > 0:
            with_gradient, gradient = field.gradient(points[:n_eikonal], level_weights)
            distance = torch.cat([with_gradient, distance])
        if config.loss == "mape":
            loss = losses.mape(distance, target, config.mape_offset)
        else:
            loss = losses.truncated_l1(distance, target, config.truncation)
        if n_eikonal > 0:
            loss = loss + config.eikonal_weight * losses.eikonal(gradient)
        return loss, config.batch


class PointSamples(PointPool):
    """A field that vanishes at the points, has their normals, and grows by one per unit of length everywhere: implicit
    geometric regularisation (IGR, Gropp et al. 2020), or the losses of SIREN (Sitzmann et al. 2020).

    Args:
        cloud: what to fit.
        config: the recipe; ``config.point_loss`` is ``"igr"`` or ``"siren"``.
        device: where the field lives.
    """

    def __init__(self, cloud: PointCloud, config: SdfConfig, device: torch.device) -> None:
        check_option("point_loss", config.point_loss, POINT_LOSSES)
        self.config = config
        self.loss_name = config.point_loss.upper()
        super().__init__(cloud, _recipe(PointRecipe, config), config.seed, device, config.backend)

    def loss(self, field: Field, progress: Progress, level_weights: Tensor | None) -> tuple[Tensor, int]:
        config = self.config
        n = config.point_batch
        x, normals, signs = self.sample(progress.step)
        if config.gradient_step > 0:
            distance, gradient = field.differences(x, config.gradient_step, level_weights)
        else:
            distance, gradient = field.gradient(x, level_weights)
        on, off = gradient[:n], gradient[n:]
        if config.point_loss == "igr":
            normal, growth = losses.normal_difference(on, normals), losses.eikonal(off)
        else:
            normal, growth = losses.normal_cosine(on, normals), losses.eikonal_l1(gradient)
        loss = config.surface_weight * losses.on_surface(distance[:n])
        loss = loss + config.normal_weight * normal + config.eikonal_weight * growth
        uniform = distance[-config.uniform_batch :]
        loss = loss + config.off_surface_weight * losses.off_surface(uniform, config.off_surface_sharpness)
        return loss + config.sign_weight * losses.wrong_side(distance[n:], signs), len(x)

    def close(self) -> None:
        pass
