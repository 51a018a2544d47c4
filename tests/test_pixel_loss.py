"""The loss of composited pixels against PyTorch's own, spelled out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from problems.pixel_loss import loss_and_gradients, pixels
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from hashgrid import reference
from hashgrid.ops import _ngp

pytestmark = pytest.mark.every_kernel

SIZES = (1, 255, 256, 257, 3000)


def of_torch(colors: Tensor, opacities: Tensor, background: Tensor, targets: Tensor, beta: float = 0.1) -> Tensor:
    return F.huber_loss(colors + (1 - opacities)[:, None] * background, targets, delta=beta) / beta


@pytest.mark.parametrize("beta", [0.1, 10.0])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_is_the_huber_loss_over_the_background(channels: int, beta: float) -> None:
    for n in SIZES:
        tensors = pixels(n, channels)
        exact = loss_and_gradients(of_torch, tensors, torch.float64, beta=beta)
        difference = (tensors[0] + (1 - tensors[1])[:, None] * tensors[2] - tensors[3]).double()
        for library in (_ngp, reference):
            for dtype, unit in ((torch.float32, 1e-6), (torch.float64, 1e-13)):
                loss, means, *grads = loss_and_gradients(library.pixel_loss, tensors, dtype, beta=beta)
                assert loss.shape == () and loss.dtype == dtype and means.dtype == torch.float64
                assert math.isclose(float(loss), float(exact[0]), rel_tol=unit)
                assert math.isclose(float(means[0]), float(loss), rel_tol=unit)
                assert math.isclose(float(means[1]), float(difference.square().mean()), rel_tol=1e-6)
                for ours, truth in zip(grads, exact[2:], strict=True):
                    # slopes are at most 1; those of differences rounded by a unit are off by it over beta
                    torch.testing.assert_close(ours.double(), truth, rtol=0, atol=3 * (1 + 1 / beta) * unit / n)


def test_small_beta_is_the_absolute_difference() -> None:
    tensors = pixels(300)
    loss, _, grad_colors, _ = loss_and_gradients(_ngp.pixel_loss, tensors, torch.float32, beta=1e-30)
    difference = tensors[0] + (1 - tensors[1])[:, None] * tensors[2] - tensors[3]
    torch.testing.assert_close(loss, difference.abs().mean())
    torch.testing.assert_close(grad_colors, difference.sign() / 300)


@pytest.mark.parametrize("n_used", [0, 1, 100, 256, 299, 300, 400])
def test_counts_the_first_rays_only(n_used: int) -> None:
    """What the others hold is nobody's business."""
    tensors = pixels(300)
    for tensor in tensors:
        tensor[n_used:] = math.nan
    alone = [tensor[:n_used] for tensor in tensors]
    for library in (_ngp, reference):
        loss, means, *grads = loss_and_gradients(
            library.pixel_loss, tensors, torch.float32, n_rays=torch.tensor([n_used])
        )
        expected = loss_and_gradients(library.pixel_loss, alone, torch.float32)
        torch.testing.assert_close(loss, expected[0])
        torch.testing.assert_close(means, expected[1])
        for ours, theirs in zip(grads, expected[2:], strict=True):
            torch.testing.assert_close(ours[:n_used], theirs, rtol=1e-6, atol=0)
            assert not ours[n_used:].any()
        assert n_used > 0 or float(loss) == 0


def test_what_is_not_finite_shows() -> None:
    for value in (math.nan, math.inf, -math.inf):
        tensors = pixels(300)
        tensors[0][7, 1] = value
        loss, means, grad_colors, grad_opacities = loss_and_gradients(_ngp.pixel_loss, tensors, torch.float32)
        assert not loss.isfinite() and not means.isfinite().any()
        broken = math.isnan(value)
        assert int(grad_colors.isfinite().sum()) == 900 - broken
        assert int(grad_opacities.isfinite().sum()) == 300 - broken


def test_derivatives_in_double_precision() -> None:
    colors, opacities, background, targets = (x.double() for x in pixels(4))
    leaves = colors.requires_grad_(), opacities.requires_grad_()

    def function(colors: Tensor, opacities: Tensor) -> Tensor:
        return _ngp.pixel_loss(colors, opacities, background, targets, 0.3)[0]

    assert gradcheck(function, leaves) and gradgradcheck(function, leaves)


@pytest.mark.cpu_only
def test_same_bits_for_any_number_of_threads() -> None:
    tensors, results = pixels(20000), []
    n_threads = torch.get_num_threads()
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            results.append(loss_and_gradients(_ngp.pixel_loss, tensors, torch.float32))
    finally:
        torch.set_num_threads(n_threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_half_precision_is_read_as_fp32() -> None:
    tensors = [x.half() for x in pixels(100)]
    ours, theirs = _ngp.pixel_loss(*tensors), _ngp.pixel_loss(*(x.float() for x in tensors))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)) and ours[0].dtype == torch.float32


@pytest.mark.cpu_only
def test_compiled_without_a_graph_break() -> None:
    tensors = pixels(300)
    compiled = torch.compile(_ngp.pixel_loss, fullgraph=True, backend="aot_eager")
    results = (loss_and_gradients(function, tensors, torch.float32) for function in (compiled, _ngp.pixel_loss))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_bad_input_is_refused() -> None:
    colors, opacities, background, targets = pixels(4)
    for arguments, message in (
        ((colors[0], opacities, background, targets), r"`colors` must have shape \[R, C\], got \[3\]"),
        ((colors, opacities[1:], background, targets), r"`opacities` must have shape \[4\], got \[3\]"),
        ((colors, opacities, background[0], targets), r"`background` must have shape \[4, 3\], got \[3\]"),
        ((colors, opacities, background, targets[:, :2]), r"`targets` must have shape \[4, 3\], got \[4, 2\]"),
        ((colors, opacities, background, targets, 0.0), "`beta` must be positive, got 0"),
        ((colors, opacities, background, targets, 0.1, torch.tensor(3)), r"`n_rays` must have shape \[1\], got \[\]"),
        ((colors, opacities, background, targets, 0.1, torch.ones(1)), "`n_rays` must be int64, got float32"),
    ):
        with pytest.raises(RuntimeError, match=message):
            _ngp.pixel_loss(*arguments)
