"""Rays, samples along them, and what a field sees of a sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from hashgrid.ops._backend import ngp_ops


@dataclass(frozen=True, eq=False)
class Rays:
    """Rays, and what a field may know of them besides where they run.

    Attributes:
        origins, directions: [R, 3].
        camera: which of the cameras that are trained on each is of [R] int64; None where nobody says.
        time: when each was seen [R]; None in scenes that do not move, or where nobody asks.
        ends: how far away what each hits is known to be [R], 0 where nobody knows; None where nobody knows any.
        radii: of the cone through the pixel of each, at a distance of 1 [R]: 1 / sqrt(3) of its side, so that the disc
            varies as much as the square (Barron et al. 2021, section 3.1); None where nobody asks.
        coverage: how opaque the pixel of each is, 0..1 [R]; None where nobody asks.
        labels: number of the class of what each hits [R] int64, -1 where nobody says; None where nobody asks.
    """

    origins: Tensor
    directions: Tensor
    camera: Tensor | None = None
    time: Tensor | None = None
    ends: Tensor | None = None
    radii: Tensor | None = None
    coverage: Tensor | None = None
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.origins)
        for name, tail in (
            ("origins", (3,)),
            ("directions", (3,)),
            ("camera", ()),
            ("time", ()),
            ("ends", ()),
            ("radii", ()),
            ("coverage", ()),
            ("labels", ()),
        ):
            value = getattr(self, name)
            if value is not None and value.shape != (n, *tail):
                raise ValueError(f"`{name}` must have shape {[n, *tail]}, got {list(value.shape)}")
        for name, numbers in (("camera", self.camera), ("labels", self.labels)):
            if numbers is not None and numbers.dtype != torch.int64:
                raise ValueError(f"`{name}` must be int64, got {numbers.dtype}")

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, index: slice | Tensor) -> Rays:
        """The rays of a slice, of indices [K] int64 or of a mask [R] bool."""
        return self._each(lambda x: x[index])

    def to(self, device: torch.device | str) -> Rays:
        """The same with every tensor on ``device``."""
        return self._each(lambda x: x.to(device))

    def detach(self) -> Rays:
        """The same without gradients."""
        return self._each(lambda x: x.detach()) if self.origins.requires_grad or self.directions.requires_grad else self

    def joined(self, other: Rays) -> Rays:
        """These rays, then others of which the same is known."""
        pairs = [(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return Rays(*(None if x is None or y is None else torch.cat((x, y)) for x, y in pairs))  # type: ignore[arg-type]

    def _each(self, change: Callable[[Tensor], Tensor]) -> Rays:
        others = self.camera, self.time, self.ends, self.radii, self.coverage, self.labels
        changed = (None if x is None else change(x) for x in others)
        return Rays(change(self.origins), change(self.directions), *changed)


class At:
    """Where a field is asked: samples, by their rays. What nobody looks at is not made.

    Args:
        rays: all rays.
        unit: [S, 3], the samples in the unit cube of the field's box; or what makes them.
        ray_indices: [S] int64; or what makes them.
        intervals: distances [S] where the samples begin, and where they end, or what makes them; None where they are
            points.
        parts: which of several fields each sample is of [S] int64; None where nobody says.
    """

    def __init__(
        self,
        rays: Rays,
        unit: Tensor | Callable[[], Tensor],
        ray_indices: Tensor | Callable[[], Tensor],
        intervals: tuple[Tensor, Tensor] | Callable[[], tuple[Tensor, Tensor]] | None = None,
        parts: Tensor | None = None,
    ) -> None:
        self.rays, self._unit, self._ray_indices, self._intervals = rays, unit, ray_indices, intervals
        self.parts = parts

    @cached_property
    def unit(self) -> Tensor:
        return self._unit if isinstance(self._unit, Tensor) else self._unit()

    @cached_property
    def unit_and_time(self) -> Tensor:
        """[S, 4], ``unit`` and the time of the ray; 0 where nobody says."""
        time = self.rays.time
        of_sample = self.unit.new_zeros(len(self.unit)) if time is None else time.index_select(0, self.ray_indices)
        return torch.cat((self.unit, of_sample.to(self.unit.dtype)[:, None]), dim=1)

    @cached_property
    def intervals(self) -> tuple[Tensor, Tensor] | None:
        return self._intervals() if callable(self._intervals) else self._intervals

    @cached_property
    def ray_indices(self) -> Tensor:
        return self._ray_indices if isinstance(self._ray_indices, Tensor) else self._ray_indices()


@dataclass
class RaySamples:
    """Intervals along rays, sorted by ray, rays in input order.

    Attributes:
        t_starts, t_ends: [S], distances in units of the length of the ray's direction.
        ray_indices: [S] int64.
        packed_info: [R, 2] int64, first sample and number of samples of each ray.
        backend: of what is computed from the samples, ``"native"`` or ``"reference"``.
        parts: which of several fields each is of [S] int64; None where there is one.
    """

    t_starts: Tensor
    t_ends: Tensor
    ray_indices: Tensor
    packed_info: Tensor
    backend: str = "native"
    parts: Tensor | None = None

    @property
    def n_samples(self) -> int:
        return self.t_starts.shape[0]

    @property
    def n_rays(self) -> int:
        return self.packed_info.shape[0]

    def intervals(self, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Where samples begin and where they end; those of ``index`` [K] if given."""
        both = self.t_starts, self.t_ends
        return both if index is None else (both[0].index_select(0, index), both[1].index_select(0, index))

    def chosen(self, index: Tensor) -> RaySamples:
        """The samples of an index [K] int64 in rising order, on the same rays."""
        starts, ends, of_ray = (x.index_select(0, index) for x in (self.t_starts, self.t_ends, self.ray_indices))
        counts = torch.bincount(of_ray, minlength=self.n_rays)
        packed_info = torch.stack((counts.cumsum(0) - counts, counts), dim=1)
        parts = None if self.parts is None else self.parts.index_select(0, index)
        return RaySamples(starts, ends, of_ray, packed_info, self.backend, parts)

    def positions(self, rays_o: Tensor, rays_d: Tensor) -> Tensor:
        """The middles in space [S, 3], on rays of origins ``rays_o`` and directions ``rays_d`` [R, 3]."""
        return ngp_ops(self.backend).sample_positions(rays_o, rays_d, self.ray_indices, self.t_starts, self.t_ends)

    def window(
        self, rays_o: Tensor, rays_d: Tensor, sigmas: Tensor, begin: int, end: int, early_stop_eps: float = 1e-4
    ) -> tuple[Tensor, Tensor]:
        """The index [K] int64 of samples number ``begin`` to ``end`` of each ray that is not opaque in front of them,
        and their middles in space [K, 3].

        Args:
            rays_o, rays_d: [R, 3], origins and directions.
            sigmas: [S], densities, known in front of ``begin``.
            begin, end: number of a sample along its ray.
            early_stop_eps: transmittance below which a ray is opaque.
        """
        return ngp_ops(self.backend).window_samples(
            rays_o, rays_d, sigmas, self.t_starts, self.t_ends, self.packed_info, begin, end, early_stop_eps
        )

    def visible(self, sigmas: Tensor, early_stop_eps: float = 1e-4) -> tuple[RaySamples, Tensor]:
        """The samples that compositing counts, those of transmittance at least ``early_stop_eps`` where densities are
        ``sigmas`` [S], and their index [K] int64 among these."""
        index, packed_info = ngp_ops(self.backend).visible_samples(
            sigmas, self.t_starts, self.t_ends, self.packed_info, early_stop_eps
        )
        starts, ends, rays = (x.index_select(0, index) for x in (self.t_starts, self.t_ends, self.ray_indices))
        return RaySamples(starts, ends, rays, packed_info, self.backend), index
