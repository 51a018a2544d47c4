"""nerfacc's Python API on hashgrid's kernels: the same functions on a machine with or without a GPU.

``from hashgrid.compat import nerfacc`` instead of ``import nerfacc``; submodules have nerfacc's names. What differs is
in docs/compat.md.
"""

from __future__ import annotations

from hashgrid.compat.nerfacc.data_specs import RayIntervals, RaySamples
from hashgrid.compat.nerfacc.estimators.occ_grid import OccGridEstimator
from hashgrid.compat.nerfacc.estimators.prop_net import PropNetEstimator
from hashgrid.compat.nerfacc.grid import ray_aabb_intersect, traverse_grids
from hashgrid.compat.nerfacc.losses import distortion
from hashgrid.compat.nerfacc.pack import pack_info
from hashgrid.compat.nerfacc.pdf import importance_sampling, searchsorted
from hashgrid.compat.nerfacc.scan import exclusive_prod, exclusive_sum, inclusive_prod, inclusive_sum
from hashgrid.compat.nerfacc.volrend import (
    accumulate_along_rays,
    accumulate_along_rays_,
    render_transmittance_from_alpha,
    render_transmittance_from_density,
    render_visibility_from_alpha,
    render_visibility_from_density,
    render_weight_from_alpha,
    render_weight_from_density,
    rendering,
)

__version__ = "0.5.3"  # whose API this is

__all__ = [
    "OccGridEstimator",
    "PropNetEstimator",
    "RayIntervals",
    "RaySamples",
    "__version__",
    "accumulate_along_rays",
    "accumulate_along_rays_",
    "distortion",
    "exclusive_prod",
    "exclusive_sum",
    "importance_sampling",
    "inclusive_prod",
    "inclusive_sum",
    "pack_info",
    "ray_aabb_intersect",
    "render_transmittance_from_alpha",
    "render_transmittance_from_density",
    "render_visibility_from_alpha",
    "render_visibility_from_density",
    "render_weight_from_alpha",
    "render_weight_from_density",
    "rendering",
    "searchsorted",
    "traverse_grids",
]
