"""What a page draws, and what subjects of all kinds share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hashgrid.geometry.boxes import Placement
from hashgrid.geometry.cameras import Cameras, alike, focal_length
from hashgrid.util.pictures import colorize

LIGHT = (-0.4, 0.6, 0.7)  # direction to it in the frame of the camera (right, up, towards it)
CLAY = (0.86, 0.66, 0.52)
PAPER = (0.96, 0.96, 0.96)  # behind everything, sRGB


class Drawn(NamedTuple):
    """A picture on the CPU."""

    color: Tensor  # [h, w, 3] in 0..1
    depth: Tensor  # [h, w] along the viewing direction, in the page's coordinates; inf where there is nothing


class Subject:
    """What can be looked at from anywhere. A kind is a subclass with `draw`; everything is in the page's coordinates,
    in which it is about as large as 1, and ``placement`` leads to those of the file.

    Attributes:
        modes: what `draw` can show, the usual one first; none without a model.
        box: [6], the lower corner first: what a crop begins with.
        up: unit vector [3].
        start, target: where the first look is from and at [3].
        fov: angle of that look between the upper and the lower side, in radians.
        views: cameras with their images, under the names of their groups.
        points: places [P, 3] to be shown, or none.
        times: from when to when it can be seen, where it moves.
        has_paths: whether `hashgrid render` flies along paths through it.
        background: colour [3] behind everything.
    """

    modes: Sequence[str] = ()
    placement = Placement()
    fov = 0.7
    points: Tensor | None = None
    times: tuple[float, float] | None = None
    has_paths = False
    background = torch.tensor(PAPER)

    def __init__(self, box: Tensor, up: Tensor, start: Tensor, target: Tensor) -> None:
        self.box, self.up, self.start, self.target = box.float().cpu(), up.float().cpu(), start, target
        self.views: dict[str, Cameras] = {}

    def draw(self, camera: Cameras, mode: str, crop: Tensor | None = None) -> Drawn:
        """The picture of a camera, which is the only one; a pixel depends on its own ray alone, so that a picture may
        be drawn in parts.

        Args:
            camera: on the CPU.
            mode: one of ``modes``.
            crop: box [6], outside of which nothing is shown; None for everything.
        """
        raise NotImplementedError


def camera_at(c2w: Tensor, fov: float, size: tuple[int, int], time: float | None = None) -> Cameras:
    """One camera of a pose [3, 4] with an angle ``fov`` (radians) over the height."""
    times = None if time is None else torch.tensor([time])
    return alike(c2w[None], focal_length(fov, size[1]), size, times)


def rows_of(camera: Cameras, begin: int, end: int) -> Cameras:
    """The camera of rows ``begin`` to ``end`` of another one's picture.

    >>> whole = camera_at(torch.eye(4)[:3], 0.7, (3, 4))
    >>> torch.equal(rows_of(whole, 1, 3).view_rays(0).directions, whole.view_rays(0).directions[3:9])
    True
    """
    intrinsics = camera.intrinsics - torch.tensor([0.0, 0.0, 0.0, float(begin)])
    sizes = torch.tensor([[camera.size(0)[0], end - begin]])
    return Cameras(camera.c2w, intrinsics, sizes, camera.distortion, camera.times, camera.lens)


def draw_in_parts(
    subject: Subject,
    camera: Cameras,
    mode: str,
    crop: Tensor | None = None,
    rows: int = 64,
    wanted: Callable[[], bool] = lambda: True,
) -> Drawn | None:
    """A picture, some rows at a time; None as soon as nobody wants it any more."""
    parts: list[Drawn] = []
    height = camera.size(0)[1]
    for begin in range(0, height, rows):
        if not wanted():
            return None
        parts.append(subject.draw(rows_of(camera, begin, min(begin + rows, height)), mode, crop))
    return Drawn(*(torch.cat(part) for part in zip(*parts, strict=True)))


def along_axis(camera: Cameras, directions: Tensor, t: Tensor) -> Tensor:
    """Depths [R] along the viewing direction of distances t [R] along rays."""
    return t * (directions @ -camera.c2w[0, :, 2].to(directions))


def depth_colors(camera: Cameras, box: Tensor, t: Tensor) -> Tensor:
    """Distances [R] as colours [R, 3], near ones bright, from the nearest to the farthest place of a box [6]."""
    origin, low, high = camera.origins[0].cpu(), box[:3].cpu(), box[3:].cpu()
    nearest = float((origin - origin.clamp(low, high)).norm())
    farthest = float(torch.maximum((origin - low).abs(), (origin - high).abs()).norm())
    return colorize(-t, -farthest, -nearest)


def matte(camera: Cameras, normals: Tensor, color: Tensor | None = None) -> Tensor:
    """sRGB colours [N, 3] of surfaces with outward normals [N, 3] under a light that goes with the camera."""
    light = normalize(camera.c2w[0, :, :3].to(normals) @ torch.tensor(LIGHT).to(normals), dim=0)
    bright = 0.3 + 0.7 * (normals @ light).clamp(min=0)
    return (torch.tensor(CLAY).to(normals) if color is None else color) * bright[:, None]


def normal_colors(camera: Cameras, normals: Tensor) -> Tensor:
    """Unit normals [N, 3] as colours [N, 3]: red right, green up, blue nearer."""
    return (normals @ camera.c2w[0, :, :3].to(normals) + 1) / 2


def overlook(box: Tensor, up: Tensor, fov: float = Subject.fov) -> tuple[Tensor, Tensor]:
    """A place from which all of a box is seen, somewhat from above, and its middle, [3] each."""
    low, high = box.float().split(3)
    middle, radius = (low + high) / 2, 0.5 * float((high - low).norm())
    across = torch.eye(3)[up.abs().argmin()]
    across = normalize(across - (across @ up) * up, dim=0)
    towards = normalize(across + 0.5 * torch.linalg.cross(up, across) + 0.45 * up, dim=0)
    return middle + 0.8 * radius / math.sin(fov / 2) * towards, middle


def hit_box(origins: Tensor, directions: Tensor, box: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays [R, 3] enter and leave a box [6], [R] each, the first beyond the second for those that miss it; and
    the normal [R, 3] of the side by which they enter."""
    inverse = 1 / torch.where(directions == 0, 1e-12, directions)
    one, other = (box[:3] - origins) * inverse, (box[3:] - origins) * inverse
    enter, axis = torch.minimum(one, other).max(-1)
    side = torch.zeros_like(directions).scatter_(1, axis[:, None], -directions.gather(1, axis[:, None]).sign())
    return enter.clamp(min=0), torch.maximum(one, other).amin(-1), side
