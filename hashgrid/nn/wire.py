"""WIRE (Saragadam et al. 2023): networks of complex Gabor wavelets."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hashgrid.util.choices import as_integer


class Wire(nn.Module):
    """Layers of ``exp(j w0 z - |s0 z|^2)`` of complex linear functions z, for inputs in [-1, 1]^D; the real part of the
    last layer is returned.

    A wavelet is as large as ``exp((w0 / s0)^2 / 4)`` for some z, and so many layers of them multiply: with
    ``w0 / s0`` above 1.5 (2.5 in two dimensions) training may end in numbers that are none. Published sizes:
    images ``w0=20, s0=30``; noisy images 5 and 5, superresolution 8 and 6, tomography 10 and 10, occupancy 10 and 40.

    Args:
        n_input_dims: inputs.
        n_output_dims: outputs.
        n_neurons: width of a real network with as many parameters: a layer has ``n_neurons / sqrt(2)`` wavelets,
            or ``n_neurons / 2`` with two windows.
        n_hidden_layers: layers of wavelets; the paper's "2 hidden layers" are 3 of them.
        w0: frequency.
        s0: inverse width.
        windows: 1, or 2 for wavelets whose window is that of two linear functions (the paper's two-dimensional ones).
        trainable: whether w0 and s0 of each layer are parameters.
        w0_first: frequency of the first layer, of real functions, in which no wavelet is above 1; None for ``w0``. It
            grows with the signal, as that of :class:`Siren`.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> Wire(2, 3, n_neurons=64)(torch.rand(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        n_neurons: int = 256,
        n_hidden_layers: int = 3,
        w0: float = 20.0,
        s0: float = 30.0,
        windows: int = 1,
        trainable: bool = False,
        w0_first: float | None = None,
    ) -> None:
        super().__init__()
        w0_first = w0 if w0_first is None else w0_first
        n_input_dims, n_output_dims = (
            as_integer("n_input_dims", n_input_dims),
            as_integer("n_output_dims", n_output_dims),
        )
        if windows not in (1, 2):
            raise ValueError(f"`windows` must be 1 or 2, got {windows}")
        if not (0 <= min(w0, w0_first) and max(w0, w0_first) < math.inf and 0 < s0 < math.inf):
            raise ValueError(
                f"`w0` and `w0_first` must be at least 0 and `s0` above it, all finite, got {w0}, {w0_first} and {s0}"
            )
        width = max(int(n_neurons / (math.sqrt(2) if windows == 1 else 2)), min(n_neurons, 1))
        if min(n_input_dims, n_output_dims, width, n_hidden_layers) < 1:
            sizes = f"{n_input_dims}, {n_output_dims}, {n_neurons} and {n_hidden_layers}"
            raise ValueError(f"inputs, outputs, neurons and hidden layers must be positive, got {sizes}")
        self.n_input_dims, self.n_output_dims = n_input_dims, n_output_dims
        self.layers = nn.ModuleList(
            GaborWavelets(width if i else n_input_dims, width, w0 if i else w0_first, s0, windows, i == 0, trainable)
            for i in range(n_hidden_layers)
        )
        self.output = ComplexLinear(width, n_output_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [..., out] of inputs ``x`` [..., in].

        Raises:
            ValueError: the last dimension of ``x`` does not fit.
        """
        if x.dim() == 0 or x.shape[-1] != self.n_input_dims:
            raise ValueError(f"`x` must have shape [..., {self.n_input_dims}], got {list(x.shape)}")
        for layer in self.layers:
            x = layer(x)
        return self.output.real(x)


class ComplexLinear(nn.Module):
    """A complex linear function as a real one: real parts [..., in], then imaginary ones, to the same of the outputs.

    Args:
        n_in: complex inputs, or real ones.
        n_out: complex outputs.
        real_input: whether inputs are real and weights, too.
    """

    def __init__(self, n_in: int, n_out: int, real_input: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1 if real_input else 2, n_out, n_in))  # real and imaginary part
        self.bias = nn.Parameter(torch.empty(1 if real_input else 2, n_out))
        bound = 1 / math.sqrt(n_in)  # PyTorch's own of each part
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        if len(self.weight) == 1:
            return F.linear(x, self.weight[0], self.bias[0])
        real, imaginary = self.weight
        weight = torch.cat((torch.cat((real, -imaginary), dim=1), torch.cat((imaginary, real), dim=1)))
        return F.linear(x, weight, self.bias.flatten())

    def real(self, x: Tensor) -> Tensor:
        """The real part [..., out] alone."""
        real, imaginary = self.weight
        return F.linear(x, torch.cat((real, -imaginary), dim=1), self.bias[0])


class GaborWavelets(nn.Module):
    """A layer of wavelets: real and imaginary parts [..., 2 out] of [..., in] (the first layer) or [..., 2 in]."""

    w0: Tensor
    s0: Tensor

    def __init__(
        self, n_in: int, n_out: int, w0: float, s0: float, windows: int, is_first: bool, trainable: bool
    ) -> None:
        super().__init__()
        self.linear = ComplexLinear(n_in, n_out, is_first)
        self.across = ComplexLinear(n_in, n_out, is_first) if windows == 2 else None
        for name, value in (("w0", w0), ("s0", s0)):
            if trainable:
                self.register_parameter(name, nn.Parameter(torch.tensor(float(value))))
            else:
                self.register_buffer(name, torch.tensor(float(value)))
        self.is_first = is_first

    def forward(self, x: Tensor) -> Tensor:
        z = self.linear(x)
        window = self._square(z) if self.across is None else self._square(z) + self._square(self.across(x))
        if self.is_first:  # z is real
            phase, exponent = self.w0 * z, -self.s0.square() * window
        else:
            real, imaginary = z.chunk(2, dim=-1)
            phase, exponent = self.w0 * real, -self.w0 * imaginary - self.s0.square() * window
        # what is far from a wavelet is nothing, not denormal numbers, which take six times as long
        size = F.threshold(exponent.exp(), torch.finfo(z.dtype).tiny ** 0.5, 0.0)
        return torch.cat((size * phase.cos(), size * phase.sin()), dim=-1)

    def _square(self, z: Tensor) -> Tensor:
        """``|z|^2``."""
        return z.square() if self.is_first else z.unflatten(-1, (2, -1)).square().sum(-2)
