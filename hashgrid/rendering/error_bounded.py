"""Samples of a signed distance field seen as a volume, whose opacity is known up to an error (Yariv et al. 2021)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hashgrid.fields.base import RadianceField
from hashgrid.fields.volsdf import Volsdf
from hashgrid.geometry.opacity import laplace_density
from hashgrid.geometry.rays import Rays
from hashgrid.rendering.samplers import CoarseToFineSampler, Found, Jitter, distances, draw, weights_of

LEAST = 1e-12  # of what is divided by: intervals of rays that miss the box have no length
PADDING = 1e-5  # added to the mass of an interval, so that no ray is without any


class Intervals(NamedTuple):
    """What is known between points along rays."""

    distance: Tensor  # [R, n], at the points
    length: Tensor  # [R, n - 1]
    nearest: Tensor  # [R, n - 1], what distances within are at least


class ErrorBoundedSampler(CoarseToFineSampler):
    """Adds points to each ray until the opacity that they give of a :class:`Volsdf` is wrong by ``eps`` at most, and
    asks the field where that opacity grows (Yariv et al. 2021, algorithm 1). Rays that need more than ``n_rounds`` are
    drawn by the smallest scale for which the bound holds. The bound is one for true distances, of slope 1 or less.

    Args:
        n_points: per ray, of the first look, and that each round adds; their distances alone are asked for.
        n_fine: samples per ray that are drawn by the opacity.
        n_extra: further ones, from one end of the ray to the other, the longer the further away the surface is.
        eps: largest error of opacities.
        n_rounds: in which points are added, at most.
        n_bisections: steps of the search for the smallest scale, in each round.
        near: no sample before this distance.
        backend: ``"native"`` or ``"reference"``.
    """

    def __init__(
        self,
        n_points: int = 128,
        n_fine: int = 64,
        n_extra: int = 32,
        eps: float = 0.1,
        n_rounds: int = 5,
        n_bisections: int = 10,
        near: float = 0.0,
        backend: str = "native",
    ) -> None:
        super().__init__(n_points - 1, n_fine, near, backend)
        self.n_extra, self.eps, self.n_rounds, self.n_bisections = n_extra, eps, n_rounds, n_bisections

    @torch.no_grad()
    def forward(self, rays: Rays, field: RadianceField, jitter: Jitter) -> Found:
        field = laplace_field(field)
        edges, unit = self.places(rays, field, jitter)
        shares, least = self.shares(edges, jitter), 1 / field.sharpness
        found = edges.new_empty(len(rays), self.n_fine + self.n_extra + 1)
        middles = (torch.arange(self.n_samples + 1, device=edges.device) + 0.5).to(edges.dtype) / (self.n_samples + 1)
        index = torch.arange(len(rays), device=edges.device)  # of rays that are not done
        points = ask(field, rays, edges, unit)
        scale = torch.maximum(sufficient_scale(chords(points), self.eps), least)
        for n_left in range(self.n_rounds, -1, -1):
            intervals = of_points(points)
            done = opacity_bound(*intervals, least).amax(1) <= self.eps
            found[index[done]] = self.drawn(points[done], least, shares[index[done]])
            if bool(done.all()):
                break
            index, points, scale = index[~done], points[~done], scale[~done]
            intervals = Intervals(*(x[~done] for x in intervals))
            scale = self.reduced(intervals, least, scale)
            if n_left == 0:
                found[index] = self.drawn(points, scale, shares[index])
                break
            # at half of the scale reached, and by what each interval adds to the error: by the bound itself at the
            # scale reached, as in the paper, 8 of 90 rays at two balls of scale .0005 were left, instead of none
            before, part = errors(*intervals, torch.maximum(scale / 2, least))
            added = draw(points[..., 0], part * torch.exp(-before) + PADDING, middles.repeat(len(index), 1))
            points = torch.cat((points, ask(field, rays[index], added, unit)), dim=1)
            points = points.take_along_dim(points[..., :1].argsort(dim=1), dim=1)
        return Found(self.pack(distances(found, unit)))

    def reduced(self, intervals: Intervals, least: Tensor, scale: Tensor) -> Tensor:
        """The smallest scales [R, 1] from ``least`` [1] to ``scale`` [R, 1] for which the bound is at most ``eps``, as
        far as bisections find them."""
        low = least.expand_as(scale)
        for _ in range(self.n_bisections):
            middle = (low + scale) / 2
            fine = opacity_bound(*intervals, middle).amax(1, keepdim=True) <= self.eps
            low, scale = torch.where(fine, low, middle), torch.where(fine, middle, scale)
        return scale

    def drawn(self, points: Tensor, scale: Tensor, shares: Tensor) -> Tensor:
        """Edges [R, n_fine + n_extra + 1] of samples: places of ``shares`` [R, n_fine] of the opacity that
        points [R, n, 5] give at scales [R, 1], and from the first point to the last such that each step is about as
        long as the distance lets it."""
        edges, distance, length = points[..., 0], points[:, :-1, 1], chords(points)
        mass = weights_of(laplace_density(distance, scale), length) + PADDING
        # a field takes the distance to be linear within a sample: one much longer than its distance sees a surface that
        # is not there, up to .88 of opacity where a ray passes by a ball and extra samples were evenly from all points
        steps = length / torch.maximum(distance.abs(), scale) + PADDING
        even = torch.linspace(0, 1, self.n_extra + 1, device=edges.device, dtype=edges.dtype).repeat(len(edges), 1)
        return torch.cat((draw(edges, mass, shares), draw(edges, steps, even)), dim=1).sort(dim=1).values


def laplace_field(field: RadianceField) -> Volsdf:
    """The field, if its density is the Laplace distribution of a distance.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(field, Volsdf):
        name = field.Config.name if hasattr(type(field), "Config") else type(field).__name__
        raise ValueError(
            f"`sampler` error_bounded must be of a field of Laplace density, volsdf, got {name!r}; "
            "choose `--field volsdf` or another `--sampler`"
        )
    return field


