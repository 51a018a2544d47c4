"""The formulas that native ops and reference share, against expectations that are neither."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import hessian, jacfwd, jacrev, vmap

from hashgrid import maths, reference
from hashgrid.util.choices import ACTIVATIONS

POINTS = torch.tensor([-30.0, -2.5, -0.3, 0.4, 1.7, 12.0, 20.0], dtype=torch.float64)


def scalar(name: str, x: float) -> float:
    """An activation in Python's own numbers."""
    return {
        "none": lambda: x,
        "relu": lambda: max(x, 0.0),
        "leaky_relu": lambda: x if x > 0 else 0.01 * x,
        "silu": lambda: x / (1 + math.exp(-x)),
        "softplus": lambda: math.log1p(math.exp(x)),
        "sigmoid": lambda: 1 / (1 + math.exp(-x)),
        "tanh": lambda: math.tanh(x),
        "exp": lambda: math.exp(x),
        "sine": lambda: math.sin(x),
    }[name]()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_both_modes_of_their_derivatives(name: str) -> None:
    values = maths.activate(POINTS, name)
    torch.testing.assert_close(values, torch.tensor([scalar(name, x) for x in POINTS.tolist()], dtype=torch.float64))
    step = 1e-6
    slopes = [(scalar(name, x + step) - scalar(name, x - step)) / (2 * step) for x in POINTS.clamp(-15, 15).tolist()]
    if name != "exp":  # whose derivative alone is clamped
        slopes = [(scalar(name, x + step) - scalar(name, x - step)) / (2 * step) for x in POINTS.tolist()]
    for transform in (jacrev, jacfwd):
        derivative = vmap(transform(lambda x: maths.activate(x, name)))(POINTS)
        torch.testing.assert_close(derivative, torch.tensor(slopes, dtype=torch.float64), rtol=1e-6, atol=1e-8)
    forward_over_reverse = vmap(hessian(lambda x: maths.activate(x, name)))(POINTS)
    reverse_over_reverse = vmap(jacrev(jacrev(lambda x: maths.activate(x, name))))(POINTS)
    torch.testing.assert_close(forward_over_reverse, reverse_over_reverse)
    assert name != "exp" or forward_over_reverse[[0, -1]].tolist() == [0, 0]


def test_rounded_layers_multiply_what_they_say() -> None:
    x, weights, bias = torch.randn(5, 3), [torch.randn(4, 3), torch.randn(2, 4)], [torch.randn(4), torch.randn(2)]
    for dtype in (torch.bfloat16, torch.float16):
        hidden = np.maximum(x.to(dtype).double().numpy() @ weights[0].to(dtype).double().numpy().T + bias[0].numpy(), 0)
        hidden = torch.from_numpy(hidden).float().to(dtype).double().numpy()
        expected = hidden @ weights[1].to(dtype).double().numpy().T + bias[1].numpy()
        y = maths.layers(x, weights, bias, "relu", "none", dtype)
        # an ulp of the hidden layer may decide the rounding there
        torch.testing.assert_close(y.double(), torch.from_numpy(expected), rtol=2**-7, atol=2**-7)
        assert not torch.equal(y, maths.layers(x, weights, bias, "relu", "none", None))


