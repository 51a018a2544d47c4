"""nerfacc 0.3's Python module on hashgrid's kernels: the same functions and classes, also without a GPU.

Change ``import nerfacc`` to ``from hashgrid.compat import nerfacc_0_3 as nerfacc``. Values of samples are columns,
[S, 1]; samples lie ray by ray, in the order of the distance. What differs is in docs/compat.md.
"""

from __future__ import annotations

import warnings

from hashgrid.compat.nerfacc_0_3_grid import ContractionType, Grid, OccupancyGrid, contract, contract_inv, query_grid
from hashgrid.compat.nerfacc_0_3_march import ray_aabb_intersect, ray_marching
from hashgrid.compat.nerfacc_0_3_pack import (
    loss_distortion,
    pack_data,
    pack_info,
    ray_resampling,
    unpack_data,
    unpack_info,
)
from hashgrid.compat.nerfacc_0_3_render import (
    accumulate_along_rays,
    render_transmittance_from_alpha,
    render_transmittance_from_density,
    render_visibility,
    render_weight_from_alpha,
    render_weight_from_density,
    rendering,
)

__version__ = "0.3.3"

__all__ = [
    "ContractionType",
    "Grid",
    "OccupancyGrid",
    "__version__",
    "accumulate_along_rays",
    "contract",
    "contract_inv",
    "loss_distortion",
    "pack_data",
    "pack_info",
    "query_grid",
    "ray_aabb_intersect",
    "ray_marching",
    "ray_resampling",
    "render_transmittance_from_alpha",
    "render_transmittance_from_density",
    "render_visibility",
    "render_weight_from_alpha",
    "render_weight_from_density",
    "rendering",
    "unpack_data",
    "unpack_info",
    "unpack_to_ray_indices",
]

distortion = loss_distortion  # as `nerfacc.losses` calls it


def unpack_to_ray_indices(*args, **kwargs):  # type: ignore[no-untyped-def]
    """`unpack_info`, with a warning that it is called so today."""
    warnings.warn("`unpack_to_ray_indices` is called `unpack_info` today", DeprecationWarning, stacklevel=2)
    return unpack_info(*args, **kwargs)
