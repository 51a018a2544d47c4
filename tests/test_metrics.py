"""PSNR and SSIM against scikit-image and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hashgrid.util.metrics import psnr, ssim


def _pair(
    height: int = 37, width: int = 52, channels: int = 3, noise: float = 0.1
) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(height * width)
    truth = np.kron(rng.random((height // 4 + 1, width // 4 + 1, channels)), np.ones((4, 4, 1)))[:height, :width]
    image = np.clip(truth + rng.normal(0, noise, truth.shape), 0, 1)
    return torch.from_numpy(image), torch.from_numpy(truth)


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("shape", [(11, 11, 3), (37, 52, 3), (64, 20, 1)])
def test_metrics_match_skimage(shape, noise):
    skimage = pytest.importorskip("skimage.metrics")
    image, truth = _pair(*shape, noise=noise)
    expected = skimage.structural_similarity(
        image.numpy(), truth.numpy(), data_range=1.0, channel_axis=-1,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    assert ssim(image, truth) == pytest.approx(expected, abs=1e-9)
    assert ssim(image.float(), truth.float()) == pytest.approx(expected, abs=1e-5)
    expected = skimage.peak_signal_noise_ratio(truth.numpy(), image.numpy(), data_range=1.0)
    assert psnr(image, truth) == pytest.approx(expected, abs=1e-9)


def test_metrics_closed_forms():
    truth = torch.full((16, 16, 3), 0.5)
    assert psnr(truth + 0.1, truth) == pytest.approx(20.0, abs=1e-5)
    assert psnr(truth, truth) == math.inf
    assert ssim(truth, truth) == pytest.approx(1.0)
    # Constant images: only the luminance term is left.
    assert ssim(truth + 0.25, truth) == pytest.approx((2 * 0.75 * 0.5 + 1e-4) / (0.75**2 + 0.5**2 + 1e-4), abs=1e-5)


def test_metrics_name_the_wrong_argument():
    image = torch.rand(16, 16, 3)
    with pytest.raises(ValueError, match=r"shape \[H, W, C\], got \[16, 16, 3\] and \[16, 15, 3\]"):
        psnr(image, image[:, :15])
    with pytest.raises(ValueError, match="divide by 255"):
        ssim(image, (image * 255).byte())
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(image[:8], image[:8])
