"""Surfaces of what was trained, with their colours, in the coordinates of the input."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.mesh import Mesh
from hashgrid.data.mesh_colors import read_colors
from hashgrid.data.scene import Scene
from hashgrid.fields.base import RadianceField
from hashgrid.fields.surface_field import SurfaceField
from hashgrid.geometry.boxes import Placement
from hashgrid.geometry.cameras import Cameras
from hashgrid.rendering.density import density_surface
from hashgrid.rendering.extract import to_mesh
from hashgrid.rendering.fusion import Shown, fuse
from hashgrid.rendering.label_scores import NO_LABELS, label_colors
from hashgrid.rendering.mesh_facts import largest_parts, only_faces, simplified, vertex_normals, without_specks
from hashgrid.rendering.near_surface import surface_colors, surface_labels
from hashgrid.rendering.oriented import Cloud, poisson_surface, seen_points
from hashgrid.rendering.surface_scores import seen_faces
from hashgrid.rendering.volume import render_image
from hashgrid.tasks.nerf import Nerf
from hashgrid.tasks.sdf import load_field
from hashgrid.train.checkpoint import load_checkpoint
from hashgrid.train.run import CHECKPOINT
from hashgrid.util.optional import optional_import

METHODS = ("tsdf", "density", "poisson")  # of any radiance field
ALL_METHODS = (*METHODS, "distance")  # and of those that are fields of distances
UNSEEN = ("drop_parts", "drop_faces", "keep")  # of a level set of distances, which is closed, also where nobody looked
REACH = 2.0  # voxels from a surface within which the field that it came from shows it
DENSE = 8  # points per voxel of a side of the box, squared, that a surface is made from, at most


class Surface(NamedTuple):
    """A mesh in the coordinates of the input."""

    vertices: np.ndarray  # [V, 3] float64
    faces: np.ndarray  # [F, 3] int64
    colors: np.ndarray | None = None  # [V, 3] sRGB in 0..1, where there are some
    color: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None  # of points and normals [N, 3], likewise
    lit: bool = True  # whether these colours want light; those of photos have it

    def largest(self, n: int | None) -> Surface:
        """The ``n`` largest parts; all if none."""
        if n is None:
            return self
        return self._of(*largest_parts(self.vertices, self.faces, n))

    def without_specks(self, share: float) -> Surface:
        """Without parts that have less than that share of the area of the largest."""
        return self._of(*without_specks(self.vertices, self.faces, share))

    def _of(self, vertices: np.ndarray, faces: np.ndarray, used: np.ndarray) -> Surface:
        return self._replace(vertices=vertices, faces=faces, colors=None if self.colors is None else self.colors[used])

    def seen(self, cameras: Cameras, unseen: str) -> Surface:
        """Without what no camera, in the coordinates of the input, sees: ``unseen`` is one of :data:`UNSEEN`."""
        if unseen == "keep" or not len(self.faces):
            return self
        mesh = Mesh(self.vertices, self.faces, Placement(), False, "surface")
        return self._of(*only_faces(self.vertices, self.faces, seen_faces(mesh, cameras, unseen)))

    def simplified(self, n: int | None) -> Surface:
        """With about ``n`` faces, vertices in the colours of those that were nearest; all faces if none."""
        if n is None or len(self.faces) <= n:
            return self
        vertices, faces = simplified(self.vertices, self.faces, n)
        nearest = optional_import("scipy.spatial").cKDTree(self.vertices).query(vertices)[1]
        colors = None if self.colors is None else self.colors[nearest]
        return self._replace(vertices=vertices, faces=faces, colors=colors)


def looks(task: Nerf, n_views: int, size: int) -> tuple[Cameras, Callable[[int], Shown]]:
    """Training views, evenly spread and reduced, and what renders one of them, with a bar."""
    cameras = task.scene.train.evenly(n_views)
    n, capture = len(cameras), task.model.capture
    cameras = cameras.scaled(min(1.0, size / float(cameras.sizes.max()))) if len(cameras) else cameras
    there, background = cameras.to(task.device), torch.zeros(3, device=task.device)
    bar = optional_import("tqdm").tqdm(total=n, desc="views", unit="view")

    def show(view: int) -> Shown:
        bar.update()
        with nullcontext() if capture is None else capture.without_background():
            color, opacity, depth = render_image(task.model, task.sampler, there, view, background)
        return color / opacity.clamp_min(1e-3)[..., None], opacity, depth  # the surface, without what is behind it

    return cameras, show


def cameras_of_file(scene: Scene, most: int | None = None) -> Cameras:
    """Training views, evenly spread and at most so many, in the coordinates of the input."""
    cameras = scene.train.evenly(most or len(scene.train))
    places = scene.placement.to_file(cameras.c2w[:, :, 3])[..., None]
    return replace(cameras, c2w=torch.cat((cameras.c2w[:, :, :3].double(), places), dim=2))


def seen_cloud(task: Nerf, n_views: int, size: int, crop: Tensor | None, most: int) -> Cloud:
    """Points where pixels end, in the coordinates of the input; at random so many of them where there are more."""
    placement = task.scene.placement
    box = None if crop is None else torch.cat([placement.from_file(part) for part in crop.split(3)])
    cameras, show = looks(task, n_views, size)
    cloud = seen_points(show, cameras, box)
    if len(cloud.points) > most:
        cloud = cloud.select(np.random.default_rng(0).choice(len(cloud.points), most, replace=False))
    return cloud._replace(points=placement.to_file(torch.from_numpy(cloud.points)).numpy())


def nerf_surface(task: Nerf, method: str, crop: Tensor | None, options: dict[str, Any]) -> Surface:
    """The surface of a radiance field within a box in the coordinates of the input, that of the innermost cascade if
    none, by one of :data:`ALL_METHODS`; in the colours of classes where ``options`` say ``semantic``.

    Raises:
        ValueError: distances or classes are asked for of a field that has none.
    """
    if options.get("semantic") and task.model.labeler is None:
        raise ValueError(NO_LABELS)
    placement, resolution, time = task.scene.placement, options["resolution"], options.get("time")
    ours = task.scene.aabb if crop is None else torch.cat([placement.from_file(part) for part in crop.split(3)])
    theirs = torch.cat([placement.to_file(part) for part in ours.split(3)]) if crop is None else crop
    voxel = float((ours[3:] - ours[:3]).max()) / resolution

    def color(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        places = placement.from_file(torch.from_numpy(points))
        where = places, torch.from_numpy(normals), REACH * voxel, task.config.backend, time
        if options.get("semantic"):
            return label_colors(surface_labels(task.model, *where)).numpy()
        return surface_colors(task.model, *where).numpy()

    if method == "poisson":
        cloud = seen_cloud(task, options["views"], options["size"], theirs, options["points"] or DENSE * resolution**2)
        vertices, faces = poisson_surface(cloud, theirs, resolution)
    else:
        if method == "tsdf":
            cameras, show = looks(task, options["views"], options["size"])
            vertices, faces = fuse(show, cameras, ours, resolution)
        elif method == "distance":
            vertices, faces = distance_surface(task.model, ours, resolution)
        else:
            how = resolution, options["threshold"], time
            vertices, faces = density_surface(task.model, task.sampler, ours, *how)
        low, high = (part.numpy() for part in theirs.double().split(3))
        vertices = np.clip(placement.to_file(torch.from_numpy(vertices)).numpy(), low, high)  # a last bit may be lost
    found = Surface(vertices, faces, None, color, lit=False)
    if method == "distance":
        found = found.seen(cameras_of_file(task.scene), options["unseen"]).without_specks(options["speck"])
    normals = vertex_normals(found.vertices, found.faces)
    return found._replace(colors=color(found.vertices, normals))


def distance_surface(field: RadianceField, box: Tensor, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the distance of a radiance field is zero within a box [6] of the scene, closed at its sides: vertices
    [V, 3] float64 and faces [F, 3].

    Raises:
        ValueError: it has no distances.
    """
    if not isinstance(field, SurfaceField):
        raise ValueError(
            "`--method distance` is for fields of distances, neus, neus_mlp, volsdf and idr; choose another one"
        )
    low, high = box.to(field.aabb.device).split(3)
    side = (high - low).max()

    def distance(x: Tensor) -> Tensor:
        return field.distances(field.inside(field.unit(low + x.to(low) * (high - low)))) / side

    vertices, faces = to_mesh(distance, resolution)
    return (low.cpu() + vertices * (high - low).cpu()).double().numpy(), faces.numpy()


def sdf_surface(run: Path, crop: Tensor | None, resolution: int) -> Surface:
    """The surface of a run of ``hashgrid sdf``, cut off at a box in the coordinates of the input, with the colours of
    what it was fitted to, where that has some and still is where it was."""
    checkpoint = run / CHECKPOINT if run.is_dir() else run
    field, placement = load_field(checkpoint)
    low, high = (torch.zeros(3), torch.ones(3)) if crop is None else (placement.from_file(x) for x in crop.split(3))

    def distance(x: Tensor) -> Tensor:
        outside = torch.maximum(low.to(x) - x, x - high.to(x)).amax(-1)
        return field(x) if crop is None else torch.maximum(field(x), outside)

    found, triangles = to_mesh(distance, resolution)
    vertices, faces = placement.to_file(found).numpy(), triangles.numpy()
    if crop is not None:
        vertices = np.clip(vertices, *(x.numpy() for x in crop.split(3)))
    source = Path(load_checkpoint(checkpoint).metadata["notes"]["input"])
    known = read_colors(source) if source.is_file() else None
    if known is None:
        return Surface(vertices, faces)
    return Surface(vertices, faces, known(vertices), lambda points, _: known(points))
