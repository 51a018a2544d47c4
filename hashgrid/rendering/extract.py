"""From a field to a mesh: marching cubes in slabs, evaluated near the surface only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hashgrid.util.optional import optional_import

Distance = Callable[[Tensor], Tensor]

BLOCK = 4  # cells per side: what is evaluated or left out as a whole
COARSE = 4  # blocks per side of what is looked at first,
FINEST_COARSE = 32  # where there are at least so many of it along the cube; otherwise every block is
SLAB = 8  # blocks of one slab
CHUNK = 1 << 18  # points evaluated together
GROUP = 1 << 22  # points of the lattice looked at together
APART = 2.0**-8  # cells: the least distance of a vertex from a lattice point
REACH = 8.0  # cells: distances beyond are alike


@torch.no_grad()
def to_mesh(
    field: Distance, resolution: int = 256, level: float = 0.0, lipschitz: float = 2.0
) -> tuple[Tensor, Tensor]:
    """The level set of a field over [0, 1]^3 by marching cubes (Lewiner et al. 2003).

    The field is evaluated every 16 cells, every 4 cells where that says that the surface may be near, and everywhere
    where this does (below 512 cells per side every 4 cells from the start). A cube of side h is left out where its
    eight corners lie on one side and none of them nearer to the level than ``sqrt(3) / 2 * h`` times the steepest slope
    to expect.

    What holds for every deterministic field: each point is evaluated at most once and what was left out has one sign,
    so the mesh is closed, at every resolution; the outermost layer of vertices counts as outside. Vertices stay
    ``2^-8`` of a cell away from lattice points, so no triangle is degenerate. What depends on the field: nothing is
    missed where its slope between points up to 14 cells apart is at most ``lipschitz``, or one and a half times the
    steepest slope found between neighbours of the first lattice, whichever is more. That is a bound for a true distance
    (slope 1); a trained field has to be near one.

    Args:
        field: distances [N] of points [N, 3].
        resolution: cells per side.
        level: value of the surface.
        lipschitz: slope of the field to expect at least.

    Returns:
        Vertices [V, 3] fp32 in the unit cube and faces [F, 3] int64, normals outwards; empty without a surface.

    Raises:
        ValueError: the resolution is not positive, or the field is not finite.
    """
    if resolution < 1:
        raise ValueError(f"`resolution` must be at least 1, got {resolution}")
    lattice = _survey(field, resolution, level, lipschitz)
    seam = _Seam(resolution)
    vertices, faces, n_vertices = [], [], 0
    previous: Tensor | None = None
    for first in range(0, -(-resolution // BLOCK), SLAB):
        slab = _slab(field, lattice, first, resolution, previous)
        previous = None if slab is None else slab.last
        if slab is None:
            continue
        found, triangles = march(slab.volume.numpy(), slab.mask.numpy())
        index = seam.join(found, slab.corner, len(slab.volume) - 1, n_vertices)
        new = index >= n_vertices
        vertices.append((found[new] + np.array(slab.corner, np.float32)) / np.float32(resolution))
        faces.append(index[triangles])
        n_vertices += len(vertices[-1])
    if not n_vertices:
        return torch.empty(0, 3), torch.empty(0, 3, dtype=torch.int64)
    return torch.from_numpy(np.concatenate(vertices)), torch.from_numpy(np.concatenate(faces))


class _Lattice(NamedTuple):
    """What is known before every point is looked at."""

    kept: Tensor  # blocks the surface may pass through [B, B, B]
    active: Tensor  # these and their neighbours: marching cubes looks at them
    inside: Tensor  # the sign at the lower corners of the blocks and at the end of each axis [B + 1, B + 1, B + 1]
    level: float  # value of the surface
    unit: float  # how much the field typically changes over a cell


def _survey(field: Distance, resolution: int, level: float, lipschitz: float) -> _Lattice:
    """Looks at the corners of coarse blocks, then at those of fine ones near the surface."""
    factor = COARSE if resolution >= BLOCK * COARSE * FINEST_COARSE else 1
    coarse = BLOCK * factor
    n = -(-resolution // coarse)
    index = torch.arange(n + 1) * coarse
    positions = index.clamp(max=resolution) / resolution
    values = evaluate(field, torch.cartesian_prod(positions, positions, positions)).view(n + 1, n + 1, n + 1) - level
    typical, steepest = _slopes(values, positions)
    steepest = max(lipschitz, 1.5 * steepest)
    inside = _inside(values, index, resolution)
    near = _may_cross(values, inside, steepest * coarse / resolution)

    index = torch.arange(factor * n + 1) * BLOCK
    inside = upsample(inside, factor)[: len(index), : len(index), : len(index)].contiguous()
    fine = torch.full(inside.shape, torch.inf)
    wanted = corners_of(near, factor).view(-1).nonzero()[:, 0]
    points = torch.stack(torch.unravel_index(wanted, inside.shape), dim=-1).int() * BLOCK
    fine.view(-1)[wanted] = evaluate(field, points, resolution) - level
    inside.view(-1)[wanted] = _inside(fine, index, resolution).view(-1)[wanted]
    kept = _may_cross(fine, inside, steepest * BLOCK / resolution)
    active = torch.nn.functional.max_pool3d(kept[None].half(), 3, stride=1, padding=1)[0] > 0
    return _Lattice(kept, active, inside, level, typical / resolution)


def _slopes(values: Tensor, positions: Tensor) -> tuple[float, float]:
    """The median over cells of the slope along the steepest axis (a box has no slope along the other two), and the
    steepest one, between neighbours of a lattice [n, n, n] at ``positions`` [n] of each axis."""
    slopes = [values.diff(dim=axis).abs().movedim(axis, -1) / positions.diff() for axis in range(3)]
    n = len(positions) - 1
    cells = [slope.movedim(-1, axis)[:n, :n, :n] for axis, slope in enumerate(slopes)]
    typical = torch.stack(cells).amax(dim=0).median()
    return float(typical) or 1.0, max(float(slope.max()) for slope in slopes)


def _inside(values: Tensor, index: Tensor, resolution: int) -> Tensor:
    """The sign of values [n, n, n] at ``index`` [n] along each axis; the sides of the cube and beyond are outside."""
    within = (index > 0) & (index < resolution)
    return (values < 0) & within[:, None, None] & within[None, :, None] & within


def _may_cross(values: Tensor, inside: Tensor, rise: float) -> Tensor:
    """Which of the cubes between lattice points [n, n, n] the surface may pass through [n - 1, n - 1, n - 1]; the field
    rises by at most ``rise`` along a side. No point is farther than sqrt(3) / 2 sides from a corner."""
    nearest = values.abs()
    for axis in range(3):
        n = nearest.shape[axis] - 1
        nearest = torch.minimum(nearest.narrow(axis, 0, n), nearest.narrow(axis, 1, n))
    return (nearest <= rise * 3**0.5 / 2) | mixed(inside)


def mixed(inside: Tensor) -> Tensor:
    """Which of the cubes between lattice points [n, n, n] have some inside and some outside [n - 1, n - 1, n - 1]."""
    some, every = inside, inside
    for axis in range(3):
        n = some.shape[axis] - 1
        some = some.narrow(axis, 0, n) | some.narrow(axis, 1, n)
        every = every.narrow(axis, 0, n) & every.narrow(axis, 1, n)
    return some & ~every


def upsample(values: Tensor, factor: int) -> Tensor:
    """Every entry of [a, b, c] ``factor`` times along each axis."""
    for axis in range(3):
        values = values.repeat_interleave(factor, dim=axis)
    return values


def corners_of(blocks: Tensor, cells: int) -> Tensor:
    """Which of the lattice points [cells * n + 1, ...] belong to one of the blocks [n, ...] or to its sides."""
    for axis in range(3):
        blocks = blocks.repeat_interleave(cells, dim=axis)
        none = torch.zeros_like(blocks.narrow(axis, 0, 1))
        blocks = torch.cat([blocks, none], dim=axis) | torch.cat([none, blocks], dim=axis)
    return blocks


class _Slab(NamedTuple):
    """A part of the cube, cropped to its active blocks."""

    volume: Tensor  # values [X, Y, Z] at lattice points, in [-REACH, REACH] units and never zero
    mask: Tensor  # which cells, named by their upper corner, to march through [X, Y, Z]
    corner: tuple[int, int, int]  # lattice index of the first point
    last: Tensor  # values of the last layer over the whole cube [R + 1, R + 1], NaN where they are not known


def _slab(field: Distance, lattice: _Lattice, first: int, resolution: int, previous: Tensor | None) -> _Slab | None:
    """The slab that begins with block ``first``; ``previous`` is the last layer of the one before."""
    active = lattice.active[first : first + SLAB]
    if not bool(active.any()):
        return None
    spans = [slice(first, first + len(active))]
    for axes in ((0, 2), (0, 1)):
        found = active.any(axes[1]).any(axes[0]).nonzero()
        spans.append(slice(int(found[0]), int(found[-1]) + 1))
    sizes = [min(s.stop * BLOCK, resolution) - s.start * BLOCK + 1 for s in spans]
    corner = (spans[0].start * BLOCK, spans[1].start * BLOCK, spans[2].start * BLOCK)

    padded = torch.nn.functional.pad(lattice.kept, (1,) * 6)
    around = padded[tuple(slice(s.start, s.stop + 2) for s in spans)]
    wanted = corners_of(around, BLOCK)[tuple(slice(BLOCK, BLOCK + size) for size in sizes)].contiguous()
    ends = tuple(slice(s.start, s.stop + 1) for s in spans)
    inside = upsample(lattice.inside[ends], BLOCK)[tuple(slice(0, size) for size in sizes)]
    reach = REACH * lattice.unit
    volume = torch.where(inside, -reach, reach)
    if previous is not None:
        known = previous[corner[1] : corner[1] + sizes[1], corner[2] : corner[2] + sizes[2]]
        volume[0] = torch.where(wanted[0], known, volume[0])
        wanted[0] = False
    layers = max(1, GROUP // volume[0].numel())
    for begin in range(0, sizes[0], layers):
        part, mask = volume[begin : begin + layers], wanted[begin : begin + layers]
        points = mask.nonzero() + torch.tensor((corner[0] + begin, *corner[1:]))
        values = evaluate(field, points, resolution) - lattice.level
        size = values.abs().clamp_(APART * lattice.unit, reach)
        part.masked_scatter_(mask, torch.where(values < 0, -size, size))
    for axis in range(3):
        for side in (0, resolution):
            if 0 <= side - corner[axis] < sizes[axis]:
                volume.select(axis, side - corner[axis]).fill_(reach)
    last = torch.full((resolution + 1, resolution + 1), torch.nan)
    last[corner[1] : corner[1] + sizes[1], corner[2] : corner[2] + sizes[2]] = volume[-1]
    mask = torch.zeros(sizes, dtype=torch.bool)
    cells = upsample(active[:, spans[1], spans[2]], BLOCK)
    mask[1:, 1:, 1:] = cells[tuple(slice(0, size - 1) for size in sizes)]
    return _Slab(volume, mask, corner, last)


def march(volume: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [v, 3] fp32 in cells from the corner and faces [f, 3] of the surface in a volume."""
    if not volume.min() < 0 < volume.max():
        return np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64)
    marching_cubes = optional_import("skimage.measure").marching_cubes
    found, faces, _, _ = marching_cubes(volume, 0.0, gradient_direction="descent", mask=mask)
    return np.ascontiguousarray(found, np.float32), faces.astype(np.int64)