def test_harmonics_are_orthonormal() -> None:
    """By quadrature that is exact for these polynomials: Gauss-Legendre in z, equal angles around it."""
    z, weight = np.polynomial.legendre.leggauss(10)
    angle = np.arange(20) * (2 * np.pi / 20)
    ring = np.sqrt(1 - z**2)[:, None]
    x, y = ring * np.cos(angle), ring * np.sin(angle)
    directions = torch.from_numpy(np.stack([x, y, np.broadcast_to(z[:, None], x.shape)], axis=-1))
    harmonics = maths.spherical_harmonics(directions, 8).flatten(0, 1)
    weights = torch.from_numpy(np.repeat(weight * 2 * np.pi / 20, 20))
    gram = harmonics.T @ (weights[:, None] * harmonics)
    torch.testing.assert_close(gram, torch.eye(64, dtype=torch.float64), rtol=0, atol=1e-12)
    axis = maths.spherical_harmonics(torch.eye(3, dtype=torch.float64), 2)[:, 1:]
    expected = math.sqrt(3 / (4 * math.pi)) * torch.tensor([[0.0, 0, -1], [-1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    torch.testing.assert_close(axis, expected)


def test_waves_keep_their_phase_far_out() -> None:
    x = torch.tensor([[0.25, 1 / 3], [1e4 + 1 / 8, -7.0]])
    y = maths.waves(x, 12).view(2, 2, 12, 2)
    for row, dim, k in ((0, 0, 0), (0, 1, 11), (1, 0, 11), (1, 0, 3), (1, 1, 5)):
        turns = math.fmod(x[row, dim].item() * 2.0**k, 2.0) * math.pi
        expected = torch.tensor([math.sin(turns), math.cos(turns)])
        torch.testing.assert_close(y[row, dim, k], expected, rtol=0, atol=3e-7)


def test_middles_lie_halfway() -> None:
    origins, directions = torch.tensor([[0.0, 0, 0], [1, 2, 3]]), torch.tensor([[1.0, 0, 0], [0, 0, -2]])
    x = maths.middles(origins, directions, torch.tensor([1, 0]), torch.tensor([1.0, 2]), torch.tensor([2.0, 3]))
    assert x.tolist() == [[1, 2, 0], [2.5, 0, 0]]


def loss_by_hand(colors: Tensor, opacities: Tensor, background: Tensor, targets: Tensor, beta: float) -> float:
    total = 0.0
    for ray in range(len(colors)):
        for c in range(colors.shape[1]):
            x = abs(float(colors[ray, c] + (1 - opacities[ray]) * background[ray, c] - targets[ray, c]))
            total += x * x / (2 * beta) if x < beta else x - beta / 2
    return total / colors.numel()


def test_smooth_l1_counts_the_rays_it_is_told() -> None:
    colors, background, targets = torch.rand(3, 6, 3, dtype=torch.float64)
    opacities = torch.rand(6, dtype=torch.float64)
    colors[4:] = math.nan
    loss, means = maths.smooth_l1(colors, opacities, background, targets, 0.2, torch.tensor([4]))
    expected = loss_by_hand(colors[:4], opacities[:4], background[:4], targets[:4], 0.2)
    assert loss.item() == pytest.approx(expected) and means[0].item() == pytest.approx(expected)
    assert maths.smooth_l1(colors, opacities, background, targets, 0.2, torch.tensor([0]))[0].item() == 0


def test_pixels_are_drawn_evenly_and_located() -> None:
    sizes, offsets = torch.tensor([[4, 2], [3, 5]]), torch.tensor([0, 8, 23])
    uniform = reference.counter_uniform(1, 2, maths.pixel_draws(23_000, torch.device("cpu")))
    row, noise = maths.draw_pixels(uniform, 23)
    counts = row.bincount(minlength=23).double()
    assert len(counts) == 23 and ((counts - 1000).square() / 1000).sum() < 60  # chi squared of 22 degrees: 1e-5
    assert noise.shape == (23_000, 3) and abs(float(noise.mean()) - 0.5) < 0.01
    view, x, y = maths.locate_pixels(torch.tensor([0, 7, 8, 12, 22]), offsets, sizes)
    assert torch.stack([view, x, y], dim=1).tolist() == [[0, 0, 0], [0, 3, 1], [1, 0, 0], [1, 1, 1], [1, 2, 4]]
    data = torch.tensor([[255, 0, 51], [0, 0, 0]], dtype=torch.uint8)
    assert maths.pixel_colors(data, torch.tensor([0])).tolist() == [[1, 0, pytest.approx(0.2), 1]]


def test_steps_of_cells_double_from_cascade_to_cascade() -> None:
    geometry = torch.tensor([[0.0, 5.0], [math.log(2), 5.0]])
    cells = torch.tensor([3, 2 * 3 * 4 * 2 + 1])  # cascades 0 and 2
    values = maths.optical_thickness(geometry, cells, (2, 3, 4), 3, 0.5)
    torch.testing.assert_close(values, torch.tensor([0.5, 2 * 0.5 * 4]))
