"""Scenes of a few shapes that rays meet in closed form: colour, distance, motion and label of every pixel are exact.

A shape is a function of origins [R, 3], directions [R, 3] of unit length and times [R] that returns how far each ray
goes until it meets it [R], inf where it does not, and the colours [R, 3] that are seen there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hashgrid.data.images import reduce_image
from hashgrid.data.scene import VOID, Scene, Views
from hashgrid.geometry.boxes import Box
from hashgrid.geometry.cameras import Cameras, alike, focal_length, look_at
from hashgrid.geometry.motions import so3_exp
from hashgrid.util.files import to_uint8

Shape = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Texture = Callable[[Tensor], Tensor]
SUPERSAMPLING = 3


def waves(scale: float, low: float = 0.1, high: float = 0.9) -> Texture:
    """Colours between ``low`` and ``high`` that vary with ``scale`` radians per unit, all channels otherwise."""
    mix = torch.tensor([[1.0, 0.5, -0.3], [-0.4, 1.0, 0.6], [0.5, -0.6, 1.0]])

    def texture(p: Tensor) -> Tensor:
        wave = torch.sin(scale * p @ mix) + 0.5 * torch.sin(1.7 * scale * p @ mix.T + 1.0)
        return low + (high - low) * (0.5 + wave / 3)

    return texture


def tinted(scale: float, color: tuple[float, float, float], swing: float = 0.12) -> Texture:
    """A colour that varies by ``swing`` in waves of ``scale`` radians per unit."""
    wave = waves(scale, -swing, swing)
    return lambda p: p.new_tensor(color) + wave(p)


def checks(side: float) -> Texture:
    """Black and white squares on planes of one height."""

    def texture(p: Tensor) -> Tensor:
        odd = (torch.floor(p[:, 0] / side) + torch.floor(p[:, 1] / side)) % 2
        return (0.05 + 0.9 * odd)[:, None].expand(-1, 3)

    return texture


def plain(*color: float) -> Texture:
    """One colour."""
    return lambda p: p.new_tensor(color).expand(len(p), 3)


def _roots(o: Tensor, d: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave a sphere around 0; inf where they miss it."""
    b = (o * d).sum(-1)
    square = b * b - o.square().sum(-1) + radius**2
    root = square.clamp_min(0).sqrt()
    return tuple(torch.where(square > 0, t, math.inf) for t in (-b - root, -b + root))  # type: ignore[return-value]


