"""Cameras with lenses, and the rays through their pixels.

Cameras follow OpenGL: x right, y up, looking along -z. Pixel (0, 0) is the top left one and its centre lies at
(0.5, 0.5). Lenses (:mod:`hashgrid.geometry.lenses`) have y *down* and look along z, as OpenCV has it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hashgrid.geometry.lenses import COEFFICIENTS, KINDS, project, unproject
from hashgrid.geometry.rays import Rays

if TYPE_CHECKING:
    from typing_extensions import Self

UP = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}
# Directions through pixels are tabulated per distinct camera up to this many pixels (8 or 12 bytes each).
MAX_TABLE_PIXELS = 1 << 25
WIDEST = math.pi / 2  # over the longer side of pictures of a path: further out a pinhole's are mostly stretched
LEAST_DEPTH = 0.05  # of unit directions along the axis, of those that are tabulated as points at unit distance


@dataclass
class Cameras:
    """N cameras.

    Attributes:
        c2w: rigid camera-to-world matrices [N, 3, 4], fp32, or fp64 where fp32 would move them.
        intrinsics: focal lengths and principal point ``fx, fy, cx, cy`` in pixels [N, 4], fp32.
        sizes: width and height [N, 2], int64.
        distortion: coefficients of the lens [N, up to 16], fp32, in the order of
            :data:`hashgrid.geometry.lenses.COEFFICIENTS`: ``k1, k2, k3, k4, p1, p2`` first; the others are zero.
        lens: index into :data:`hashgrid.geometry.lenses.KINDS` [N], int64; all perspective by default.
        times: when each picture was taken [N], fp32, where the scene moves; None where nobody says.
    """

    c2w: Tensor
    intrinsics: Tensor
    sizes: Tensor
    distortion: Tensor = None  # type: ignore[assignment]
    times: Tensor | None = None
    lens: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        n, n_coefficients = len(self.c2w), len(COEFFICIENTS)
        if self.distortion is None:
            self.distortion = torch.zeros(n, n_coefficients)
        if self.lens is None:
            self.lens = torch.zeros(n, dtype=torch.int64)
        if self.distortion.dim() == 2 and self.distortion.shape[1] < n_coefficients:
            self.distortion = torch.nn.functional.pad(self.distortion, (0, n_coefficients - self.distortion.shape[1]))
        shapes = {"c2w": (3, 4), "intrinsics": (4,), "sizes": (2,), "distortion": (n_coefficients,), "lens": ()}
        for name, tail in shapes.items():
            shape = tuple(getattr(self, name).shape)
            if shape != (n, *tail):
                raise ValueError(f"`{name}` must have shape {[n, *tail]}, got {list(shape)}")
        if self.times is not None and self.times.shape != (n,):
            raise ValueError(f"`times` must have shape [{n}], got {list(self.times.shape)}")
        if self.lens.dtype != torch.int64 or bool(((self.lens < 0) | (self.lens >= len(KINDS))).any()):
            raise ValueError(f"`lens` must be int64 in 0..{len(KINDS) - 1}, got {self.lens.dtype} {self.lens.tolist()}")
        self.is_distorted = bool((self.distortion != 0).any() or (self.lens != 0).any())

    def __len__(self) -> int:
        return len(self.c2w)

    def to(self, device: torch.device) -> Self:
        """The same with every tensor on ``device``."""
        moved = copy(self)
        vars(moved).update({name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)})
        if "directions_table" in vars(self):
            moved.directions_table = tuple(x.to(device) for x in self.directions_table)
        return moved

    @property
    def origins(self) -> Tensor:
        """Camera centres [N, 3]."""
        return self.c2w[:, :, 3]

    def rays(self, view_index: Tensor, pixel_x: Tensor, pixel_y: Tensor) -> Rays:
        """Rays through the centres of pixels in columns ``pixel_x`` and rows ``pixel_y`` of views ``view_index``, [B]
        int64 each: of unit length, fp32, with their camera and its time."""
        # `index_select` of whole rows is several times faster than advanced indexing on the CPU.
        c2w = self.c2w.reshape(-1, 12).index_select(0, view_index).float().view(-1, 3, 4)
        place = self._places(view_index, pixel_x, pixel_y)
        radii = (1 / self.intrinsics[:, :2]).mean(1).index_select(0, view_index) / 3**0.5
        if place.shape[1] == 2:
            x, y = place.unbind(-1)
            rays_d = c2w[:, :, 0] * x[:, None] - c2w[:, :, 1] * y[:, None] - c2w[:, :, 2]
            cosines = torch.rsqrt(x * x + y * y + 1)
            rays_d, radii = rays_d * cosines[:, None], radii * cosines
        else:
            x, y, z = place.unbind(-1)
            rays_d = c2w[:, :, 0] * x[:, None] - c2w[:, :, 1] * y[:, None] - c2w[:, :, 2] * z[:, None]
        time = None if self.times is None else self.times.index_select(0, view_index)
        return Rays(c2w[:, :, 3].contiguous(), rays_d, view_index, time, radii=radii)

    def ahead(self, rays: Rays) -> Tensor:
        """How far rays go along the axis of their camera per unit of length [R]: depth is so much of distance."""
        assert rays.camera is not None
        axes = self.c2w[:, :, 2].to(rays.directions).index_select(0, rays.camera)
        return -(rays.directions * axes).sum(-1)

    @cached_property
    def _host_sizes(self) -> list[list[int]]:
        return self.sizes.tolist()

    def size(self, view: int) -> tuple[int, int]:
        """Width and height of one view. A GPU is asked once."""
        width, height = self._host_sizes[view]
        return width, height

    def view_rays(self, view: int, begin: int = 0, end: int | None = None) -> Rays:
        """Rays through pixels ``begin`` to ``end`` of one view, row by row; through all of them by default. They have
        its time but no camera: nobody has trained on what is rendered."""
        width, height = self.size(view)
        end = width * height if end is None else min(end, width * height)
        pixel = torch.arange(begin, end, device=self.c2w.device)
        return replace(self.rays(torch.full_like(pixel, view), pixel % width, pixel // width), camera=None)

    def project(self, points: Tensor, view: int) -> tuple[Tensor, Tensor]:
        """Pixel coordinates [P, 2] and depth along the viewing direction [P] of world points [P, 3] in one view.

        The coordinates are continuous (a pixel centre is at +0.5) and mean nothing where the lens does not see the
        point; its depth is not positive then. Of lenses that see behind them the depth is the distance.
        """
        rotation, origin = self.c2w[view, :, :3], self.c2w[view, :, 3]
        local = (points - origin.to(points)) @ rotation.to(points) * points.new_tensor([1, -1, -1])
        kind = KINDS[int(self.lens[view])]
        place, seen = project(local, kind, self.distortion[view].to(points))
        depth = local[:, 2] if kind == "perspective" else local.norm(dim=-1)
        fx, fy, cx, cy = self.intrinsics[view].tolist()
        pixels = torch.stack((place[:, 0] * fx + cx, place[:, 1] * fy + cy), dim=-1)
        return pixels, torch.where(seen, depth, -depth.abs())

    def select(self, views: Sequence[int]) -> Cameras:
        """The cameras ``views``, in that order, without any images."""
        index = torch.as_tensor(views, dtype=torch.int64)
        values = (self.c2w, self.intrinsics, self.sizes, self.distortion, self.times, self.lens)
        return Cameras(*(None if x is None else x[index] for x in values))  # type: ignore[arg-type]

    def evenly(self, most: int) -> Cameras:
        """``most`` of the cameras at most, evenly spread over all, without any images."""
        n = min(most, len(self))
        return self.select([i * len(self) // n for i in range(n)])

    def scaled(self, factor: float) -> Cameras:
        """The same views, without any images, in pictures ``factor`` times as wide and as high."""
        sizes = (self.sizes * factor).round().long()
        return Cameras(self.c2w, self.intrinsics * factor, sizes, self.distortion, self.times, self.lens)

    def _places(self, view_index: Tensor, pixel_x: Tensor, pixel_y: Tensor) -> Tensor:
        """Directions through pixel centres, in the camera: points at unit distance [B, 2] or unit vectors [B, 3]."""
        if self.is_distorted:
            table, camera_rows = self.directions_table
            if len(table):
                offset, width = camera_rows.index_select(0, view_index).unbind(-1)
                return table.index_select(0, offset + pixel_y * width + pixel_x)
        focal, centre = self.intrinsics.index_select(0, view_index).split(2, dim=-1)
        points = (torch.stack((pixel_x, pixel_y), dim=-1) + 0.5 - centre) / focal
        if not self.is_distorted:
            return points
        directions, kinds = points.new_zeros(len(points), 3), self.lens.index_select(0, view_index)
        for kind in kinds.unique().tolist():
            rows = kinds == kind
            distortion = self.distortion.index_select(0, view_index[rows])
            directions[rows] = unproject(points[rows], KINDS[kind], distortion)[0]
        return directions

    @property
    def rays_are_tabulated(self) -> bool:
        """Whether `rays` only looks up points at unit distance, as kernels do."""
        return not self.is_distorted or (len(self.directions_table[0]) > 0 and self.directions_table[0].shape[1] == 2)

    @cached_property
    def directions_table(self) -> tuple[Tensor, ...]:
        """Directions of every pixel of every distinct camera, points at unit distance [P, 2] or, where a lens sees to
        its sides, unit vectors [P, 3]; and (first row, width) for each view [N, 2].

        The table is empty where it would not fit ``MAX_TABLE_PIXELS``.
        """
        values = (self.intrinsics, self.distortion, self.lens[:, None], self.sizes)
        cameras, camera_of_view = torch.unique(torch.cat([x.double() for x in values], 1), dim=0, return_inverse=True)
        n_pixels = (cameras[:, -2] * cameras[:, -1]).long()
        offsets = torch.cumsum(n_pixels, 0) - n_pixels
        rows = torch.stack((offsets, cameras[:, -2].long()), dim=1)[camera_of_view]
        if int(n_pixels.sum()) > MAX_TABLE_PIXELS:
            return torch.empty(0, 2, device=self.c2w.device), rows
        directions = torch.cat([_pixel_directions(camera) for camera in cameras])
        if bool((directions[:, 2] > LEAST_DEPTH).all()):
            return (directions[:, :2] / directions[:, 2:]).float(), rows
        return directions.float(), rows


def lit_pixels(cameras: Cameras, view: int) -> Tensor | None:
    """The pixels of a view that light reaches [H, W] bool, None for all: a fisheye's picture is round."""
    if KINDS[int(cameras.lens[view])] == "perspective":
        return None
    width, height = cameras.sizes[view].tolist()
    points = _pixel_points(cameras.intrinsics[view].tolist(), width, height, cameras.c2w.device)
    residual = unproject(points, KINDS[int(cameras.lens[view])], cameras.distortion[view].double())[1]
    lit = residual <= 1e-3 / float(cameras.intrinsics[view, :2].max())
    return None if bool(lit.all()) else lit.view(height, width)


