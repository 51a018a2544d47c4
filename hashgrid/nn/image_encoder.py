"""Pictures to pictures of features: a small convolutional network without normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hashgrid.util.choices import as_integer


class ImageEncoder(nn.Module):
    """Features at half the resolution of a picture, from what is around at three scales.

    pixelNeRF's encoder (Yu et al. 2021, section 4.1) is a ResNet of which feature maps of all stages are brought to one
    size; so is this one, of three stages that are each half as large. It has no batch norm, which would mix the scenes
    of a batch, and says something else of one scene alone. Kernels that halve are 4 wide: those of 3 lie around every
    other pixel, half a pixel off the middle of what the smaller picture's pixel covers.

    Args:
        n_features: C of the output.
        width: channels of the first stage; each next one has twice as many.
        n_channels: of pictures.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> ImageEncoder(n_features=16)(torch.rand(3, 3, 48, 32)).shape
        torch.Size([3, 16, 24, 16])
    """

    def __init__(self, n_features: int = 32, width: int = 16, n_channels: int = 3) -> None:
        super().__init__()
        n_features, width = as_integer("n_features", n_features), as_integer("width", width)
        if min(n_features, width, n_channels) < 1:
            raise ValueError(f"features, width and channels must be positive, got {n_features}, {width}, {n_channels}")
        widths = (width, 2 * width, 4 * width)
        self.stages = nn.ModuleList()
        for before, after in zip((n_channels, *widths), widths, strict=False):
            halved, same = nn.Conv2d(before, after, 4, stride=2, padding=1), nn.Conv2d(after, after, 3, padding=1)
            self.stages.append(nn.Sequential(halved, nn.ReLU(), same, nn.ReLU()))
        self.merge = nn.Conv2d(sum(widths), n_features, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Features [N, C, H // 2, W // 2] of pictures [N, 3, H, W], of 8 pixels at least along each side."""
        found, x = list[Tensor](), pictures
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        size = found[0].shape[2:]
        larger = [F.interpolate(x, size, mode="bilinear", align_corners=False) for x in found[1:]]
        return self.merge(torch.cat((found[0], *larger), dim=1))
