"""What is around a box, seen before and behind what is in it: a radiance field of its own, as in NeRF++ (Zhang et al.
2020), whose cameras are all in the ball in the middle, and have nothing before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hashgrid.fields.base import RadianceField
from hashgrid.fields.ngp import Ngp
from hashgrid.geometry.rays import At, Rays
from hashgrid.ops._backend import backend_ops
from hashgrid.rendering.proposals import blurred, draw_edges
from hashgrid.rendering.samplers import FAR, Found, Jitter, StratifiedSampler, distances, look, spacing, weights_of

HIDDEN = 1e-3  # of the light: of less than that nothing is asked
FIRST_DENSITY = 0.25  # per unit of length, of which the box has 3, before anything is learned
CALM_DISTANCE = 1.0  # from a camera, up to which gradients are scaled down
BEFORE, BEHIND = 12, 24  # samples per ray


class OutsideSampler(StratifiedSampler):
    """As many samples on each ray before it enters the field's box, or behind where it leaves it: even in the measure
    of contracted space, in units of half the side of the box, and then as many where these say that something is. A ray
    that misses the box is parted where it comes nearest to its middle.

    Args:
        n_samples: per ray.
        near: no sample before this distance.
        behind: on which side of the box.
        backend: ``"native"`` or ``"reference"``.
    """

    def __init__(self, n_samples: int, near: float, behind: bool, backend: str = "native") -> None:
        super().__init__(n_samples, near, backend)
        self.behind = behind

    def border(self, rays: Rays, aabb: Tensor) -> Tensor:
        """How far it is to that side of the box [R], ``near`` at least."""
        place = backend_ops(self.backend).ray_aabb(rays.origins, rays.directions, aabb)[int(self.behind)]
        nearest = (((aabb[:3] + aabb[3:]) / 2 - rays.origins) * rays.directions).sum(-1)
        return torch.where(place.isfinite(), place, nearest).clamp(self.near)

    def forward(self, rays: Rays, field: RadianceField, jitter: Jitter) -> Found:
        unit = (field.aabb[3:] - field.aabb[:3]).amax() / 2
        border = spacing((self.border(rays, field.aabb) / unit).clamp(max=FAR / 2))[:, None]
        end = spacing(torch.full_like(unit, FAR)) if self.behind else spacing(self.near / unit)
        low, high = (border, end) if self.behind else (end, border)
        edges = low + (high - low) * self.parts(len(rays), unit, jitter) / self.n_samples
        with torch.no_grad():
            samples = self.pack(distances(edges, unit))
            places = field.inside(samples.positions(field.unit(rays.origins), field.unit_direction(rays.directions)))
            sigmas = field.density(At(rays, places, samples.ray_indices, samples.intervals()))[0]
            shape = len(rays), self.n_samples
            weights = weights_of(sigmas.view(shape), (samples.t_ends - samples.t_starts).view(shape))
        edges = draw_edges(edges, blurred(weights), self.n_samples, jitter, 0, self.backend)
        return Found(self.pack(distances(edges, unit)))


class Around(nn.Module):
    """Instant-NGP's field of all of space, contracted, of which rays see what is outside of a box, and a colour where
    they do not end.

    Args:
        aabb: [6], the box, which has what is looked at in it.
        near: no sample before this distance.
        backend: ``"native"`` or ``"reference"``.

    Example:
        >>> import torch
        >>> around = Around(torch.tensor([-1.0, -1, -1, 1, 1, 1]))
        >>> rays = Rays(torch.zeros(4, 3), torch.eye(3)[[0, 1, 2, 0]])
        >>> around(torch.zeros(4, 3), torch.zeros(4), rays).shape
        torch.Size([4, 3])
    """

    def __init__(self, aabb: Tensor, near: float = 0.0, backend: str = "native") -> None:
        super().__init__()
        self.field = Ngp(Ngp.Config().replace(log2_hashmap_size=17, max_resolution=512), aabb, 1, backend)
        self.field.contraction, self.field.initial_density = "cube", FIRST_DENSITY
        self.field.calm_distance = CALM_DISTANCE
        self.before = OutsideSampler(BEFORE, near, False, backend)
        self.behind = OutsideSampler(BEHIND, near, True, backend)
        self.color = nn.Parameter(torch.zeros(3))

    def forward(self, colors: Tensor, opacities: Tensor, rays: Rays, jitter: Jitter = None) -> Tensor:
        """Colours [R, 3] of rays that have these colours [R, 3], times their opacities [R], from the box."""
        before = self.before.border(rays.detach(), self.field.aabb) > self.before.near
        seen, covered = self._see(self.before, rays, before, jitter)
        through = (1 - covered) * (1 - opacities)
        far, hidden = self._see(self.behind, rays, through.detach() > HIDDEN, jitter)
        far = far + (1 - hidden)[:, None] * self.color.sigmoid()
        return seen + (1 - covered)[:, None] * colors + through[:, None] * far

    def _see(self, sampler: OutsideSampler, rays: Rays, wanted: Tensor, jitter: Jitter) -> tuple[Tensor, Tensor]:
        """Colours [R, 3], times opacities, and opacities [R] on one side of the box, zero of rays that are not
        ``wanted`` [R]."""
        rows = wanted.nonzero().squeeze(1)
        colors, opacities = torch.zeros_like(rays.origins), torch.zeros_like(rays.origins[:, 0])
        if not len(rows):
            return colors, opacities
        rays = rays[rows]
        out = look(self.field, rays, sampler(rays.detach(), self.field, jitter), sampler.early_stop_eps)
        return colors.index_copy(0, rows, out.colors), opacities.index_copy(0, rows, out.opacities)
