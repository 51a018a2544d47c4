"""Every op in plain PyTorch: the truth of the tests and the baseline of the benchmarks.

Same names and signatures as ``hashgrid.ops``, any dtype, any device, nothing of the compiled extension.
"""

from hashgrid.reference.composite import composite
from hashgrid.reference.hash_encode import hash_encode
from hashgrid.reference.mlp import mlp

__all__ = ["composite", "hash_encode", "mlp"]
