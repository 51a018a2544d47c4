"""Colours and classes of a surface, as the radiance field that it came from shows it from in front."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hashgrid.fields.base import RadianceField
from hashgrid.geometry.rays import Rays
from hashgrid.rendering.samplers import Rendered, StratifiedSampler
from hashgrid.rendering.volume import render

N_SAMPLES = 16  # of each short ray
CHUNK = 1 << 14  # rays at a time


class _NearSampler(StratifiedSampler):
    """Samples of the first ``reach`` of rays."""

    def __init__(self, reach: float, backend: str) -> None:
        super().__init__(N_SAMPLES, backend=backend)
        self.reach = reach

    def edges(self, rays: Rays, aabb: Tensor, jitter: tuple[int, ...] | None) -> Tensor:
        return torch.linspace(0, self.reach, N_SAMPLES + 1, device=aabb.device).expand(len(rays), -1)


@torch.no_grad()
def surface_colors(
    field: RadianceField,
    points: Tensor,
    normals: Tensor,
    reach: float,
    backend: str = "native",
    time: float | None = None,
) -> Tensor:
    """Colours [N, 3] of points of a surface: of rays against its normal that begin ``reach`` before it and end as far
    behind it, without what is behind a surface through which they pass.

    Args:
        field: of the scene.
        points: [N, 3], in the coordinates of the field.
        normals: [N, 3], of unit length, outwards.
        reach: how far from the surface the field may be thought to be.
        backend: ``"native"`` or ``"reference"``.
        time: of what moves.
    """
    found = [torch.empty(0, 3)]
    for out in _looks(field, points, normals, reach, backend, time):
        found.append((out.colors / out.opacities.clamp_min(1e-3)[:, None]).clamp(0, 1).cpu())
    return torch.cat(found)


@torch.no_grad()
def surface_labels(
    field: RadianceField,
    points: Tensor,
    normals: Tensor,
    reach: float,
    backend: str = "native",
    time: float | None = None,
) -> Tensor:
    """Classes [N] int64 of points of a surface, by a field with a ``labeler``; arguments are those of
    :func:`surface_colors`."""
    found = [torch.empty(0, dtype=torch.int64)]
    for out in _looks(field, points, normals, reach, backend, time, labelled=True):
        assert out.logits is not None
        found.append(out.logits.argmax(1).cpu())
    return torch.cat(found)


def _looks(
    field: RadianceField,
    points: Tensor,
    normals: Tensor,
    reach: float,
    backend: str,
    time: float | None,
    labelled: bool = False,
) -> Iterator[Rendered]:
    """What is seen of the points of a surface, so many at a time."""
    sampler, device = _NearSampler(2 * reach, backend), field.aabb.device
    for place, normal in zip(points.float().split(CHUNK), normals.float().split(CHUNK), strict=True):
        moments = None if time is None else torch.full((len(place),), time, device=device)
        rays = Rays((place + reach * normal).to(device), -normal.to(device).contiguous(), time=moments)
        yield render(field, sampler, rays, labelled=labelled)
