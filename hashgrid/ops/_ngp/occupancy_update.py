"""Update of an occupancy grid (Müller et al. 2022, appendix E.2) on the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid import _extension


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

    The threshold is ``min(max_threshold, mean)``, the mean over all visible cells summed in fp64. Cells with a negative
    density, which no camera sees, keep it and stay empty. NaN values are ignored.

    Args:
        density: [n_cells] fp32, updated in place.
        bits: [ceil(n_cells / 8)] uint8, rewritten; cell g is bit ``g & 7`` of byte ``g >> 3``, spare bits are 0.
        cells: [M] int64, unique.
        values: [M].
        decay: factor of the old densities.
        max_threshold: upper limit of the threshold.

    Raises:
        RuntimeError: a shape or a dtype does not fit, or a cell does not exist.
    """
    values = values.to(density.dtype).contiguous()
    _extension.ops().occupancy_update(density, bits, cells.contiguous(), values, decay, max_threshold)


def _register() -> None:
    @torch.library.register_fake("hashgrid::occupancy_update")
    def _(density, bits, cells, values, decay, max_threshold):
        return None


if _extension.module is not None:
    _register()
