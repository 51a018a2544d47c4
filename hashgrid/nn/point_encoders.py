"""From clouds of points to what they say: one code, or features on planes and in a volume."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hashgrid.nn.conditional import ResBlock

PLANES = ((0, 1), (0, 2), (1, 2))


class PointNet(nn.Module):
    """One code for a cloud, whatever the order of its points: residual blocks, each of which sees the largest features
    of all points beside a point's own (Qi et al. 2017; Mescheder et al. 2019, supplement).

    Args:
        n_output_dims: Z of codes.
        n_neurons: features of a point.
        n_blocks: residual blocks.
    """

    def __init__(self, n_output_dims: int, n_neurons: int = 128, n_blocks: int = 5) -> None:
        super().__init__()
        self.position = nn.Linear(3, 2 * n_neurons)
        self.blocks = nn.ModuleList([ResBlock(2 * n_neurons, n_neurons) for _ in range(n_blocks)])
        self.output = nn.Linear(n_neurons, n_output_dims)

    def forward(self, points: Tensor) -> Tensor:
        """Codes [B, Z] of clouds [B, P, 3] in the unit cube."""
        x = self.position(2 * points - 1)
        for i, block in enumerate(self.blocks):
            x = block(x if i == 0 else torch.cat([x, x.amax(1, keepdim=True).expand_as(x)], dim=-1))
        code: Tensor = self.output(x.amax(1).relu())
        return code


class LocalPointNet(nn.Module):
    """Features of points that know those of the points in the same cell, averaged on planes or in a volume (Peng et al.
    2020, section 3.1).

    Args:
        axes: which coordinates each grid has, such as ``((0, 1), (0, 2), (1, 2))`` for planes, ``((0, 1, 2),)`` for a
            volume.
        resolutions: vertices along the sides of each grid; points belong to the nearest one.
        n_output_dims: C of features.
        n_neurons: features of a point between blocks.
        n_blocks: residual blocks.
    """

    def __init__(
        self,
        axes: Sequence[tuple[int, ...]] = PLANES,
        resolutions: Sequence[int] = (64, 64, 64),
        n_output_dims: int = 32,
        n_neurons: int = 32,
        n_blocks: int = 5,
    ) -> None:
        super().__init__()
        self.axes, self.resolutions = tuple(axes), tuple(resolutions)
        self.position = nn.Linear(3, 2 * n_neurons)
        self.blocks = nn.ModuleList([ResBlock(2 * n_neurons, n_neurons) for _ in range(n_blocks)])
        self.output = nn.Linear(n_neurons, n_output_dims)

    def forward(self, points: Tensor) -> list[Tensor]:
        """Grids [B, C, R, ...] of clouds [B, P, 3] in the unit cube, each indexed by its axes in their order; zero
        where there are no points."""
        cells = [_cells(points, *grid) for grid in zip(self.axes, self.resolutions, strict=True)]
        sizes = [r ** len(axes) for axes, r in zip(self.axes, self.resolutions, strict=True)]
        x = self.position(2 * points - 1)
        for i, block in enumerate(self.blocks):
            if i:
                largest = [_largest(x, cell, size) for cell, size in zip(cells, sizes, strict=True)]
                x = torch.cat([x, torch.stack(largest).sum(0)], dim=-1)
            x = block(x)
        x = self.output(x)
        grids = []
        for cell, size, axes, r in zip(cells, sizes, self.axes, self.resolutions, strict=True):
            index = cell[..., None].expand_as(x)
            total = x.new_zeros(len(x), size, x.shape[-1]).scatter_add(1, index, x)
            count = x.new_zeros(len(x), size).scatter_add(1, cell, torch.ones_like(cell, dtype=x.dtype))
            mean = total / count.clamp(min=1)[..., None]
            grids.append(mean.transpose(1, 2).unflatten(-1, [r] * len(axes)))
        return grids


def _cells(points: Tensor, axes: tuple[int, ...], resolution: int) -> Tensor:
    """Index [B, P] of the vertex nearest to each point [B, P, 3] in a grid over some axes."""
    index = (points[..., list(axes)].clamp(0, 1) * (resolution - 1)).round().long()
    flat = index[..., 0]
    for axis in range(1, len(axes)):
        flat = flat * resolution + index[..., axis]
    return flat


def _largest(x: Tensor, cell: Tensor, size: int) -> Tensor:
    """For each point the largest features [B, P, C] of all points of its cell [B, P]."""
    index = cell[..., None].expand_as(x)
    largest = x.new_zeros(len(x), size, x.shape[-1]).scatter_reduce(1, index, x, "amax", include_self=False)
    return largest.gather(1, index)


class UNet(nn.Module):
    """Convolutions on finer and finer, then coarser and coarser copies of a grid, each side with what the other had at
    its resolution (Ronneberger et al. 2015), for planes and volumes.

    Args:
        n_input_dims: channels C that go in.
        n_output_dims: channels that come out.
        n_dims: 2 or 3.
        depth: resolutions.
        n_features: channels at the finest one, twice as many at each coarser one.
    """

    def __init__(
        self, n_input_dims: int, n_output_dims: int, n_dims: int = 2, depth: int = 3, n_features: int = 16
    ) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[n_dims]
        widths = [n_features * 2**i for i in range(depth)]

        def block(n_in: int, n_out: int) -> nn.Sequential:
            return nn.Sequential(
                conv(n_in, n_out, 3, padding=1), nn.ReLU(), conv(n_out, n_out, 3, padding=1), nn.ReLU()
            )

        self.down = nn.ModuleList([block(a, b) for a, b in zip([n_input_dims, *widths], widths, strict=False)])
        self.up = nn.ModuleList([block(a + b, a) for a, b in zip(widths, widths[1:], strict=False)])
        self.output = conv(widths[0], n_output_dims, 1)
        self._pool = {2: nn.functional.max_pool2d, 3: nn.functional.max_pool3d}[n_dims]

    def forward(self, x: Tensor) -> Tensor:
        """Grids [B, n_output_dims, R, ...] of grids [B, C, R, ...]."""
        seen: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(self._pool(x, 2) if i else x)
            seen.append(x)
        for before, block in zip(reversed(seen[:-1]), reversed(self.up), strict=True):
            x = nn.functional.interpolate(x, size=before.shape[2:])
            x = block(torch.cat([before, x], dim=1))
        y: Tensor = self.output(x)
        return y


def sample_grid(grid: Tensor, axes: tuple[int, ...], x: Tensor) -> Tensor:
    """Features [B, N, C] of points [B, N, 3] in the unit cube, linear between the vertices of grids [B, C, R, ...] over
    some of their axes, the first and last vertex of which are on the sides of the cube."""
    place = (2 * x[..., list(reversed(axes))] - 1).view(len(x), *[1] * (len(axes) - 1), x.shape[1], len(axes))
    y = nn.functional.grid_sample(grid, place, padding_mode="border", align_corners=True)  # [B, C, 1, ..., N]
    return y.flatten(2).transpose(1, 2)