def _pixel_points(intrinsics: Sequence[float], width: int, height: int, device: torch.device) -> Tensor:
    """Middles of all pixels [W*H, 2], float64, in focal lengths from the principal point."""
    fx, fy, cx, cy = intrinsics
    x = (torch.arange(width, device=device).double() + 0.5 - cx) / fx
    y = (torch.arange(height, device=device).double() + 0.5 - cy) / fy
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((grid_x, grid_y), dim=-1).reshape(-1, 2)


def _pixel_directions(camera: Tensor) -> Tensor:
    """Unit directions through all pixels [W*H, 3] of ``fx fy cx cy | distortion | lens | width height`` [23]."""
    width, height, kind = int(camera[-2]), int(camera[-1]), KINDS[int(camera[-3])]
    points = _pixel_points(camera[:4].tolist(), width, height, camera.device)
    directions, residual = unproject(points, kind, camera[4:-3])
    n_failed = int((residual > 1e-3 / float(camera[:2].max())).sum())
    if n_failed and kind == "perspective":  # the others have a mask
        warnings.warn(
            f"lens distortion cannot be undone for {n_failed} of {width * height} pixels (outside the range where the"
            " model is invertible); their directions are approximate, check k1 k2 k3 k4 p1 p2",
            stacklevel=2,
        )
    return directions


