"""Image quality: PSNR and SSIM."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5


def psnr(image: Tensor, truth: Tensor, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB of images [H, W, C], floats in [0, 1] or both uint8; inf where they are equal.
    With ``mask`` [H, W] bool, of its pixels only; NaN where it has none."""
    check_images(image, truth)
    if mask is not None:
        image, truth = (x[mask].unsqueeze(1) for x in (image, truth))
    if not image.numel():
        return math.nan
    # some rows at a time: in fp64 and at once, 182 megapixels would take 13 GB
    pairs = zip(image.split(256), truth.split(256), strict=True)
    mse = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs) / image.numel()
    mse /= 255**2 if image.dtype == torch.uint8 else 1
    return -10 * math.log10(mse) if mse > 0 else math.inf


def ssim(image: Tensor, truth: Tensor, mask: Tensor | None = None) -> float:
    """Mean structural similarity of images [H, W, C], floats in [0, 1] or both uint8.

    Gaussian 11x11 window with sigma 1.5, K1 = 0.01, K2 = 0.03, population covariance, windows that fit inside the image
    only, mean over the channels (Wang et al. 2004). With ``mask`` [H, W] bool, windows of its pixels only; NaN where it
    holds no window.
    """
    check_images(image, truth)
    if min(image.shape[:2]) < SSIM_WINDOW:
        raise ValueError(f"`image` must be at least {SSIM_WINDOW} pixels high and wide, got {list(image.shape)}")
    # rows of windows at once: in fp64, all of 100 megapixels would take 30 GB
    total, count, n_rows = 0.0, 0, max(64, (1 << 20) // image.shape[1])
    for start in range(0, len(image) - SSIM_WINDOW + 1, n_rows):
        rows = slice(start, start + n_rows + SSIM_WINDOW - 1)
        similarity = _similarity(image[rows], truth[rows])
        if mask is not None:
            outside = torch.nn.functional.max_pool2d((~mask[rows])[None].double(), SSIM_WINDOW, stride=1)[0]
            similarity = similarity[:, outside.t() == 0]  # of [W - 10, H - 10]
        total += float(similarity.sum())
        count += similarity.numel()
    return total / count if count else math.nan


def _similarity(image: Tensor, truth: Tensor) -> Tensor:
    """SSIM of every window [C, W - 10, H - 10]."""
    x, y = (t.double().permute(2, 0, 1) for t in (image, truth))  # fp32 would lose the variance of flat backgrounds
    if image.dtype == torch.uint8:
        x, y = x / 255, y / 255
    stack = torch.cat((x, y, x * x, y * y, x * y))  # [5C, H, W]
    offsets = torch.arange(SSIM_WINDOW, dtype=stack.dtype, device=stack.device) - SSIM_WINDOW // 2
    window = torch.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    window /= window.sum()
    stack = windowed(windowed(stack, window).transpose(1, 2), window)  # [5C, W', H']: the mean is the same
    mean_x, mean_y, xx, yy, xy = stack.chunk(5)
    c1, c2 = 0.01**2, 0.03**2
    covariance = xy - mean_x * mean_y
    variances = (xx - mean_x.square()) + (yy - mean_y.square())
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return similarity / ((mean_x.square() + mean_y.square() + c1) * (variances + c2))


def windowed(x: Tensor, window: Tensor, tile: int = 64) -> Tensor:
    """Sums of ``window`` [K] times the values under it, along the last dimension: [..., N] ->
    [..., N - K + 1].

    As a product of overlapping tiles with a banded matrix: fp64 convolutions are several times slower on the CPU.
    """
    size = len(window)
    band = x.new_zeros(tile, tile + size)  # one spare column: flattened, each row is the last one moved by one
    band[:, :size] = window
    band = band.flatten()[: tile * (tile + size - 1)].view(tile, -1)  # [tile, tile + K - 1]
    n_outputs = x.shape[-1] - size + 1
    x = torch.nn.functional.pad(x, (0, -n_outputs % tile))
    tiles = x.unfold(-1, tile + size - 1, tile)
    sums = tiles.reshape(-1, tile + size - 1) @ band.t()  # as a view the product would be one call per row
    return sums.view(*tiles.shape[:-1], tile).flatten(-2)[..., :n_outputs]


def check_images(image: Tensor, truth: Tensor) -> None:
    """Raises ValueError where metrics of images cannot be taken of these."""
    if image.ndim != 3 or image.shape != truth.shape:
        raise ValueError(
            f"`image` and `truth` must both have shape [H, W, C], got {list(image.shape)} and {list(truth.shape)}"
        )
    if image.dtype == truth.dtype == torch.uint8:
        return
    if not image.is_floating_point() or not truth.is_floating_point():
        raise ValueError(
            f"`image` and `truth` must be floats in [0, 1], got {image.dtype} and {truth.dtype}; divide by 255"
        )
