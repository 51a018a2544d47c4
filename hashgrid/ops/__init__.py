"""The ops on the native kernels; ``hashgrid.reference`` has a plain-PyTorch twin of each, with the same signature."""

from hashgrid.ops.adam_step import adam_step
from hashgrid.ops.composite import composite
from hashgrid.ops.counter_uniform import counter_uniform
from hashgrid.ops.frequency_encode import frequency_encode
from hashgrid.ops.hash_encode import hash_encode
from hashgrid.ops.hash_encode_jet import hash_encode_jet
from hashgrid.ops.line_integrals import line_integrals
from hashgrid.ops.march_rays import march_rays
from hashgrid.ops.mlp import mlp
from hashgrid.ops.mlp_jet import mlp_jet
from hashgrid.ops.ray_aabb import ray_aabb
from hashgrid.ops.sh_encode import sh_encode
from hashgrid.ops.sphere_trace import sphere_trace

__all__ = [
    "adam_step",
    "composite",
    "counter_uniform",
    "frequency_encode",
    "hash_encode",
    "hash_encode_jet",
    "line_integrals",
    "march_rays",
    "mlp",
    "mlp_jet",
    "ray_aabb",
    "sh_encode",
    "sphere_trace",
]
