"""Fourier features of points: sines and cosines in random directions, fixed or learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hashgrid.nn import jets
from hashgrid.ops._backend import backend_ops
from hashgrid.ops._tensors import maths_dtype
from hashgrid.util.choices import BACKENDS, as_integer, check_option


class RandomFourier(nn.Module):
    """``sin(2 pi B x), cos(2 pi B x)`` with ``B`` drawn from N(0, scale^2) (Tancik et al. 2020, section 5): a kernel
    ``exp(-2 pi^2 scale^2 |x - y|^2)``, on average.

    The scale is in periods per unit: on the unit cube 10 suits photos, on [-1, 1]^D half of that does. Too small
    a one blurs, too large a one makes noise between the points that were learned.

    Args:
        n_input_dims: dimensions D of the points.
        n_features: rows m of ``B``; there are twice as many outputs, the sines first.
        scale: standard deviation of the frequencies.
        backend: ``"native"`` or ``"reference"``.

    Attributes:
        frequencies: buffer ``B`` [m, D], saved with the state: a network is worth nothing with another one.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> RandomFourier(2, n_features=64, scale=10.0)(torch.rand(5, 2)).shape
        torch.Size([5, 128])
    """

    n_levels = 0
    frequencies: Tensor

    def __init__(self, n_input_dims: int, n_features: int = 256, scale: float = 10.0, backend: str = "native") -> None:
        super().__init__()
        n_input_dims, n_features = as_integer("n_input_dims", n_input_dims), as_integer("n_features", n_features)
        if min(n_input_dims, n_features) < 1:
            raise ValueError(f"`n_input_dims` and `n_features` must be positive, got {n_input_dims} and {n_features}")
        if not 0 < scale < math.inf:
            raise ValueError(f"`scale` must be positive and finite, got {scale}")
        self.n_input_dims, self.n_features, self.scale = n_input_dims, n_features, scale
        self.n_output_dims = 2 * n_features
        self.backend = check_option("backend", backend, BACKENDS)
        self._keep(scale * torch.randn(n_features, n_input_dims))

    def _keep(self, frequencies: Tensor) -> None:
        self.register_buffer("frequencies", frequencies)

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Features [..., 2 m] of points [..., D]; there are no levels to weigh."""
        if x.dim() == 0 or x.shape[-1] != self.n_input_dims:
            raise ValueError(f"`x` must have shape [..., {self.n_input_dims}], got {list(x.shape)}")
        layer = self._layer()
        # of half precision, under autocast, nothing would be left of many turns
        return backend_ops(self.backend).mlp(x, **layer, compute_dtype=maths_dtype(self.frequencies))

    def jet(
        self, x: Tensor, directions: Tensor, accelerations: Tensor | None = None, operators: Tensor | None = None
    ) -> jets.Jet:
        """Features with first and second derivatives; see `derivatives_along`."""
        layer = self._layer()
        return backend_ops(self.backend).mlp_jet(
            x, directions, **layer, accelerations=accelerations, operators=operators
        )

    def _layer(self) -> dict[str, object]:
        """The features as a layer of sines: a cosine is a sine a quarter of a turn ahead."""
        weight = 2 * math.pi * self.frequencies
        phases = weight.new_zeros(2, self.n_features)
        phases[1] = math.pi / 2
        return {
            "weights": [torch.cat((weight, weight))],
            "biases": [phases.flatten()],
            "output_activation": "sine",
        }

    def extra_repr(self) -> str:
        return f"{self.n_input_dims}, n_features={self.n_features}, scale={self.scale}, backend={self.backend!r}"


class LearnedFourier(RandomFourier):
    """The same with ``B`` a parameter, of 2 pi times the gradient that a network's weights get in its place: it wants a
    smaller learning rate than they do, and begins to matter from where it starts.

    Args:
        n_input_dims: dimensions D of the points.
        n_features: rows m of ``B``; there are twice as many outputs, the sines first.
        scale: standard deviation of the frequencies at the start.
        backend: ``"native"`` or ``"reference"``.

    Raises:
        ValueError: an argument is out of range.
    """

    def _keep(self, frequencies: Tensor) -> None:
        self.frequencies = nn.Parameter(frequencies)
