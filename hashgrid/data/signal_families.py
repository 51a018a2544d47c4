"""Families of signals: what one learns from, to be quick with the next. Signals are values [N, H, W, C] at the middles
of the pixels of the unit square, or [N, D, H, W, C] of the cube, as functions of a generator of random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.families import FAMILIES
from hashgrid.data.pictures import read_picture
from hashgrid.util.choices import check_option

Draw = Callable[[int, torch.Generator], Tensor]
SHARPNESS = 1.5  # pixels over which the edge of a polygon fades


def pixel_centres(size: int, n_dims: int = 2) -> Tensor:
    """Points [size^D, D] as (x, y) or (x, y, z), row after row."""
    axes = [(torch.arange(size) + 0.5) / size] * n_dims
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1).view(-1, n_dims)


def polygon_distances(x: Tensor, vertices: Tensor) -> Tensor:
    """Signed distances [B, N] of points [N, 2] to closed polygons [B, V, 2], negative inside (by the even-odd rule).

    Example:
        >>> import torch
        >>> square = torch.tensor([[[0.0, 0], [1, 0], [1, 1], [0, 1]]])
        >>> polygon_distances(torch.tensor([[0.5, 0.25], [1.5, 0.5]]), square)
        tensor([[-0.2500,  0.5000]])
    """
    a, b = vertices[:, None], vertices.roll(-1, 1)[:, None]  # [B, 1, V, 2]
    edge, to = b - a, x[None, :, None] - a  # [B, 1, V, 2], [B, N, V, 2]
    along = ((to * edge).sum(-1) / edge.square().sum(-1).clamp_min(1e-12)).clamp(0, 1)
    distance = (to - along[..., None] * edge).square().sum(-1).amin(-1).sqrt()
    above, next_above = a[..., 1] > x[:, None, 1], b[..., 1] > x[:, None, 1]
    turn = edge[..., 0] * to[..., 1] - edge[..., 1] * to[..., 0]
    crossed = (above != next_above) & ((turn > 0) == next_above)
    return torch.where(crossed.sum(-1) % 2 == 1, -distance, distance)


def random_polygons(
    n: int, generator: torch.Generator, n_corners: int = 12, radius: tuple[float, float] = (0.2, 0.42)
) -> Tensor:
    """Vertices [n, n_corners, 2] of stars and of what lies between them and regular polygons, in the unit square."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    arms = torch.randint(3, n_corners // 2 + 1, (n, 1), generator=generator)  # each with a tip and a notch
    corner = torch.arange(n_corners).expand(n, -1) % (2 * arms)
    corner = torch.where(torch.arange(n_corners) < 2 * arms, corner, 0)  # the rest lie on the first one
    angle = uniform(0, 2 * math.pi, 1) + math.pi * corner / arms
    jitter = uniform(0.85, 1.0, n_corners).gather(1, corner)
    length = uniform(*radius, 1) * jitter * torch.where(corner % 2 == 1, uniform(0.45, 0.95, 1), 1.0)
    centre = uniform(0.45, 0.55, 1, 2)
    return centre + length[..., None] * torch.stack((angle.cos(), angle.sin()), dim=-1)


def shapes(size: int) -> Draw:
    """Signed distances [n, size, size, 1] of random polygons and stars, in sides of the square."""
    x = pixel_centres(size)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        return polygon_distances(x, random_polygons(n, generator)).view(n, size, size, 1)

    return draw


def solids(size: int) -> Draw:
    """Signed distances [n, size, size, size, 1] of random bottles, tables, drilled boxes and superquadrics, in sides of
    the cube; those of superquadrics are near ones."""
    x, kinds = pixel_centres(size, 3), list(FAMILIES.values())

    def draw(n: int, generator: torch.Generator) -> Tensor:
        seeds = torch.randint(1 << 40, (n,), generator=generator).tolist()
        fields = [kinds[seed % len(kinds)](np.random.default_rng(seed)) for seed in seeds]
        return torch.stack([field(x) for field in fields]).float().view(n, size, size, size, 1)

    return draw


def images(size: int) -> Draw:
    """Pictures [n, size, size, 3] in [0, 1]: soft blobs, stripes and polygons on a sky of two colours."""
    x = pixel_centres(size)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(n, *shape, generator=generator)

        top, bottom = uniform(0.2, 0.9, 1, 3), uniform(0.2, 0.9, 1, 3)
        picture = torch.lerp(top, bottom, x[:, 1:].expand(n, -1, 1))
        angle, frequency, phase = uniform(0, math.pi, 1), uniform(1, 3, 1), uniform(0, 2 * math.pi, 1)
        along = x[:, 0] * angle.cos() + x[:, 1] * angle.sin()  # [n, P]
        stripes = torch.sin(2 * math.pi * frequency * along + phase)
        picture = picture + stripes[..., None] * uniform(-0.15, 0.15, 1, 3)
        for _ in range(3):
            distance = (x - uniform(0.1, 0.9, 1, 2)).square().sum(-1)
            blob = torch.exp(-distance / (2 * uniform(0.05, 0.2, 1).square()))
            picture = picture + blob[..., None] * uniform(-0.5, 0.5, 1, 3)
        inside = torch.sigmoid(
            -polygon_distances(x, random_polygons(n, generator, radius=(0.1, 0.25))) * size * 4 / SHARPNESS
        )
        picture = torch.lerp(picture, uniform(0, 1, 1, 3), inside[..., None])
        return picture.clamp(0, 1).view(n, size, size, 3)

    return draw


