"""What a run leaves for people to look at: renders, slices, a turntable. Every file is written atomically."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hashgrid.data.mesh_files import write_mesh
from hashgrid.data.shape import Shape
from hashgrid.fields.distance import DistanceField
from hashgrid.geometry.boxes import Placement
from hashgrid.geometry.cameras import UP, framing
from hashgrid.rendering.extract import Distance, device_of, in_parts, to_mesh
from hashgrid.rendering.surface import render
from hashgrid.util.config import Config
from hashgrid.util.files import atomic_write_image, to_uint8
from hashgrid.util.pictures import with_scale, write_video

LINE = 0.05  # between level lines
INSIDE = torch.tensor([[0.44, 0.62, 0.80], [0.10, 0.22, 0.42]])  # at the surface and deep inside
OUTSIDE = torch.tensor([[0.99, 0.93, 0.80], [0.88, 0.66, 0.44]])  # at the surface and far outside


@dataclass(frozen=True)
class PictureConfig(Config):
    """What is made of a distance field to be looked at."""

    resolution: int = 256  # cells per side of the extracted mesh
    mesh_format: Literal["ply", "glb"] = "ply"  # of the extracted mesh
    up: Literal["auto", "x", "y", "z"] = "auto"  # axis that is up in pictures; auto is z for STL, else y
    image_size: int = 640  # pixels per side of the stills
    video: bool = True  # write a turntable
    n_frames: int = 48  # of the turntable
    video_size: int = 400  # pixels per side of the turntable; even

    def check(self) -> None:
        super().check()
        for name in ("resolution", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.video_size < 2 or self.video_size % 2:
            raise ValueError(f"`video_size` must be even, got {self.video_size}")


def write_views(
    out: Path,
    field: Distance,
    points: Tensor,
    up: str = "y",
    size: int = 640,
    truth: Callable[[Tensor], Tensor] | None = None,
    what: str = "mesh",
    backend: str = "native",
) -> float:
    """Writes ``render.png``, ``normals.png``, ``error.png`` (with a truth) and all of them side by side, ``strip.png``,
    [size, size] pixels each, framed on ``points`` [N, 3] in the cube. ``truth`` gives distances [N] of points [N, 3] to
    the ``what`` that the field was made from.

    Returns:
        The distance that ``error.png`` shows darkest, in sides of the cube; 0 without a truth.
    """
    camera = framing(points, (size, size), up=up)
    picture = render(field, camera, *_stage(points, up), truth=truth, backend=backend)
    panels = {"render": picture.shading, "normals": picture.normals}
    if picture.error is not None:
        scale = f"distance to the {what}, in sides of the cube"
        panels["error"] = with_scale(picture.error, picture.error_scale, scale)
    for name, image in panels.items():
        atomic_write_image(out / f"{name}.png", image)
    atomic_write_image(out / "strip.png", torch.cat([torch.from_numpy(to_uint8(x)) for x in panels.values()], dim=1))
    return picture.error_scale


def write_surface(
    out: Path, field: DistanceField, placement: Placement, config: PictureConfig
) -> tuple[Path, Tensor, Tensor]:
    """Writes ``mesh.ply`` or ``.glb``, in the coordinates of the input, and ``slice.png``.

    Returns:
        The file, and the mesh: vertices [V, 3] in the cube and faces [F, 3].
    """
    vertices, faces = to_mesh(field, config.resolution)
    normals = in_parts(field.normals, vertices, field.device)
    path = out / f"mesh.{config.mesh_format}"
    write_mesh(path, placement.to_file(vertices).numpy(), faces.numpy(), normals.numpy())
    atomic_write_image(out / "slice.png", slice_image(field))
    return path, vertices, faces


def write_pictures(
    out: Path, field: Distance, vertices: Tensor, shape: Shape, config: PictureConfig, backend: str
) -> dict[str, Any]:
    """Writes the stills of :func:`write_views` of a field with the surface ``vertices`` [V, 3], and a turntable.

    Returns:
        Seconds for both, and the scale of ``error.png``.
    """
    begin, up = time.perf_counter(), config.up
    if up == "auto":
        up = "z" if shape.path.suffix.lower() == ".stl" else "y"
    points = vertices if shape.mesh is None else torch.from_numpy(shape.mesh.vertices).float()
    scale = write_views(out, field, points, up, config.image_size, shape.distance(), shape.what, backend)
    stills, seconds = time.perf_counter() - begin, None
    if config.video and config.n_frames:
        frames = turntable(field, points, up, config.n_frames, config.video_size, backend)
        write_video(out / "turntable.mp4", frames, n_frames=config.n_frames)
        seconds = time.perf_counter() - begin - stills
    return {"error_scale": scale, "seconds": stills, "turntable_seconds": seconds}


def _stage(points: Tensor, up: str) -> tuple[Tensor, str, float]:
    """The box [6] of points [N, 3], a little larger, within the unit cube; the axis that is up, and the floor on it."""
    box = torch.cat([points.amin(0) - 0.01, points.amax(0) + 0.01]).float().clamp(0, 1)
    return box, up, float(points.double().amin(0) @ torch.tensor(UP[up], dtype=torch.float64))


def turntable(
    field: Distance, points: Tensor, up: str = "y", n_frames: int = 48, size: int = 400, backend: str = "native"
) -> Iterator[Tensor]:
    """Frames [size, size, 3] of a field seen from all around, without cast shadows: they cost more than the rest."""
    for frame in range(n_frames):
        camera = framing(points, (size, size), azimuth=145.0 + 360.0 * frame / n_frames, up=up, turn=True)
        yield render(field, camera, *_stage(points, up), supersample=1, shadows=False, backend=backend).shading


@torch.no_grad()
def slice_image(field: Distance, resolution: int = 512) -> Tensor:
    """The field in the three planes through the middle of the cube, x, y and z, side by side [resolution, 3 *
    resolution, 3]: blue inside, ochre outside, a line at every twentieth of the cube and a thick one at the surface.

    The planes are seen against their axis: (z, y), (x, z) and (x, y) to the right and up.
    """
    axis = (torch.arange(resolution) + 0.5) / resolution
    vertical, horizontal = torch.meshgrid(axis.flip(0), axis, indexing="ij")
    half = torch.full_like(vertical, 0.5)
    planes = [(half, vertical, horizontal), (horizontal, half, vertical), (horizontal, vertical, half)]
    images = []
    for plane in planes:
        values = in_parts(field, torch.stack(plane, dim=-1).view(-1, 3), device_of(field))
        images.append(level_lines(values.view(resolution, resolution)))
    gap = torch.ones(resolution, max(2, resolution // 64), 3)
    return torch.cat([images[0], gap, images[1], gap, images[2]], dim=1)


def level_lines(distance: Tensor) -> Tensor:
    """Distances [H, W] over the unit square as a picture [H, W, 3]; lines have the same width everywhere."""
    pixel = 1 / distance.shape[0]
    gy, gx = torch.gradient(distance, spacing=pixel)
    slope = torch.hypot(gx, gy).clamp(min=0.25)
    depth = (distance.abs() / 0.4).clamp(0, 1).sqrt()[..., None]
    color = torch.where(
        (distance < 0)[..., None], torch.lerp(INSIDE[0], INSIDE[1], depth), torch.lerp(OUTSIDE[0], OUTSIDE[1], depth)
    )
    to_line = (distance - LINE * (distance / LINE).round()).abs() / slope / pixel  # in pixels
    color = color * (1 - 0.45 * (1.2 - to_line).clamp(0, 1))[..., None]
    surface = (2.2 - distance.abs() / slope / pixel).clamp(0, 1)[..., None]
    return torch.lerp(color, torch.tensor([0.08, 0.08, 0.10]), surface)