class _Seam:
    """Makes one of the vertices that two slabs share: those on the edges of the layer of points between them."""

    def __init__(self, resolution: int) -> None:
        self._resolution = resolution
        self._index = np.full(2 * (resolution + 1) ** 2, -1)  # of the vertices on edges of the last layer, by key

    def join(self, vertices: np.ndarray, corner: tuple[int, int, int], depth: int, n_before: int) -> np.ndarray:
        """Numbers of the vertices [v, 3] of a slab of ``depth`` cells after ``n_before`` others, new ones ascending."""
        first, keys = self._edges(vertices, corner, 0)
        met = self._index[keys] >= 0
        new = np.ones(len(vertices), bool)
        new[first[met]] = False
        index = np.cumsum(new) - 1 + n_before
        index[first[met]] = self._index[keys[met]]
        last, keys = self._edges(vertices, corner, depth)
        self._index.fill(-1)
        self._index[keys] = index[last]
        return index

    def _edges(self, vertices: np.ndarray, corner: tuple[int, int, int], layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Which vertices lie in a layer of lattice points [k], and keys of the edges they lie on [k]."""
        found = np.flatnonzero(np.abs(vertices[:, 0] - layer) < APART / REACH / 4)
        y, z = vertices[found, 1].astype(np.float64), vertices[found, 2].astype(np.float64)
        along_y = np.abs(y - np.round(y)) > np.abs(z - np.round(z))
        y = np.where(along_y, np.floor(y), np.round(y)).astype(np.int64) + corner[1]
        z = np.where(along_y, np.round(z), np.floor(z)).astype(np.int64) + corner[2]
        return found, (y * (self._resolution + 1) + z) * 2 + along_y


class BoxLattice(NamedTuple):
    """Lattice points over a box: the first and the last of each axis lie on its sides."""

    low: Tensor  # [3] float64, the lower corner
    step: Tensor  # [3] float64, between neighbours
    shape: tuple[int, int, int]  # points along each axis

    @classmethod
    def of(cls, box: Tensor, resolution: int) -> BoxLattice:
        """That of a box [6] with so many cells along its longest side, and cells that are nearly cubes.

        Raises:
            ValueError: the resolution is below 2.
        """
        if resolution < 2:
            raise ValueError(f"`resolution` must be at least 2, got {resolution}")
        low, high = box.double().cpu().split(3)
        cells = ((high - low) / float((high - low).max()) * resolution - 1e-6).ceil().clamp(min=1)
        x, y, z = (int(n) + 1 for n in cells.tolist())
        return cls(low, (high - low) / cells, (x, y, z))

    def slabs(self, most: int) -> Iterator[tuple[int, Tensor]]:
        """The number of the first point, z fastest, and the places [n, 3] float64 of whole layers of them, about
        ``most`` at a time."""
        x, y, z = (self.low[i] + self.step[i] * torch.arange(n, dtype=torch.float64) for i, n in enumerate(self.shape))
        first = 0
        for part in x.split(max(1, most // (len(y) * len(z)))):
            points = torch.cartesian_prod(part, y, z)
            yield first, points
            first += len(points)

    def places(self, vertices: np.ndarray) -> np.ndarray:
        """What :func:`march` gave [V, 3], in cells, as places in the box, float64."""
        low, step = self.low.numpy(), self.step.numpy()
        return np.clip(low + step * vertices.astype(np.float64), low, low + step * (np.array(self.shape) - 1))


def n_components(faces: np.ndarray) -> int:
    """Into how many connected parts the faces [F, 3] fall."""
    label = optional_import("igl").vertex_components(faces) if len(faces) else np.zeros(0)
    return len(np.unique(label[faces[:, 0]]))


def device_of(field: Distance) -> torch.device:
    """Where a field is asked: a function is on the CPU."""
    return next(field.parameters()).device if isinstance(field, torch.nn.Module) else torch.device("cpu")


def in_parts(function: Distance, points: Tensor, device: torch.device) -> Tensor:
    """Values of a function at points [N, 3] on the CPU, which it is asked for on ``device``, not at all of them at
    once."""
    return torch.cat([function(part.to(device)).float().cpu() for part in points.split(CHUNK)])


def evaluate(field: Distance, points: Tensor, resolution: int | None = None) -> Tensor:
    """Values [N] on the CPU of points [N, 3], given as lattice indices where there is a resolution; indices beyond it
    mean the side of the cube."""

    def ask(x: Tensor) -> Tensor:
        return field(x.float() if resolution is None else x.float().div_(resolution).clamp_(max=1))

    values = in_parts(ask, points, device_of(field))
    if not bool(values.isfinite().all()):
        raise ValueError(f"the field must be finite, {int((~values.isfinite()).sum())} of {len(values)} values are not")
    return values
