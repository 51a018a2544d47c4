"""Features on planes through the unit cube (Fridovich-Keil et al. 2023, K-Planes), of any axes and resolutions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, combinations

from torch import Tensor, nn

from hashgrid.levels import LevelTable
from hashgrid.nn.hash_grid import HashGrid
from hashgrid.util.choices import as_integers


class Planes(nn.Module):
    """The product of what the planes through two axes each say of a point, at several resolutions side by side.

    Args:
        n_input_dims: dimensions D of the points.
        resolutions: vertices along the sides of the planes, for each resolution one number or one per axis, as in
            ``((64, 64, 32), (128, 128, 64))``.
        n_features: per resolution; a multiple of 8.
        axes: pairs of axes, one per plane; None for all of them.
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
        axes: Sequence[tuple[int, int]] | None = None,
        init: tuple[float, float] = (0.1, 0.5),
        backend: str = "native",
    ) -> None:
        super().__init__()
        if n_features < 8 or n_features % 8:
            raise ValueError(f"`n_features` must be a multiple of 8, got {n_features}")
        self.axes = tuple(axes) if axes is not None else tuple(combinations(range(n_input_dims), 2))
        for pair in self.axes:
            if len(set(pair)) != 2 or not all(0 <= axis < n_input_dims for axis in pair):
                raise ValueError(f"`axes` must be pairs of different axes below {n_input_dims}, got {pair}")
        self.n_input_dims = n_input_dims
        self.resolutions = tuple(as_integers(f"resolutions[{i}]", r, n_input_dims) for i, r in enumerate(resolutions))
        self.n_output_dims = n_features * len(self.resolutions)
        self.planes = nn.ModuleList()
        for a, b in self.axes:
            levels = plane_levels([(r[a], r[b]) for r in self.resolutions for _ in range(n_features // 8)])
            plane = HashGrid(2, n_features_per_level=8, level_table=levels, backend=backend)
            nn.init.uniform_(plane.table, *init)
            self.planes.append(plane)

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Features [..., n_output_dims] of points [..., D]."""
        product = None
        for plane, pair in zip(self.planes, self.axes, strict=True):
            y = plane(x[..., list(pair)])
            product = y if product is None else product * y
        assert product is not None
        return product


def plane_levels(resolutions: Sequence[tuple[int, int]]) -> LevelTable:
    """Dense levels over the unit square whose outermost vertices lie on its sides, one after the other."""
    sizes = [columns * rows for columns, rows in resolutions]
    return LevelTable(
        n_input_dims=2,
        scales=tuple((columns - 1.0, rows - 1.0) for columns, rows in resolutions),
        resolutions=tuple(resolutions),
        shift=0.0,
        offsets=tuple(accumulate(sizes[:-1], initial=0)),
        sizes=tuple(sizes),
        hashed=(False,) * len(sizes),
    )
