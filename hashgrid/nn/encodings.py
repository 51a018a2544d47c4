"""Encodings without parameters: spherical harmonics of directions, frequencies, bins and triangles of coordinates."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hashgrid.ops._backend import backend_ops
from hashgrid.ops._tensors import at_least_fp32
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
    """``sin(2^k pi x), cos(2^k pi x)`` of every input dimension for k below ``n_frequencies`` (Mildenhall et al. 2020,
    eq. 4).

    Args:
        n_input_dims: dimensions D of the input.
        n_frequencies: K.
        backend: ``"native"`` or ``"reference"``.
        pi: False leaves pi out, as the code of that paper does: all frequencies are then lower by 1.65 octaves.
        identity: whether ``x`` itself comes before the waves, as in that code.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> Frequency(3, n_frequencies=10, pi=False, identity=True).n_output_dims
        63
    """

    def __init__(
        self,
        n_input_dims: int,
        n_frequencies: int = 12,
        backend: str = "native",
        pi: bool = True,
        identity: bool = False,
    ) -> None:
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
        self.pi, self.identity = pi, identity
        self.n_levels = n_frequencies
        self.n_output_dims = n_input_dims * (2 * n_frequencies + identity)

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Encoding [..., D * 2 * K] of ``x`` [..., D], behind ``x`` with ``identity``; ``level_weights`` [K] scale the
        frequencies, for coarse-to-fine schedules (Lin et al. 2021, eq. 14)."""
        y = self._waves(x)
        if level_weights is not None:
            if level_weights.shape != (self.n_levels,):
                raise ValueError(f"`level_weights` must have shape [{self.n_levels}], got {list(level_weights.shape)}")
            y = self._scaled(y, level_weights.to(y.dtype))
        return torch.cat((x.to(y.dtype), y), dim=-1) if self.identity else y

    def _waves(self, x: Tensor) -> Tensor:
        check_positions(x, self.n_input_dims)
        return backend_ops(self.backend).frequency_encode(x, self.n_frequencies, self.pi)

    def _scaled(self, y: Tensor, factors: Tensor) -> Tensor:
        """Waves times ``factors`` [K] or [..., D, K]."""
        return (y.unflatten(-1, (self.n_input_dims, self.n_frequencies, 2)) * factors[..., None]).flatten(-3)

    def extra_repr(self) -> str:
        options = f"pi={self.pi}, identity={self.identity}, backend={self.backend!r}"
        return f"{self.n_input_dims}, n_frequencies={self.n_frequencies}, {options}"


