"""Pictures of meshes as cameras see them: shading, colours, normals, depth and the distance to a truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.mesh import Mesh
from hashgrid.geometry.cameras import Cameras
from hashgrid.util.pictures import ERROR_MAP, colorize, round_scale, write_grid

SKY, LEAST = 1.0, 0.25  # what is behind a mesh; light that faces get from the side
NARROWEST, WIDEST = 240, 400  # pixels of the longer side of a picture


def cast(mesh: Mesh, cameras: Cameras, view: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The faces [H * W] that the pixels of a camera see, -1 for none, how far away they are [H * W], and the rays'
    directions [H * W, 3]."""
    rays = cameras.view_rays(view)
    face, depth = mesh.first_hit(rays.origins.numpy(), rays.directions.numpy())
    return face, depth, rays.directions.double().numpy()


def surface_pictures(
    mesh: Mesh,
    cameras: Cameras,
    view: int,
    colors: np.ndarray | None = None,
    truth: Mesh | None = None,
    error_scale: float = 1.0,
) -> dict[str, Tensor]:
    """Pictures [H, W, 3] of a mesh in the coordinates of a camera.

    Args:
        mesh: what is seen.
        cameras, view: from where.
        colors: [V, 3] of its vertices, sRGB.
        truth: a mesh, to which distances are shown.
        error_scale: the distance that is darkest.

    Returns:
        ``shaded``, lit from the camera; ``normals``, ``(n + 1) / 2`` in the camera's frame (right, up, towards it);
        ``depth``, near bright; ``colors`` and ``error`` where they are given.
    """
    face, depth, directions = cast(mesh, cameras, view)
    width, height = cameras.size(view)
    hit, seen = face >= 0, face[face >= 0]
    normals = mesh.face_normals[seen]

    def picture(values: np.ndarray | Tensor) -> Tensor:
        image = torch.full((len(face), 3), SKY)
        image[torch.from_numpy(hit)] = torch.as_tensor(values).float()
        return image.view(height, width, 3)

    light = np.abs((normals * directions[hit]).sum(-1, keepdims=True))
    places = cameras.origins[view].double().numpy() + depth[hit, None] * directions[hit]
    near, far = (float(depth[hit].min()), float(depth[hit].max())) if hit.any() else (0.0, 1.0)
    found = {
        "shaded": picture(np.repeat(LEAST + (1 - LEAST) * light, 3, axis=1)),
        "normals": picture((normals @ cameras.c2w[view, :, :3].double().numpy() + 1) / 2),
        "depth": picture(np.repeat(1 - 0.9 * (depth[hit, None] - near) / max(far - near, 1e-9), 3, axis=1)),
    }
    if colors is not None:
        found["colors"] = picture(colors[mesh.faces[seen]].mean(1))
    if truth is not None:
        error = torch.from_numpy(truth.nearest(places)[0]).float()
        found["error"] = picture(colorize(error, 0.0, error_scale, ERROR_MAP))
    return found


def write_surface_pictures(
    path: Path, mesh: Mesh, cameras: Cameras, colors: np.ndarray | None, truth: Mesh | None, n_views: int = 4
) -> None:
    """Writes :func:`surface_pictures` of ``n_views`` cameras of one size, evenly spread, a row each; pictures are about
    as large as photos."""
    alike = (cameras.sizes == cameras.sizes[0]).all(-1).nonzero()[:, 0].tolist()
    chosen = cameras.select(alike).evenly(n_views)
    n, side = len(chosen), float(chosen.sizes.max())
    chosen = chosen.scaled(min(max(side, NARROWEST), WIDEST) / side)
    scale = 1.0
    if truth is not None:  # that of what is shown: much of a mesh is inside of it
        shown = np.unique(np.concatenate([cast(mesh, chosen, view)[0] for view in range(n)]))
        middles = mesh.vertices[mesh.faces[shown[shown >= 0]]].mean(1)
        scale = round_scale(torch.from_numpy(truth.nearest(middles)[0]))
    rows = [surface_pictures(mesh, chosen, view, colors, truth, scale) for view in range(n)]
    titles = {name: f"error, 0 to {scale:g}" if name == "error" else name for name in rows[0]}
    write_grid(path, {title: [row[name] for row in rows] for name, title in titles.items()})
