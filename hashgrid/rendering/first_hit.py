"""The first point of each ray on the surface of a distance field, or the one that is nearest to it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hashgrid.data.errors import SceneError
from hashgrid.data.scene import Scene, Views
from hashgrid.fields.base import RadianceField
from hashgrid.fields.idr import COVERED, Idr
from hashgrid.geometry.rays import Rays, RaySamples
from hashgrid.ops._backend import backend_ops
from hashgrid.rendering.samplers import Found, Jitter, StratifiedSampler

MAX_STEPS = 20  # of sphere tracing: what is left then are rays along the surface, at which many more lead past it
EPSILON = 3e-5  # sides of the box: distance that counts as none
LENGTH = 6e-4  # sides of the box: of a sample
REFINEMENTS = 8  # of a crossing between two places, every other one halves

Along = Callable[[Tensor, Tensor], Tensor]  # distances [M, n] of rays [M] int64 at t [M, n]


class FirstHitSampler(StratifiedSampler):
    """One short sample per ray through the box (Yariv et al. 2020, section 3): around the first place where the
    distance is zero, or else around that of the least distance. A ray whose pixel is not covered has the latter, too:
    silhouettes learn from it.

    Args:
        n_samples: parts of a ray at whose ends the field is asked where sphere tracing finds nothing.
        near: no sample before this distance.
        backend: ``"native"`` or ``"reference"``.
    """

    @torch.no_grad()
    def forward(self, rays: Rays, field: RadianceField, jitter: Jitter) -> Found:
        assert isinstance(field, Idr)
        module, side = backend_ops(self.backend), float(field.side)
        origins, directions = rays.origins, rays.directions

        def distances(x: Tensor) -> Tensor:
            return field.distances(field.unit(x))

        entry, leave = module.ray_aabb(origins, directions, field.aabb, self.near)
        t, hit, _ = module.sphere_trace(distances, origins, directions, entry, leave, MAX_STEPS, EPSILON * side)
        inside = entry.isfinite() & (leave > entry)
        covered = torch.ones_like(hit) if rays.coverage is None else rays.coverage >= COVERED
        rest = (inside & ~(hit & covered)).nonzero().squeeze(1)
        if len(rest):
            those = rays[rest]
            edges = self.edges(those, field.aabb, jitter)

            def along(index: Tensor, t: Tensor) -> Tensor:
                points = those.origins[index, None] + t[..., None] * those.directions[index, None]
                return distances(points.flatten(0, 1)).view(t.shape)

            t[rest] = nearest_or_first(along, edges, covered[rest])
        return Found(self.around(t, inside, LENGTH * side))

    def around(self, t: Tensor, inside: Tensor, length: float) -> RaySamples:
        """Samples of some length around ``t`` [R], of the rays ``inside`` [R] alone."""
        index, counts = inside.nonzero().squeeze(1), inside.long()
        middle = t[index]
        packed = torch.stack((counts.cumsum(0) - counts, counts), dim=1)
        return RaySamples(middle - length / 2, middle + length / 2, index, packed, self.backend)


def nearest_or_first(along: Along, t: Tensor, may_cross: Tensor) -> Tensor:
    """Where on each ray [M] the distance first changes its sign; where it does not, or ``may_cross`` [M] forbids it,
    where it is least.

    Args:
        along: distances along the rays.
        t: [M, n], rising, where they are asked.
        may_cross: [M] bool.
    """
    rays = torch.arange(len(t), device=t.device)
    f = along(rays, t)
    found = lowest(t, f)
    changes = (f[:, 1:] > 0) != (f[:, :-1] > 0)
    crossed = (changes.any(1) & may_cross).nonzero().squeeze(1)
    if len(crossed):
        before = changes[crossed].long().argmax(1, keepdim=True)
        ends = (x[crossed].gather(1, before + i) for x in (t, f) for i in (0, 1))
        found[crossed] = crossing(lambda t: along(crossed, t), *ends)[:, 0]
    return found


def crossing(distances: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, f_low: Tensor, f_high: Tensor) -> Tensor:
    """Where distances change their sign between ``low`` and ``high`` [K, 1], by secants and halves in turn."""
    for i in range(REFINEMENTS):
        middle = low + (high - low) * (f_low / (f_low - f_high) if i % 2 else 0.5)
        f = distances(middle)
        is_before = (f > 0) == (f_low > 0)
        low, f_low = torch.where(is_before, middle, low), torch.where(is_before, f, f_low)
        high, f_high = torch.where(is_before, high, middle), torch.where(is_before, f_high, f)
    return low + (high - low) * (f_low / (f_low - f_high))


def lowest(t: Tensor, f: Tensor) -> Tensor:
    """Where the parabola through the least of distances [M, n] at ``t`` and its neighbours is lowest [M]."""
    middle = f.argmin(1, keepdim=True)
    around = (middle + torch.arange(-1, 2, device=t.device)).clamp(0, t.shape[1] - 1)
    (t0, t1, t2), (f0, f1, f2) = (x.gather(1, around).unbind(1) for x in (t, f))
    before, after = (t2 - t1) * (f1 - f0), (t1 - t0) * (f2 - f1)  # slopes, times both lengths
    bend = after - before
    shift = -(before * (t2 - t1) + after * (t1 - t0)) / (2 * bend).clamp_min(torch.finfo(f.dtype).tiny)
    is_inside = (middle.squeeze(1) > 0) & (middle.squeeze(1) < t.shape[1] - 1) & (bend > 0)
    return torch.where(is_inside, t1 + shift, t1)


def make_first_hit(field: RadianceField, scene: Scene, backend: str = "native") -> FirstHitSampler:
    """The sampler of an :class:`Idr` in a normalised scene.

    Raises:
        ValueError: the field is another one, or space is contracted, in which rays are not straight.
        SceneError: no training image says what is not there.
    """
    if not isinstance(field, Idr):
        raise ValueError(f"`--sampler first_hit` is for the field idr, got {field.Config.name}; choose another one")
    if field.contraction != "none":
        raise ValueError(f"`contraction` must be none with `--sampler first_hit`, got {field.contraction!r}")
    if not has_silhouettes(scene.train):
        raise SceneError(
            f"{scene.path}: the field idr learns from silhouettes, and must have transparent pixels around what is"
            f" seen; all {len(scene.train)} training images are opaque. Store masks as their alpha, photograph"
            " before a plain backdrop, or choose `--field neus`"
        )
    return FirstHitSampler(field.n_coarse, scene.near, backend)


def has_silhouettes(views: Views) -> bool:
    """Whether a pixel of some image is transparent."""
    return views.has_alpha and any(bool((views.image(view)[..., 3] == 0).any()) for view in range(len(views)))
