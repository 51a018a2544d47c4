"""Families of scenes: what a field is learned across. Scenes of a few shapes at random, of which every pixel is exact
(:mod:`hashgrid.data.analytic`), or those of a folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid.data.analytic import Shape, Texture, around, box, floor, sphere, views
from hashgrid.data.errors import SceneError
from hashgrid.data.scene import Scene, SceneOptions, Views, load_scene, make_scene
from hashgrid.geometry.boxes import Box, cube
from hashgrid.geometry.motions import so3_exp
from hashgrid.util.config import Config

HALF = 1.0  # half side of the box that all shapes are in
GROUND = -0.35  # height of the floor
UNSEEN = 1 << 20  # seeds from here on are of scenes that nothing is learned from
RADIUS, FOV = 4.0, 34.0  # distance of the cameras from the middle; their field of view in degrees
ELEVATIONS = (20.0, 60.0)  # of the cameras, in degrees


def painted(color: Tensor, scale: float, strength: float, turn: Tensor) -> Texture:
    """A colour [3] that is lighter and darker by ``strength`` in waves of ``scale`` radians per unit, along two
    directions, the rows of ``turn`` [2, 3]."""

    def texture(p: Tensor) -> Tensor:
        wave = torch.sin(scale * p @ turn.T).prod(-1, keepdim=True)
        return (color + strength * wave).clamp(0, 1)

    return texture


def resting(place: tuple[float, float, float]) -> Callable[[Tensor], Tensor]:
    """What is at a place at all times."""
    return lambda time: time.new_tensor(place).expand(len(time), 3)


def random_shapes(seed: int) -> list[Shape]:
    """Three to five balls and turned boxes of different colours; on a square floor in every other scene."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    def texture(strength: float) -> Texture:
        directions = torch.nn.functional.normalize(torch.randn(2, 3, generator=generator), dim=1)
        return painted(uniform(0.05, 0.95, 3), float(uniform(5, 12)), strength, directions)

    shapes, has_floor = list[Shape](), seed % 2 == 0
    n, turn = int(torch.randint(3, 6, (1,), generator=generator)), float(uniform(0, 2 * math.pi))
    for i in range(n):  # around the middle, so that few are inside of others
        angle, distance = turn + 2 * math.pi * i / n + float(uniform(-0.3, 0.3)), float(uniform(0.3, 0.65))
        size, lift = float(uniform(0.18, 0.34)), float(uniform(0, 0.65))
        height = GROUND + size if has_floor else GROUND + size + lift
        centre = (distance * math.cos(angle), distance * math.sin(angle), height)
        if float(uniform(0, 1)) < 0.5:
            shapes.append(sphere(size, texture(0.2), resting(centre)))
            continue
        half, turned = size * uniform(0.6, 1.0, 3), math.pi * uniform(-1, 1, 3)
        if has_floor:  # it stands
            half[2], turned[:2] = size, 0.0
        reach = so3_exp(turned[None])[0].abs() @ half
        half *= ((HALF - torch.tensor(centre).abs()) / reach).clamp(max=1).min()
        shapes.append(box(half.tolist(), texture(0.2), centre, turned.tolist()))
    return [*shapes, floor(GROUND, 0.9, texture(0.15))] if has_floor else shapes


def random_scene(
    n_train: int = 3,
    n_test: int = 8,
    resolution: int = 48,
    seed: int = 0,
    options: SceneOptions | None = None,
    first: int = UNSEEN,
) -> Scene:
    """A scene of :func:`random_shapes`, with cameras at one distance all around.

    Args:
        n_train, n_test: views.
        resolution: pixels along the sides of a picture.
        seed: of the scene, from ``first`` on.
        options: how it is read.
        first: 0 for those that fields are learned from.

    Example:
        >>> scene = random_scene(n_train=3, n_test=1, resolution=16, seed=5)
        >>> len(scene.train), scene.test.image(0).shape
        (3, torch.Size([16, 16, 4]))
    """
    options = options or SceneOptions()
    size, number = resolution // options.downscale, first + seed
    shapes = random_shapes(number)
    cameras = [around(n, size, 2 * number + i, RADIUS, ELEVATIONS, FOV) for i, n in enumerate((n_train, n_test))]
    path = Path(f"primitives:train={n_train},test={n_test},resolution={resolution},seed={seed}")
    space = Box(cube(torch.zeros(3), HALF))
    train, test = (views(shapes, each) for each in cameras)
    return make_scene(train, test, lambda _: space, path, "primitives", options, "primitives")


