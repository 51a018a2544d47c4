"""Beams of X-rays through a volume that is turned in front of a detector: parallel ones, and cones from a source."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hashgrid.geometry.rays import Rays
from hashgrid.util.config import Config


@dataclass(frozen=True)
class Beams(Config):
    """Where source and detector stand, in any unit of length. The volume is a cube (in 2-D a square) around the origin.

    At angle ``a`` beams run along ``(-sin a, cos a, 0)``, detector columns along ``(cos a, sin a, 0)``, rows along z:
    the detector turns counterclockwise about the z axis. Pixel ``i`` of ``n`` is ``(i - (n - 1) / 2) * pixel + offset``
    from the middle.

    Example:
        >>> import torch
        >>> rays = Beams(angles=(0.0, 90.0), volume=2.0, pixel=(0.5, 0.5)).rays(torch.tensor([0, 7]), 1, 4)
        >>> (rays.directions + 0.0).round().tolist()
        [[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]
    """

    beam: Literal["parallel", "cone"] = "parallel"  # cone is a fan in 2-D
    angles: tuple[float, ...] = ()  # degrees, one per projection
    volume: float = 1.0  # side of the cube that is reconstructed
    pixel: tuple[float, float] = (1.0, 1.0)  # height and width on the detector
    offset: tuple[float, float] = (0.0, 0.0)  # of the detector's middle along its rows and columns: z, then columns
    source: float = 0.0  # of a cone, from there to the axis
    detector: float = 0.0  # of a cone, from the axis to there

    def check(self) -> None:
        """Raises ValueError where a number cannot be used."""
        super().check()
        numbers = (*self.angles, self.volume, *self.pixel, *self.offset, self.source, self.detector)
        if not all(map(math.isfinite, numbers)):
            raise ValueError("the geometry must hold finite numbers only, got NaN or inf")
        if not self.angles:
            raise ValueError("`angles` must hold one angle per projection, in degrees, got none")
        if not self.volume > 0:
            raise ValueError(f"`volume` must be positive, the side of the volume, got {self.volume}")
        if not min(self.pixel) > 0:
            raise ValueError(f"`pixel` must be positive, height and width of a detector pixel, got {self.pixel}")
        corner = self.volume / math.sqrt(2)
        if self.beam == "cone" and not self.source > corner:
            raise ValueError(
                f"`source` must be outside the volume as it turns, more than {corner:.4g} from the axis, got"
                f" {self.source}"
            )
        if self.beam == "cone" and not self.source + self.detector > 0:
            raise ValueError(f"`detector` must be in front of the source, got {self.detector}")

    def rays(self, index: Tensor, n_rows: int, n_columns: int) -> Rays:
        """Returns the rays to pixels in coordinates of the unit cube that holds the volume: lengths are in its sides.

        Args:
            index: [R] int64, pixels of a scan [angles, n_rows, n_columns] as if it were flat.
            n_rows, n_columns: of the detector.
        """
        angles = torch.tensor(self.angles, dtype=torch.float64, device=index.device) * (math.pi / 180)
        pixel = index % (n_rows * n_columns)
        angle = angles[torch.div(index, n_rows * n_columns, rounding_mode="floor")]
        row = torch.div(pixel, n_columns, rounding_mode="floor") - (n_rows - 1) / 2
        column = pixel % n_columns - (n_columns - 1) / 2
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        across, forward = torch.stack((cos, sin, zero), -1), torch.stack((-sin, cos, zero), -1)
        up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64, device=index.device)
        height, width = self.pixel
        place = across * (column * width + self.offset[1])[:, None] + up * (row * height + self.offset[0])[:, None]
        if self.beam == "parallel":
            origins, directions = place - 2 * self.volume * forward, forward
        else:
            origins = -self.source * forward
            directions = place + (self.detector + self.source) * forward
            directions = directions / directions.norm(dim=-1, keepdim=True)
        return Rays((origins / self.volume + 0.5).float(), directions.float())
