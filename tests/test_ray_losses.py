"""Losses of histograms along rays, contraction of space, and places drawn by weights: against definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hashgrid.geometry.contraction import contract, contract_gaussians, expand
from hashgrid.rendering.proposals import draw_edges
from hashgrid.rendering.ray_losses import distortion, interlevel, opacity_entropy, orientation
from hashgrid.rendering.samplers import inverse_transform, spacing, unspaced


def histograms(n_rays: int = 7, n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    edges = torch.rand(n_rays, n + 1, generator=generator, dtype=torch.float64).sort(1).values
    return edges, torch.rand(n_rays, n, generator=generator, dtype=torch.float64)


def test_distortion_is_the_sum_over_pairs() -> None:
    edges, weights = histograms()
    weights.requires_grad_()
    middles, widths = (edges[:, 1:] + edges[:, :-1]) / 2, edges.diff(dim=1)
    pairs = weights[:, :, None] * weights[:, None] * (middles[:, :, None] - middles[:, None]).abs()
    expected = pairs.sum((1, 2)) + (weights.square() * widths).sum(1) / 3
    ours = distortion(edges, weights)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    grads = [torch.autograd.grad(x.sum(), weights, retain_graph=True)[0] for x in (ours, expected)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


def test_a_coarser_copy_misses_nothing_and_an_emptied_bin_is_missed() -> None:
    edges, weights = histograms()
    coarse_edges, coarse = edges[:, ::4], weights.view(len(edges), -1, 4).sum(2)
    assert float(interlevel(edges, weights, coarse_edges, coarse).abs().max()) == 0
    emptied = coarse.clone().requires_grad_()
    with torch.no_grad():
        emptied[:, 3] = 0
    missed = interlevel(edges, weights, coarse_edges, emptied)
    torch.testing.assert_close(missed, weights[:, 12:16].sum(1), rtol=1e-5, atol=0)  # the whole of it: w^2 / w
    (grad,) = torch.autograd.grad(missed.sum(), emptied)
    assert (grad[:, 3] < 0).all() and (grad[:, 4:] == 0).all()


def test_the_bound_counts_every_interval_that_overlaps() -> None:
    edges = torch.tensor([[0.5, 1.5]])
    others, weights = torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([[0.1, 0.2, 0.4]])
    missed = interlevel(edges, torch.tensor([[1.0]]), others, weights)
    torch.testing.assert_close(missed, torch.tensor([0.7**2]))


def test_only_the_proposal_learns_from_what_it_misses() -> None:
    edges, weights = histograms()
    weights.requires_grad_()
    proposal = (0.1 * weights.detach()).requires_grad_()
    interlevel(edges, weights, edges, proposal).sum().backward()
    assert weights.grad is None and float(proposal.grad.abs().max()) > 0


@pytest.mark.parametrize("norm", ["cube", "ball"])
def test_contraction(norm: str) -> None:
    x = 5 * torch.randn(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = contract(x, norm)
    size = (lambda y: y.abs().amax(-1)) if norm == "cube" else (lambda y: y.norm(dim=-1))
    assert (size(z) < 2).all()
    torch.testing.assert_close(size(z), torch.where(size(x) > 1, 2 - 1 / size(x), size(x)))
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(x, z), torch.ones(500, dtype=torch.float64))
    torch.testing.assert_close(expand(z, norm), x, rtol=1e-9, atol=1e-12)
    inside = x[size(x) <= 1]
    assert len(inside) and torch.equal(contract(inside, norm), inside)
    origin = torch.zeros(1, 3, requires_grad=True)
    contract(origin, norm).sum().backward()
    assert torch.equal(origin.grad, torch.ones(1, 3))


def test_gaussians_are_contracted_by_the_jacobian() -> None:
    generator = torch.Generator().manual_seed(2)
    means = 3 * torch.randn(60, 3, dtype=torch.float64, generator=generator)
    root = torch.randn(60, 3, 3, dtype=torch.float64, generator=generator)
    covariances = root @ root.mT
    jacobian = torch.autograd.functional.jacobian(lambda x: contract(x).sum(0), means).permute(1, 0, 2)
    moved, ours = contract_gaussians(means, covariances)
    torch.testing.assert_close(moved, contract(means))
    torch.testing.assert_close(ours, jacobian @ covariances @ jacobian.mT)


def test_places_are_drawn_as_the_weights_say() -> None:
    """Pearson's chi-square of 100 000 places in 16 intervals, at 1 in 10 000; even places fail it."""
    edges = torch.linspace(0, 1, 17, dtype=torch.float64).square()[None]
    weights = torch.rand(1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 0.1
    steps = torch.nn.functional.pad((weights / weights.sum()).cumsum(1), (1, 0))
    n = 100_000
    u = torch.rand(1, n, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    found = torch.histogram(inverse_transform(edges, steps, u)[0], edges[0]).hist
    expected = n * weights[0] / weights.sum()
    assert float(((found - expected).square() / expected).sum()) < 44.3
    assert float(((n / 16 - expected).square() / expected).sum()) > 1000


def test_edges_are_drawn_in_order_and_close_together_where_the_weight_is() -> None:
    edges = torch.linspace(0, 1, 65)[None].repeat(50, 1)
    weights = torch.zeros(50, 64)
    weights[:, 20] = 1
    drawn = draw_edges(edges, weights, 32, (0, 5), 0, "native")
    assert drawn.shape == (50, 33) and (drawn.diff(dim=1) >= 0).all()
    inside = ((drawn >= edges[0, 20]) & (drawn <= edges[0, 21])).sum(1)
    assert int(inside.min()) >= 18  # of 33: the others are for what was thought empty


def test_spacing_is_even_near_and_in_inverse_distance_far() -> None:
    t = torch.tensor([0.0, 0.5, 1.0, 2.0, 1000.0])
    torch.testing.assert_close(spacing(t), torch.tensor([0.0, 0.25, 0.5, 0.75, 1 - 1 / 2000]))
    torch.testing.assert_close(unspaced(spacing(t)), t, rtol=1e-3, atol=0)


def test_entropy_and_orientation() -> None:
    opacities = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(opacity_entropy(opacities), torch.tensor([0.0, 0.6931, 0.0]), atol=1e-4, rtol=0)
    normals = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    directions = torch.tensor([[0.0, 0.6, -0.8], [0.0, 0.6, -0.8]])
    torch.testing.assert_close(orientation(torch.tensor([0.5, 0.5]), normals, directions), torch.tensor([0.0, 0.32]))
