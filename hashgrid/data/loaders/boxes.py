"""Boxes of scenes that do not say what to reconstruct."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from hashgrid.data.scene import Views
from hashgrid.geometry.boxes import Box, capture_box, cube, hull_box

LEAST_POINTS = 10  # fewer say nothing of how far a scene reaches


def found_box(points: np.ndarray | None = None) -> Callable[[Views], Box]:
    """What chooses the box of views: that of the object which transparent images bound; else that of a capture, which
    reaches to its sparse points [P, 3], all but the outermost hundredth, and begins before the nearest of them."""

    def choose(views: Views) -> Box:
        hull = _hull(views)
        if hull is not None:
            return hull._replace(points=None if points is None else torch.from_numpy(points))
        box = capture_box(views)
        if points is None or len(points) < LEAST_POINTS:
            return box if points is None else box._replace(points=torch.from_numpy(points))
        centre = 0.5 * (box.aabb[:3] + box.aabb[3:]).numpy()
        reach = float(np.quantile(np.abs(points - centre).max(axis=1), 0.99))
        box = capture_box(views, max(reach, 1e-9))
        nearest = [_nearest(views, torch.from_numpy(points), view) for view in range(len(views))]
        return box._replace(near=min(box.near, 0.5 * min(nearest)), points=torch.from_numpy(points))

    return choose


def range_box(near: float, far: float) -> Callable[[Views], Box]:
    """What chooses the box of views of which the nearest and the farthest depth are known: that of the object which
    transparent images bound, where they are."""

    def choose(views: Views) -> Box:
        hull = _hull(views)
        if hull is not None:
            return hull
        box = capture_box(views)
        centre = 0.5 * (box.aabb[:3] + box.aabb[3:])
        outer = float((views.origins.double() - views.c2w[:, :, 2].double() * far - centre).abs().amax())
        return capture_box(views, outer)._replace(near=0.9 * near)

    return choose


def ball_box(centre: np.ndarray, radius: float, n_cascades: int = 1, near: float = 0.0) -> Callable[[Views], Box]:
    """What gives the box around a ball, whatever the views."""
    return lambda _: Box(cube(torch.from_numpy(centre), radius), n_cascades, n_cascades == 1, near)


def _hull(views: Views) -> Box | None:
    """The box of the object that transparent images bound; None without."""
    hull = hull_box(views, views.may_be_opaque) if views.has_alpha else None
    return None if hull is None else Box(hull)


def _nearest(views: Views, points: torch.Tensor, view: int) -> float:
    """Depth of the nearest points that a view has in its picture, but for a hundredth of them."""
    pixel, depth = views.project(points, view)
    inside = (depth > 0) & (pixel >= 0).all(-1) & (pixel < views.sizes[view]).all(-1)
    return float(depth[inside].quantile(0.01)) if bool(inside.any()) else float("inf")