def nearest_point_to_axes(cameras: Cameras) -> Tensor:
    """The point nearest to all optical axes, in the least-squares sense [3], float64.

    Where the axes (nearly) agree, as in a forward-facing capture, a weak pull keeps it in front of the cameras; where
    the cameras look outwards, it is the mean camera centre.
    """
    origins, axes = cameras.origins.double(), torch.nn.functional.normalize(-cameras.c2w[:, :, 2], dim=-1).double()
    mean_origin = origins.mean(0)
    spread = (origins - mean_origin).norm(dim=-1).mean().clamp_min(1e-6)
    guess = mean_origin + axes.mean(0) * spread
    eye = torch.eye(3, dtype=torch.float64, device=axes.device)
    across, pull = eye - axes[:, :, None] * axes[:, None, :], 1e-3 * eye  # [N, 3, 3], [3, 3]
    centre = torch.linalg.solve(across.mean(0) + pull, (across @ origins[:, :, None]).mean(0)[:, 0] + pull @ guess)
    in_front = ((centre - origins) * axes).sum(-1) > 0
    return centre if in_front.double().mean() > 0.5 else mean_origin


def alike(c2w: Tensor, focal: float, size: tuple[int, int], times: Tensor | None = None) -> Cameras:
    """Cameras of poses [N, 3, 4], each ``focal`` pixels before the middle of a picture of one width and height."""
    n, (width, height) = len(c2w), size
    intrinsics = torch.tensor([[focal, focal, width / 2, height / 2]]).repeat(n, 1)
    return Cameras(c2w.float(), intrinsics, torch.tensor([[width, height]]).repeat(n, 1), times=times)


