"""From a field to a mesh: marching cubes in blocks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hashgrid.optional import optional_import

BLOCK = 64  # cells per side
CHUNK = 1 << 18  # points evaluated together


@torch.no_grad()
def to_mesh(
    field: Callable[[Tensor], Tensor], resolution: int = 256, level: float = 0.0, lipschitz: float = 2.0
) -> tuple[Tensor, Tensor]:
    """The level set of a field over [0, 1]^3 by marching cubes (Lewiner et al. 2003).

    Blocks of 64^3 cells are left out where the field at their centre says that the surface is far away, so that memory
    and time follow the surface. The outermost layer of vertices counts as outside: the mesh is closed.

    Args:
        field: distances [N] of points [N, 3].
        resolution: cells per side.
        level: value of the surface.
        lipschitz: the field changes at most by this times the distance; what decides whether a block is left out.

    Returns:
        Vertices [V, 3] fp32 in the unit cube and faces [F, 3] int64, normals outwards; empty without a surface.
    """
    measure = optional_import("skimage.measure", "sdf")
    n_blocks = -(-resolution // BLOCK)
    axis = torch.arange(n_blocks)
    blocks = torch.cartesian_prod(axis, axis, axis)
    centres = (blocks * BLOCK + BLOCK / 2).clamp(max=resolution) / resolution
    near = (_evaluate(field, centres) - level).abs() <= lipschitz * (3**0.5 * BLOCK / 2 / resolution)
    vertices, faces, n_vertices = [], [], 0
    for block in blocks[near].tolist():
        sizes = [min(BLOCK, resolution - b * BLOCK) + 1 for b in block]
        axes = [torch.arange(b * BLOCK, b * BLOCK + size) for b, size in zip(block, sizes, strict=True)]
        index = torch.cartesian_prod(*axes)
        values = _evaluate(field, index / resolution) - level
        values[((index == 0) | (index == resolution)).any(-1)] = 1.0
        volume = values.view(sizes).numpy()
        if not (volume.min() < 0 <= volume.max()):
            continue
        found, triangles, _, _ = measure.marching_cubes(volume, 0.0, gradient_direction="descent")
        # exact on a common lattice: vertices of neighbouring blocks have to agree
        vertices.append((found.astype(np.float64) + np.array(block) * BLOCK) / resolution)
        faces.append(triangles.astype(np.int64) + n_vertices)
        n_vertices += len(found)
    if not vertices:
        return torch.empty(0, 3), torch.empty(0, 3, dtype=torch.int64)
    return _merge(np.concatenate(vertices), np.concatenate(faces), resolution)


def _merge(vertices: np.ndarray, faces: np.ndarray, resolution: int) -> tuple[Tensor, Tensor]:
    """Makes one of vertices that blocks share, and drops the triangles that lose their area."""
    key = np.round(vertices * (resolution * 2**12)).astype(np.int64)
    _, first, index = np.unique(key, axis=0, return_index=True, return_inverse=True)
    faces = index.reshape(-1)[faces]
    distinct = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    return torch.from_numpy(vertices[first]).float(), torch.from_numpy(faces[distinct])


def _evaluate(field: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Values [N] on the CPU of points [N, 3], in chunks on the field's device."""
    device = next(field.parameters()).device if isinstance(field, torch.nn.Module) else points.device
    return torch.cat([field(part.float().to(device)).float().cpu() for part in points.split(CHUNK)])
