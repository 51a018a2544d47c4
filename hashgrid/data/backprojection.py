"""Filtered back projection, slice by slice: what fields are compared with."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.projections import Projections
from hashgrid.util.optional import optional_import

FILTERS = ("ramp", "shepp-logan", "cosine", "hamming", "hann")  # of skimage.transform.iradon


def filtered_back_projection(scan: Projections, n: int, filter_name: str = "ramp") -> Tensor:
    """The volume [n, ...] (z, y, x) of parallel beams by `skimage.transform.iradon`, fp32.

    `iradon` has pixels as large as voxels and its axis through the middle of one: columns of the scan are interpolated
    by cubic splines at the places it takes them for, rows linearly at the middles of slices.

    Args:
        scan: of parallel beams; angles should lie evenly over 180 or 360 degrees.
        n: voxels per side.
        filter_name: one of ``FILTERS``.

    Raises:
        ValueError: the beams form a cone.
    """
    if scan.beams.beam != "parallel":
        raise ValueError(f"filtered back projection is of parallel beams, got a {scan.beams.beam}")
    iradon = optional_import("skimage.transform").iradon
    spline = optional_import("scipy.interpolate").CubicSpline
    beams, values = scan.beams, scan.values.double().numpy()
    _, n_rows, n_columns = values.shape
    voxel, (height, width) = beams.volume / n, beams.pixel
    angles = np.asarray(beams.angles)
    if scan.n_dims == 3:
        z = ((np.arange(n) - (n - 1) / 2) * voxel - beams.offset[0]) / height + (n_rows - 1) / 2
        low = np.clip(np.floor(z).astype(int), 0, max(n_rows - 2, 0))
        share = np.clip(z - low, 0, 1)[:, None]
        high = np.minimum(low + 1, n_rows - 1)
        values = values[:, low] * (1 - share) + values[:, high] * share
        values[:, (z < -0.5) | (z > n_rows - 0.5)] = 0
    m = 2 * math.ceil(n * math.sqrt(2) / 2) + 1
    shift = 0.0 if n % 2 else 0.5  # from the middle voxel of `iradon` to ours
    lines = np.empty((*values.shape[:2], m))
    for i, angle in enumerate(np.deg2rad(angles)):
        place = (np.arange(m) - m // 2 + shift * (np.cos(angle) + np.sin(angle))) * voxel
        column = (place - beams.offset[1]) / width + (n_columns - 1) / 2
        inside = (column >= -0.5) & (column <= n_columns - 0.5)
        lines[i] = spline(np.arange(n_columns), values[i], axis=-1)(np.clip(column, 0, n_columns - 1)) * inside
    slices = [iradon(lines[:, row].T, -angles, n, filter_name) for row in range(lines.shape[1])]
    volume = torch.from_numpy(np.stack(slices)).float() / voxel
    return volume if scan.n_dims == 3 else volume[0]