@dataclass(frozen=True)
class FamilyOptions(Config):
    """Which scenes a field is learned across, and on which it is judged."""

    n_scenes: int = 120  # that are learned from, where the package makes them
    n_views: int = 12  # of each of those
    n_unseen: int = 8  # scenes that are not learned from
    n_targets: int = 6  # views of each of those, beside the sources
    resolution: int = 48  # pixels along the sides of their pictures

    def check(self) -> None:
        super().check()
        for name, least in (("n_scenes", 1), ("n_views", 2), ("n_unseen", 1), ("n_targets", 1), ("resolution", 8)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class SceneFamily:
    """Scenes, all normalised.

    Attributes:
        name: what they are.
        n_known: scenes that are learned from.
        make_known: makes these, when :attr:`known` is first asked for.
        unseen: others: training views are the sources, test views the targets.
        aabb: the box [6] that all are in.
    """

    name: str
    n_known: int
    make_known: Callable[[], Sequence[Scene]]
    unseen: Sequence[Scene]
    aabb: Tensor

    @cached_property
    def known(self) -> Sequence[Scene]:
        """The scenes that are learned from, by their training views."""
        return self.make_known()


def generated_scenes(options: FamilyOptions, n_sources: int) -> SceneFamily:
    """Scenes of :func:`random_shapes`; unseen ones are the first that ``primitives`` names as a scene."""
    size, n = options.resolution, options.n_scenes

    def known() -> list[Scene]:
        return [random_scene(options.n_views, 0, size, seed, first=0).normalized() for seed in range(n)]

    unseen = [random_scene(n_sources, options.n_targets, size, seed).normalized() for seed in range(options.n_unseen)]
    return SceneFamily("primitives", n, known, unseen, unseen[0].outer_aabb)


def scenes_of(folder: Path, options: FamilyOptions, n_sources: int, reading: SceneOptions) -> SceneFamily:
    """The scenes in the folders of a folder, of any format that :func:`hashgrid.data.scene.load_scene` reads. Every
    fourth, in the order of their names, is unseen, ``n_unseen`` at most: sources are evenly spread training views.

    Raises:
        SceneError: there are fewer than two, or one of them is unusable.
    """
    folders = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if len(folders) < 2:
        raise SceneError(f"`SOURCE` must be a folder of at least two scenes, each a folder, got {folder}")
    scenes = [load_scene(path, reading).normalized() for path in folders]
    held_out = set(range(3, len(scenes), 4)) or {len(scenes) - 1}
    known = [scene for i, scene in enumerate(scenes) if i not in held_out]
    unseen = [few_views(scenes[i], n_sources, options.n_targets) for i in sorted(held_out)][: options.n_unseen]
    corners = torch.stack([scene.outer_aabb for scene in scenes])
    aabb = torch.cat((corners[:, :3].amin(0), corners[:, 3:].amax(0)))
    return SceneFamily(folder.name, len(known), lambda: known, unseen, aabb)


def few_views(scene: Scene, n_sources: int, n_targets: int) -> Scene:
    """The scene with so many training views, and so many test views, or training views that are left where it has
    none, evenly spread.

    Raises:
        SceneError: there are too few.
    """
    sources, n = spread_evenly(len(scene.train), n_sources), len(scene.train)
    rest = [view for view in range(n) if view not in sources]
    targets, others = (scene.test, range(len(scene.test))) if len(scene.test) else (scene.train, rest)
    if len(sources) < n_sources or not len(others):
        raise SceneError(f"{scene.path}: must have {n_sources} training views and another one, got {n}")
    chosen = [others[i] for i in spread_evenly(len(others), n_targets)]
    return replace(scene, train=taken(scene.train, sources), test=taken(targets, chosen))


def spread_evenly(n: int, most: int) -> list[int]:
    """``most`` of the numbers up to ``n``, or all.

    Example:
        >>> spread_evenly(9, 3)
        [0, 4, 8]
    """
    return torch.linspace(0, n - 1, min(n, most)).round().long().tolist() if n else []


def taken(views: Views, numbers: Sequence[int]) -> Views:
    """Some of the views, their pixels in memory."""
    rows = torch.cat([torch.arange(*views.offsets[i : i + 2].tolist()) for i in numbers])
    each = {name: getattr(views, name) for name in ("c2w", "intrinsics", "sizes", "distortion", "lens", "times")}
    pixels = {name: getattr(views, name) for name in ("data", "counts", "ends")}
    chosen: dict[str, Any] = {name: None if x is None else x[list(numbers)] for name, x in each.items()}
    chosen |= {name: None if x is None else x[rows] for name, x in pixels.items()}
    names = tuple(views.names[i] for i in numbers) if views.names else ()
    return replace(views, **chosen, names=names, pages=None)
