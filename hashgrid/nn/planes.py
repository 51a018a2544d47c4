"""Features on planes and lines through the unit cube, multiplied: factorised grids of any axes and resolutions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import combinations
from operator import add, mul
from typing import Any

import torch
from torch import Tensor, nn

from hashgrid.levels import FEATURE_COUNTS, dense_level_table
from hashgrid.nn import jets
from hashgrid.nn.hash_grid import HashGrid
from hashgrid.util.choices import as_integer, as_integers


class Planes(nn.Module):
    """The product of what the planes through two axes each say of a point (Fridovich-Keil et al. 2023, K-Planes), at
    several resolutions side by side.

    Args:
        n_input_dims: dimensions D of the points.
        resolutions: vertices along the sides of the planes, for each resolution one number or one per axis, as in
            ``((64, 64, 32), (128, 128, 64))``.
        n_features: per resolution: 1, 2, 4 or a multiple of 8.
        axes: the axes of each plane, or of whatever has any number of them; None for all pairs, or for the only one.
        init: the features are drawn from this range; their product should not vanish.
        backend: ``"native"`` or ``"reference"``.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> Planes(3, resolutions=(16, (32, 32, 8)), n_features=8)(torch.rand(5, 3)).shape
        torch.Size([5, 16])
    """

    n_levels = 0

    def __init__(
        self,
        n_input_dims: int = 3,
        resolutions: Sequence[int | Sequence[int]] = (64, 128, 256),
        n_features: int = 16,
        axes: Sequence[Sequence[int]] | None = None,
        init: tuple[float, float] = (0.1, 0.5),
        backend: str = "native",
    ) -> None:
        super().__init__()
        n_features, per_entry = as_integer("n_features", n_features), min(n_features, FEATURE_COUNTS[-1])
        if per_entry not in FEATURE_COUNTS or n_features % per_entry:
            raise ValueError(f"`n_features` must be 1, 2, 4 or a multiple of 8, got {n_features}")
        self.axes = tuple(map(tuple, combinations(range(n_input_dims), min(n_input_dims, 2)) if axes is None else axes))
        if not self.axes:
            raise ValueError("`axes` must name at least one plane, got none")
        for group in self.axes:
            if not group or len(set(group)) != len(group) or not all(0 <= axis < n_input_dims for axis in group):
                raise ValueError(f"`axes` must be groups of different axes below {n_input_dims}, got {group}")
        self.n_input_dims = n_input_dims
        self.resolutions = tuple(as_integers(f"resolutions[{i}]", r, n_input_dims) for i, r in enumerate(resolutions))
        self.n_output_dims = n_features * len(self.resolutions)
        self.planes = nn.ModuleList()
        for group in self.axes:
            sides = [[r[axis] for axis in group] for r in self.resolutions for _ in range(n_features // per_entry)]
            levels = dense_level_table(sides)
            plane = HashGrid(len(group), n_features_per_level=per_entry, level_table=levels, backend=backend)
            nn.init.uniform_(plane.table, *init)
            self.planes.append(plane)

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Features [..., n_output_dims] of points [..., D]."""
        return reduce(mul, self.parts(x))

    def parts(self, x: Tensor) -> list[Tensor]:
        """What each plane says [..., n_output_dims] of points [..., D]."""
        if x.dim() == 0 or x.shape[-1] != self.n_input_dims:
            raise ValueError(f"`x` must have shape [..., {self.n_input_dims}], got {list(x.shape)}")
        every = tuple(range(self.n_input_dims))
        groups = zip(self.planes, self.axes, strict=True)
        return [plane(x if group == every else x[..., list(group)]) for plane, group in groups]

    def pictures(self, i: int) -> list[Tensor]:
        """Plane number ``i`` as it is stored, for each resolution and every 8 features: [..., n_b, n_a, F] of axes
        (a, b, ...); the first axis comes last."""
        plane = self.planes[i]
        assert isinstance(plane, HashGrid)
        parts = plane.table.split(list(plane.levels.sizes))
        return [part.view(*reversed(sides), -1) for part, sides in zip(parts, plane.levels.resolutions, strict=True)]

    @torch.no_grad()
    def resample(self, resolution: int | Sequence[int], low: Tensor | None = None, high: Tensor | None = None) -> None:
        """Gives planes of one resolution another one, on which they say the same at the new vertices. The parameters
        are other tensors afterwards.

        Args:
            resolution: vertices along the sides: one number or one per axis.
            low, high: [D], corners of the part of the unit cube that is the unit cube from then on; all of it if None.

        Raises:
            ValueError: the planes have several resolutions.
        """
        if len(self.resolutions) != 1:
            raise ValueError(f"planes must have one resolution to be resampled, got {len(self.resolutions)}")
        sides = as_integers("resolution", resolution, self.n_input_dims)
        self.resolutions = (sides,)
        for i, group in enumerate(self.axes):
            old = self.planes[i]
            assert isinstance(old, HashGrid)
            corners = None if low is None or high is None else (low[list(group)], high[list(group)])
            self.planes[i] = _resampled(old, [sides[axis] for axis in group], corners)

    def jet(
        self, x: Tensor, directions: Tensor, accelerations: Tensor | None = None, operators: Tensor | None = None
    ) -> jets.Jet:
        """Features with first and second derivatives; see `derivatives_along`."""
        whole: jets.Jet | None = None
        for plane, group in zip(self.planes, self.axes, strict=True):
            assert isinstance(plane, HashGrid)
            jet = plane.jet(*jets.channels((x, directions, accelerations), list(group)), operators)
            whole = jet if whole is None else jets.product(whole, jet, operators)
        assert whole is not None
        return whole


