"""Fused ops of the fast path of radiance fields, and steps of it. Private: they change with what they are made for.

``hashgrid.reference`` has plain-PyTorch twins of those that compute something of their own.
"""

from hashgrid.ops._ngp.gather_rows import gather_rows
from hashgrid.ops._ngp.hash_encode_into import hash_encode_into
from hashgrid.ops._ngp.hash_encode_mlp import hash_encode_mlp
from hashgrid.ops._ngp.hash_encode_mlp_gradient import Slopes, hash_encode_mlp_gradient
from hashgrid.ops._ngp.occupancy_points import occupancy_points
from hashgrid.ops._ngp.occupancy_update import occupancy_update
from hashgrid.ops._ngp.occupancy_values import occupancy_values
from hashgrid.ops._ngp.occupancy_visible import occupancy_visible
from hashgrid.ops._ngp.pixel_loss import pixel_loss
from hashgrid.ops._ngp.radiance_field import radiance_field
from hashgrid.ops._ngp.radiance_mlp import radiance_mlp
from hashgrid.ops._ngp.render_rays import render_rays
from hashgrid.ops._ngp.sample_positions import sample_positions
from hashgrid.ops._ngp.sample_rays import sample_rays
from hashgrid.ops._ngp.visible_cells import visible_cells
from hashgrid.ops._ngp.visible_samples import visible_samples
from hashgrid.ops._ngp.window_samples import window_samples

__all__ = [
    "Slopes",
    "gather_rows",
    "hash_encode_into",
    "hash_encode_mlp",
    "hash_encode_mlp_gradient",
    "occupancy_points",
    "occupancy_update",
    "occupancy_values",
    "occupancy_visible",
    "pixel_loss",
    "radiance_field",
    "radiance_mlp",
    "render_rays",
    "sample_positions",
    "sample_rays",
    "visible_cells",
    "visible_samples",
    "window_samples",
]
