"""Features on planes through the unit cube (Fridovich-Keil et al. 2023, K-Planes), of any axes and resolutions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from hashgrid.levels import LevelTable
from hashgrid.nn.hash_grid import HashGrid


class Planes(nn.Module):
    """The product of what the planes through two axes each say of a point, at several resolutions side by side.

    Args:
        n_input_dims: dimensions D of the points.
        resolutions: vertices along a side of the planes, one number per resolution.
        n_features: per resolution; a multiple of 8.
        axes: pairs of axes, one per plane; None for all of them.
        init: the features are drawn from this range; their product should not vanish.
        backend: ``"native"`` or ``"reference"``.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> Planes(3, resolutions=(16, 32), n_features=8)(torch.rand(5, 3)).shape
        torch.Size([5, 16])
    """

    n_levels = 0

    def __init__(
        self,
        n_input_dims: int = 3,
        resolutions: Sequence[int] = (64, 128, 256),
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
        self.n_input_dims, self.resolutions = n_input_dims, tuple(resolutions)
        self.n_output_dims = n_features * len(self.resolutions)
        table = plane_levels([r for r in self.resolutions for _ in range(n_features // 8)])
        planes = [HashGrid(2, n_features_per_level=8, level_table=table, backend=backend) for _ in self.axes]
        for plane in planes:
            nn.init.uniform_(plane.table, *init)
        self.planes = nn.ModuleList(planes)

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Features [..., n_output_dims] of points [..., D]."""
        product = None
        for plane, pair in zip(self.planes, self.axes, strict=True):
            y = plane(x[..., list(pair)])
            product = y if product is None else product * y
        assert product is not None
        return product


def plane_levels(resolutions: Sequence[int]) -> LevelTable:
    """Dense levels over the unit square whose outermost vertices lie on its sides, one after the other."""
    sizes = [resolution**2 for resolution in resolutions]
    offsets = torch.tensor([0, *sizes[:-1]]).cumsum(0).tolist()
    return LevelTable(
        n_input_dims=2,
        scales=tuple(float(resolution - 1) for resolution in resolutions),
        resolutions=tuple(resolutions),
        shift=0.0,
        offsets=tuple(offsets),
        sizes=tuple(sizes),
        hashed=(False,) * len(sizes),
    )