class PlanesMean(Planes):
    """The mean of what planes say of a point instead of the product (Chan et al. 2022, EG3D, section 4.1); see
    :class:`Planes`.

    Example:
        >>> import torch
        >>> PlanesMean(3, resolutions=(16,), n_features=8)(torch.rand(5, 3)).shape
        torch.Size([5, 8])
    """

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Features [..., n_output_dims] of points [..., D]."""
        return reduce(add, self.parts(x)) / len(self.planes)

    def jet(
        self, x: Tensor, directions: Tensor, accelerations: Tensor | None = None, operators: Tensor | None = None
    ) -> jets.Jet:
        """Not of means."""
        raise NotImplementedError("`PlanesMean` has no derivatives along curves; use `Planes`")


class Lines(Planes):
    """The product of what a line along each axis says of a point: a sum of rank ``n_features`` behind a linear layer
    (CP decomposition; Chen et al. 2022, TensoRF, section 3.1).

    Args:
        n_input_dims: dimensions D of the points.
        resolutions: vertices along the lines, as of :class:`Planes`.
        n_features: per resolution: 1, 2, 4 or a multiple of 8.
        init: the features are drawn from this range.
        backend: ``"native"`` or ``"reference"``.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        n_input_dims: int = 3,
        resolutions: Sequence[int | Sequence[int]] = (64, 128, 256),
        n_features: int = 16,
        init: tuple[float, float] = (0.1, 0.5),
        backend: str = "native",
    ) -> None:
        super().__init__(
            n_input_dims, resolutions, n_features, [(axis,) for axis in range(n_input_dims)], init, backend
        )


class PlanesAndLines(nn.Module):
    """For each pair of axes, the product of what its plane says of a point and what a line along each other axis does,
    side by side (VM decomposition; Chen et al. 2022, TensoRF, section 3.2). In two dimensions that is one plane, in one
    a line.

    Args:
        n_input_dims: dimensions D of the points.
        resolutions: vertices along the sides of planes and lines, as of :class:`Planes`.
        n_features: per resolution and pair of axes: 1, 2, 4 or a multiple of 8.
        init: the features are drawn from this range.
        backend: ``"native"`` or ``"reference"``.

    Raises:
        ValueError: an argument is out of range.
    """

    n_levels = 0

    def __init__(
        self,
        n_input_dims: int = 3,
        resolutions: Sequence[int | Sequence[int]] = (64, 128, 256),
        n_features: int = 16,
        init: tuple[float, float] = (0.1, 0.5),
        backend: str = "native",
    ) -> None:
        super().__init__()
        self.n_input_dims = n_input_dims
        self.products = nn.ModuleList()
        for pair in combinations(range(n_input_dims), min(n_input_dims, 2)):
            axes = [pair, *((axis,) for axis in range(n_input_dims) if axis not in pair)]
            self.products.append(Planes(n_input_dims, resolutions, n_features, axes, init, backend))
        self.n_output_dims = sum(product.n_output_dims for product in self.products)  # type: ignore[misc]

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Features [..., n_output_dims] of points [..., D]."""
        return torch.cat([product(x) for product in self.products], dim=-1)

    def jet(
        self, x: Tensor, directions: Tensor, accelerations: Tensor | None = None, operators: Tensor | None = None
    ) -> jets.Jet:
        """Features with first and second derivatives; see `derivatives_along`."""
        products: Iterable[Any] = self.products
        return jets.concatenated([product.jet(x, directions, accelerations, operators) for product in products])


def _resampled(
    grid: HashGrid, sides: Sequence[int], corners: tuple[Tensor, Tensor] | None, chunk: int = 1 << 18
) -> HashGrid:
    """A grid of as many dense levels, all with ``sides`` vertices, that says the same at them, between ``corners`` [D]
    of the unit cube."""
    table, n_dims = grid.table, grid.n_input_dims
    levels = dense_level_table([sides] * grid.n_levels)
    new = HashGrid(
        n_dims,
        n_features_per_level=grid.n_features_per_level,
        interpolation=grid.interpolation,
        bounds=grid.bounds,
        level_table=levels,
        accumulate_grad=grid.accumulate_grad,
        backend=grid.backend,
    ).to(table.device, table.dtype)
    n = math.prod(sides)
    for begin in range(0, n, chunk):
        row, unit = torch.arange(begin, min(begin + chunk, n), device=table.device), []
        for side in sides:  # the first axis is fastest
            unit.append((row % side).to(table.dtype) / max(side - 1, 1))
            row = row // side
        x = torch.stack(unit, dim=-1)
        if corners is not None:
            low, high = (corner.to(x) for corner in corners)
            x = torch.lerp(low, high, x)
        y = grid(x).unflatten(-1, (grid.n_levels, -1))  # [N, L, F]
        new.table.view(grid.n_levels, n, -1)[:, begin : begin + len(y)] = y.transpose(0, 1)
    return new
