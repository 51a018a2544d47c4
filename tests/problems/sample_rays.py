"""Views to draw training rays from."""

from __future__ import annotations

import torch
from torch import Tensor

Views = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def random_views(sizes: list[tuple[int, int]], n_channels: int = 4) -> Views:
    """data, offsets, sizes, c2w, intrinsics of images of these widths and heights."""
    sizes = torch.tensor(sizes)
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), sizes.prod(1).cumsum(0)))
    data = torch.randint(256, (int(offsets[-1]), n_channels), dtype=torch.uint8)
    rotations = torch.linalg.qr(torch.randn(len(sizes), 3, 3))[0]
    c2w = torch.cat((rotations, torch.randn(len(sizes), 3, 1)), dim=2)
    return data, offsets, sizes, c2w, torch.rand(len(sizes), 4) * 50 + 1
