"""How different two images look: FLIP, which needs nothing, and LPIPS, which needs a trained network."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from hashgrid.util.metrics import check_images, windowed
from hashgrid.util.optional import optional_import

PIXELS_PER_DEGREE = 0.7 * (3840 / 0.7) * math.pi / 180  # 67: a screen of 3840 pixels and 0.7 m, seen from 0.7 m

# Of FLIP (Andersson et al. 2020): sums of Gaussians a sqrt(pi / b) exp(-(pi x)^2 / b) over degrees x are what an eye
# passes of lightness, red-green and blue-yellow; exponents, and how the scale of colour differences is bent.
SENSITIVITY = (((1.0, 0.0047),), ((1.0, 0.0053),), ((34.1, 0.04), (13.5, 0.025)))
COLOR_EXPONENT, FEATURE_EXPONENT, FEATURE_WIDTH = 0.7, 0.5, 0.082
BEND, BENT = 0.4, 0.95  # a difference of .4 of the largest one becomes .95
STRIP = 1 << 18  # pixels at a time

TO_XYZ = torch.tensor(
    [
        [10135552 / 24577794, 8788810 / 24577794, 4435075 / 24577794],
        [2613072 / 12288897, 8788810 / 12288897, 887015 / 12288897],
        [1425312 / 73733382, 8788810 / 73733382, 70074185 / 73733382],
    ],
    dtype=torch.float64,
)  # of linear sRGB
WHITE = TO_XYZ.sum(1)
OPPONENT = torch.tensor([[0, 116, 0], [500, -500, 0], [0, 200, -200]], dtype=torch.float64) / WHITE @ TO_XYZ  # YCxCz


def flip_map(image: Tensor, truth: Tensor, pixels_per_degree: float = PIXELS_PER_DEGREE) -> Tensor:
    """Returns the LDR-FLIP error of every pixel [H, W], in [0, 1]: what is seen when one flips between two images.

    Args:
        image: sRGB [H, W, 3] or grey [H, W, 1], floats in [0, 1] or uint8.
        truth: what it should be, of the same shape and dtype.
        pixels_per_degree: of the angle that a viewer sees; by default that of the paper, 67.

    Raises:
        ValueError: shapes or dtypes are others.

    Source: Andersson et al., *FLIP: A Difference Evaluator for Alternating Images* (2020).

    Example:
        >>> truth = torch.zeros(32, 32, 3)
        >>> float(flip_map(truth, truth).max())
        0.0
        >>> round(float(flip_map(truth + 1, truth).mean()), 3)  # white for black
        0.967
    """
    check_images(image, truth)
    if image.shape[2] not in (1, 3):
        raise ValueError(f"`image` must have 1 or 3 channels, got {image.shape[2]}; leave alpha out")
    pair = torch.stack((image, truth)).permute(0, 3, 1, 2)
    pair = pair.float() / 255 if pair.dtype == torch.uint8 else pair if pair.dtype == torch.float64 else pair.float()
    passes, features = _sensitivity_windows(pixels_per_degree), _feature_windows(pixels_per_degree)
    border = max(len(passes[0][0][1]), len(features["edge"])) // 2
    height, width = image.shape[:2]
    pair = pad(pair.clamp(0, 1), (border,) * 4, mode="replicate")
    rows = max(border, STRIP // (width + 2 * border))
    parts = []
    for start in range(0, height, rows):  # a picture of 100 megapixels would take 30 GB at once
        strip = pair[:, :, start : start + rows + 2 * border].expand(-1, 3, -1, -1)
        linear = torch.where(strip > 0.04045, ((strip + 0.055) / 1.055) ** 2.4, strip / 12.92)
        opponent = torch.einsum("ij,bjhw->bihw", OPPONENT.to(linear), linear)
        color = _color_difference(opponent, passes, border)
        parts.append(color ** (1 - _feature_difference(opponent[:, 0] / 116, features, border)))
    return torch.cat(parts)


def flip(
    image: Tensor, truth: Tensor, mask: Tensor | None = None, pixels_per_degree: float = PIXELS_PER_DEGREE
) -> float:
    """Returns the mean of :func:`flip_map`, 0 for equal images, at most 1.

    With ``mask`` [H, W] bool the mean is that of its pixels, NaN without any; others are taken to be right, so that
    they do not spread to their neighbours.

    Example:
        >>> image, truth = torch.rand(32, 32, 3), torch.rand(32, 32, 3)
        >>> 0 < flip(image, truth) < 1
        True
    """
    if mask is None:
        return float(flip_map(image, truth, pixels_per_degree).mean())
    image = torch.where(mask.unsqueeze(-1), image, truth)
    return float(flip_map(image, truth, pixels_per_degree)[mask].mean())


def _color_difference(opponent: Tensor, passes: list[list[tuple[float, Tensor]]], border: int) -> Tensor:
    """Of a pair [2, 3, H, W] in YCxCz, by HyAB after what the eye blurs and Hunt's effect, of [H, W] without border."""
    blurred = torch.stack(
        [
            torch.stack([share * _filtered(x, window, window, border) for share, window in gaussians]).sum(0)
            for x, gaussians in zip(opponent.unbind(1), passes, strict=True)
        ],
        dim=1,
    )
    linear = torch.einsum("ij,bjhw->bihw", OPPONENT.inverse().to(blurred), blurred).clamp(0, 1)
    difference = _hyab(*_hunt_lab(linear)) ** COLOR_EXPONENT
    green, blue = torch.eye(3, dtype=torch.float64)[1:].view(2, 3, 1, 1)
    most = float(_hyab(_hunt_lab(green), _hunt_lab(blue))) ** COLOR_EXPONENT
    low = difference * (BENT / (BEND * most))
    high = BENT + (difference - BEND * most) * ((1 - BENT) / (most - BEND * most))
    return torch.where(difference < BEND * most, low, high)


