"""Samples where small density fields say that something is (Barron et al. 2022, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hashgrid.fields.base import RadianceField
from hashgrid.geometry.rays import At, Rays
from hashgrid.rendering.samplers import (
    Found,
    Histogram,
    Jitter,
    StratifiedSampler,
    distances,
    inverse_transform,
    look,
    uniform,
)

PADDING = 0.01  # added to the weights that samples are drawn by: what was thought empty is looked at, too
ANNEAL_STEPS, ANNEAL_SLOPE = 1000, 10.0  # of the weights' exponent, from 0 to 1 (Barron et al. 2022, appendix C)


class ProposalSampler(StratifiedSampler):
    """Asks the field's proposals one after the other, each at places the one before found, and the field at the last.

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
        edges, unit = self.places(rays, field, jitter)
        unit_o, unit_d = field.unit(rays.origins), field.unit_direction(rays.directions)
        histograms = []
        for level, n in enumerate(self.numbers):
            proposal: Any = field.proposals[level]
            samples = self.pack(distances(edges, unit))
            unit_places = field.inside(samples.positions(unit_o, unit_d))
            at = At(rays, unit_places, samples.ray_indices, samples.intervals())
            weights = _weights(
                proposal.density(at)[0].view(len(rays), edges.shape[1] - 1), samples.t_ends - samples.t_starts
            )
            histograms.append(Histogram(edges, weights))
            edges = draw_edges(edges, weights.detach() ** self.exponent, n, jitter, level, self.backend)
        return Found(self.pack(distances(edges, unit)), None, tuple(histograms), edges)


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
