"""Fields of dense grids, which are coarse at first and become finer in steps, around what there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hashgrid.fields.base import RadianceField
from hashgrid.geometry.rays import At, Rays
from hashgrid.nn.planes import Planes
from hashgrid.util.config import Config

LOOK_EVERY = 64  # cells per axis in which a field looks for what there is
THICK = 0.01  # optical thickness of one of these that counts


@dataclass(frozen=True)
class GrowingConfig(Config):
    """How a :class:`GrowingField` becomes finer."""

    resolutions: tuple[int, ...] = (32, 64, 128)  # vertices along the longest side of the box, one after the other
    grow_at: tuple[float, ...] = (0.1, 0.3)  # progress of training at which the next one comes
    shrink: bool = True  # the box to what there is, when the grids grow for the last time

    def check(self) -> None:
        super().check()
        if not self.resolutions or min(self.resolutions) < 2:
            raise ValueError(f"`resolutions` must be at least one of at least 2, got {self.resolutions}")
        if len(self.grow_at) != len(self.resolutions) - 1:
            n, found = len(self.resolutions) - 1, len(self.grow_at)
            raise ValueError(f"`grow_at` must have one number less than `resolutions`, {n}, got {found}")
        if any(a > b for a, b in zip(self.grow_at, self.grow_at[1:], strict=False)):
            raise ValueError(f"`grow_at` must rise, got {self.grow_at}")


class GrowingField(RadianceField):
    """Density and colour from :class:`Planes` of one resolution, whose cells are cubes.

    Args:
        config: sizes of the field.
        aabb: [6] box the field covers.

    Attributes:
        stage: int64 scalar, how often the field has grown.
    """

    stage: Tensor

    def __init__(self, config: GrowingConfig, aabb: Tensor) -> None:
        super().__init__(aabb)
        self.config = config
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_make_room)

    def sides(self) -> tuple[int, ...]:
        """Vertices along each axis that the grids of this stage have."""
        extent = self.aabb[3:] - self.aabb[:3]
        cells = (self.config.resolutions[int(self.stage)] - 1) * extent / extent.max()
        return tuple(max(2, round(n) + 1) for n in cells.tolist())

    def grids(self) -> list[Planes]:
        """All that grow."""
        return [module for module in self.modules() if isinstance(module, Planes)]

    def made(self) -> None:
        """To be called when all grids are there: outside the box they are zero."""
        for grid in self.grids():
            for plane in grid.planes:
                plane.bounds, plane.accumulate_grad = "zero", True  # type: ignore[assignment]

    def resample(self, low: Tensor | None = None, high: Tensor | None = None) -> None:
        """Gives the grids the sizes of this stage; ``low`` and ``high`` [3] are the box in what was the unit cube."""
        for grid in self.grids():
            grid.resample(self.sides(), low, high)

    @torch.no_grad()
    def grow(self, progress: float) -> bool:
        config = self.config
        wanted = sum(progress >= at for at in config.grow_at)
        if wanted <= int(self.stage):
            return False
        self.stage.fill_(wanted)
        low = high = None
        if config.shrink and wanted == len(config.grow_at) and self.contraction == "none":
            low, high = self.occupied()
            self.aabb.copy_(torch.cat([self.aabb[:3] + part * (self.aabb[3:] - self.aabb[:3]) for part in (low, high)]))
            self.inverse_extent.copy_(1 / (self.aabb[3:] - self.aabb[:3]))
        self.resample(low, high)
        return True

    def occupied(self) -> tuple[Tensor, Tensor]:
        """The corners [3] of the part of the unit cube with anything in it, and a cell around."""
        n, extent = LOOK_EVERY, self.aabb[3:] - self.aabb[:3]
        middles = (torch.arange(n, device=extent.device) + 0.5) / n
        layers = []
        for x in middles:  # a layer at a time: a field keeps all of what it is asked
            unit = torch.cartesian_prod(x[None], middles, middles)
            rays = Rays(unit, unit)  # densities do not depend on the direction
            layers.append(self.density(At(rays, unit, torch.arange(len(unit), device=unit.device)))[0])
        there = torch.stack(layers).view(n, n, n) * (extent.max() / n) > THICK
        low, high = extent.new_zeros(3), extent.new_ones(3)
        for axis in range(3):
            where = (
                there.any(dim=(axis + 1) % 3, keepdim=True).any(dim=(axis + 2) % 3, keepdim=True).flatten().nonzero()
            )
            if len(where):
                low[axis] = (where.min() - 1).clamp(min=0) / n
                high[axis] = (where.max() + 2).clamp(max=n) / n
        return low, high


def _make_room(field: GrowingField, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Makes parameters of the sizes in a state that is about to be loaded."""
    stage, aabb = state.get(prefix + "stage"), state.get(prefix + "aabb")
    if stage is None or aabb is None:
        return
    before = field.sides()
    field.stage.copy_(stage)
    field.aabb.copy_(aabb)
    if field.sides() != before:
        field.resample()
