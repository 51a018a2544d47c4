"""Update of an occupancy grid (Müller et al. 2022, appendix E.2) in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def occupancy_update(
    density: Tensor,
    bits: Tensor,
    cells: Tensor,
    values: Tensor,
    decay: float = 0.95,
    max_threshold: float = 0.01,
) -> None:
    """Decays all cells, raises the sampled ones to ``values``, and sets the bits of those above the threshold.

    The threshold is ``min(max_threshold, mean)``, the mean over all visible cells summed in fp64, rounded to the dtype
    of ``density``. Cells with a negative density, which no camera sees, keep it and stay empty. NaN values are ignored.

    Args:
        density: [n_cells], updated in place.
        bits: [ceil(n_cells / 8)] uint8, rewritten; cell g is bit ``g & 7`` of byte ``g >> 3``, spare bits are 0.
        cells: [M] int64, unique.
        values: [M].
        decay: factor of the old densities.
        max_threshold: upper limit of the threshold.

    Raises:
        ValueError: a shape or the dtype of ``bits`` does not fit.
    """
    _check_arguments(density, bits, cells, values)
    visible = density >= 0
    density.copy_(torch.where(visible, density * decay, density))
    sampled = density[cells]
    density[cells] = torch.where(sampled >= 0, sampled.fmax(values.to(density.dtype)), sampled)

    mean = torch.where(visible, density, 0).sum(dtype=torch.float64) / visible.sum()
    threshold = mean.clamp(max=max_threshold).to(density.dtype)  # NaN without visible cells: nothing is above it
    bits.copy_(_pack(density > threshold))


def _pack(flags: Tensor) -> Tensor:
    """``flags`` [n] bool as [ceil(n / 8)] uint8, the first one in the lowest bit."""
    padded = torch.nn.functional.pad(flags, (0, -flags.shape[0] % 8)).view(-1, 8)
    return (padded * 2 ** torch.arange(8, device=flags.device)).sum(-1).to(torch.uint8)


def _check_arguments(density: Tensor, bits: Tensor, cells: Tensor, values: Tensor) -> None:
    if density.dim() != 1:
        raise ValueError(f"`density` must have shape [n_cells], got {list(density.shape)}")
    n_bytes = (density.shape[0] + 7) // 8
    if bits.dtype != torch.uint8 or bits.shape != (n_bytes,):
        raise ValueError(f"`bits` must be uint8 of shape [{n_bytes}], got {bits.dtype} {list(bits.shape)}")
    if cells.dim() != 1 or cells.shape != values.shape:
        raise ValueError(
            f"`cells` and `values` must have the same shape [M], got {list(cells.shape)} and {list(values.shape)}"
        )
