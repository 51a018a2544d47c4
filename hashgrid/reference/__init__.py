"""Every op in plain PyTorch: the truth of the tests and the baseline of the benchmarks.

Same names and signatures as ``hashgrid.ops``, any dtype, any device, nothing of the compiled extension.
"""

from hashgrid.reference.adam_step import adam_step
from hashgrid.reference.composite import composite
from hashgrid.reference.counter_uniform import counter_uniform
from hashgrid.reference.frequency_encode import frequency_encode
from hashgrid.reference.hash_encode import hash_encode, hash_encode_into
from hashgrid.reference.hash_encode_jet import hash_encode_jet
from hashgrid.reference.hash_encode_mlp import hash_encode_mlp, hash_encode_mlp_gradient
from hashgrid.reference.line_integrals import line_integrals
from hashgrid.reference.march_rays import march_rays
from hashgrid.reference.mlp import mlp
from hashgrid.reference.mlp_jet import mlp_jet
from hashgrid.reference.occupancy_points import occupancy_points
from hashgrid.reference.occupancy_update import occupancy_update
from hashgrid.reference.occupancy_values import occupancy_values
from hashgrid.reference.occupancy_visible import occupancy_visible
from hashgrid.reference.pixel_loss import pixel_loss
from hashgrid.reference.radiance_field import radiance_field
from hashgrid.reference.radiance_mlp import radiance_mlp
from hashgrid.reference.ray_aabb import ray_aabb
from hashgrid.reference.render_rays import render_rays
from hashgrid.reference.sample_positions import sample_positions
from hashgrid.reference.sample_rays import sample_rays
from hashgrid.reference.sh_encode import sh_encode
from hashgrid.reference.sphere_trace import sphere_trace
from hashgrid.reference.visible_samples import visible_samples
from hashgrid.reference.window_samples import window_samples

__all__ = [
    "adam_step",
    "composite",
    "counter_uniform",
    "frequency_encode",
    "hash_encode",
    "hash_encode_into",
    "hash_encode_jet",
    "hash_encode_mlp",
    "hash_encode_mlp_gradient",
    "line_integrals",
    "march_rays",
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
