"""What signals say by differences of neighbouring samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hashgrid.data.signals import Signal

Field = Callable[[Tensor], Tensor]


def stencil(field: Field, signal: Signal, index: Tensor, steps: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """What a field says at samples [N] and at those so many ``steps`` along each coordinate.

    Returns:
        Flat indices [N, 1 + K], of the samples first, then for each step along all D coordinates; values [N, 1 + K, C];
        whether there are such neighbours [N, K].
    """
    found = [signal.neighbours(index, step) for step in steps]
    sites = torch.cat([index[:, None], *(sites for sites, _ in found)], dim=1)
    values = field(signal.places(sites.view(-1))).view(*sites.shape, -1)
    return sites, values, torch.cat([exists for _, exists in found], dim=1)


def difference_error(
    field: Field, signal: Signal, source: Signal, index: Tensor, inside: Tensor, laplacian: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean squared error of forward differences of a field, or of its five-point Laplacians, beside those of
    ``source``, of samples [N] that are ``inside`` [N] bool; and the squared error of its values beside those of
    ``signal`` [N]."""
    sites, values, exists = stencil(field, signal, index, (1, -1) if laplacian else (1,))
    errors = values - source.at(sites.view(-1)).view_as(values)
    differences = errors[:, 1:] - errors[:, :1]  # their errors are differences of errors
    if laplacian:
        differences, exists = differences.sum(dim=1, keepdim=True), exists.all(dim=1, keepdim=True)
    exists = exists & inside[:, None]
    mean = (differences.square().mean(-1) * exists).sum() / exists.sum().clamp_min(1)
    return mean, (values[:, 0] - signal.at(index)).square().mean(-1)


def bending(field: Field, signal: Signal, index: Tensor) -> Tensor:
    """Mean length of the second differences of a field along each coordinate at samples [N]. Not of their squares: an
    edge costs as much as a slope of the same height (total generalised variation, Bredies et al. 2010, of second
    order)."""
    _, values, exists = stencil(field, signal, index, (1, -1))
    ahead, behind = values[:, 1:].chunk(2, dim=1)
    both = torch.logical_and(*exists.chunk(2, dim=1))
    bent = (ahead + behind - 2 * values[:, :1]) * both[..., None]
    return (bent.square().sum((1, 2)) + 1e-6).sqrt().mean()


@torch.no_grad()
def levelled(field: Field, signal: Signal, index: Tensor) -> Field:
    """``a f + b`` of each channel that is nearest to the signal at samples [N], for a field of differences: they say
    nothing of the level, and Laplacians nothing of what is harmonic."""
    output, target = field(signal.places(index)), signal.at(index)
    centred = output - output.mean(0)
    slope = (centred * target).sum(0) / centred.square().sum(0).clamp_min(1e-12)
    offset = target.mean(0) - slope * output.mean(0)
    return lambda x: slope * field(x) + offset
