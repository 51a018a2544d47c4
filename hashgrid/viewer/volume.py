"""Volumes: a surface of one value, the largest values along rays, or slices."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hashgrid.data.volumes import Volume
from hashgrid.fields.base import SignalField
from hashgrid.geometry.cameras import Cameras
from hashgrid.rendering.surface import smooth_normals
from hashgrid.util.pictures import colorize
from hashgrid.viewer.subject import (
    PAPER,
    Drawn,
    Subject,
    along_axis,
    depth_colors,
    hit_box,
    matte,
    normal_colors,
    overlook,
)

N_SAMPLES = 160  # along the diagonal of the box
WINDOW = 16  # samples of a ray that are looked at together
ERROR_SCALE = 0.1  # of the range of values: the brightest error, as in `slices.png`


class VolumeSubject(Subject):
    """A volume whose longest side reaches from -1 to 1, in the proportions of its voxels; z is its first axis.

    Args:
        field: values [N, 1] of places [N, 3] in the unit cube, 0 to 1 over the range of the volume.
        volume: what it is fitted to.
        iso: value of the surface, 0 to 1.
    """

    modes = ("colour", "maximum", "slices", "depth", "normals", "error")

    def __init__(self, field: SignalField, volume: Volume, iso: float = 0.5) -> None:
        sides = torch.from_numpy(volume.affine[:3, :3]).norm(dim=0) * torch.tensor(volume.signal.shape)
        half = (sides / sides.max()).flip(0).float()  # of x, y and z, the last axis first
        box, up = torch.cat((-half, half)), torch.tensor([0.0, 0, 1])
        super().__init__(box, up, *overlook(box, up))
        self.field, self.signal, self.iso, self.half = field, volume.signal, iso, half

    @torch.no_grad()
    def draw(self, camera: Cameras, mode: str, crop: Tensor | None = None) -> Drawn:
        """Slices are the middle ones of the crop, their errors those of the field at them. Where a crop goes through
        what is above the value of the surface, it shows the values there."""
        rays = camera.view_rays(0)
        box = self.box if crop is None else crop.float()
        enter, leave, side = hit_box(rays.origins, rays.directions, box)
        met = enter < leave
        origins, directions, enter, leave, side = (x[met] for x in (rays.origins, rays.directions, enter, leave, side))
        shown, t = torch.empty(len(origins), 3), enter
        if mode == "maximum":
            shown = self._maximum(origins, directions, enter, leave)[:, None].clamp(0, 1).expand(-1, 3)
        elif mode in ("slices", "error"):
            t, found = slice_hits(origins, directions, box, enter, leave)
            shown = torch.tensor(PAPER).repeat(len(t), 1)
            shown[found] = self._slice_colors((origins + t[:, None] * directions)[found], mode)
            t = torch.where(found, t, math.inf)
        else:
            t, found, cut = self._surface(origins, directions, enter, leave)
            places = origins + t.nan_to_num(posinf=0.0)[:, None] * directions
            normals = torch.where(cut[:, None], side, 0.0)
            normals[found & ~cut] = self._normals(places[found & ~cut])
            if mode == "depth":
                shown = depth_colors(camera, self.box, t)
            elif mode == "normals":
                shown = normal_colors(camera, normals)
            else:
                shown = matte(camera, normals)
                shown[cut] = self._values(places[cut])[:, None].clamp(0, 1).expand(-1, 3)
            shown = torch.where(found[:, None], shown, torch.tensor(PAPER))
        black = torch.zeros(3) if mode == "maximum" else torch.tensor(PAPER)
        color, depth = black.repeat(len(met), 1), torch.full((len(met),), math.inf)
        color[met], depth[met] = shown, along_axis(camera, directions, t)
        width, height = camera.size(0)
        return Drawn(color.view(height, width, 3), depth.view(height, width))

    def _unit(self, places: Tensor) -> Tensor:
        return (0.5 + 0.5 * places / self.half).clamp(0, 1)

    def _values(self, places: Tensor) -> Tensor:
        """Values [...] of places [..., 3]."""
        unit = self._unit(places).to(self.signal.values.device)
        return self.field(unit.view(-1, 3)).float().cpu().view(places.shape[:-1])

    def _normals(self, places: Tensor) -> Tensor:
        device = self.signal.values.device
        unit = self._unit(places).to(device)
        slopes = smooth_normals(lambda x: -self.field(x).float().squeeze(-1), unit).cpu()
        return normalize(slopes / self.half, dim=-1)

    def _samples(self, enter: Tensor, leave: Tensor) -> Tensor:
        """Distances [R, S] along rays, evenly to where they leave the box and there from then on."""
        step = float(2 * self.half.norm()) / N_SAMPLES
        n = math.ceil(float((leave - enter).max()) / step) + 1 if len(enter) else 1
        return torch.minimum(enter[:, None] + step * torch.arange(n), leave[:, None])

    def _maximum(self, origins: Tensor, directions: Tensor, enter: Tensor, leave: Tensor) -> Tensor:
        most = torch.full_like(enter, -math.inf)
        for t in self._samples(enter, leave).split(WINDOW, dim=1):
            live = (t[:, 0] < leave).nonzero().squeeze(-1)
            places = origins[live, None] + t[live, :, None] * directions[live, None]
            most[live] = torch.maximum(most[live], self._values(places).amax(-1))
        return most

    def _surface(
        self, origins: Tensor, directions: Tensor, enter: Tensor, leave: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Where rays meet the surface from outside [R], whether they do, and whether they begin inside."""
        samples = self._samples(enter, leave)
        found, t = torch.zeros(len(enter), dtype=torch.bool), torch.full_like(enter, math.inf)
        cut = self._values(origins + enter[:, None] * directions) >= self.iso
        t[cut], found = enter[cut], found | cut
        for begin in range(0, samples.shape[1] - 1, WINDOW):
            live = (~found & (samples[:, begin] < leave)).nonzero().squeeze(-1)
            window = samples[live, begin : begin + WINDOW + 1]
            values = self._values(origins[live, None] + window[..., None] * directions[live, None])
            above = values >= self.iso
            some, first = above.any(-1), above.int().argmax(-1).clamp(min=1)
            row = torch.arange(len(live))
            low, high = values[row, first - 1], values[row, first]
            share = ((self.iso - low) / (high - low)).clamp(0, 1).nan_to_num(1.0)
            t[live[some]] = torch.lerp(window[row, first - 1], window[row, first], share)[some]
            found[live[some]] = True
        return t, found, cut

    def _slice_colors(self, places: Tensor, mode: str) -> Tensor:
        values = self._values(places)
        if mode == "slices":
            return values[:, None].clamp(0, 1).expand(-1, 3)
        shape = torch.tensor(self.signal.shape)
        i, j, k = (self._unit(places) * shape.flip(0)).long().minimum(shape.flip(0) - 1).unbind(-1)
        index = ((k * shape[1] + j) * shape[2] + i).to(self.signal.values.device)
        return colorize((values - self.signal.at(index).cpu().squeeze(-1)).abs(), 0, ERROR_SCALE)


def slice_hits(origins: Tensor, directions: Tensor, box: Tensor, enter: Tensor, leave: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays [R, 3] first meet one of the three middle planes within a box [6], and whether they do, [R] each."""
    middle = (box[:3] + box[3:]) / 2
    t = (middle - origins) / torch.where(directions == 0, 1e-12, directions)
    t = torch.where((t >= enter[:, None]) & (t <= leave[:, None]), t, math.inf).amin(-1)
    return t, t.isfinite()


def subject_of(task: Any) -> Subject:
    """Of ``hashgrid volume``."""
    signal = task.signal
    low, high, iso = signal.low, signal.high, task.config.iso
    volume = Volume(task.volume.name, signal, task.volume.affine)
    return VolumeSubject(task.model, volume, 0.5 if iso is None else (iso - low) / (high - low))
