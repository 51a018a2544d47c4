"""Scenes that the package makes of a few shapes in the box +-1.5: one that moves, one whose topology changes, one with
labels. And a street, which is longer than it is wide. Every pixel is exact (:mod:`hashgrid.data.analytic`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from hashgrid.data.analytic import Shape, around, box, floor, sphere, tinted, views, waves
from hashgrid.data.scene import NORMAL_HALF, Scene, SceneOptions, make_scene
from hashgrid.geometry.boxes import Box, cube
from hashgrid.geometry.cameras import Cameras, alike, focal_length, look_at

ELEVATIONS = (5.0, 60.0)  # of the cameras, in degrees
LOW = -0.5  # of the floor with labels, and of the street
STREET = 4.0, 1.2, 0.9  # half length and half width of the street, and height of what stands on it


def moving_scene(
    n_train: int = 48, n_test: int = 12, resolution: int = 100, seed: int = 0, options: SceneOptions | None = None
) -> Scene:
    """A ball that rises and falls past a turning box on a floor. One camera sees each moment, from another side each
    time, as in D-NeRF's pictures; held-out views are at times between theirs, from other sides."""

    def path(time: Tensor) -> Tensor:
        height = 0.25 - 0.25 * torch.cos(2 * math.pi * time)
        return torch.stack((time - 0.5, torch.full_like(time, 0.5), height - 0.1), dim=-1)

    turning = box((0.42, 0.42, 0.42), waves(4), (0.0, -0.5, -0.13), turning=(0.0, 0.0, 1.5))
    shapes = [floor(-0.55, 1.1, waves(2.5)), sphere(0.45, waves(4), path), turning]
    return _over_time("moving", shapes, n_train, n_test, resolution, seed, options)


def splitting_scene(
    n_train: int = 48, n_test: int = 12, resolution: int = 100, seed: int = 0, options: SceneOptions | None = None
) -> Scene:
    """A ball that is two from a third of the time on, which part: no deformation of one ball is that."""

    def half(side: float) -> Shape:
        def path(time: Tensor) -> Tensor:
            apart = 1.35 * (time - 1 / 3).clamp(min=0)
            return torch.stack((side * apart, 0 * time, 0 * time), dim=-1)

        return sphere(0.5, waves(5), path)

    return _over_time("splitting", [half(-1.0), half(1.0)], n_train, n_test, resolution, seed, options)


def labelled_scene(
    n_train: int = 30, n_test: int = 8, resolution: int = 64, seed: int = 0, options: SceneOptions | None = None
) -> Scene:
    """A floor, three balls and three boxes on it, each a class of its own with a mild texture; nothing else has a
    label. A ball and the box across from it look alike: classes are told by where things are, too."""
    colors = [(0.8, 0.25, 0.2), (0.2, 0.45, 0.8), (0.9, 0.75, 0.2)]
    shapes = [floor(LOW, 1.15, tinted(4, (0.6, 0.55, 0.5), 0.06))]
    for i in range(2 * len(colors)):
        angle, texture = math.pi / len(colors) * i + 0.4, tinted(7 + i, colors[i % len(colors)])
        place = 0.72 * math.cos(angle), 0.72 * math.sin(angle)
        if i % 2 == 0:
            radius = 0.24 + 0.03 * i
            middle = torch.tensor([*place, LOW + radius])
            shapes.append(sphere(radius, texture, lambda time, middle=middle: middle))  # type: ignore[misc]
        else:
            half = 0.2, 0.24, 0.16 + 0.06 * i
            shapes.append(box(half, texture, (*place, LOW + half[2]), (0.0, 0.0, 0.5 * i)))
    return _scene("labelled", shapes, (n_train, n_test), resolution, seed, options, range(len(shapes)))


