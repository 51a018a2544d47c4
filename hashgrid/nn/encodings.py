"""Encodings without parameters: spherical harmonics of directions, frequencies of coordinates."""

from __future__ import annotations

from torch import Tensor, nn

from hashgrid.ops._backend import backend_ops
from hashgrid.util.choices import BACKENDS, as_integer, check_option


class SphericalHarmonics(nn.Module):
    """Real spherical harmonics of unit directions, in tiny-cuda-nn's order and signs.

    Args:
        degree: number of bands, 1..8.
        backend: ``"native"`` or ``"reference"``.

    Raises:
        ValueError: an argument is out of range.
    """

    n_input_dims = 3

    def __init__(self, degree: int = 4, backend: str = "native") -> None:
        super().__init__()
        degree = as_integer("degree", degree)
        if not 1 <= degree <= 8:
            raise ValueError(f"`degree` must be in 1..8, got {degree}")
        self.degree = degree
        self.backend = check_option("backend", backend, BACKENDS)
        self.n_output_dims = degree * degree

    def forward(self, directions: Tensor) -> Tensor:
        """Harmonics [..., degree^2] of ``directions`` [..., 3]."""
        return backend_ops(self.backend).sh_encode(directions, self.degree)

    def extra_repr(self) -> str:
        return f"degree={self.degree}, backend={self.backend!r}"


class Frequency(nn.Module):
    """``sin(2^k pi x), cos(2^k pi x)`` of every input dimension for k below ``n_frequencies``.

    Args:
        n_input_dims: dimensions D of the input.
        n_frequencies: K.
        backend: ``"native"`` or ``"reference"``.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, n_input_dims: int, n_frequencies: int = 12, backend: str = "native") -> None:
        super().__init__()
        n_input_dims = as_integer("n_input_dims", n_input_dims)
        n_frequencies = as_integer("n_frequencies", n_frequencies)
        if n_input_dims < 1:
            raise ValueError(f"`n_input_dims` must be at least 1, got {n_input_dims}")
        if not 1 <= n_frequencies <= 64:
            raise ValueError(f"`n_frequencies` must be in 1..64, got {n_frequencies}")
        self.n_input_dims = n_input_dims
        self.n_frequencies = n_frequencies
        self.backend = check_option("backend", backend, BACKENDS)
        self.n_levels = n_frequencies
        self.n_output_dims = n_input_dims * 2 * n_frequencies

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Encoding [..., D * 2 * K] of ``x`` [..., D]; ``level_weights`` [K] scale the frequencies, for coarse-to-fine
        schedules (Lin et al. 2021, eq. 14)."""
        if x.dim() == 0 or x.shape[-1] != self.n_input_dims:
            raise ValueError(f"`x` must have shape [..., {self.n_input_dims}], got {list(x.shape)}")
        y = backend_ops(self.backend).frequency_encode(x, self.n_frequencies)
        if level_weights is None:
            return y
        if level_weights.shape != (self.n_levels,):
            raise ValueError(f"`level_weights` must have shape [{self.n_levels}], got {list(level_weights.shape)}")
        shape = (self.n_input_dims, self.n_frequencies, 2)
        return (y.unflatten(-1, shape) * level_weights.to(y.dtype)[:, None]).flatten(-3)

    def extra_repr(self) -> str:
        return f"{self.n_input_dims}, n_frequencies={self.n_frequencies}, backend={self.backend!r}"
