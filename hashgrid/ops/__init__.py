"""The ops on the native kernels; ``hashgrid.reference`` has a plain-PyTorch twin of each, with the same signature."""

from hashgrid.ops.adam_step import adam_step, adam_step_foreach
from hashgrid.ops.composite import composite
from hashgrid.ops.counter_uniform import counter_uniform
from hashgrid.ops.frequency_encode import frequency_encode
from hashgrid.ops.hash_encode import hash_encode
from hashgrid.ops.hash_encode_jet import hash_encode_jet
from hashgrid.ops.hash_encode_mlp import hash_encode_mlp
from hashgrid.ops.march_rays import march_rays, march_rays_fixed
from hashgrid.ops.mlp import mlp
from hashgrid.ops.mlp_jet import mlp_jet
from hashgrid.ops.occupancy_points import occupancy_points
from hashgrid.ops.occupancy_update import occupancy_update
from hashgrid.ops.occupancy_values import occupancy_values
from hashgrid.ops.occupancy_visible import occupancy_visible
from hashgrid.ops.pixel_loss import pixel_loss
from hashgrid.ops.radiance_field import radiance_field
from hashgrid.ops.radiance_mlp import radiance_mlp
from hashgrid.ops.ray_aabb import ray_aabb
from hashgrid.ops.render_rays import render_rays
from hashgrid.ops.sample_positions import sample_positions
from hashgrid.ops.sample_rays import sample_rays
from hashgrid.ops.sh_encode import sh_encode
from hashgrid.ops.sphere_trace import SphereTrace, sphere_trace
from hashgrid.ops.visible_samples import visible_samples
from hashgrid.ops.window_samples import window_samples

__all__ = [
    "SphereTrace",
    "adam_step",
    "adam_step_foreach",
    "composite",
    "counter_uniform",
    "frequency_encode",
    "hash_encode",
    "hash_encode_jet",
    "hash_encode_mlp",
    "march_rays",
    "march_rays_fixed",
    "mlp",
    "mlp_jet",
    "occupancy_points",
    "occupancy_update",
    "occupancy_values",
    "occupancy_visible",
    "pixel_loss",
    "radiance_field",
    "radiance_mlp",
    "ray_aabb",
    "render_rays",
    "sample_positions",
    "sample_rays",
    "sh_encode",
    "sphere_trace",
    "visible_samples",
    "window_samples",
]
