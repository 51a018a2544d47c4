"""From the ray of each sample to the samples of each ray."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid.compat.nerfacc._checks import check_indices, count_rays


@torch.no_grad()
def pack_info(ray_indices: Tensor, n_rays: int | None = None) -> Tensor:
    """Returns the first sample and the number of samples of each ray, [R, 2] in the dtype of ``ray_indices``.

    Args:
        ray_indices: [S] int64 or int32, ray of each sample, rising.
        n_rays: R; None is one more than the last ray, and none without samples.

    Raises:
        ValueError: ``ray_indices`` is no vector of integers, or names a ray that is not there (on a GPU, where finding
            that out would mean waiting for it, PyTorch's own assertion).

    Example:
        >>> pack_info(torch.tensor([0, 0, 1, 1, 1, 3]), n_rays=4).tolist()
        [[0, 2], [2, 3], [5, 0], [5, 1]]
    """
    check_indices("ray_indices", ray_indices)
    counts = torch.zeros(count_rays(ray_indices, n_rays), dtype=ray_indices.dtype, device=ray_indices.device)
    counts.index_add_(0, ray_indices, torch.ones_like(ray_indices))
    return torch.stack((counts.cumsum(0, dtype=counts.dtype) - counts, counts), dim=1)
