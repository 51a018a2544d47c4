"""Frequency encoding (Mildenhall et al. 2020, eq. 4) in tcnn's order, in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from hashgrid.maths import waves
from hashgrid.ops._tensors import at_least_fp32


def frequency_encode(x: Tensor, n_frequencies: int = 12, pi: bool = True) -> Tensor:
    """``sin(2^k pi x), cos(2^k pi x)`` for each input dimension and k in 0..K-1.

    Args:
        x: [..., D] (half precision is read as fp32).
        n_frequencies: K.
        pi: whether frequencies have the factor pi.

    Returns:
        [..., D * 2 * K], channel ``(d * K + k) * 2`` for the sine, the next one for the cosine.

    Raises:
        ValueError: ``n_frequencies`` is below 1 or ``x`` is a scalar.
    """
    if x.dim() < 1:
        raise ValueError("`x` must have shape [..., D], got []")
    if n_frequencies < 1:
        raise ValueError(f"`n_frequencies` must be at least 1, got {n_frequencies}")
    return waves(at_least_fp32(x), n_frequencies, pi)
