"""A surface from what a radiance field shows: depths of many views, fused to one truncated distance (Curless and Levoy
1996)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hashgrid.geometry.cameras import Cameras
from hashgrid.rendering.extract import march

TRUNCATION = 4.0  # voxels from a surface beyond which a view knows nothing of what is behind it
OPAQUE = 0.5  # opacity from which a pixel shows a surface
CHUNK = 1 << 21  # voxels looked at together

Shown = tuple[Tensor, Tensor, Tensor]  # colours [H, W, 3], opacities [H, W], depths [H, W] of one view


class Fused(NamedTuple):
    """A mesh and its colours."""

    vertices: np.ndarray  # [V, 3] float64, in the coordinates of the cameras
    faces: np.ndarray  # [F, 3] int64, normals outwards
    colors: np.ndarray  # [V, 3] in 0..1


@torch.no_grad()
def fuse(show: Callable[[int], Shown], cameras: Cameras, box: Tensor, resolution: int = 192) -> Fused:
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
        Vertices on the surface, faces, and colours averaged over the views that saw them.

    Raises:
        ValueError: the resolution is not positive.
    """
    if resolution < 2:
        raise ValueError(f"`resolution` must be at least 2, got {resolution}")
    low, high = box.double().cpu().split(3)
    voxel = float((high - low).max()) / resolution
    shape = [int(n) + 1 for n in ((high - low) / voxel).ceil().tolist()]
    n_voxels = int(np.prod(shape))
    distance, weight, near = (torch.zeros(n_voxels) for _ in range(3))
    color = torch.zeros(n_voxels, 3)
    cameras = cameras.to(torch.device("cpu"))
    reach = TRUNCATION * voxel
    for view in range(len(cameras)):
        shown, opacity, depth = (x.float().cpu() for x in show(view))
        depth = depth / opacity.clamp_min(1e-6)
        depth[opacity < OPAQUE] = torch.inf  # points before nothing are empty
        for start in range(0, n_voxels, CHUNK):
            index = torch.arange(start, min(start + CHUNK, n_voxels))
            points = low + voxel * torch.stack(torch.unravel_index(index, tuple(shape)), dim=-1)
            pixel, ahead = cameras.project(points.float(), view)
            inside = (ahead > 0) & (pixel >= 0).all(-1) & (pixel < cameras.sizes[view]).all(-1)
            index, points, pixel = index[inside], points[inside], pixel[inside].long()
            before = depth[pixel[:, 1], pixel[:, 0]] - (points - cameras.origins[view].double()).norm(dim=-1).float()
            known = before > -reach
            index, before, pixel = index[known], (before[known] / reach).clamp(max=1.0), pixel[known]
            distance[index] += before
            weight[index] += 1
            close = before.abs() < 1
            near[index[close]] += 1
            color[index[close]] += shown[pixel[close, 1], pixel[close, 0]]
    seen = weight > 0
    distance = torch.where(seen, distance / weight.clamp_min(1), torch.ones(()))
    mask = seen.view(shape).numpy()
    vertices, faces = _known(*march(distance.view(shape).numpy(), mask), mask)
    colors = _colors_at(
        torch.from_numpy(vertices), (color / near.clamp_min(1)[:, None]).view(*shape, 3), near.view(shape)
    )
    return Fused(low.numpy() + voxel * vertices.astype(np.float64), faces, colors)


def _known(vertices: np.ndarray, faces: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What of a surface lies between lattice points that were seen: not what divides them from the others."""
    low, high = (tuple(f(vertices).astype(np.int64).T) for f in (np.floor, np.ceil))
    kept = faces[(seen[low] & seen[high])[faces].all(axis=1)]
    used, kept = np.unique(kept, return_inverse=True)
    return vertices[used], kept.reshape(-1, 3)


def _colors_at(vertices: Tensor, color: Tensor, near: Tensor) -> np.ndarray:
    """Colours [V, 3] between lattice points [X, Y, Z, 3] that some view has seen near a surface."""
    size = torch.tensor(color.shape[:3])
    total, share = torch.zeros(len(vertices), 3), torch.zeros(len(vertices), 1)
    for corner in torch.cartesian_prod(*[torch.tensor([0, 1])] * 3):
        at = (vertices.floor().long() + corner).minimum(size - 1)
        weight = (1 - (vertices - at).abs()).clamp_min(0).prod(-1, keepdim=True) * (near[tuple(at.T)] > 0)[:, None]
        total += weight * color[tuple(at.T)]
        share += weight
    return (total / share.clamp_min(1e-6)).numpy()
