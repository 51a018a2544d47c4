"""Samples along rays, packed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hashgrid.ops._backend import ngp_ops


@dataclass
class RaySamples:
    """Intervals along rays, sorted by ray, rays in input order.

    Attributes:
        t_starts: [S], distances in units of the length of the ray's direction.
        t_ends: [S].
        ray_indices: [S] int64.
        packed_info: [R, 2] int64, first sample and number of samples of each ray.
        backend: of what is computed from the samples, ``"native"`` or ``"reference"``.
    """

    t_starts: Tensor
    t_ends: Tensor
    ray_indices: Tensor
    packed_info: Tensor
    backend: str = "native"

    @property
    def n_samples(self) -> int:
        return self.t_starts.shape[0]

    @property
    def n_rays(self) -> int:
        return self.packed_info.shape[0]

    @property
    def midpoints(self) -> Tensor:
        """[S], distances of the middles."""
        return (self.t_starts + self.t_ends) * 0.5

    def positions(self, rays_o: Tensor, rays_d: Tensor) -> Tensor:
        """The middles in space.

        Args:
            rays_o: [R, 3], origins.
            rays_d: [R, 3], directions.

        Returns:
            [S, 3].
        """
        return ngp_ops(self.backend).sample_positions(rays_o, rays_d, self.ray_indices, self.t_starts, self.t_ends)

    def window(
        self, rays_o: Tensor, rays_d: Tensor, sigmas: Tensor, begin: int, end: int, early_stop_eps: float = 1e-4
    ) -> tuple[Tensor, Tensor]:
        """Samples number ``begin`` to ``end`` of each ray that is not opaque in front of them.

        Args:
            rays_o: [R, 3], origins.
            rays_d: [R, 3], directions.
            sigmas: [S], densities, known in front of ``begin``.
            begin, end: number of a sample along its ray.
            early_stop_eps: transmittance below which a ray is opaque.

        Returns:
            Their index [K] int64 among these, and their middles in space [K, 3].
        """
        return ngp_ops(self.backend).window_samples(
            rays_o, rays_d, sigmas, self.t_starts, self.t_ends, self.packed_info, begin, end, early_stop_eps
        )

    def visible(self, sigmas: Tensor, early_stop_eps: float = 1e-4) -> tuple[RaySamples, Tensor]:
        """The samples that compositing counts, those of transmittance at least ``early_stop_eps``.

        Args:
            sigmas: [S], densities.
            early_stop_eps: smallest transmittance at which a sample counts.

        Returns:
            The samples kept, and their index [K] int64 among these.
        """
        index, packed_info = ngp_ops(self.backend).visible_samples(
            sigmas, self.t_starts, self.t_ends, self.packed_info, early_stop_eps
        )
        t_starts, t_ends, ray_indices = (
            x.index_select(0, index) for x in (self.t_starts, self.t_ends, self.ray_indices)
        )
        return RaySamples(t_starts, t_ends, ray_indices, packed_info, self.backend), index