def street_scene(
    n_train: int = 80, n_test: int = 16, resolution: int = 100, seed: int = 0, options: SceneOptions | None = None
) -> Scene:
    """Eight pairs of houses and domes along a street of a length of 8, seen by cameras that fly along its sides."""
    (length, width, height), options = STREET, options or SceneOptions()
    generator = torch.Generator().manual_seed(seed)
    shapes = [box((length, width, 0.05), waves(9), (0.0, 0.0, LOW - 0.05))]
    for i in range(16):
        place, size = (i // 2 - 3.5, 0.72 * (1 - 2 * (i % 2))), 0.24 + 0.1 * float(torch.rand(1, generator=generator))
        texture = waves(7 + 9 * float(torch.rand(1, generator=generator)))
        if (i // 2 + i) % 3 == 0:
            middle = torch.tensor([*place, LOW])
            shapes.append(sphere(size + 0.06, texture, lambda time, middle=middle: middle))  # type: ignore[misc]
            continue
        half = size, 0.3, 0.2 + 0.4 * float(torch.rand(1, generator=generator))
        shapes.append(box(half, texture, (*place, LOW + half[2]), (0.0, 0.0, 0.3 * (size - 0.29) * i)))
    size = resolution // options.downscale
    train, test = (views(shapes, _flight(n, size, 2 * seed + i)) for i, n in enumerate((n_train, n_test)))
    path = Path(f"street:train={n_train},test={n_test},resolution={resolution},seed={seed}")
    space = Box(torch.tensor([-length, -width, LOW - 0.1, length, width, LOW + height + 0.4]).double())
    return make_scene(train, test, lambda _: space, path, "street", options, "street")


def _flight(n: int, size: int, seed: int) -> Cameras:
    """Cameras to both sides of a street, in its order, that look at it, more or less ahead."""
    generator = torch.Generator().manual_seed(seed)
    jitter, ahead, aside, up = torch.rand(4, n, generator=generator)
    x = STREET[0] * 1.05 * (2 * (torch.arange(n) + jitter) / max(n, 1) - 1)
    side = 1 - 2.0 * (torch.arange(n) % 2)
    origins = torch.stack((x, side * (1.7 + aside), 0.4 + 1.2 * up), dim=-1)
    targets = torch.stack((x + 1.6 * ahead - 0.8, 0 * x, torch.full_like(x, -0.25)), dim=-1)
    c2w = torch.cat([look_at(origins[i : i + 1], targets[i], torch.tensor([0.0, 0.0, 1.0])) for i in range(n)])
    return alike(c2w.view(n, 3, 4), focal_length(math.radians(60.0), size), (size, size))


def _over_time(
    name: str, shapes: list[Shape], n_train: int, n_test: int, resolution: int, seed: int, options: SceneOptions | None
) -> Scene:
    """Training views at even times from 0 to 1, test views in the middle between some of them."""
    times = torch.linspace(0, 1, n_train), (torch.arange(n_test) + 0.5) / max(n_test, 1)
    between = (times[1] * (n_train - 1)).floor() + 0.5
    moments = times[0], (between / max(n_train - 1, 1)).clamp(max=1)
    return _scene(name, shapes, moments, resolution, seed, options)


def _scene(
    name: str,
    shapes: list[Shape],
    moments: tuple[Tensor, Tensor] | tuple[int, int],
    resolution: int,
    seed: int,
    options: SceneOptions | None,
    labels: Sequence[int] | None = None,
) -> Scene:
    """The scene of shapes at moments of training and test views, or in so many views where nothing moves."""
    options = options or SceneOptions()
    size = resolution // options.downscale
    times = [None if isinstance(part, int) else part for part in moments]
    counts = [part if isinstance(part, int) else len(part) for part in moments]
    parts = [
        views(shapes, around(n, size, 2 * seed + i, elevations=ELEVATIONS, times=times[i]), labels)
        for i, n in enumerate(counts)
    ]
    path = Path(f"{name}:train={counts[0]},test={counts[1]},resolution={resolution},seed={seed}")
    space = Box(cube(torch.zeros(3), NORMAL_HALF))
    return make_scene(parts[0], parts[1], lambda _: space, path, name, options, name)