def pinhole_focal(cameras: Cameras) -> float:
    """The mean focal length of pinholes that see as much as cameras do over the longer side of their pictures, up to
    `WIDEST`, in pixels of the first camera's picture."""
    focals = []
    for view in range(len(cameras)):
        (width, height), (fx, fy, cx, cy) = cameras.size(view), cameras.intrinsics[view].tolist()
        side, kind = max(width, height), KINDS[int(cameras.lens[view])]
        focal = 0.5 * (fx + fy)
        if kind != "perspective":
            x, y = (0.0 - cx) / fx, (0.0 - cy) / fy
            edges = [[x, 0.0], [x + width / fx, 0.0]] if width >= height else [[0.0, y], [0.0, y + height / fy]]
            ends = unproject(torch.tensor(edges).double(), kind, cameras.distortion[view].cpu().double())[0]
            focal = focal_length(min(float(ends[:, 2].clamp(-1, 1).acos().sum()), WIDEST), side)
        focals.append(max(focal, focal_length(WIDEST, side)) / side)
    return sum(focals) / len(focals) * max(cameras.size(0))


def look_at(origin: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """Camera-to-world matrices [..., 3, 4] of cameras at ``origin`` [..., 3] that look at ``target`` [3]."""
    backward = torch.nn.functional.normalize(origin - target, dim=-1)
    right = torch.linalg.cross(up.to(backward).expand_as(backward), backward)
    # looking along `up`: any right vector will do
    other = torch.linalg.cross(torch.eye(3).to(backward)[backward.abs().argmin(-1)], backward)
    right = torch.where(right.norm(dim=-1, keepdim=True) < 1e-6, other, right)
    right = torch.nn.functional.normalize(right, dim=-1)
    return torch.stack((right, torch.linalg.cross(backward, right), backward, origin), dim=-1)


def focal_length(angle: float, pixels: float) -> float:
    """Focal length in pixels of a field of view ``angle`` (radians) over ``pixels``."""
    return 0.5 * pixels / math.tan(0.5 * angle)


def framing(
    points: Tensor,
    size: tuple[int, int],
    azimuth: float = 145.0,
    elevation: float = 22.0,
    up: str = "y",
    fov: float = 28.0,
    fill: float = 0.78,
    turn: bool = False,
) -> Cameras:
    """One camera that looks at the middle of the box of points [N, 3], as near as has them all in the picture.

    Args:
        points: what to look at.
        size: width and height in pixels.
        azimuth, elevation: of the camera in degrees.
        up: axis that is up, "x", "y" or "z".
        fov: angle between the upper and the lower side in degrees.
        fill: of the picture, by the points.
        turn: the same distance for every azimuth.
    """
    low, high = points.double().amin(0), points.double().amax(0)
    centre, vertical = (low + high) / 2, torch.tensor(UP[up], dtype=torch.float64)
    across = torch.tensor(UP["z" if up == "y" else "y"], dtype=torch.float64) * (-1 if up == "z" else 1)
    side = torch.linalg.cross(vertical, across)
    a, e = math.radians(azimuth), math.radians(elevation)
    towards = math.cos(e) * (math.cos(a) * across + math.sin(a) * side) + math.sin(e) * vertical
    rotation = look_at(centre + towards, centre, vertical)[:, :3]
    offsets = points.double() - centre
    height = offsets @ vertical
    if turn:  # every point may come to lie anywhere on its circle
        radius = (offsets - height[:, None] * vertical).norm(dim=-1)
        view = torch.stack(
            [radius, height.abs() * math.cos(e) + radius * math.sin(e), height * math.sin(e) + radius * math.cos(e)]
        ).T
    else:
        view = offsets @ rotation
    tangent = math.tan(math.radians(fov) / 2) * fill * min(1.0, size[0] / size[1])
    wide = torch.tensor([size[1] / size[0], 1.0], dtype=torch.float64) * min(1.0, size[0] / size[1])
    distance = float((view[:, 2] + (view[:, :2].abs() * wide).amax(-1) / tangent).max())
    c2w = torch.cat([rotation, (centre + distance * towards)[:, None]], dim=1)
    return alike(c2w[None], focal_length(math.radians(fov), size[1]), size)


def orbit(cameras: Cameras, up: Tensor, n_frames: int = 120, max_size: int = 400) -> Cameras:
    """Cameras that circle what others look at, at their mean distance, height and field of view (of wide lenses
    `WIDEST`), and in their time.

    Where these leave a gap of more than 120 degrees, the path swings to and fro on their side instead:
    nothing is known about the other one.

    Args:
        cameras: the others.
        up: unit vector [3].
        n_frames: how many.
        max_size: the longer side of the pictures in pixels; both sides come out even, as video wants them.
    """
    centre, up = nearest_point_to_axes(cameras), up.double()
    offsets = cameras.origins.double() - centre
    distance = offsets.norm(dim=-1).clamp_min(1e-9)
    # An orthonormal frame about `up`: the mean viewing direction is azimuth 0.
    across = offsets - (offsets @ up)[:, None] * up
    mean = across.mean(0)
    if float(mean.norm()) < 1e-3 * float(distance.mean()):
        mean = across[0]
    east = torch.nn.functional.normalize(mean - (mean @ up) * up, dim=0)
    if float(east.norm()) < 0.5:  # a single camera straight above
        east = look_at(centre + up, centre, up)[:, 0]
    north = torch.linalg.cross(up, east)
    azimuth = torch.atan2(offsets @ north, offsets @ east)
    ordered = azimuth.sort().values
    gap = torch.cat((ordered[1:] - ordered[:-1], ordered[:1] + 2 * math.pi - ordered[-1:])).max()

    phase = torch.arange(n_frames, dtype=torch.float64) / max(n_frames, 1) * 2 * math.pi
    if float(gap) > math.radians(120):
        low, high = torch.quantile(azimuth, torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
        phase = 0.5 * (low + high) + 0.5 * (high - low) * torch.sin(phase)
    elevation = torch.asin(((offsets @ up) / distance).clamp(-1, 1)).mean()
    ring = torch.cos(phase)[:, None] * east + torch.sin(phase)[:, None] * north
    origins = centre + distance.mean() * (torch.cos(elevation) * ring + torch.sin(elevation) * up)

    size = cameras.sizes[0].double()
    scale = min(1.0, max_size / float(size.max()))
    width, height = (max(2, int(side * scale) // 2 * 2) for side in size.tolist())
    focal = pinhole_focal(cameras) * width / float(size[0])
    times = None if cameras.times is None else torch.linspace(*cameras.times.aminmax(), n_frames)
    return alike(look_at(origins, centre, up), focal, (width, height), times)
