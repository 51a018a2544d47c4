"""HexPlane (Cao & Johnson 2023): a moving volume as a sum of products of planes of space and of the rest and time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hashgrid.fields.tensorf import Tensorf, TensorfConfig
from hashgrid.geometry.rays import At
from hashgrid.nn.planes import Planes

PAIRS = (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((1, 2), (0, 3)))


@dataclass(frozen=True)
class HexplaneConfig(TensorfConfig):
    """Sizes of a :class:`Hexplane`."""

    name = "hexplane"

    shrink: bool = False  # what is there at one time need not be all
    n_times: int = 16  # vertices along time: about a quarter as many as there are pictures, or more
    density_weight: float = 0.0  # of the mean size of what densities are products of
    variation: float = 1e-4  # weight of the mean square of differences along space, twice that along time


class PlanesAndTime(nn.Module):
    """For each pair of axes, the product of what its plane says of a point and what one of the other axis and time
    does, side by side.

    Args:
        resolution: vertices along x, y, z and time.
        n_features: per pair: 1, 2, 4 or a multiple of 8.
        init: the features are drawn from this range.
        backend: ``"native"`` or ``"reference"``.
    """

    def __init__(
        self, resolution: tuple[int, ...], n_features: int, init: tuple[float, float], backend: str = "native"
    ) -> None:
        super().__init__()
        products = [Planes(4, [resolution], n_features, axes, init, backend) for axes in PAIRS]
        self.products = nn.ModuleList(products)
        self.n_output_dims = 3 * n_features

    def forward(self, x: Tensor) -> Tensor:
        """Features [..., n_output_dims] of points and times [..., 4]."""
        return torch.cat([product(x) for product in self.products], dim=-1)


class Hexplane(Tensorf):
    """Six planes, three of which know the time, multiplied in pairs.

    Args:
        config: sizes of the field.
        aabb: [6] box the field covers.
        n_cascades: not looked at: the cells of all of the box are alike.
        backend: ``"native"`` or ``"reference"``.
    """

    Config = HexplaneConfig
    needs = ("time",)
    config: HexplaneConfig

    def sides(self) -> tuple[int, ...]:
        return (*super().sides(), self.config.n_times)

    def factors(self, n_features: int) -> PlanesAndTime:
        spread = 3**0.5 * self.config.deviation
        return PlanesAndTime(self.sides(), n_features, (-spread, spread), self.backend)

    def points(self, at: At) -> Tensor:
        return at.unit_and_time

    def penalty(self) -> Tensor | float:
        loss = super().penalty()
        if self.config.variation:
            terms = []
            for grid in self.grids():
                for i, group in enumerate(grid.axes):
                    for y in grid.pictures(i):
                        along = 2 if group[1] == 3 else 1
                        terms.append(along * y.diff(dim=0).square().mean() + y.diff(dim=1).square().mean())
            loss = loss + self.config.variation * torch.stack(terms).mean()
        return loss
