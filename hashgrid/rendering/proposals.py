"""Samples where small density fields say that something is (Barron et al. 2022, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hashgrid.fields.base import RadianceField
from hashgrid.geometry.rays import At, Rays
from hashgrid.rendering.samplers import Found, Histogram, Jitter, StratifiedSampler, look, uniform

FAR = 1000.0  # in units of half the side of the innermost box: where rays through contracted space end
PADDING = 0.01  # added to the weights that samples are drawn by: what was thought empty is looked at, too
ANNEAL_STEPS, ANNEAL_SLOPE = 1000, 10.0  # of the weights' exponent, from 0 to 1 (Barron et al. 2022, appendix C)


class ProposalSampler(StratifiedSampler):
    """Asks the field's proposals one after the other, each at places the one before found, and the field at the last.

    Where space is contracted, places are even in ``s``: half of it is the way to a distance of 1, half the inverse
    distance from there on, in units of half the side of the field's box. Else they are even in its box.

    Args:
        n_samples: per ray, of each proposal, and of the field, the last.
        near: no sample before this distance.
        backend: ``"native"`` or ``"reference"``.
    """

    def __init__(self, n_samples: Sequence[int], near: float = 0.0, backend: str = "native") -> None:
        super().__init__(n_samples[0], near, backend)
        self.numbers = tuple(n_samples[1:])
        self.exponent = 1.0  # of the weights

    def before_step(self, field: RadianceField, step: int, seconds: float) -> None:
        progress = min(1.0, step / ANNEAL_STEPS)
        self.exponent = ANNEAL_SLOPE * progress / ((ANNEAL_SLOPE - 1) * progress + 1)

    def forward(self, rays: Rays, field: RadianceField, jitter: Jitter) -> Found:
        edges, unit = self.first_edges(rays, field, jitter)
        unit_o, unit_d = field.unit(rays.origins), field.unit_direction(rays.directions)
        histograms = []
        for level, n in enumerate(self.numbers):
            proposal: Any = field.proposals[level]
            samples = self.pack(self.distances(edges, unit))
            unit_places = field.inside(samples.positions(unit_o, unit_d))
            at = At(rays, unit_places, samples.ray_indices, samples.intervals())
            weights = _weights(
                proposal.density(at)[0].view(len(rays), edges.shape[1] - 1), samples.t_ends - samples.t_starts
            )
            histograms.append(Histogram(edges, weights))
            edges = draw_edges(edges, weights.detach() ** self.exponent, n, jitter, level, self.backend)
        return Found(self.pack(self.distances(edges, unit)), None, tuple(histograms), edges)

    def first_edges(self, rays: Rays, field: RadianceField, jitter: Jitter) -> tuple[Tensor, Tensor | None]:
        """Ends of the first intervals [R, n + 1], in [0, 1] and the unit of length where space is contracted."""
        if field.contraction == "none":
            return self.edges(rays, field.aabb, jitter), None
        unit = (field.aabb[3:] - field.aabb[:3]).amax() / 2
        part = torch.arange(self.n_samples + 1, device=unit.device, dtype=unit.dtype)
        part = part.repeat(len(rays), 1)
        if jitter is not None:
            part[:, 1:-1] += uniform(jitter, (len(rays), self.n_samples - 1), unit, self.backend) - 0.5
        low, high = spacing(self.near / unit), spacing(torch.full_like(unit, FAR))
        return low + (high - low) * part / self.n_samples, unit

    def distances(self, edges: Tensor, unit: Tensor | None) -> Tensor:
        """Distances from the camera of edges [R, n + 1]."""
        return edges if unit is None else unspaced(edges) * unit


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
        edges = self.edges(rays, field.aabb, jitter)
        seen = look(field, rays, Found(self.pack(edges)), self.early_stop_eps)
        edges = draw_edges(
            edges,
            blurred(seen.weights.detach().view(len(rays), self.n_samples)),
            self.n_second,
            jitter,
            0,
            self.backend,
        )
        return Found(self.pack(edges), seen)


def blurred(weights: Tensor) -> Tensor:
    """The mean [R, n] of the larger of each weight and the one before, and the larger of it and the one behind."""
    around = torch.nn.functional.pad(weights, (1, 1))
    larger = torch.maximum(around[:, 1:], around[:, :-1])
    return (larger[:, 1:] + larger[:, :-1]) / 2


def spacing(t: Tensor) -> Tensor:
    """In [0, 1): half of distances up to 1, and half of the inverse beyond, from 1 down."""
    return torch.where(t < 1, t / 2, 1 - 1 / (2 * t.clamp_min(1)))


def unspaced(s: Tensor) -> Tensor:
    """Distances that :func:`spacing` says ``s`` of."""
    return torch.where(s < 0.5, 2 * s, 1 / (2 - 2 * s.clamp_min(0.5)))


def _weights(sigmas: Tensor, lengths: Tensor) -> Tensor:
    """Of intervals [R, n]: what each absorbs of what gets there."""
    thickness = sigmas * lengths.view_as(sigmas)
    before = thickness.cumsum(1) - thickness
    return torch.exp(-before) * -torch.expm1(-thickness)


def draw_edges(edges: Tensor, weights: Tensor, n: int, jitter: Jitter, level: int, backend: str) -> Tensor:
    """Edges [R, n + 1] between which the weights [R, m] of intervals between edges [R, m + 1] are about equal. The
    outer ones stay, those between are moved together for each ray by up to half an interval."""
    mass = weights + PADDING
    steps = torch.nn.functional.pad((mass / mass.sum(1, keepdim=True)).cumsum(1), (1, 0))
    u = torch.arange(n + 1, device=edges.device, dtype=edges.dtype).repeat(len(edges), 1)
    if jitter is not None:
        u[:, 1:-1] += uniform((jitter[0] + 1 + level, jitter[1]), (len(edges), 1), edges, backend) - 0.5
    return inverse_transform(edges, steps, u / n)


def inverse_transform(edges: Tensor, steps: Tensor, u: Tensor) -> Tensor:
    """Places [R, k] at which the share ``steps`` [R, m + 1] of what lies before edges [R, m + 1], from 0 to 1, is ``u``
    [R, k]."""
    above = torch.searchsorted(steps.contiguous(), u, right=True).clamp(1, steps.shape[1] - 1)
    low, high = steps.gather(1, above - 1), steps.gather(1, above)
    within = ((u - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return torch.lerp(edges.gather(1, above - 1), edges.gather(1, above), within)