@dataclass(frozen=True)
class Family:
    """Signals to learn from, and others to see what was learned.

    Attributes:
        name: what they are.
        draw: of those to learn from: so many values [n, size, ..., C], by a generator of random numbers.
        draw_unseen: of the others.
        n_channels: C.
        mean: what a value is about.
    """

    name: str
    draw: Draw
    draw_unseen: Draw
    n_channels: int
    mean: float


def generated_family(name: str, size: int) -> Family:
    """One of `GENERATED`; no signal of it comes twice.

    Raises:
        ValueError: there is none of this name.
    """
    kind = GENERATED[check_option("family", name, GENERATED)]
    return Family(f"generated {name}", kind.make(size), kind.make(size), kind.n_channels, kind.mean)


class Generated(NamedTuple):
    make: Callable[[int], Draw]  # of the size
    size: int  # that is learned from by default
    n_dims: int
    n_channels: int
    mean: float


GENERATED = {
    "images": Generated(images, 32, 2, 3, 0.5),
    "shapes": Generated(shapes, 32, 2, 1, 0.0),
    "solids": Generated(solids, 12, 3, 1, 0.0),
}


def photo_family(folder: Path, size: int, smallest: float = 0.5, n_crops: int = 1024) -> Family:
    """Squares [size, size, 3] cut from the photos of a folder. Every fourth photo, in the order of their names, is for
    the unseen signals; of a single one, its right quarter.

    Args:
        folder: of files with the endings of pictures; others are passed over.
        size: pixels of a side.
        smallest: side of the smallest square, as a share of the photo's shorter side; 1 for the middle of each photo.
        n_crops: that are kept in memory.

    Raises:
        ValueError: there is no photo.
        PhotoError: a file is damaged.
    """
    if not folder.is_dir():
        raise ValueError(f"`SOURCE` must be a folder of photos, got `{folder}`")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    if not paths:
        raise ValueError(f"`SOURCE` must be a folder of photos ({', '.join(ENDINGS)}), `{folder}` holds none")
    photos = [_reduced(path, size / smallest) for path in paths]
    if len(photos) == 1:
        border = photos[0].shape[2] * 3 // 4
        known, unseen = [photos[0][:, :, :border]], [photos[0][:, :, border:]]
    else:
        held_out = set(range(3, len(photos), 4)) or {len(photos) - 1}
        known = [photo for i, photo in enumerate(photos) if i not in held_out]
        unseen = [photos[i] for i in sorted(held_out)]
    generator = torch.Generator().manual_seed(0)
    pool = _crops(known, size, smallest, n_crops, generator)
    others = _crops(unseen, size, smallest, n_crops // 4, generator)
    return Family(f"{len(photos)} photos of {folder.name}", _drawn_from(pool), _drawn_from(others), 3, 0.5)


ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".exr")


def _reduced(path: Path, side: float) -> Tensor:
    """A photo [3, H, W] in [0, 1], by averaging so small that its shorter side is about twice ``side``."""
    picture = read_picture(path)
    pixels = picture.shown(picture.signal.values).permute(2, 0, 1).float() / 255
    factor = max(1, int(min(pixels.shape[1:]) / (2 * side)))
    return torch.nn.functional.avg_pool2d(pixels, factor) if factor > 1 else pixels


def _crops(photos: list[Tensor], size: int, smallest: float, n: int, generator: torch.Generator) -> Tensor:
    """Squares [n, size, size, 3] of photos [3, H, W] in turn."""
    crops = []
    for i in range(n):
        photo = photos[i % len(photos)]
        height, width = photo.shape[1:]
        share, down, right, mirror = torch.rand(4, generator=generator).tolist()
        side = max(1, round(min(height, width) * (smallest + (1 - smallest) * share)))
        top, left = (round((room - side) * at) for room, at in ((height, down), (width, right)))
        crop = photo[:, top : top + side, left : left + side]
        crop = torch.nn.functional.interpolate(crop[None], (size, size), mode="bilinear", antialias=True)[0]
        crops.append(crop.flip(-1) if mirror < 0.5 else crop)
    return torch.stack(crops).permute(0, 2, 3, 1).clamp(0, 1).contiguous()


def _drawn_from(pool: Tensor) -> Draw:
    return lambda n, generator: pool[torch.randint(len(pool), (n,), generator=generator)]
