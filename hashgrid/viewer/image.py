"""Pictures: a plane in space, of which the field is asked at the pixels of the screen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hashgrid.data.differences import levelled
from hashgrid.data.pictures import Picture
from hashgrid.data.signals import CHUNK
from hashgrid.geometry.cameras import Cameras
from hashgrid.util.pictures import colorize
from hashgrid.viewer.subject import Drawn, Subject, along_axis

ERROR_SCALE = 0.1  # mean absolute error that is shown brightest, as in `error.png`


class PictureSubject(Subject):
    """A picture in the plane z = 0, its longer side from -1 to 1, seen from above it.

    Args:
        field: values [N, C] of places [N, 2] in the unit square.
        picture: what it is fitted to.
        level: gives the field to be shown, where it is one of differences that has no level of its own.
    """

    modes = ("colour", "photo", "error")
    background = torch.tensor([0.25, 0.25, 0.25])

    def __init__(
        self, field: Callable[[Tensor], Tensor], picture: Picture, level: Callable[[], Callable] | None = None
    ) -> None:
        height, width = picture.signal.shape
        self.half = torch.tensor([width, height]) / max(width, height)
        thin = torch.tensor([1e-3])
        box = torch.cat((-self.half, -thin, self.half, thin))
        distance = float(self.half[1]) / math.tan(self.fov / 2) * 1.05
        super().__init__(box, torch.tensor([0.0, 1, 0]), torch.tensor([0.0, 0, distance]), torch.zeros(3))
        self._field, self._level, self.picture = field, level, picture

    @torch.no_grad()
    def draw(self, camera: Cameras, mode: str, crop: Tensor | None = None) -> Drawn:
        rays = camera.view_rays(0)
        t = -rays.origins[:, 2] / rays.directions[:, 2]
        places = rays.origins + t[:, None] * rays.directions
        unit = 0.5 + 0.5 * places[:, :2] / self.half * torch.tensor([1.0, -1.0])
        inside = (t > 0) & ((unit >= 0) & (unit < 1)).all(-1)
        if crop is not None:
            inside &= ((places[:, :2] >= crop[:2]) & (places[:, :2] <= crop[3:5])).all(-1)
        color = self.background.repeat(len(t), 1)
        color[inside] = self._colors(unit[inside], mode)
        depth = torch.where(inside, along_axis(camera, rays.directions, t), math.inf)
        width, height = camera.size(0)
        return Drawn(color.view(height, width, 3), depth.view(height, width))

    def _colors(self, unit: Tensor, mode: str) -> Tensor:
        """Colours [N, 3] of places [N, 2] in the unit square."""
        signal, parts = self.picture.signal, []
        field = self._field if self._level is None else self._level()
        height, width = signal.shape
        for some in unit.split(CHUNK):
            there = some.to(signal.values.device)
            x, y = (there * torch.tensor([width, height], device=there.device)).long().unbind(-1)
            truth = signal.at(y * width + x)
            output = truth if mode == "photo" else field(there).float()
            if mode == "error":
                parts.append(colorize((output - truth).abs().mean(-1) / ERROR_SCALE).cpu())
            else:
                parts.append(self.picture.shown(signal.stored(output)[:, None].cpu())[:, 0].float() / 255)
        return torch.cat(parts) if parts else torch.zeros(0, 3)


def subject_of(task: Any) -> Subject:
    """Of ``hashgrid image``."""
    signal = task.signal

    def level() -> Callable[[Tensor], Tensor]:
        some = signal.draw(min(len(signal), 1 << 14), task.config.seed, 0, everywhere=True)
        return levelled(task.model, signal, some)

    picture = Picture(task.picture.name, signal)
    return PictureSubject(task.model, picture, None if task.config.domain == "values" else level)
