"""A surface from the density of a radiance field: where it passes a threshold."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from hashgrid.fields.base import RadianceField
from hashgrid.geometry.rays import At, Rays
from hashgrid.rendering.extract import CHUNK, REACH, BoxLattice, march
from hashgrid.rendering.samplers import OccupancySampler, Sampler
from hashgrid.util.optional import optional_import

PORE = 2  # cells: half of what is too narrow to be a way into a surface


@torch.no_grad()
def density_surface(
    field: RadianceField,
    sampler: Sampler,
    box: Tensor,
    resolution: int = 192,
    threshold: float = 30.0,
    time: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Where the density of a field is ``threshold``, by marching cubes (Lewiner et al. 2003).

    Between lattice points it is the logarithm of the density that is taken for linear: fields give exponentials. Cells
    that the sampler knows to be empty have no density, as in rendering; the sides of the box count as outside, so
    that the mesh is closed, whatever is cut off. What cannot be reached from there, through nothing narrower than five
    cells, is filled: inside what is opaque densities are whatever they were, and walls have pores.

    Args:
        field: densities per unit of length.
        sampler: of its rays, which may know where nothing is.
        box: [6], the lower corner first.
        resolution: cells along the longest side.
        threshold: of the density: light goes 1 / threshold far where it is met.
        time: of what moves.

    Returns:
        Vertices [V, 3] float64 in the coordinates of the box, all inside it, and faces [F, 3] int64, normals towards
        less density; empty without a surface.

    Raises:
        ValueError: the resolution is below 2, the threshold not positive, or a density is no number.
        ImportError: scipy or scikit-image is not installed.

    Example:
        >>> from hashgrid.rendering.samplers import StratifiedSampler
        >>> class Ball(RadianceField):
        ...     def density(self, at):
        ...         return 100 * (at.unit - 0.5).norm(dim=-1).lt(0.3).float() + 1e-6, None
        >>> box = torch.tensor([0.0, 0, 0, 1, 1, 1])
        >>> vertices, faces = density_surface(Ball(box), StratifiedSampler(8), box, 20)
        >>> bool((abs(((vertices - 0.5) ** 2).sum(1) ** 0.5 - 0.3) < 0.05).all())
        True
    """
    if not threshold > 0:
        raise ValueError(f"`threshold` must be positive, got {threshold}")
    lattice = BoxLattice.of(box, resolution)
    values = torch.full((math.prod(lattice.shape),), REACH)
    for first, places in lattice.slabs(CHUNK):
        points = places.float().to(field.aabb.device)
        index = torch.arange(first, first + len(points))
        if isinstance(sampler, OccupancySampler):
            occupied = sampler.grid.occupied_at(points)
            points, index = points[occupied], index[occupied.cpu()]
        moments = None if time is None else torch.full_like(points[:, 0], time)
        no_rays = Rays(points, points, time=moments)  # densities do not depend on the direction
        sigmas = field.density(At(no_rays, field.unit(points), torch.arange(len(points), device=points.device)))[0]
        if bool(sigmas.isnan().any()):
            raise ValueError(f"densities must be numbers, {int(sigmas.isnan().sum())} of {len(sigmas)} are NaN")
        values[index] = (math.log(threshold) - sigmas.float().cpu().log()).clamp(-REACH, REACH)
    volume = values.view(lattice.shape)
    for axis, size in enumerate(lattice.shape):
        volume.select(axis, 0).fill_(REACH)
        volume.select(axis, size - 1).fill_(REACH)
    volume[torch.from_numpy(_hidden((volume >= 0).numpy()))] = -REACH
    vertices, faces = march(volume.numpy(), np.ones(lattice.shape, bool))
    return lattice.places(vertices), faces


def _hidden(empty: np.ndarray) -> np.ndarray:
    """Which empty lattice points [X, Y, Z] a ball of ``PORE`` cells that comes from around the lattice cannot touch."""
    images = optional_import("scipy.ndimage")
    around = np.pad(empty, PORE + 1, constant_values=True)
    label = images.label(images.binary_erosion(around, iterations=PORE, border_value=1))[0]
    reached = images.binary_dilation(label == label[0, 0, 0], iterations=PORE, mask=around)
    within = (slice(PORE + 1, -PORE - 1),) * 3
    return empty & ~reached[within]
