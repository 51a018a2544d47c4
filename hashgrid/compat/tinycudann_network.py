"""tiny-cuda-nn's multilayer perceptron as a function of the stretch of flat ``params`` that holds its matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hashgrid.compat.tinycudann_layout import Grid, next_multiple
from hashgrid.compat.tinycudann_start import Pcg32, sine_bound, uniform_matrix, xavier_bound
from hashgrid.nn.fused_mlp import MAX_HIDDEN_LAYERS
from hashgrid.ops._backend import backend_ops, ngp_ops
from hashgrid.util.autograd import is_recorded
from hashgrid.util.choices import ACTIVATIONS

NETWORK_MULTIPLE = 16  # inputs and outputs are padded to multiples of it
_SHARPNESS = 10.0  # of softplus and squareplus
_MAX_KERNEL_LAYERS = MAX_HIDDEN_LAYERS + 1


class Layers:
    """A multilayer perceptron without biases, its weights [out, in] row by row one behind the other.

    Args:
        n_inputs: a multiple of 16.
        n_output_dims: rows of the last layer that are used; its others fill it up to a multiple of 16.
        n_neurons: width of the hidden layers.
        n_hidden_layers: how many.
        activation: of the hidden layers: one of `hashgrid.util.choices.ACTIVATIONS`, or "squareplus".
        output_activation: of the last layer, likewise.
        backend: "native" or "reference".
    """

    def __init__(
        self,
        n_inputs: int,
        n_output_dims: int,
        n_neurons: int,
        n_hidden_layers: int,
        activation: str,
        output_activation: str,
        backend: str,
    ) -> None:
        widths = [n_inputs, *[n_neurons] * n_hidden_layers, next_multiple(n_output_dims, NETWORK_MULTIPLE)]
        self.n_output_dims = n_output_dims
        self.activation, self.output_activation, self.backend = activation, output_activation, backend
        self.shapes = [(n_out, n_in) for n_in, n_out in zip(widths, widths[1:], strict=False)]
        self.sizes = tuple(n_out * n_in for n_out, n_in in self.shapes)

    def weights(self, params: Sequence[Tensor], n_inputs: int) -> list[Tensor]:
        """Matrices [out, in], without the first one's columns from ``n_inputs`` on and the last one's unused rows."""
        matrices = [flat.view(shape) for flat, shape in zip(params, self.shapes, strict=True)]
        matrices[-1] = matrices[-1][: self.n_output_dims]
        matrices[0] = matrices[0][:, :n_inputs]
        return matrices

    def __call__(self, x: Tensor, params: Sequence[Tensor], compute_dtype: torch.dtype | None) -> Tensor:
        """Outputs [..., n_output_dims] of ``x`` [..., in], where inputs that are missing at the end are zero."""
        weights = self.weights(params, x.shape[-1])
        n = len(weights)
        most = _MAX_KERNEL_LAYERS if self.activation in ACTIVATIONS else 1
        for begin in range(0, n, most):
            end = min(begin + most, n)
            last = self.output_activation if end == n else self.activation
            x = backend_ops(self.backend).mlp(
                x, weights[begin:end], compute_dtype=compute_dtype, **self._kernel_activations(last)
            )
            x = x if _is_of_kernels(last) else _soft(x, last)
        return x

    def fused(
        self, grid: Grid, x: Tensor, params: Sequence[Tensor], compute_dtype: torch.dtype | None
    ) -> Tensor | None:
        """Outputs behind a grid by one kernel; None where there is none, or a gradient is recorded."""
        n = len(self.shapes)
        is_whole = n <= _MAX_KERNEL_LAYERS and self.activation in ACTIVATIONS and _is_of_kernels(self.output_activation)
        if not is_whole or is_recorded(x, *params):
            return None
        weights = self.weights(params[:n], grid.n_features)
        return ngp_ops(self.backend).hash_encode_mlp(
            **grid.op_arguments(x, params[n:]),
            weights=weights,
            compute_dtype=compute_dtype,
            **self._kernel_activations(self.output_activation),
        )

    def _kernel_activations(self, last: str) -> dict[str, Any]:
        return {
            "activation": self.activation if self.activation in ACTIVATIONS else "none",
            "output_activation": last if _is_of_kernels(last) else "none",
            "softplus_beta": _SHARPNESS if self.activation == "softplus" else 1.0,
        }

    def initial(self, random: Pcg32) -> list[np.ndarray]:
        """The weights to start from, flat."""
        return [
            uniform_matrix(
                random,
                n_out,
                n_in,
                sine_bound(n_in, layer == 0) if self.activation == "sine" else xavier_bound(n_out, n_in),
            )
            for layer, (n_out, n_in) in enumerate(self.shapes)
        ]


def _is_of_kernels(output_activation: str) -> bool:
    """Whether kernels have it behind a last layer, where their softplus knows no sharpness."""
    return output_activation in ACTIVATIONS and output_activation != "softplus"


def _soft(x: Tensor, activation: str) -> Tensor:
    """Softplus ``log(1 + e^(10 x)) / 10`` or squareplus ``(x + sqrt(x^2 + 0.04)) / 2`` (Barron 2021)."""
    if activation == "softplus":
        return F.softplus(x, _SHARPNESS, threshold=40)
    return (x + (x * x + 4 / _SHARPNESS**2).sqrt()) / 2
