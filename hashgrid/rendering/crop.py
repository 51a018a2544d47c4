"""A box outside of which a field is empty."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hashgrid.fields.base import RadianceField
from hashgrid.geometry.cameras import Cameras
from hashgrid.geometry.rays import Rays
from hashgrid.rendering.samplers import Found, Jitter, Sampler


class CroppedSampler(Sampler):
    """The samples of another sampler whose middles lie in a box.

    Args:
        sampler: the other one.
        box: [6], the lower corner first, in the coordinates of the field.
    """

    box: Tensor

    def __init__(self, sampler: Sampler, box: Tensor) -> None:
        super().__init__()
        self.sampler, self.prunes, self.early_stop_eps = sampler, sampler.prunes, sampler.early_stop_eps
        self.register_buffer("box", box.float())

    def of_picture(self, field: RadianceField, cameras: Cameras, view: int) -> Callable[[int, int], Sampler]:
        of_pixels = self.sampler.of_picture(field, cameras, view)
        return lambda begin, end: CroppedSampler(of_pixels(begin, end), self.box)

    def forward(self, rays: Rays, field: RadianceField, jitter: Jitter) -> Found:
        found = self.sampler(rays, field, jitter)
        samples = found.samples
        places = samples.positions(rays.origins, rays.directions)
        kept = ((places >= self.box[:3]) & (places <= self.box[3:])).all(-1).nonzero().squeeze(1)
        return Found(samples.chosen(kept), found.coarse)
