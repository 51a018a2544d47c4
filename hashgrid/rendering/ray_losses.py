"""Losses of what is seen along rays. Histograms are weights [R, n] of the intervals between edges [R, n + 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid.rendering.samplers import Rendered


def distortion(edges: Tensor, weights: Tensor) -> Tensor:
    """How far the weights of a ray lie from each other, and how wide their intervals are [R] (Barron et al. 2022,
    eq. 15): ``sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 d_i``, in time linear in n.

    Args:
        edges: [R, n + 1], rising.
        weights: [R, n].

    Example:
        >>> import torch
        >>> distortion(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.5, 0.5]]))
        tensor([0.6667])
    """
    middles, widths = (edges[:, 1:] + edges[:, :-1]) / 2, edges.diff(dim=1)
    weighted = weights * middles
    # of the intervals before each: their weight, and their weight times place
    before, placed = weights.cumsum(1) - weights, weighted.cumsum(1) - weighted
    between = 2 * (weights * (middles * before - placed)).sum(1)
    return between + (weights.square() * widths).sum(1) / 3


def outer_bound(edges: Tensor, other_edges: Tensor, other_weights: Tensor) -> Tensor:
    """The largest weight [R, n] that the intervals between edges [R, n + 1] can have where a histogram of other
    intervals is right: that of all which overlap (Barron et al. 2022, eq. 12)."""
    total = torch.nn.functional.pad(other_weights.cumsum(1), (1, 0))  # [R, m + 1]
    other_edges, last = other_edges.contiguous(), total.shape[1] - 1
    first = torch.searchsorted(other_edges, edges[:, :-1].contiguous(), right=True) - 1
    behind = torch.searchsorted(other_edges, edges[:, 1:].contiguous(), right=False)
    return total.gather(1, behind.clamp(0, last)) - total.gather(1, first.clamp(0, last))


def interlevel(edges: Tensor, weights: Tensor, proposal_edges: Tensor, proposal_weights: Tensor) -> Tensor:
    """What a proposal misses [R]: ``sum_i max(0, w_i - bound_i)^2 / w_i`` (Barron et al. 2022, eq. 13). Its gradient
    reaches the proposal's weights alone."""
    edges, weights = edges.detach(), weights.detach()
    missed = (weights - outer_bound(edges, proposal_edges.detach(), proposal_weights)).clamp_min(0)
    return (missed.square() / (weights + 1e-7)).sum(1)


def of_histograms(out: Rendered, distortion_weight: float) -> Tensor | float:
    """What is added to a photometric loss: the distortion of weights, and what proposals have missed. Where there are
    proposals both are in their measure of length."""
    if out.edges is None:
        return distortion_weight * out.distortion.mean() if distortion_weight else 0.0
    seen = out.histogram
    missed = sum((interlevel(*seen, *proposal).mean() for proposal in out.proposals), out.colors.new_zeros(()))
    return missed + distortion_weight * distortion(*seen).mean() if distortion_weight else missed


def opacity_entropy(opacities: Tensor) -> Tensor:
    """``-o log o - (1 - o) log (1 - o)`` of opacities [R]: rays should be seen through, or not."""
    o = opacities.clamp(1e-6, 1 - 1e-6)
    return -(o * o.log() + (1 - o) * torch.log1p(-o))


def orientation(weights: Tensor, normals: Tensor, directions: Tensor) -> Tensor:
    """What of a surface looks away from who sees it [S]: ``w max(0, n . d)^2`` (Verbin et al. 2022, eq. 11).

    Args:
        weights: [S], of samples.
        normals: [S, 3], unit vectors out of the surface.
        directions: [S, 3], of their rays, away from the camera.
    """
    return weights * (normals * directions).sum(-1).clamp_min(0).square()


def of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of composited logits [R, K] and labels [R] int64 of 0..K-1 over the rays that have one, of the
    others -1; zero where none has."""
    loss = torch.nn.functional.cross_entropy(logits.float(), labels, ignore_index=-1, reduction="sum")
    return loss / (labels >= 0).sum().clamp_min(1)
