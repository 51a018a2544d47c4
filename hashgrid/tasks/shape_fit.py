"""Shapes from what is known of a part of them: by a trained network, or by one of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hashgrid.fields.latent import LatentField, OneShape, shapes_of
from hashgrid.train.losses import of_shape
from hashgrid.util.config import Config


@dataclass(frozen=True)
class FitRecipe(Config):
    """How codes of unseen shapes are found, as in DeepSDF (Park et al. 2019, section 5.2: 800 steps), but by their
    coordinates along the principal axes of the codes that were trained, in standard deviations: of what a half leaves
    open, the likely is preferred, whatever the scale of the codes."""

    fit_steps: int = 400
    fit_points: int = 1 << 10  # of each shape and step
    fit_rate: float = 0.03  # a tenth of it in the second half
    fit_weight: float = 2e-4  # of the mean square of the coordinates
    fit_std: float = 0.01  # of the first coordinates


def complete(
    field: LatentField,
    x: Tensor,
    distances: Tensor,
    recipe: FitRecipe,
    truncation: float = 0.05,
    clouds: Tensor | None = None,
    seed: int = 0,
    trained: Tensor | None = None,
) -> list[OneShape]:
    """Shapes by the latents that fit what is known of them best; the field stays as it is.

    Args:
        field: trained.
        x: [B, M, 3] points in the shapes' cubes.
        distances: [B, M] signed distances there.
        recipe: how codes are found.
        truncation: of distances, in units of the cube.
        clouds: [B, P, 3] points, which a field without codes encodes instead.
        seed: of the first codes and of the draws.
        trained: [S, ...] codes of other shapes, at least two, for a field with codes.
    """
    field.requires_grad_(False).eval()
    if field.code_shape is None:
        if clouds is None:
            raise ValueError("`clouds` must be given for a field that encodes points, got None")
        with torch.no_grad():
            return shapes_of(field, field.encode(clouds))
    if trained is None or len(trained) < 2:
        raise ValueError("`trained` must hold codes of at least two shapes for a field with codes")
    generator = torch.Generator().manual_seed(seed)
    rows = trained.detach().flatten(1)
    mean, axes = rows.mean(0), torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    steps = axes.S[:, None] / (len(rows) - 1) ** 0.5 * axes.Vh  # [K, Z], one standard deviation along each axis
    place = recipe.fit_std * torch.randn(len(x), len(steps), generator=generator)
    place = place.to(x.device).requires_grad_()

    def codes() -> Tensor:
        return (mean + place @ steps).unflatten(1, trained.shape[1:])

    def loss(points: Tensor, target: Tensor) -> Tensor:
        penalty = recipe.fit_weight * place.square().mean()
        return of_shape(field.target, field(points, codes()), target, truncation) + penalty

    _minimize(loss, [place], recipe.fit_rate, x, distances, recipe, generator)
    return shapes_of(field, codes().detach())


def learn_alone(
    make: Callable[[], LatentField],
    rate: float,
    x: Tensor,
    distances: Tensor,
    recipe: FitRecipe,
    truncation: float = 0.05,
    clouds: Tensor | None = None,
    seed: int = 0,
) -> list[OneShape]:
    """Shapes by a network each that ``make`` makes and that sees nothing but what is known of its shape, in as many
    steps as :func:`complete` takes, with the learning rate ``rate``; arguments as there."""
    clouds = x if clouds is None else clouds
    return [
        _learn_one(
            make().to(x.device), rate, x[i : i + 1], distances[i : i + 1], clouds[i : i + 1], recipe, truncation, seed
        )
        for i in range(len(x))
    ]


def _learn_one(
    field: LatentField,
    rate: float,
    x: Tensor,
    distances: Tensor,
    cloud: Tensor,
    recipe: FitRecipe,
    truncation: float,
    seed: int,
) -> OneShape:
    """The shape that a field makes of [1, M, 3] points with distances and a cloud [1, P, 3], by the training of all of
    its parameters; its code stays zero."""

    def latent() -> Any:
        shape = field.code_shape
        return field.encode(cloud) if shape is None else torch.zeros(1, *shape, device=x.device)

    def loss(points: Tensor, target: Tensor) -> Tensor:
        return of_shape(field.target, field(points, latent()), target, truncation)

    field.train()
    params = list(field.parameters())
    _minimize(loss, params, rate, x, distances, recipe, torch.Generator().manual_seed(seed))
    field.requires_grad_(False).eval()
    return OneShape(field, latent())


def _minimize(
    loss: Callable[[Tensor, Tensor], Tensor],
    params: Sequence[Tensor],
    rate: float,
    x: Tensor,
    distances: Tensor,
    recipe: FitRecipe,
    generator: torch.Generator,
) -> None:
    """Adam's steps on a loss of points [B, n, 3] and distances [B, n] drawn from ``x`` and ``distances``."""
    optimizer = torch.optim.Adam(params, lr=rate)
    for step in range(recipe.fit_steps):
        if step == recipe.fit_steps // 2:
            optimizer.param_groups[0]["lr"] = rate / 10
        rows = torch.randint(x.shape[1], (len(x), recipe.fit_points), generator=generator).to(x.device)
        optimizer.zero_grad()
        value = loss(x.gather(1, rows[..., None].expand(-1, -1, 3)), distances.gather(1, rows))
        value.backward(inputs=list(params))
        optimizer.step()