def ask(field: Volsdf, rays: Rays, edges: Tensor, unit: Tensor | None) -> Tensor:
    """Points [R, n, 5]: edges [R, n], distances there, and places in the field's own coordinates, in which space may be
    contracted."""
    t = distances(edges, unit)[..., None]
    places = field.inside(field.unit(rays.origins[:, None] + t * rays.directions[:, None]))
    distance = field.distances(places.flatten(0, 1)).view(*edges.shape, 1)
    return torch.cat((edges[..., None], distance, places / field.inverse_extent), dim=-1)


def chords(points: Tensor) -> Tensor:
    """Lengths [R, n - 1] of the intervals between points [R, n, 5]."""
    return (points[:, 1:, 2:] - points[:, :-1, 2:]).norm(dim=-1)


def of_points(points: Tensor) -> Intervals:
    """The intervals between points [R, n, 5]."""
    length = chords(points)
    return Intervals(points[..., 1], length, nearest_distances(points[..., 1], length))


def sufficient_scale(length: Tensor, eps: float) -> Tensor:
    """A scale [R, 1] for which opacities of intervals [R, n] are wrong by ``eps`` at most whatever the distances
    are (section 3.4)."""
    return (length.square().sum(1, keepdim=True) / (4 * math.log1p(eps))).sqrt()


def nearest_distances(distance: Tensor, length: Tensor) -> Tensor:
    """What distances [R, n - 1] within intervals [R, n - 1] are at least, from those at points [R, n]: the surface is
    outside of the balls around both ends (section 3.4)."""
    before, after = distance[:, :-1].abs(), distance[:, 1:].abs()
    around, difference = before + after, before - after
    # the height of the triangle of both distances over the interval, by Heron's formula; none where balls do not meet
    product = (around + length) * (around - length) * (length + difference) * (length - difference)
    height = product.clamp_min(0).sqrt() / (2 * length.clamp_min(LEAST))
    beside = (around * difference).abs() >= length.square()  # the foot of the height is not within the interval
    least = torch.where(beside, torch.minimum(before, after), height)
    return torch.where(distance[:, :-1] * distance[:, 1:] > 0, least, 0.0)


def errors(distance: Tensor, length: Tensor, nearest: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The optical thickness before intervals [R, n - 1], and how wrong that of each is at most [R, n - 1]; arguments
    are those of :func:`opacity_bound`."""
    thickness = laplace_density(distance[:, :-1], scale) * length
    return thickness.cumsum(1) - thickness, (length / (2 * scale)).square() * torch.exp(-nearest / scale)


def opacity_bound(distance: Tensor, length: Tensor, nearest: Tensor, scale: Tensor) -> Tensor:
    """How wrong opacities within intervals [R, n - 1] are at most, where densities are taken as they are where each
    begins (Yariv et al. 2021, section 3.4).

    Args:
        distance: [R, n], at the ends of the intervals.
        length: [R, n - 1].
        nearest: [R, n - 1], at least as far away is the surface everywhere within.
        scale: ``beta`` [R, 1].
    """
    before, part = errors(distance, length, nearest, scale)
    error = part.cumsum(1)
    # exp(-before) (exp(error) - 1) in one exponent: each alone overflows
    bound = torch.exp((error - before).clamp(max=1)) - torch.exp(-before)
    # what gets through grows nowhere: a ray that has become opaque stays so, whatever is behind
    through = (error - part - before).cummin(1).values
    return torch.minimum(bound, torch.exp(through)).clamp_min(0)
