"""A matte ball of a known place and colour, and pictures of it with transparency all around."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hashgrid.data.procedural import orbit_cameras
from hashgrid.data.scene import Scene, SceneOptions, Views, make_scene
from hashgrid.geometry.boxes import Box
from hashgrid.geometry.cameras import Cameras

CENTRE, RADIUS = torch.tensor([20.3, -9.8, 5.2]), 1.5  # in a file whose unit and origin are its own
LIGHT = torch.nn.functional.normalize(torch.tensor([0.4, 0.3, 0.86]), dim=0)
UNIT, ORIGIN = 2.0, torch.tensor([20.0, -10.0, 5.0])


def shade(normals: Tensor) -> Tensor:
    """Colours [N, 3] of a matte ball, other ones on every side."""
    return (0.5 + 0.3 * normals) * (0.4 + 0.6 * (normals @ LIGHT).clamp(min=0))[:, None]


def photo(cameras: Cameras, view: int) -> Tensor:
    """RGBA [N, 4] of the ball."""
    rays = cameras.view_rays(view)
    o = rays.origins - CENTRE
    b, c = (o * rays.directions).sum(-1), o.square().sum(-1) - RADIUS**2
    hit = b * b > c
    t = -b - (b * b - c).clamp(min=0).sqrt()
    normals = (o + t[:, None] * rays.directions) / RADIUS
    return torch.cat((shade(normals), torch.ones_like(t)[:, None]), dim=1) * hit[:, None]


def inside_a_ball(scene: Scene, radius: float = 5 * UNIT) -> Scene:
    """The scene as opaque pictures, in a room that is a large ball with a pattern: one without an end."""

    def opaque(views: Views) -> Views:
        rays = [views.view_rays(view) for view in range(len(views))]
        origins, directions = (torch.cat([getattr(x, name) for x in rays]) for name in ("origins", "directions"))
        places = room(origins, directions, radius)[0]
        values = views.data.float() / 255
        colors = torch.lerp(pattern(places), values[:, :3], values[:, 3:])
        return replace(views, data=(colors * 255).round().to(torch.uint8))

    return replace(scene, train=opaque(scene.train), test=opaque(scene.test), bounded=False, n_cascades=3)


def room(origins: Tensor, directions: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Where rays from inside of a ball around ``ORIGIN`` meet it [R, 3], and how far that is [R]."""
    o = origins - ORIGIN
    b, c = (o * directions).sum(-1), o.square().sum(-1) - radius**2
    far = -b + (b * b - c).sqrt()
    return origins + far[:, None] * directions, far


def pattern(places: Tensor) -> Tensor:
    """Colours [N, 3] of places [N, 3]."""
    return 0.5 + 0.4 * torch.sin((places - ORIGIN) / UNIT * torch.tensor([1.3, 1.7, 2.1]))


def ball_scene(n: int = 20, size: int = 40) -> Scene:
    cameras = orbit_cameras(n, size, 0)
    below = torch.arange(n) % 2 == 1
    c2w = cameras.c2w.clone()
    c2w[below, 2] *= -1  # a mirror: z and the first axis of the camera
    c2w[below, :, 0] *= -1
    c2w[:, :, 3] = ORIGIN + UNIT * c2w[:, :, 3]
    cameras = replace(cameras, c2w=c2w)
    pixels = torch.cat([photo(cameras, view) for view in range(n)])
    data = (pixels * 255).round().to(torch.uint8)

    def views(n: int) -> Views:
        sizes, names = cameras.sizes[:n], tuple(map(str, range(n)))
        return Views(c2w[:n], cameras.intrinsics[:n], sizes, data=data[: n * size * size], names=names)

    box = Box(torch.cat((ORIGIN - 1.5 * UNIT, ORIGIN + 1.5 * UNIT)).double())
    return make_scene(views(n), views(1), lambda _: box, Path("ball"), "ball", SceneOptions())
