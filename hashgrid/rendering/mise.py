"""Multiresolution isosurface extraction (Mescheder et al. 2019, section 3.3): from any field with an inside, a distance
or not, to a mesh. A signed distance is better asked by :func:`hashgrid.rendering.extract.to_mesh`, which misses
nothing thin."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid.rendering.extract import APART, Distance, corners_of, evaluate, march, mixed, upsample


@torch.no_grad()
def mise(field: Distance, resolution: int = 32, upsamplings: int = 2, level: float = 0.0) -> tuple[Tensor, Tensor, int]:
    """The level set of a field over [0, 1]^3, evaluated where a coarser lattice has seen a change of sign.

    All vertices of ``resolution`` cells per side are looked at, then ``upsamplings`` times the middles of the cells
    whose vertices lie on both sides. A cell that turns out to be passed through a face of its neighbour is cut, too, so
    that the mesh is the one of the full lattice but for parts that no vertex of a cell above them has met: what is
    thinner than a first cell may be lost.

    Args:
        field: values [N] of points [N, 3], below ``level`` inside; any units.
        resolution: cells per side at first.
        upsamplings: how often cells are cut in two along each side.
        level: value of the surface.

    Returns:
        Vertices [V, 3] fp32 in the unit cube and faces [F, 3] int64, normals outwards, closed, empty without a surface;
        the outermost vertices of the lattice count as outside. And how many points the field was asked for.

    Raises:
        ValueError: a size is out of range, or the field is not finite.

    Example:
        >>> import torch
        >>> vertices, faces, n_asked = mise(lambda x: (1.1 * x - 0.55).norm(dim=-1) - 0.4, 16, 3)
        >>> n_asked
        138335
    """
    if resolution < 1 or upsamplings < 0:
        got = f"{resolution} and {upsamplings}"
        raise ValueError(f"`resolution` must be at least 1 and `upsamplings` at least 0, got {got}")
    index = torch.arange(resolution + 1)
    values = evaluate(field, torch.cartesian_prod(index, index, index), resolution) - level
    values = values.view(3 * (resolution + 1,))
    n_asked = values.numel()
    for _ in range(upsamplings):
        resolution *= 2
        values, n_new = _refined(field, values, resolution, level)
        n_asked += n_new
    size = values.abs().amax()
    for axis in range(3):
        for side in (0, resolution):
            values.select(axis, side).fill_(float(size))
    cells = mixed(values < 0)
    if not bool(cells.any()):
        return torch.empty(0, 3), torch.empty(0, 3, dtype=torch.int64), n_asked
    spans = [range(int(found[0]), int(found[-1]) + 2) for found in _extents(cells)]  # of vertices
    part = tuple(slice(span.start, span.stop) for span in spans)
    volume = values[part].contiguous()
    _away_from_zero(volume)
    mask = torch.zeros(volume.shape, dtype=torch.bool)
    mask[1:, 1:, 1:] = cells[tuple(slice(span.start, span.stop - 1) for span in spans)]
    vertices, faces = march(volume.numpy(), mask.numpy())
    corner = torch.tensor([span.start for span in spans])
    return (torch.from_numpy(vertices) + corner) / resolution, torch.from_numpy(faces), n_asked


def _refined(field: Distance, coarse: Tensor, resolution: int, level: float) -> tuple[Tensor, int]:
    """Values [n, n, n] at ``resolution`` cells per side, those of cells of one sign from the coarse lattice, and how
    many points were asked for."""
    n = resolution + 1
    values = upsample(coarse, 2)[:n, :n, :n].contiguous()
    cut, asked = mixed(coarse < 0), torch.zeros(values.shape, dtype=torch.bool)
    asked[::2, ::2, ::2] = True  # before
    n_asked, new = 0, cut
    while bool(new.any()):
        wanted = corners_of(new, 2) & ~asked
        if bool(wanted.any()):
            values[wanted] = evaluate(field, wanted.nonzero(), resolution) - level
        n_asked += int(wanted.sum())
        asked |= wanted
        # a cell of one sign, some point of whose sides has been found to have the other one
        fine = mixed(values < 0)
        passed = torch.nn.functional.max_pool3d(fine[None].half(), 2)[0] > 0
        new = passed & ~cut
        cut |= new
    return values, n_asked


def _extents(cells: Tensor) -> list[Tensor]:
    """Where along each axis there is one of the cells [n, n, n]."""
    return [cells.movedim(axis, 0).flatten(1).any(1).nonzero()[:, 0] for axis in range(3)]


def _away_from_zero(values: Tensor) -> None:
    """Moves values [n, n, n] of any units that are all but zero, in place: a vertex stays ``APART`` of an edge away
    from the lattice, and no triangle is degenerate."""
    widest = torch.zeros_like(values)  # largest difference to a neighbour
    for axis in range(3):
        step = values.diff(dim=axis).abs()
        n = step.shape[axis]
        for start in (0, 1):
            part = widest.narrow(axis, start, n)
            torch.maximum(part, step, out=part)
    least = (APART * widest).clamp(min=torch.finfo(values.dtype).tiny)
    values.copy_(torch.where(values < 0, -values.abs().maximum(least), values.abs().maximum(least)))
