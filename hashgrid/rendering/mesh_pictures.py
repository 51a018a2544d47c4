"""Small pictures of many shapes, side by side: meshes and clouds become volumes of distances to be rendered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.mesh import Mesh
from hashgrid.geometry.cameras import framing
from hashgrid.rendering.surface import render
from hashgrid.util.files import atomic_write_image, to_uint8
from hashgrid.util.optional import optional_import
from hashgrid.util.pictures import write_texts

Picture = Callable[[int, str], Tensor]
MARGIN, TEXT = 4, 14  # pixels between pictures, and of lines of text


class Volume(torch.nn.Module):
    """Distances as a function of points, linear between those at the vertices of a lattice [n, n, n] over the cube."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values.float()[None, None])

    @classmethod
    def of(cls, distance: Callable[[np.ndarray], np.ndarray], cells: int) -> Volume:
        """Samples a function of points [N, 3]."""
        axis = torch.linspace(0, 1, cells + 1, dtype=torch.float64)
        values = distance(torch.cartesian_prod(axis, axis, axis).numpy())
        return cls(torch.from_numpy(values).view(3 * (cells + 1,)))

    def forward(self, x: Tensor) -> Tensor:
        """Distances [N] of points [N, 3]."""
        place = (2 * x - 1).flip(-1).view(1, 1, 1, -1, 3)
        values: Tensor = torch.nn.functional.grid_sample(self.values, place, padding_mode="border", align_corners=True)  # type: ignore[arg-type]
        return values.view(-1)

    def parameters(self, recurse: bool = True):  # type: ignore[no-untyped-def]
        """Of a field that is asked on the CPU."""
        yield self.values


def picture_of_mesh(mesh: Mesh | None, size: int = 160, up: str = "y") -> Tensor:
    """A picture [size, size, 3] of a mesh, as a thin sheet where it is open, or of nothing."""
    cells = max(4, 3 * size // 10)
    if mesh is None or not len(mesh.faces):
        return torch.ones(size, size, 3)
    if mesh.watertight and not mesh.doubt:
        return _picture(Volume.of(mesh.signed_distance, cells), size, up)
    return _picture(Volume.of(lambda x: mesh.nearest(x)[0] - 0.75 / cells, cells), size, up)


def picture_of_points(points: np.ndarray, size: int = 160, up: str = "y") -> Tensor:
    """A picture [size, size, 3] of points [N, 3] as little balls."""
    cells = max(4, size // 2)
    tree = optional_import("scipy.spatial").cKDTree(points)
    return _picture(Volume.of(lambda x: tree.query(x, workers=-1)[0] - 0.012, cells), size, up)


def _picture(volume: Volume, size: int, up: str) -> Tensor:
    corners = torch.tensor([[0.1, 0.1, 0.1], [0.9, 0.9, 0.9]])  # all shapes at the same scale
    camera = framing(corners, (size, size), up=up, fill=0.95)
    return render(volume, camera, up=up, supersample=2, shadows=False).shading


def write_table(path: Path, rows: Sequence[tuple[str, Sequence[Tensor]]]) -> None:
    """Writes rows of pictures [h, w, 3] of one size, each row with a line of text above it."""
    lines = []
    for _, pictures in rows:
        images = [torch.from_numpy(to_uint8(picture)) for picture in pictures]
        images = [torch.nn.functional.pad(image, (0, 0, MARGIN, 0, TEXT + MARGIN, 0), value=255) for image in images]
        lines.append(torch.cat(images, dim=1))
    width = max(line.shape[1] for line in lines)
    lines = [torch.nn.functional.pad(line, (0, 0, 0, width - line.shape[1]), value=255) for line in lines]
    starts = np.cumsum([0, *(len(line) for line in lines)])
    texts = [(MARGIN, int(start) + 2, text) for start, (text, _) in zip(starts, rows, strict=False)]
    atomic_write_image(path, write_texts(torch.cat(lines), texts, TEXT - 3))
