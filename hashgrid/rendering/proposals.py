"""Samples where small density fields say that something is (Barron et al. 2022, section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hashgrid.fields.base import RadianceField
from hashgrid.geometry.cameras import Cameras
from hashgrid.geometry.rays import At, Rays
from hashgrid.rendering.samplers import (
    Found,
    Histogram,
    Jitter,
    Sampler,
    StratifiedSampler,
    distances,
    inverse_transform,
    look,
    uniform,
    weights_of,
)

PADDING = 0.01  # added to the weights that samples are drawn by: what was thought empty is looked at, too
ANNEAL_STEPS, ANNEAL_SLOPE = 1000, 10.0  # of the weights' exponent, from 0 to 1 (Barron et al. 2022, appendix C)

CORNERS = 1 << 12  # rays of corners at a time: what is known of their samples stays in the cache


class ProposalSampler(StratifiedSampler):
    """Asks the field's proposals one after the other, each at places the one before found, and the field at the last.

    Args:
        n_samples: per ray, of each proposal, and of the field, the last.
        near: no sample before this distance.
        backend: ``"native"`` or ``"reference"``.
        block: pixels along a side of the squares of a picture that share their places.
        n_colors: per ray, in pictures; 0 for one of each sample.
        interval: steps from one in which proposals learn to the next, once their weights count in full; fewer before.
    """

    def __init__(
        self,
        n_samples: Sequence[int],
        near: float = 0.0,
        backend: str = "native",
        block: int = 1,
        n_colors: int = 0,
        interval: int = 1,
    ) -> None:
        super().__init__(n_samples[0], near, backend)
        self.numbers = tuple(n_samples[1:])
        self.exponent = 1.0  # of the weights
        self.block, self.n_picture_colors = block, n_colors
        self.interval, self.learns = interval, True

    def before_step(self, field: RadianceField, step: int, seconds: float) -> None:
        progress = min(1.0, step / ANNEAL_STEPS)
        self.exponent = ANNEAL_SLOPE * progress / ((ANNEAL_SLOPE - 1) * progress + 1)
        # they follow a field that changes ever more slowly; a step in which they learn takes 1.6 times as long
        self.learns = step % max(1, math.ceil(self.interval * progress)) == 0

    def forward(self, rays: Rays, field: RadianceField, jitter: Jitter) -> Found:
        if self.learns:
            return self._found(rays, field, jitter)
        with torch.no_grad():
            return self._found(rays, field, jitter)._replace(proposals=())

    def _found(self, rays: Rays, field: RadianceField, jitter: Jitter) -> Found:
        edges, unit = self.places(rays, field, jitter)
        unit_o, unit_d = field.unit(rays.origins), field.unit_direction(rays.directions)
        histograms = []
        for level, n in enumerate(self.numbers):
            proposal: Any = field.proposals[level]
            samples = self.pack(distances(edges, unit))
            unit_places = field.inside(samples.positions(unit_o, unit_d))
            at = At(rays, unit_places, samples.ray_indices, samples.intervals())
            shape = len(rays), edges.shape[1] - 1
            weights = weights_of(proposal.density(at)[0].view(shape), (samples.t_ends - samples.t_starts).view(shape))
            histograms.append(Histogram(edges, weights))
            edges = draw_edges(edges, weights.detach() ** self.exponent, n, jitter, level, self.backend)
        return Found(self.pack(distances(edges, unit)), None, tuple(histograms), edges)

    def of_picture(self, field: RadianceField, cameras: Cameras, view: int) -> Callable[[int, int], Sampler]:
        """In contracted space, whose measure of length all rays share, proposals are asked at the corners of squares of
        pixels alone. A pixel's places are those that the four corners of its square would take together, so that what
        ends within the square is found from one of them."""
        unit, (width, height) = self.unit_of(field), cameras.size(view)
        if self.block == 1 or unit is None:
            return super().of_picture(field, cameras, view)
        places, n_colors = self._of_squares(field, cameras, view), self.n_picture_colors or None
        if n_colors is not None and self.numbers[-1] % n_colors:
            n_colors = None  # groups would not be of one size

        def part(begin: int, end: int) -> Sampler:
            pixel = torch.arange(begin, min(end, width * height), device=places.device)
            row, column = pixel // width // self.block, pixel % width // self.block
            return PlacedSampler(places[row, column], unit, n_colors, self.backend)

        return part

    def _of_squares(self, field: RadianceField, cameras: Cameras, view: int) -> Tensor:
        """Edges [rows, columns, n + 1] of the squares of a picture."""
        n, (width, height), device = self.numbers[-1], cameras.size(view), field.aabb.device
        x, y = (  # of corners; those of the last squares are at the border
            torch.arange(-(-size // self.block) + 1, device=device).mul(self.block).clamp(max=size - 1)
            for size in (width, height)
        )
        corners, found = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1), []
        for part in corners.split(CORNERS):
            rays = replace(cameras.rays(torch.full_like(part[:, 0], view), part[:, 1], part[:, 0]), camera=None)
            found.append(self(rays if field.capture is None else field.capture.rays(rays), field, None).edges)
        edges = torch.cat(found).view(len(y), len(x), n + 1)
        around = torch.cat((edges[:-1, :-1], edges[1:, :-1], edges[:-1, 1:], edges[1:, 1:]), dim=-1).sort(dim=-1).values
        steps = torch.linspace(0, 1, around.shape[-1], device=device).expand_as(around).flatten(0, 1)
        u = torch.linspace(0, 1, n + 1, device=device).expand(len(steps), n + 1)
        return inverse_transform(around.flatten(0, 1), steps, u.contiguous()).view(len(y) - 1, len(x) - 1, n + 1)


class PlacedSampler(StratifiedSampler):
    """Asks a field where it was told.

    Args:
        edges: [R, n + 1], of the rays to come, in the measure of length of ``unit``.
        unit: what :meth:`StratifiedSampler.places` says of it.
        n_colors: per ray.
        backend: ``"native"`` or ``"reference"``.
    """

    def __init__(
        self, edges: Tensor, unit: Tensor | None, n_colors: int | None = None, backend: str = "native"
    ) -> None:
        super().__init__(edges.shape[1] - 1, 0.0, backend)
        self.told, self.unit, self.n_colors = edges, unit, n_colors

    def forward(self, rays: Rays, field: RadianceField, jitter: Jitter) -> Found:
        return Found(self.pack(distances(self.told, self.unit)), edges=self.told)


class TwiceSampler(StratifiedSampler):
    """Asks the field at even places, and once more where it saw something, there alone (Barron et al. 2021, section
    3.2): what is seen first learns, too. Weights are blurred before, so that edges are not missed.

    Args:
        n_first, n_second: samples per ray.
        near: no sample before this distance.
        backend: ``"native"`` or ``"reference"``.
    """

    def __init__(self, n_first: int, n_second: int, near: float = 0.0, backend: str = "native") -> None:
        super().__init__(n_first, near, backend)
        self.n_second = n_second

    def forward(self, rays: Rays, field: RadianceField, jitter: Jitter) -> Found:
        edges, unit = self.places(rays, field, jitter)
        seen = look(field, rays, Found(self.pack(distances(edges, unit))), self.early_stop_eps)
        weights = blurred(seen.weights.detach().view(len(rays), self.n_samples))
        edges = draw_edges(edges, weights, self.n_second, jitter, 0, self.backend)
        return Found(self.pack(distances(edges, unit)), seen)


def blurred(weights: Tensor) -> Tensor:
    """The mean [R, n] of the larger of each weight and the one before, and the larger of it and the one behind."""
    around = torch.nn.functional.pad(weights, (1, 1))
    larger = torch.maximum(around[:, 1:], around[:, :-1])
    return (larger[:, 1:] + larger[:, :-1]) / 2


def draw_edges(edges: Tensor, weights: Tensor, n: int, jitter: Jitter, level: int, backend: str) -> Tensor:
    """Edges [R, n + 1] between which the weights [R, m] of intervals between edges [R, m + 1] are about equal. The
    outer ones stay, those between are moved together for each ray by up to half an interval."""
    mass = weights + PADDING
    steps = torch.nn.functional.pad((mass / mass.sum(1, keepdim=True)).cumsum(1), (1, 0))
    u = torch.arange(n + 1, device=edges.device, dtype=edges.dtype).repeat(len(edges), 1)
    if jitter is not None:
        u[:, 1:-1] += uniform((jitter[0] + 1 + level, *jitter[1:]), (len(edges), 1), edges, backend) - 0.5
    return inverse_transform(edges, steps, u / n)