def _hunt_lab(linear: Tensor) -> Tensor:
    """Linear sRGB [..., 3, H, W] in CIELAB, a and b in proportion to lightness: dark colours differ less."""
    xyz = torch.einsum("ij,...jhw->...ihw", (TO_XYZ / WHITE.unsqueeze(1)).to(linear), linear)
    delta = 6 / 29
    x, y, z = torch.where(xyz > delta**3, xyz ** (1 / 3), xyz / (3 * delta**2) + 4 / 29).unbind(-3)
    lightness = 116 * y - 16
    return torch.stack((lightness, 5 * lightness * (x - y), 2 * lightness * (y - z)), -3)


def _hyab(a: Tensor, b: Tensor) -> Tensor:
    difference = a - b
    return difference[0].abs() + torch.hypot(difference[1], difference[2])


def _feature_difference(lightness: Tensor, windows: dict[str, Tensor], border: int) -> Tensor:
    """Of edges and points of a pair [2, H, W], of [H, W] without border."""
    most = lightness.new_zeros(())
    for name in ("edge", "point"):
        across = _filtered(lightness, windows[name], windows["blur"], border)
        down = _filtered(lightness, windows["blur"], windows[name], border)
        strength = torch.hypot(across, down)
        most = torch.maximum(most, (strength[0] - strength[1]).abs())
    return (most / math.sqrt(2)) ** FEATURE_EXPONENT


def _filtered(x: Tensor, along_x: Tensor, along_y: Tensor, border: int) -> Tensor:
    """Images [..., H, W] without their border, seen through a product of windows."""
    spare = border - len(along_x) // 2
    x = x[..., spare : x.shape[-2] - spare, spare : x.shape[-1] - spare]
    return windowed(windowed(x, along_x).transpose(-1, -2), along_y).transpose(-1, -2)


def _sensitivity_windows(pixels_per_degree: float) -> list[list[tuple[float, Tensor]]]:
    """Shares and Gaussians of sum 1, for each channel."""
    widest = max(b for gaussians in SENSITIVITY for _, b in gaussians)
    radius = math.ceil(3 * math.sqrt(widest / (2 * math.pi**2)) * pixels_per_degree)
    x = torch.arange(-radius, radius + 1, dtype=torch.float64) / pixels_per_degree
    windows = []
    for gaussians in SENSITIVITY:
        values = [torch.exp(-((math.pi * x) ** 2) / b) for _, b in gaussians]
        shares = [a * math.sqrt(math.pi / b) * float(v.sum()) ** 2 for (a, b), v in zip(gaussians, values, strict=True)]
        windows.append([(share / sum(shares), v / v.sum()) for share, v in zip(shares, values, strict=True)])
    return windows


def _feature_windows(pixels_per_degree: float) -> dict[str, Tensor]:
    """A Gaussian and its first two derivatives, whose positive and negative parts have sums of 1 and -1."""
    deviation = 0.5 * FEATURE_WIDTH * pixels_per_degree
    radius = math.ceil(3 * deviation)
    x = torch.arange(-radius, radius + 1, dtype=torch.float64)
    gaussian = torch.exp(-((x / deviation) ** 2) / 2)
    slopes = {"edge": -x * gaussian, "point": ((x / deviation) ** 2 - 1) * gaussian}
    signed = {
        name: torch.where(v > 0, v / v.clamp_min(0).sum(), v / v.clamp_max(0).sum().abs()) for name, v in slopes.items()
    }
    return {"blur": gaussian / gaussian.sum(), **signed}


class Lpips:
    """LPIPS (Zhang et al. 2018), by the package ``lpips``: a distance between features of a network that was trained on
    photographs; 0 for equal images.

    Args:
        net: "alex", which most papers report, or "vgg".
        trained: False for random features, whose numbers mean nothing.

    Raises:
        ImportError: the package is missing, or its torchvision does not fit this torch.
        ValueError: the network's weights are neither here nor to be had.
    """

    def __init__(self, net: str = "alex", trained: bool = True) -> None:
        try:
            optional_import("torchvision")
            package = optional_import("lpips")
        except RuntimeError as error:  # of torchvision's operators
            remedy = f"install the torchvision that was built for torch {torch.__version__}, from the same index"
            raise ImportError(f"`lpips` cannot be used: torchvision says: {error}; {remedy}") from error
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of how the package calls torchvision
                self._model: Any = package.LPIPS(net=net, pnet_rand=not trained, verbose=False)
        except OSError as error:  # urllib's among them
            raise ValueError(
                f"LPIPS needs the weights of `{net}`, and they cannot be downloaded ({error}); run it once with a"
                f" network, or put them into `{torch.hub.get_dir()}/checkpoints`, or leave `--lpips` out"
            ) from error
        self._model.requires_grad_(False)

    @torch.no_grad()
    def __call__(self, image: Tensor, truth: Tensor, mask: Tensor | None = None) -> float:
        """Returns the distance of images [H, W, C] of 1 or 3 channels, floats in [0, 1] or uint8. With ``mask`` [H, W]
        bool the mean over its pixels, NaN without any; others are taken to be right."""
        check_images(image, truth)
        scale = 255 if image.dtype == torch.uint8 else 1
        image, truth = image.float() / scale, truth.float() / scale
        if mask is not None:
            image = torch.where(mask.unsqueeze(-1), image, truth)
        pair = [(2 * x - 1).permute(2, 0, 1)[None].expand(-1, 3, -1, -1) for x in (image, truth)]
        self._model.spatial = mask is not None
        distances = self._model(*pair)[0, 0]
        return float((distances if mask is None else distances[mask]).mean())
