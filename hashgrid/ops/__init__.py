"""The ops on the native kernels; ``hashgrid.reference`` has a plain-PyTorch twin of each, with the same signature."""

from hashgrid.ops.adam_step import adam_step
from hashgrid.ops.hash_encode import hash_encode

__all__ = ["adam_step", "hash_encode"]
