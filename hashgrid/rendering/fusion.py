"""A surface from what a radiance field shows: depths of many views, fused to one truncated distance (Curless and Levoy
1996)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hashgrid.geometry.cameras import Cameras
from hashgrid.rendering.extract import BoxLattice, march

TRUNCATION = 4.0  # voxels from a surface beyond which a view knows nothing of what is behind it
OPAQUE = 0.5  # opacity from which a pixel shows a surface
CHUNK = 1 << 21  # voxels looked at together

Shown = tuple[Tensor, Tensor, Tensor]  # colours [H, W, 3], opacities [H, W], depths [H, W] of one view


@torch.no_grad()
def fuse(
    show: Callable[[int], Shown], cameras: Cameras, box: Tensor, resolution: int = 192
) -> tuple[np.ndarray, np.ndarray]:
    """The mesh of what cameras see in a box.

    Every view says of each point that it sees how far before the surface it is, and that points before nothing are
    empty; of points more than some voxels behind a surface it says nothing. Where nobody says anything there is no
    surface: what was never seen stays open.

    Args:
        show: renders a view; depths are accumulated along rays of unit length, as compositing gives them.
        cameras: views to fuse.
        box: [6], the lower corner first.
        resolution: voxels along the longest side.

    Returns:
        Vertices [V, 3] float64 in the coordinates of the cameras, all in the box, and faces [F, 3] int64, normals
        towards those who see them.

    Raises:
        ValueError: the resolution is below 2.
    """
    lattice = BoxLattice.of(box, resolution)
    shape, n_voxels = lattice.shape, math.prod(lattice.shape)
    distance, weight = torch.zeros(n_voxels), torch.zeros(n_voxels)
    cameras = cameras.to(torch.device("cpu"))
    reach = TRUNCATION * float(lattice.step.max())
    for view in range(len(cameras)):
        _, opacity, depth = (x.float().cpu() for x in show(view))
        depth = depth / opacity.clamp_min(1e-6)
        depth[opacity < OPAQUE] = torch.inf  # points before nothing are empty
        for first, places in lattice.slabs(CHUNK):
            points = places.float()
            pixel, ahead = cameras.project(points, view)
            index = ((ahead > 0) & (pixel >= 0).all(-1) & (pixel < cameras.sizes[view]).all(-1)).nonzero()[:, 0]
            column, row = pixel[index].long().unbind(-1)
            before = depth[row, column] - (points[index] - cameras.origins[view]).norm(dim=-1)
            known = before > -reach
            index = index[known] + first
            distance[index] += (before[known] / reach).clamp(max=1.0)
            weight[index] += 1
    seen = weight > 0
    distance = torch.where(seen, distance / weight.clamp_min(1), torch.ones(()))
    mask = seen.view(shape).numpy()
    vertices, faces = _known(*march(distance.view(shape).numpy(), mask), mask)
    return lattice.places(vertices), faces


def _known(vertices: np.ndarray, faces: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What of a surface lies between lattice points that were seen: not what divides them from the others."""
    low, high = (tuple(f(vertices).astype(np.int64).T) for f in (np.floor, np.ceil))
    kept = faces[(seen[low] & seen[high])[faces].all(axis=1)]
    used, kept = np.unique(kept, return_inverse=True)
    return vertices[used], kept.reshape(-1, 3)