class IntegratedFrequency(Frequency):
    """The mean of :class:`Frequency` over a Gaussian: waves shorter than it fade (Barron et al. 2021, mip-NeRF, eq. 13
    and 14).

    Args:
        n_input_dims: dimensions D of the input.
        n_frequencies: K.
        backend: ``"native"`` or ``"reference"``.
        pi: whether frequencies have the factor pi; that paper's have not.
        deviation: standard deviation along every axis where ``forward`` is not told variances.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        n_input_dims: int,
        n_frequencies: int = 16,
        backend: str = "native",
        pi: bool = False,
        deviation: float = 0.0,
    ) -> None:
        super().__init__(n_input_dims, n_frequencies, backend, pi)
        if not 0 <= deviation < math.inf:
            raise ValueError(f"`deviation` must be non-negative and finite, got {deviation}")
        self.deviation = deviation

    def forward(self, x: Tensor, level_weights: Tensor | None = None, variances: Tensor | None = None) -> Tensor:
        """Encoding [..., D * 2 * K] of Gaussians with means ``x`` [..., D] and a diagonal of the covariance
        ``variances`` [..., D], in the same units squared."""
        y = super().forward(x, level_weights)
        if variances is None:
            variances = torch.full_like(x, self.deviation**2)
        elif variances.shape != x.shape:
            raise ValueError(f"`variances` must have shape {list(x.shape)}, got {list(variances.shape)}")
        octaves = torch.arange(self.n_frequencies, device=x.device, dtype=y.dtype)
        squares = 4.0**octaves * (math.pi**2 if self.pi else 1.0)  # of angular frequencies
        return self._scaled(y, torch.exp(-0.5 * squares * variances.to(y.dtype)[..., None]))


class TriangleWave(nn.Module):
    """``4 |t - floor(t) - 1/2| - 1`` with ``t = 2^(k - 1) x + k / 4`` of every input dimension for k below
    ``n_frequencies``: the sines of :class:`Frequency`, cheaper and with corners (Müller et al. 2021, Real-time Neural
    Radiance Caching, section 4.1). tiny-cuda-nn's order and phases. Plain PyTorch.

    Args:
        n_input_dims: dimensions D of the input.
        n_frequencies: K, 1..64.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> TriangleWave(1, n_frequencies=3)(torch.tensor([[0.0], [0.25]]))
        tensor([[ 1.0000,  0.0000, -1.0000],
                [ 0.5000, -1.0000,  1.0000]])
    """

    n_levels = 0

    def __init__(self, n_input_dims: int, n_frequencies: int = 12) -> None:
        super().__init__()
        self.n_input_dims = as_integer("n_input_dims", n_input_dims)
        self.n_frequencies = as_integer("n_frequencies", n_frequencies)
        if self.n_input_dims < 1 or not 1 <= self.n_frequencies <= 64:
            raise ValueError(
                "`n_input_dims` must be at least 1 and `n_frequencies` in 1..64, got"
                f" {n_input_dims} and {n_frequencies}"
            )
        self.n_output_dims = self.n_input_dims * self.n_frequencies

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Waves [..., D * K] of ``x`` [..., D], channel ``d * K + k``."""
        check_positions(x, self.n_input_dims)
        x = at_least_fp32(x)
        octaves = torch.arange(self.n_frequencies, device=x.device, dtype=x.dtype)
        t = x.unsqueeze(-1) * 2.0 ** (octaves - 1) + octaves / 4
        return ((t - t.floor() - 0.5).abs() * 4 - 1).flatten(-2)

    def extra_repr(self) -> str:
        return f"{self.n_input_dims}, n_frequencies={self.n_frequencies}"


class OneBlob(nn.Module):
    """How much of a blob around ``x`` lies in each of ``n_bins`` equal parts of [0, 1] (Müller et al. 2019, Neural
    Importance Sampling, section 4.3): ``C(b + 1) - C(b)``, where ``C(b)`` is the integral up to ``b / B`` of the
    quartic kernel ``15/16 (1 - u^2)^2``, ``u = B (t - x)``, and what leaves at one end comes in at the other. As in
    tiny-cuda-nn; plain PyTorch.

    Args:
        n_input_dims: dimensions D of the input.
        n_bins: B.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> OneBlob(1, n_bins=4)(torch.tensor([[0.375]]))
        tensor([[0.1035, 0.7930, 0.1035, 0.0000]])
    """

    n_levels = 0

    def __init__(self, n_input_dims: int, n_bins: int = 16) -> None:
        super().__init__()
        self.n_input_dims = as_integer("n_input_dims", n_input_dims)
        self.n_bins = as_integer("n_bins", n_bins)
        if min(self.n_input_dims, self.n_bins) < 1:
            raise ValueError(f"`n_input_dims` and `n_bins` must be at least 1, got {n_input_dims} and {n_bins}")
        self.n_output_dims = self.n_input_dims * self.n_bins

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Shares [..., D * B] of ``x`` [..., D] in [0, 1], channel ``d * B + b``."""
        check_positions(x, self.n_input_dims)
        x = at_least_fp32(x)
        borders = torch.arange(self.n_bins + 1, device=x.device, dtype=x.dtype) / self.n_bins
        turns = torch.arange(-1, 2, device=x.device, dtype=x.dtype)
        u = (borders + turns[:, None] - x[..., None, None]) * self.n_bins  # [..., D, 3, B + 1]
        square = u * u
        integrals = (0.9375 * u * (1 - square * (2 / 3 - square / 5)) + 0.5).clamp(0, 1).sum(-2)
        return integrals.diff(dim=-1).flatten(-2)

    def extra_repr(self) -> str:
        return f"{self.n_input_dims}, n_bins={self.n_bins}"


def check_positions(x: Tensor, n_input_dims: int) -> None:
    """Raises `ValueError` unless ``x`` is [..., n_input_dims]."""
    if x.dim() == 0 or x.shape[-1] != n_input_dims:
        raise ValueError(f"`x` must have shape [..., {n_input_dims}], got {list(x.shape)}")
