"""A block of a scene as a scene of its own: with the rays that cross it, and all else around it without an end."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hashgrid.data.errors import SceneError
from hashgrid.geometry.blocks import crosses
from hashgrid.geometry.boxes import MAX_CASCADES, Placement
from hashgrid.util.config import Config

if TYPE_CHECKING:
    from hashgrid.data.scene import Scene, Views

Corners = tuple[float, float, float, float, float, float]
LATTICE = 33  # pixels along a side of those by which it is known whether a view sees a block
CHUNK = 1 << 18  # rays at a time


@dataclass(frozen=True)
class BlockOptions(Config):
    """Which part of a scene is learned in detail, of several that are seen together: what `hashgrid blocks` says."""

    box: Corners | None = None  # of the scene's file, lower corner first: of this alone there is detail
    whole: Corners | None = None  # what all blocks fill; the block alone if none

    def check(self) -> None:
        super().check()
        for name, corners in (("box", self.box), ("whole", self.whole)):
            if corners is not None and not all(a < b for a, b in zip(corners[:3], corners[3:], strict=True)):
                raise ValueError(f"`{name}` must be two corners, the lower one first, got {list(corners)}")
        if self.whole is not None and self.box is None:
            raise ValueError("`whole` must be given with `box`, which is a part of it")


def block_of(scene: Scene, options: BlockOptions, masked: bool = True) -> Scene:
    """The scene of a block; the scene itself without a box.

    Training and test views that see nothing of the block are left out, unless pixels are in a file, and of others,
    where ``masked``, only pixels count whose rays cross it. The block is the innermost box of a scene without an end,
    whose cascades reach as far as the box of the scene did.

    Args:
        scene: in the coordinates of its file.
        options: the block.
        masked: whether pixels are told apart, which takes a look at each.

    Raises:
        SceneError: no training view sees the block.
    """
    if options.box is None:
        return scene
    box = torch.tensor(options.box, dtype=torch.float64)
    whole = box if options.whole is None else torch.tensor(options.whole, dtype=torch.float64)
    train, test = (_seen(views, whole, box, masked) for views in (scene.train, scene.test))
    if not len(train):
        raise SceneError(
            f"{scene.path}: some training view must see the block {list(options.box)}, none does; choose fewer blocks,"
            " or `--bounds` of what is looked at"
        )
    (low, high), outer = box.split(3), torch.stack((scene.outer_aabb.double(), whole))
    centre, half = (low + high) / 2, (high - low) / 2
    reach = torch.maximum(outer[:, 3:] - centre, centre - outer[:, :3]) / half
    n_cascades = 1 + math.ceil(math.log2(max(1.0, float(reach.max()))))
    aabb = box.to(scene.aabb.dtype)
    return replace(scene, train=train, test=test, aabb=aabb, n_cascades=min(n_cascades, MAX_CASCADES), bounded=False)


def _seen(views: Views, whole: Tensor, box: Tensor, masked: bool) -> Views:
    """Views of which some pixel sees a block, and where ``masked`` which pixels do."""
    if not len(views):
        return views
    # fp32 rays in coordinates of a survey would be metres off
    middle = Placement(tuple(((whole[:3] + whole[3:]) / 2).tolist()))
    cameras = views.select(range(len(views)))
    cameras = replace(cameras, c2w=middle.poses_from_file(views.c2w).float())
    whole, box = (torch.cat([middle.from_file(corner) for corner in part.split(3)]).float() for part in (whole, box))

    def sees(view: int, x: Tensor, y: Tensor) -> Tensor:
        return crosses(cameras.rays(torch.full_like(x, view), x, y), whole, box)

    kept = [i for i in range(len(views)) if views.pages is not None or bool(sees(i, *_lattice(*views.size(i))).any())]
    if masked:
        parts = []
        for view in kept:
            width, height = views.size(view)
            pixels = torch.arange(width * height).split(CHUNK)
            parts += [sees(view, pixel % width, pixel // width) for pixel in pixels]
        counts = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool)
    views = chosen(views, kept) if len(kept) < len(views) else views
    if not masked:
        return views
    counts = counts if views.counts is None else counts & views.counts
    share = float(counts.float().mean()) if len(counts) else 0.0
    note = f"{len(kept)} of {len(cameras)} views see the block, {share:.0%} of their pixels count"
    return replace(views, counts=counts, note="; ".join(filter(None, (views.note, note))))


def _lattice(width: int, height: int) -> tuple[Tensor, Tensor]:
    """Columns and rows of pixels on a lattice over a picture, its border included."""
    x, y = (torch.linspace(0, side - 1, min(side, LATTICE)).long() for side in (width, height))
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return columns.reshape(-1), rows.reshape(-1)


def chosen(views: Views, numbers: list[int]) -> Views:
    """Some of the views, with their pixels."""
    rows = torch.cat([torch.arange(*views.offsets[i : i + 2].tolist()) for i in numbers] or [torch.zeros(0).long()])
    of_view = {name: getattr(views, name) for name in ("c2w", "intrinsics", "sizes", "distortion", "lens", "times")}
    of_pixel = {name: getattr(views, name) for name in ("data", "counts", "ends", "labels")}
    taken = {name: None if x is None else x[numbers] for name, x in of_view.items()}
    taken |= {name: None if x is None else x[rows] for name, x in of_pixel.items()}
    return replace(views, **taken, names=tuple(views.names[i] for i in numbers) if views.names else ())  # type: ignore[arg-type]
