"""Scenes, and radiance fields of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hashgrid.data.scene import Scene, Views
from hashgrid.fields.base import RadianceField
from hashgrid.geometry.cameras import Cameras, nearest_point_to_axes, orbit
from hashgrid.geometry.lenses import KINDS
from hashgrid.rendering.crop import CroppedSampler
from hashgrid.rendering.label_scores import label_colors, shown_labels
from hashgrid.rendering.samplers import Sampler
from hashgrid.rendering.volume import Pixels, render_image
from hashgrid.util.pictures import colorize
from hashgrid.viewer.subject import Drawn, Subject, along_axis, depth_colors, normal_colors

ERROR_SCALE = 0.2  # mean absolute error that is shown brightest, as in comparisons
UNKNOWN = 0.35  # grey of what the nearest photo does not show
SOLID = 0.5  # opacity from which a pixel has a depth
STEP_BACK = 1.6  # of the first look at a bounded scene, so that its cameras are seen, too
TURN = 2.0  # how much farther off a photo is that looks a radian elsewhere, in units of the page


class SceneSubject(Subject):
    """The cameras, images and sparse points of a scene, without a model.

    Args:
        scene: in the coordinates of the page, those of :meth:`hashgrid.data.scene.Scene.normalized`.
    """

    has_paths = True

    def __init__(self, scene: Scene) -> None:
        first = orbit(scene.train, scene.up, 1)
        target, away = nearest_point_to_axes(scene.train).float(), STEP_BACK if scene.bounded else 1.0
        super().__init__(scene.aabb, scene.up, target + away * (first.origins[0] - target), target)
        self.scene, self.placement, self.points = scene, scene.placement, scene.points
        self.views = {"train": scene.train, "test": scene.test}
        if KINDS[int(scene.train.lens[0])] == "perspective":
            width, height = scene.train.size(0)
            self.fov = 2 * math.atan(0.5 * height / float(scene.train.intrinsics[0, 1]))
        if scene.train.times is not None:
            first_time, last_time = scene.train.times.aminmax()
            self.times = float(first_time), float(last_time)


class RadianceSubject(SceneSubject):
    """A radiance field of a scene.

    Args:
        field, sampler, scene: what is trained.
        background: colour [3] behind it.
    """

    modes: Sequence[str] = ("colour", "depth", "normals", "accumulation", "error")

    def __init__(self, field: RadianceField, sampler: Sampler, scene: Scene, background: Tensor) -> None:
        super().__init__(scene)
        self.field, self.sampler, self.background = field, sampler, background
        if field.labeler is not None:
            self.modes = (*self.modes, "labels")

    def draw(self, camera: Cameras, mode: str, crop: Tensor | None = None) -> Drawn:
        """Normals are those of the surface of depths; errors are differences to the photo that was taken from nearest,
        at the place of the surface in it: exact from where it was taken. Labels have the colours of their classes."""
        width, height = camera.size(0)
        wide = camera
        if mode == "normals":  # of a pixel and of those to the right and below
            wide = Cameras(camera.c2w, camera.intrinsics, camera.sizes + 1, times=camera.times)
        color, opacity, distance = self._render(wide, crop)
        t = distance / opacity.clamp_min(1e-6)
        rays = wide.view_rays(0)
        depth = along_axis(wide, rays.directions, t.view(-1)).view(t.shape)
        depth = torch.where(opacity > SOLID, depth, math.inf)
        if mode == "depth":
            color = depth_colors(camera, self.box, t) * opacity[..., None]
        elif mode == "accumulation":
            color = opacity[..., None].expand(-1, -1, 3)
        elif mode == "normals":
            places = (rays.origins + t.view(-1, 1) * rays.directions).view(*t.shape, 3)
            right, down = places[:-1, 1:] - places[:-1, :-1], places[1:, :-1] - places[:-1, :-1]
            normals = torch.nn.functional.normalize(torch.linalg.cross(down, right), dim=-1)
            opacity, depth = opacity[:height, :width], depth[:height, :width]
            color = normal_colors(camera, normals.view(-1, 3)).view(height, width, 3) * opacity[..., None]
        elif mode == "error":
            far = torch.where(opacity > SOLID, t, 1e3)
            places = rays.origins + far.view(-1, 1) * rays.directions
            color = self._error(camera, color.view(-1, 3), places).view(height, width, 3)
        elif mode == "labels":
            device = self.field.aabb.device
            color = label_colors(shown_labels(self.field, self._cropped(crop), camera.to(device), 0))
        return Drawn(color, depth)

    def _render(self, camera: Cameras, crop: Tensor | None) -> Pixels:
        device = self.field.aabb.device
        pixels = render_image(self.field, self._cropped(crop), camera.to(device), 0, self.background.to(device))
        color, opacity, distance = (x.cpu() for x in pixels)
        return color[..., :3], opacity, distance

    def _cropped(self, crop: Tensor | None) -> Sampler:
        return self.sampler if crop is None else CroppedSampler(self.sampler, crop).to(self.field.aabb.device)

    def _error(self, camera: Cameras, color: Tensor, places: Tensor) -> Tensor:
        """Colours [R, 3] of the error of what is seen at places [R, 3]."""
        views, view = self.nearest_photo(camera)
        size = torch.tensor(views.size(view))
        pixel, z = views.project(places, view)
        seen = (z > 0) & (pixel >= 0).all(-1) & (pixel < size).all(-1)
        x, y = pixel[seen].long().unbind(-1)
        photo = views.image_rgb(view, self.background)[y, x]
        shown = torch.full_like(color, UNKNOWN)
        shown[seen] = error_colors(color[seen] - photo, ERROR_SCALE)
        return shown

    def nearest_photo(self, camera: Cameras) -> tuple[Views, int]:
        """The photo that was taken from nearest, in the direction most alike."""
        found: list[tuple[float, Views, int]] = []
        for views in (self.scene.train, self.scene.test):
            if len(views):
                angle = (views.c2w[:, :, 2] @ camera.c2w[0, :, 2]).clamp(-1, 1).acos()
                distance = (views.origins - camera.origins[0]).norm(dim=-1) + TURN * angle
                found.append((float(distance.min()), views, int(distance.argmin())))
        return min(found, key=lambda each: each[0])[1:]


def error_colors(difference: Tensor, scale: float) -> Tensor:
    """Mean absolute differences over channels [N, C] as colours [N, 3]."""
    return colorize(difference.abs().mean(-1), 0, scale)


def subject_of(task: Any) -> Subject:
    """Of ``hashgrid nerf``."""
    return RadianceSubject(task.model, task.sampler, task.scene, task.scene.background(task.config.background))