def sphere(
    radius: float,
    texture: Texture,
    centre: Callable[[Tensor], Tensor] | None = None,
    lobe: tuple[float, float] | None = None,
) -> Shape:
    """A ball around 0, or around ``centre(times)`` [R, 3], its texture with it. A ``lobe`` of strength and exponent
    adds a light that is seen from above, the same on all of the ball."""

    def shape(o: Tensor, d: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        o = o if centre is None else o - centre(time)
        t, _ = _roots(o, d, radius)
        t = torch.where(t > 0, t, math.inf)
        color = texture(o + t.nan_to_num(posinf=0)[:, None] * d)
        if lobe is not None:
            color = color + lobe[0] * (-d[:, 2:]).clamp_min(0) ** lobe[1]
        return t, color

    return shape


def shell(radius: float, texture: Texture) -> Shape:
    """The inside of a sphere around everything; its texture is that of directions from its middle."""

    def shape(o: Tensor, d: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        _, t = _roots(o, d, radius)
        return t, texture((o + t[:, None] * d) / radius)

    return shape


def bowl(radius: float, outside: Texture, inside: Texture) -> Shape:
    """The lower half of a sphere of no thickness, of which the inside looks otherwise than the outside."""

    def shape(o: Tensor, d: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        near, far = (torch.where(t > 0, t, math.inf) for t in _roots(o, d, radius))
        points = [o + t.nan_to_num(posinf=0)[:, None] * d for t in (near, far)]
        near, far = (torch.where(p[:, 2] < 0, t, math.inf) for t, p in zip((near, far), points, strict=True))
        first = (near <= far)[:, None]
        return torch.minimum(near, far), torch.where(first, outside(points[0]), inside(points[1]))

    return shape


def box(
    half: Sequence[float],
    texture: Texture,
    centre: Sequence[float] = (0.0, 0.0, 0.0),
    turned: Sequence[float] = (0.0, 0.0, 0.0),
    turning: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Shape:
    """A box, turned by a vector of rotation, and before that by another one times the time."""
    rotation = so3_exp(torch.tensor([turned]))[0]

    def shape(o: Tensor, d: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        o, d = (o - o.new_tensor(centre)) @ rotation, d @ rotation
        if any(turning):
            at_times = so3_exp(time[:, None] * o.new_tensor(turning))
            o, d = ((x[:, None] @ at_times)[:, 0] for x in (o, d))
        sides = torch.stack([(sign * o.new_tensor(half) - o) / d for sign in (-1.0, 1.0)])
        enter, leave = sides.amin(0).amax(-1), sides.amax(0).amin(-1)
        t = torch.where((enter < leave) & (enter > 0), enter, math.inf)
        return t, texture(o + t.nan_to_num(posinf=0)[:, None] * d)

    return shape


def floor(height: float, half: float, texture: Texture) -> Shape:
    """A square at a height."""

    def shape(o: Tensor, d: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        t = (height - o[:, 2]) / d[:, 2]
        p = o + t[:, None] * d
        return torch.where((t > 0) & (p[:, :2].abs().amax(-1) < half), t, math.inf), texture(p)

    return shape


def around(
    n: int,
    size: int,
    seed: int,
    radius: float = 4.0,
    elevations: tuple[float, float] = (-20.0, 60.0),
    fov: float = 40.0,
    times: Tensor | None = None,
) -> Cameras:
    """``n`` cameras at one distance from the middle, which they look at, their elevations evenly between two, a golden
    angle apart. Angles are in degrees."""
    generator = torch.Generator().manual_seed(seed)
    jitter, turn = torch.rand(n, generator=generator), 2 * math.pi * torch.rand(1, generator=generator)
    low, high = (math.sin(math.radians(angle)) for angle in elevations)
    order = torch.randperm(n, generator=generator) if times is not None else torch.arange(n)  # not a slow ascent
    height = low + (high - low) * (order + jitter) / n
    angle = math.pi * (3 - math.sqrt(5)) * torch.arange(n) + turn
    ring = (1 - height.square()).sqrt()
    origins = radius * torch.stack((ring * angle.cos(), ring * angle.sin(), height), dim=-1)
    c2w = look_at(origins, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    return alike(c2w, focal_length(math.radians(fov), size), (size, size), times)


def _trace(shapes: Sequence[Shape], cameras: Cameras, view: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first shape's number that each ray of a view meets [R], -1 for none, its distance [R] and its colour."""
    rays = cameras.view_rays(view)
    time = torch.zeros(len(rays)) if rays.time is None else rays.time
    found = [shape(rays.origins, rays.directions, time) for shape in shapes]
    distance, which = torch.stack([t for t, _ in found]).min(0)
    color = torch.stack([color for _, color in found])[which, torch.arange(len(which))]
    return torch.where(distance.isfinite(), which, -1), distance, color


def views(shapes: Sequence[Shape], cameras: Cameras, labels: Sequence[int] | None = None) -> Views:
    """What cameras see, each pixel the mean over its area; transparent where there is nothing.

    Args:
        shapes: S of them.
        cameras: N.
        labels: number of the class of each shape [S]: a pixel has that of what its middle shows, or `VOID`.
    """
    factor = torch.tensor([SUPERSAMPLING])
    finer = replace(cameras, intrinsics=cameras.intrinsics * factor, sizes=cameras.sizes * factor)
    pictures = []
    for view in range(len(cameras)):
        which, _, color = _trace(shapes, finer, view)
        rgba = torch.cat((color.clamp(0, 1), torch.ones_like(color[:, :1])), dim=-1) * (which >= 0)[:, None]
        width, height = finer.size(view)
        pictures.append(torch.from_numpy(reduce_image(to_uint8(rgba.view(height, width, 4)), SUPERSAMPLING)))
    names = tuple(f"view_{view:03d}" for view in range(len(cameras)))
    data = torch.stack(pictures).flatten(0, 2) if pictures else torch.empty(0, 4, dtype=torch.uint8)
    known = None if labels is None else torch.tensor([*labels, VOID], dtype=torch.uint8)[seen(shapes, cameras)[0]]
    return Views(
        cameras.c2w, cameras.intrinsics, cameras.sizes, times=cameras.times, data=data, names=names, labels=known
    )


def seen(shapes: Sequence[Shape], cameras: Cameras) -> tuple[Tensor, Tensor]:
    """The number of the shape in the middle of each pixel of all views [P], -1 for none, and its distance."""
    found = [_trace(shapes, cameras, view)[:2] for view in range(len(cameras))]
    return torch.cat([which for which, _ in found]), torch.cat([distance for _, distance in found])


def scene(shapes: Sequence[Shape], train: Cameras, test: Cameras, space: Box) -> Scene:
    """The scene of what cameras see."""
    up = torch.tensor([0.0, 0.0, 1.0])
    parts = views(shapes, train), views(shapes, test)
    aabb, n_cascades, bounded, near, _ = space
    return Scene(*parts, aabb.float(), n_cascades, bounded, near, up, Path("analytic"), "analytic")
