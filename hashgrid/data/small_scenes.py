"""Scenes that the package makes of a few shapes in the box +-1.5: one that moves, one whose topology changes, one with
labels. Every pixel is exact (:mod:`hashgrid.data.analytic`)."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from hashgrid.data.analytic import Shape, around, box, floor, sphere, views, waves
from hashgrid.data.scene import NORMAL_HALF, Scene, SceneOptions, make_scene
from hashgrid.geometry.boxes import Box, cube

ELEVATIONS = (5.0, 60.0)  # of the cameras, in degrees


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
    moments: tuple[Tensor, Tensor],
    resolution: int,
    seed: int,
    options: SceneOptions | None,
) -> Scene:
    options = options or SceneOptions()
    size = resolution // options.downscale
    parts = [
        views(shapes, around(len(times), size, 2 * seed + i, elevations=ELEVATIONS, times=times))
        for i, times in enumerate(moments)
    ]
    path = Path(f"{name}:train={len(moments[0])},test={len(moments[1])},resolution={resolution},seed={seed}")
    space = Box(cube(torch.zeros(3), NORMAL_HALF))
    return make_scene(parts[0], parts[1], lambda _: space, path, name, options, name)
