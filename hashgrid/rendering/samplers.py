"""Where along its rays a field is asked. A sampler gives packed samples, also where all rays have equally many."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from hashgrid.fields.base import RadianceField
from hashgrid.geometry.cameras import Cameras
from hashgrid.geometry.rays import At, Rays, RaySamples
from hashgrid.nn import OccupancyGrid
from hashgrid.ops._backend import backend_ops, ngp_ops
from hashgrid.rendering.composite import composite
from hashgrid.train import ranks
from hashgrid.train.profile import OCCUPANCY
from hashgrid.util.config import Config

FAR = 1000.0  # in units of half the side of the innermost box: where rays through contracted space end
GOLDEN = (5**0.5 - 1) / 2
MOMENTS = 4  # times at which a grid of occupancy asks a cell, of what moves
REFERENCE_CELLS = 1 << 17  # of an occupancy grid, evaluated at a time


class Histogram(NamedTuple):
    """Weights of intervals along rays."""

    edges: Tensor  # [R, n + 1], in a sampler's own measure
    weights: Tensor  # [R, n]


@dataclass
class Rendered:
    """What rays see, all that compositing knows."""

    colors: Tensor  # [R, C]
    opacities: Tensor  # [R]
    depths: Tensor  # [R], absolute distances, 0 where nothing was hit
    weights: Tensor  # [S] of the samples
    distortion: Tensor  # [R] (Barron et al. 2022, eq. 15)
    samples: RaySamples  # that count
    n_evaluated: int  # samples whose density was asked for
    coarse: Rendered | None = None  # what a sampler saw on the way, to be trained, too; None for nothing
    proposals: tuple[Histogram, ...] = ()  # what was thought to be there on the way
    edges: Tensor | None = None  # [R, n + 1] of the samples, as those of the proposals
    logits: Tensor | None = None  # [R, K] of classes, where they are asked for

    @property
    def n_samples(self) -> int:
        return self.samples.n_samples

    @property
    def histogram(self) -> Histogram:
        """The weights of the samples in the measure of the proposals."""
        assert self.edges is not None
        return Histogram(self.edges, self.weights.view(len(self.edges), self.edges.shape[1] - 1))


def look(
    field: RadianceField,
    rays: Rays,
    found: Found,
    early_stop_eps: float,
    background: Tensor | None = None,
    n_colors: int | None = None,
    labelled: bool = False,
) -> Rendered:
    """What rays see of a field that is asked at all of their samples, as many on each; for ``n_colors`` colours of as
    many groups of neighbours on a ray, if it knows how. Of its classes, too, where it is ``labelled``."""
    samples, coarse, proposals, edges = found
    unit_o, unit_d = field.unit(rays.origins), field.unit_direction(rays.directions)
    unit = lambda: field.inside(samples.positions(unit_o, unit_d))  # noqa: E731
    at = At(rays, unit, samples.ray_indices, samples.intervals(), samples.parts)
    grouped = n_colors is not None and field.colors_follow_carry and samples.n_rays > 0
    radiance = in_groups(field, at, samples, n_colors) if grouped else field.radiance(at)
    *composited, logits = gathered(field, at, samples, radiance, early_stop_eps, background, labelled)
    n_evaluated = samples.n_samples + (coarse.n_evaluated if coarse is not None else 0)
    return Rendered(*composited, samples, n_evaluated, coarse, proposals, edges, logits)  # type: ignore[call-arg,misc,arg-type]


def gathered(
    field: RadianceField,
    at: At,
    samples: RaySamples,
    radiance: tuple[Tensor, Tensor],
    early_stop_eps: float,
    background: Tensor | None,
    labelled: bool,
) -> tuple[Any, ...]:
    """What :func:`composite` makes of densities [S] and colours [S, C] of a field, and, where it is ``labelled``,
    logits [R, K] of its classes, raw ones composited as colours are (Zhi et al. 2021, eq. 3), of nothing 0; else
    None."""
    sigmas, features = radiance
    n_colors = features.shape[1]
    if labelled:
        features = torch.cat((features, field.labeler(at, features)), dim=1)
        extra = features.shape[1] - n_colors
        background = None if background is None else torch.nn.functional.pad(background, (0, extra))
    features, *others = composite(*calmed(field, samples, sigmas, features), samples, early_stop_eps, background)
    if not labelled:
        return features, *others, None
    return features[:, :n_colors].contiguous(), *others, features[:, n_colors:]


class _Scaled(torch.autograd.Function):
    """Densities [S] and colours [S, C] as they are, and their gradients times ``scale`` [S]."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor, sigmas: Tensor, colors: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(scale)
        return sigmas.view_as(sigmas), colors.view_as(colors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (scale,) = ctx.saved_tensors
        return None, grads[0] * scale, grads[1] * scale[:, None]


def calmed(field: RadianceField, samples: RaySamples, sigmas: Tensor, colors: Tensor) -> tuple[Tensor, Tensor]:
    """Densities [S] and colours [S, C], of whose gradients the part ``(t / d)^2`` is left nearer to the camera than
    ``d = field.calm_distance`` (Philip and Deschaintre 2023, eq. 5). There one camera alone has as many samples as all
    others together have in a volume further away, and would rather paint its picture right before its lens."""
    if not field.calm_distance or not torch.is_grad_enabled():
        return sigmas, colors
    place = (samples.t_starts + samples.t_ends) / (2 * field.calm_distance)
    return _Scaled.apply(place.clamp(max=1).square(), sigmas, colors)  # type: ignore[no-any-return]


def in_groups(field: RadianceField, at: At, samples: RaySamples, n_colors: int | None) -> tuple[Tensor, Tensor]:
    """Densities [S], and colours [S, C] that are those of the mean, over a group of neighbours on a ray and by their
    weights, of what the density carried on: the larger network is asked ``n_colors`` times per ray."""
    sigmas, carry = field.density(at)
    n_rays = samples.n_rays
    weights = weights_of(sigmas.view(n_rays, -1), (samples.t_ends - samples.t_starts).view(n_rays, -1))
    n_groups = n_rays * (n_colors or 1)
    share = weights.view(n_groups, -1) + 1e-9  # of nothing the plain mean
    share = share / share.sum(1, keepdim=True)
    size = share.shape[1]
    mean = torch.bmm(share[:, None], carry.view(n_groups, size, -1)).squeeze(1)
    groups = At(at.rays, at.unit[size // 2 :: size], at.ray_indices[::size])
    return sigmas, field.color(groups, mean).repeat_interleave(size, dim=0)


def weights_of(sigmas: Tensor, lengths: Tensor) -> Tensor:
    """Of intervals [R, n]: what each absorbs of what gets there."""
    thickness = sigmas * lengths
    before = thickness.cumsum(1) - thickness
    return torch.exp(-before) * -torch.expm1(-thickness)


# (seed, step) of random places, and the number of the first ray where that is not 0; None for the middles
Jitter = tuple[int, ...] | None


class Found(NamedTuple):
    """What a sampler returns."""

    samples: RaySamples
    coarse: Rendered | None = None  # what was rendered to find them
    proposals: tuple[Histogram, ...] = ()  # what was thought to be there on the way
    edges: Tensor | None = None  # [R, n + 1] of the samples, as those of the proposals


class Sampler(nn.Module):
    """What every sampler can do."""

    prunes = False  # whether most samples are hidden, so that it pays to find out which before asking for colours
    early_stop_eps = 0.0  # transmittance below which nothing counts
    n_colors: int | None = None  # per ray, of groups of samples, as many on each ray; None for one of each sample

    def forward(self, rays: Rays, field: RadianceField, jitter: Jitter) -> Found:
        """Samples of the rays, and what was rendered to find them."""
        raise NotImplementedError

    def before_step(self, field: RadianceField, step: int, seconds: float) -> None:
        """What the sampler learns of the field between steps, ``seconds`` after the run began."""

    def of_picture(self, field: RadianceField, cameras: Cameras, view: int) -> Callable[[int, int], Sampler]:
        """The sampler of pixels ``begin`` to ``end`` of a picture, row by row: this one, unless pixels can share what
        was found for their neighbours."""
        return lambda begin, end: self


@dataclass(frozen=True)
class SamplerConfig(Config):
    """Where along its rays a field is asked, and how an occupancy grid follows it."""

    sampler: Literal[
        "auto", "occupancy", "stratified", "coarse_to_fine", "twice", "proposal", "error_bounded", "first_hit"
    ] = "auto"  # where a field is asked; its own, and in an unbounded scene on a CPU where proposals say
    # of the space around the innermost box, for fields that see to its end; auto: none in a bounded scene
    contraction: Literal["auto", "none", "cube", "ball"] = "auto"
    proposal_resolutions: tuple[int, ...] = (128, 256)  # of the density fields of a proposal sampler, finest levels
    proposal_samples: tuple[int, ...] = (48, 32)  # per ray, of each of them
    samples: int = 16  # per ray, of the field, behind proposals
    proposal_interval: int = 4  # steps from one in which proposals learn to the next; fewer in the first thousand
    # of contracted space, per unit, of which the innermost box has 3: what fog hides at first is never learned
    average_init_density: float = 0.25
    calm_distance: float = 1.0  # from a camera of an unbounded scene, up to which gradients are scaled down; 0 for none
    picture_block: int = 2  # pixels along a side that share, in pictures, where proposals say; 1 for each its own
    # per ray, in pictures, of groups of samples behind proposals; one of each where it is 0 or no divisor of `samples`
    picture_colors: int = 8
    steps_per_diagonal: int = 512  # step = sqrt(3) / this, in units of the innermost box; 1024 on a GPU
    early_stop_eps: float = 1e-4  # transmittance below which nothing counts
    occupancy_resolution: int = 128  # cells per axis
    occupancy_interval: int = 16  # steps between two updates
    occupancy_warmup_steps: int = 256  # the time share is not looked at before
    occupancy_uniform: float = 1 / 16  # share of all cells evaluated per update; 1/4 on a GPU
    occupancy_occupied: float = 1 / 16  # as many of the occupied ones
    occupancy_time_share: float = 0.08  # of a run, at most

    def check(self) -> None:
        super().check()
        for name, least in (("picture_block", 1), ("picture_colors", 0), ("proposal_interval", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}")


class OccupancySampler(Sampler):
    """Steps through the occupied cells of a grid (Müller et al. 2022, section 5.1), and keeps the grid up to date.

    Args:
        grid: where there is something.
        step_size: smallest step, in units of length.
        cone_angle: growth of the step with the distance; 0 for a bounded scene.
        near: no sample before this distance.
        config: how often the grid looks at the field, and when a ray ends.
        seed: of the cells that are looked at.

    Attributes:
        seconds: spent on updates, float64 [1].
    """

    prunes = True
    seconds: Tensor

    def __init__(
        self,
        grid: OccupancyGrid,
        step_size: float,
        cone_angle: float = 0.0,
        near: float = 0.0,
        config: SamplerConfig = SamplerConfig(),  # noqa: B008
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.grid, self.step_size, self.cone_angle, self.near = grid, step_size, cone_angle, near
        self.early_stop_eps, self.config, self.seed = config.early_stop_eps, config, seed
        self.register_buffer("seconds", torch.zeros(1, dtype=torch.float64))

    def march_arguments(self) -> dict[str, Any]:
        """How rays are cut into samples."""
        return {"step_size": self.step_size, "cone_angle": self.cone_angle, "near": self.near}

    def forward(self, rays: Rays, field: RadianceField, jitter: Jitter) -> Found:
        if jitter is None or not any(jitter[2:]):
            seed, step = jitter[:2] if jitter is not None else (None, 0)
            return Found(self.grid.march(rays.origins, rays.directions, **self.march_arguments(), seed=seed, step=step))
        how = {**self.march_arguments(), "near": self._begins(rays, jitter)}
        return Found(self.grid.march(rays.origins, rays.directions, **how))

    def _begins(self, rays: Rays, jitter: tuple[int, ...]) -> Tensor:
        """Where rays that are not the first of a batch begin [R], moved as the march would in the whole batch."""
        grid, shape = self.grid, (len(rays), 1)
        low, high = grid.aabb.split(3)
        middle, half = (low + high) / 2, (high - low) / 2 * 2.0 ** (grid.n_cascades - 1)
        box = grid.aabb if grid.n_cascades == 1 else torch.cat((middle - half, middle + half))
        entry, _ = backend_ops(grid.backend).ray_aabb(rays.origins, rays.directions, box)
        entry = entry.clamp(min=self.near)
        largest = (half * 2 / torch.tensor(grid.resolution, device=half.device)).norm().clamp(min=self.step_size)
        length = (entry * self.cone_angle).clamp(min=self.step_size).minimum(largest)
        return entry + uniform(jitter, shape, entry, grid.backend).squeeze(1) * length

    @torch.no_grad()
    def before_step(self, field: RadianceField, step: int, seconds: float) -> None:
        config = self.config
        if step % config.occupancy_interval != 0:
            return
        share = config.occupancy_time_share
        if step >= config.occupancy_warmup_steps and float(self.seconds) > share * max(seconds, 1e-9):
            return
        begin = time.perf_counter()
        with record_function(OCCUPANCY):
            cells = self.grid.choose_cells(step, self.seed, 0, config.occupancy_uniform, config.occupancy_occupied)
            self.grid.raise_cells(cells, self._thickness(field, cells, step))
        self.seconds += ranks.of_first(time.perf_counter() - begin)

    def _thickness(self, field: RadianceField, cells: Tensor, step: int) -> Tensor:
        """Optical thickness of a step in each of the cells [M], at a random place of it."""
        grid, fused = self.grid, field.kernels()
        ops = ngp_ops(grid.backend)
        # the reference, and fields of no kernel, keep all features of what they are asked
        parts = cells.split(REFERENCE_CELLS) if grid.backend == "reference" or fused is None else (cells,)
        values = []
        for part in parts:
            where = part, grid.aabb, grid.resolution, grid.n_cascades, self.seed, step
            if fused is not None:
                network = {"weights": fused.networks["density_weights"], "step_size": self.step_size}
                network["compute_dtype"] = fused.networks["compute_dtype"]
                values.append(ops.occupancy_values(*where, field.aabb, **fused.table, **network))
                continue
            points = ops.occupancy_points(*where)
            scale = self.step_size * 2.0 ** (part // (grid.n_cells // grid.n_cascades))
            unit, index = field.inside(field.unit(points)), torch.arange(len(points), device=points.device)
            update = step // self.config.occupancy_interval
            times = moments(part, update) if "time" in field.needs else [None]
            # densities do not depend on the direction
            found = [field.density(At(Rays(points, points, time=time), unit, index))[0].float() for time in times]
            values.append(functools.reduce(torch.maximum, found) * scale)
        return torch.cat(values)


def moments(cells: Tensor, update: int) -> list[Tensor]:
    """Times in 0..1 at which each of the cells [M] is asked in an update. One follows the other by the golden section,
    from update to update too: whatever is in a cell for a share s of all times is met by 2 / s of them, before it
    decays, where times at random may miss it for long."""
    places = 0.754877666 * (cells % (1 << 20)).double()  # neighbours at other times
    return [((places + GOLDEN * (MOMENTS * update + i)) % 1).float() for i in range(MOMENTS)]


class StratifiedSampler(Sampler):
    """``n_samples`` per ray, one in each of as many equal parts of its way through the field's box (Mildenhall et al.
    2020, eq. 2).

    Args:
        n_samples: per ray.
        near: no sample before this distance.
        backend: ``"native"`` or ``"reference"``.
    """

    def __init__(self, n_samples: int, near: float = 0.0, backend: str = "native") -> None:
        super().__init__()
        self.n_samples, self.near, self.backend = n_samples, near, backend

    def forward(self, rays: Rays, field: RadianceField, jitter: Jitter) -> Found:
        return Found(self.pack(distances(*self.places(rays, field, jitter))))

    def places(self, rays: Rays, field: RadianceField, jitter: Jitter) -> tuple[Tensor, Tensor | None]:
        """Edges [R, n + 1] of a field's own measure of length, and that measure's unit; without one they are distances.

        Where space is contracted, they are even in ``s``: half of it is the way to a distance of 1, half the inverse
        distance from there on, in units of half the side of the field's box, which is the innermost one.
        """
        unit = self.unit_of(field)
        if unit is None:
            return self.edges(rays, field.aabb, jitter), None
        part = self.parts(len(rays), unit, jitter)
        low, high = spacing(self.near / unit), spacing(torch.full_like(unit, FAR))
        return low + (high - low) * part / self.n_samples, unit

    def unit_of(self, field: RadianceField) -> Tensor | None:
        """Of a field's own measure of length, in distances; None where it has none."""
        return None if field.contraction == "none" else (field.aabb[3:] - field.aabb[:3]).amax() / 2

    def edges(self, rays: Rays, aabb: Tensor, jitter: Jitter) -> Tensor:
        """Ends of the intervals [R, n + 1], in the middle of which a field of the box ``aabb`` [6] is asked."""
        entry, leave = backend_ops(self.backend).ray_aabb(rays.origins, rays.directions, aabb)
        entry = entry.clamp(min=self.near)
        leave = torch.maximum(leave, entry)  # rays that miss the box: intervals of length zero
        missed = ~(leave.isfinite() & entry.isfinite())
        entry, leave = entry.masked_fill(missed, 0.0), leave.masked_fill(missed, 0.0)
        n = self.n_samples
        return entry[:, None] + (leave - entry)[:, None] * (self.parts(len(rays), entry, jitter) / n)

    def parts(self, n_rays: int, like: Tensor, jitter: Jitter) -> Tensor:
        """0 to ``n_samples`` on each ray [R, n + 1], all but the ends moved by half at most."""
        n = self.n_samples
        part = torch.arange(n + 1, device=like.device, dtype=like.dtype).repeat(n_rays, 1)
        if jitter is not None:
            part[:, 1:-1] += uniform(jitter, (n_rays, n - 1), like, self.backend) - 0.5
        return part

    def pack(self, edges: Tensor) -> RaySamples:
        """Samples of edges [R, n + 1]."""
        n_rays, n = edges.shape[0], edges.shape[1] - 1
        ray = torch.arange(n_rays, device=edges.device)
        packed = torch.stack((ray * n, torch.full_like(ray, n)), dim=-1)
        starts, ends = edges[:, :-1].reshape(-1), edges[:, 1:].reshape(-1)
        return RaySamples(starts.contiguous(), ends.contiguous(), ray.repeat_interleave(n), packed, self.backend)


class CoarseToFineSampler(StratifiedSampler):
    """Asks a coarse field at stratified places, and the fine one there and where the coarse one saw something
    (Mildenhall et al. 2020, section 5.2).

    Args:
        n_coarse: samples per ray of the coarse field.
        n_fine: further samples per ray of the fine one.
        near: no sample before this distance.
        backend: ``"native"`` or ``"reference"``.
    """

    def __init__(self, n_coarse: int, n_fine: int, near: float = 0.0, backend: str = "native") -> None:
        super().__init__(n_coarse, near, backend)
        self.n_fine = n_fine

    def forward(self, rays: Rays, field: RadianceField, jitter: Jitter) -> Found:
        edges, unit = self.places(rays, field, jitter)
        seen = look(field.coarse or field, rays, Found(self.pack(distances(edges, unit))), self.early_stop_eps)
        fine = self.resample(edges, seen.weights.detach().view(len(rays), self.n_samples), jitter)
        samples = self.pack(distances(torch.cat((edges, fine), dim=1).sort(dim=1).values, unit))
        return Found(samples, seen if field.coarse else None)

    def resample(self, edges: Tensor, weights: Tensor, jitter: Jitter) -> Tensor:
        """Places [R, n_fine] distributed as the weights [R, n] of the intervals between edges [R, n + 1]."""
        return draw(edges, weights + 1e-5, self.shares(edges, jitter))

    def shares(self, edges: Tensor, jitter: Jitter) -> Tensor:
        """Numbers in 0..1 [R, n_fine] for rays of edges [R, n + 1], one in each of as many equal parts."""
        shape = len(edges), self.n_fine
        u = torch.arange(self.n_fine, device=edges.device, dtype=edges.dtype).expand(shape)
        u = u + (0.5 if jitter is None else uniform((jitter[0] + 1, *jitter[1:]), shape, edges, self.backend))
        return (u / self.n_fine).contiguous()


def spacing(t: Tensor) -> Tensor:
    """In [0, 1): half of distances up to 1, and half of the inverse beyond, from 1 down."""
    return torch.where(t < 1, t / 2, 1 - 1 / (2 * t.clamp_min(1)))


def unspaced(s: Tensor) -> Tensor:
    """Distances that :func:`spacing` says ``s`` of."""
    return torch.where(s < 0.5, 2 * s, 1 / (2 - 2 * s.clamp_min(0.5)))


def distances(edges: Tensor, unit: Tensor | None) -> Tensor:
    """Distances from the camera of what :meth:`StratifiedSampler.places` gives."""
    return edges if unit is None else unspaced(edges) * unit


def inverse_transform(edges: Tensor, steps: Tensor, u: Tensor) -> Tensor:
    """Places [R, k] at which the share ``steps`` [R, m + 1] of what lies before edges [R, m + 1], from 0 to 1, is ``u``
    [R, k]."""
    above = torch.searchsorted(steps.contiguous(), u, right=True).clamp(1, steps.shape[1] - 1)
    low, high = steps.gather(1, above - 1), steps.gather(1, above)
    within = ((u - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return torch.lerp(edges.gather(1, above - 1), edges.gather(1, above), within)


def draw(edges: Tensor, mass: Tensor, shares: Tensor) -> Tensor:
    """Places [R, k] before which the ``shares`` [R, k], from 0 to 1, of the mass [R, m] of the intervals between edges
    [R, m + 1] lie."""
    steps = torch.cumsum(mass / mass.sum(dim=1, keepdim=True), dim=1)
    return inverse_transform(edges, torch.nn.functional.pad(steps, (1, 0)), shares)


def uniform(jitter: tuple[int, ...], shape: tuple[int, int], like: Tensor, backend: str) -> Tensor:
    """Numbers in [0, 1) that are a function of (seed, step) and their place."""
    first = shape[1] * sum(jitter[2:])
    counter = torch.arange(first, first + math.prod(shape), device=like.device)
    return backend_ops(backend).counter_uniform(*jitter[:2], counter).to(like.dtype).view(shape)


def rays_for(target: int, n_rays: int, n_samples: int, most: int) -> int:
    """How many rays to take so that ``target`` samples count, after ``n_rays`` had ``n_samples``: half as many to twice
    as many, in steps of 64, at most ``most``."""
    wanted = n_rays * target / max(n_samples, 1)
    return max(64, int(min(max(wanted, n_rays / 2), n_rays * 2, most)) // 64 * 64)
