"""Networks evaluated to the same bits by every machine.

Floating-point sums depend on their order, and a matrix product's order is the library's own affair. Here every factor
is an integer that float64 holds exactly, and so is every partial sum, as long as none passes 2^53: then no sum is
rounded, and order, vector width, threads and fused multiply-adds make no difference. :func:`product` checks that bound.
Everything else is done element by element, one NumPy operation after the other, and IEEE 754 defines the bits of each
addition, multiplication, rounding and comparison.
"""

from __future__ import annotations

import math

import numpy as np

from hashgrid.compress.entropy import CodecError

EXACT = 2.0**53  # integers below are float64 numbers
_SINE = [(-1.0) ** k / math.factorial(2 * k + 1) for k in range(8)]  # quotients of exact integers: correctly rounded


def product(x: np.ndarray, weights: np.ndarray, bias: np.ndarray, largest: float) -> np.ndarray:
    """``x @ weights.T + bias`` of integers in float64: [N, in], [out, in], [out] -> [N, out].

    Args:
        largest: magnitude that no entry of ``x`` passes.

    Raises:
        CodecError: a sum could pass 2^53.
    """
    bound = float((np.abs(weights).sum(axis=1) * largest + np.abs(bias)).max(initial=0))
    if not bound < EXACT:
        raise CodecError(f"weights are too large to sum exactly: a sum may reach {bound:.3g}, the limit is 2^53")
    return x @ weights.T + bias


def sine_of_turns(turns: np.ndarray) -> np.ndarray:
    """``sin(2 pi turns)`` with an error below 1e-10, by operations whose bits IEEE 754 defines."""
    turns = turns - np.rint(turns)  # [-1/2, 1/2], exactly
    turns = np.where(np.abs(turns) > 0.25, np.copysign(0.5, turns) - turns, turns)
    x = turns * 6.283185307179586
    square = x * x
    y = np.full_like(x, _SINE[-1])
    for coefficient in reversed(_SINE[:-1]):
        y *= square
        y += coefficient
    return y * x
