"""The ops on the native kernels; ``hashgrid.reference`` has a plain-PyTorch twin of each, with the same signature."""

from hashgrid.ops.hash_encode import hash_encode

__all__ = ["hash_encode"]
