"""Signed distance fields."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hashgrid.data.shape import Shape
from hashgrid.fields.distance import DistanceField
from hashgrid.geometry.cameras import UP, Cameras
from hashgrid.rendering.surface import trace
from hashgrid.util.pictures import ERROR_MAP, colorize
from hashgrid.viewer.subject import (
    Drawn,
    Subject,
    along_axis,
    depth_colors,
    hit_box,
    matte,
    normal_colors,
    overlook,
)

ERROR_SCALE = 1e-3  # distance to the truth of the darkest colour, in sides of the cube
CUT = (0.45, 0.62, 0.80)  # where a crop goes through the inside


class ShapeSubject(Subject):
    """The surface of a field in the unit cube, sphere traced.

    Args:
        field: distances.
        shape: what it was fitted to, to compare with.
        up: axis that is up, "x", "y" or "z".
        backend: of the tracing.
    """

    modes: Sequence[str] = ("colour", "depth", "normals", "accumulation", "error")

    def __init__(self, field: DistanceField, shape: Shape, up: str = "y", backend: str = "native") -> None:
        box, vertical = torch.tensor([0.0, 0, 0, 1, 1, 1]), torch.tensor(UP[up])
        super().__init__(box, vertical, *overlook(box, vertical))
        self.field, self.shape, self.placement, self.backend = field, shape, shape.placement, backend
        if self._truth is None:
            self.modes = self.modes[:-1]

    @cached_property
    def _truth(self) -> Callable[[Tensor], Tensor] | None:
        return self.shape.distance()

    @torch.no_grad()
    def draw(self, camera: Cameras, mode: str, crop: Tensor | None = None) -> Drawn:
        """Errors are distances of the surface to the truth, darkest at `ERROR_SCALE`. Where a crop goes through the
        inside there is a face."""
        device = self.field.device
        box = self.box if crop is None else torch.cat((crop[:3].clamp(0, 1), crop[3:].clamp(0, 1)))
        rays = camera.view_rays(0).to(device)
        hits = trace(self.field, rays.origins, rays.directions, box.to(device), self.backend)
        hit, t = hits.hit.clone(), hits.t
        normals = torch.zeros_like(rays.origins)
        normals[hit] = hits.normals
        enter, leave, side = hit_box(rays.origins, rays.directions, box.to(device))
        cut = enter < leave
        cut[cut.clone()] = self.field((rays.origins + enter[:, None] * rays.directions)[cut]) < 0
        t, hit, normals = torch.where(cut, enter, t), hit | cut, torch.where(cut[:, None], side, normals)
        color = self.background.to(device).repeat(len(hit), 1)
        shaded = matte(camera, normals[hit])
        if mode == "depth":
            color[hit] = depth_colors(camera, self.box, t[hit].cpu()).to(device)
        elif mode == "normals":
            color[hit] = normal_colors(camera, normals[hit])
        elif mode == "accumulation":
            color = hit.float()[:, None].expand(-1, 3)
        elif mode == "error" and self._truth is not None:
            color[hit] = shaded
            places = (rays.origins + t[:, None] * rays.directions)[hit & ~cut]
            error = colorize(self._truth(places.cpu()).float(), 0, ERROR_SCALE, ERROR_MAP).to(device)
            color[hit & ~cut] = error * matte(camera, normals[hit & ~cut], torch.ones(3))
        else:
            color[hit] = shaded
            color[cut] = matte(camera, normals[cut], torch.tensor(CUT))
        depth = torch.where(hit, along_axis(camera, rays.directions, t), math.inf)
        width, height = camera.size(0)
        return Drawn(color.view(height, width, 3).cpu(), depth.view(height, width).cpu())


def subject_of(task: Any) -> Subject:
    """Of ``hashgrid sdf``."""
    up = task.config.pictures.up
    up = ("z" if task.shape.path.suffix.lower() == ".stl" else "y") if up == "auto" else up
    return ShapeSubject(task.model, task.shape, up, task.config.backend)
