"""Multiplicative filter networks (Fathony et al. 2021) and BACON (Lindell et al. 2022), whose spectra are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hashgrid.nn import jets
from hashgrid.ops._backend import backend_ops
from hashgrid.ops._tensors import at_least_fp32, maths_dtype
from hashgrid.util.choices import BACKENDS, as_integer, check_option


class FilterNetwork(nn.Module):
    """Products of filters of the input: ``z_0 = g_0(x)``, ``z_i = g_i(x) * (W_i z_(i-1) + b_i)``, linear outputs.

    Args:
        n_input_dims: inputs.
        n_output_dims: outputs.
        n_neurons: width.
        n_hidden_layers: products L; there is one filter more.
        backend: ``"native"`` or ``"reference"``.

    Attributes:
        frequencies: [(L + 1) * width, D] of the filters' sines, in radians per unit; a parameter.
        phases: [(L + 1) * width].
        weights: ParameterList of L times [width, width].
        biases: ParameterList of L times [width].
        heads: ModuleDict of linear outputs by the number of products before them.
    """

    frequencies: Tensor

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        n_neurons: int,
        n_hidden_layers: int,
        frequencies: Tensor,
        weight_bound: float,
        head_layers: Sequence[int],
        backend: str,
    ) -> None:
        super().__init__()
        self.n_input_dims, self.n_output_dims = as_integer("n_input_dims", n_input_dims), n_output_dims
        self.n_neurons, self.n_hidden_layers = n_neurons, n_hidden_layers
        self.backend = check_option("backend", backend, BACKENDS)
        self._keep(frequencies)
        self.phases = nn.Parameter(torch.empty(len(frequencies)).uniform_(-math.pi, math.pi))
        layers = range(n_hidden_layers)
        self.weights = nn.ParameterList([torch.empty(n_neurons, n_neurons) for _ in layers])
        self.biases = nn.ParameterList([torch.empty(n_neurons) for _ in layers])
        self.heads = nn.ModuleDict({str(layer): nn.Linear(n_neurons, n_output_dims) for layer in head_layers})
        for weight in (*self.weights, *(head.weight for head in self.heads.values())):
            nn.init.uniform_(weight, -weight_bound, weight_bound)
        for bias in self.biases:
            nn.init.uniform_(bias, -1 / math.sqrt(n_neurons), 1 / math.sqrt(n_neurons))

    def _keep(self, frequencies: Tensor) -> None:
        self.frequencies = nn.Parameter(frequencies)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [..., out] of inputs ``x`` [..., in].

        Raises:
            ValueError: the last dimension of ``x`` does not fit.
        """
        return self.outputs(x, [self.n_hidden_layers])[0]

    def outputs(self, x: Tensor, after: Sequence[int] | None = None) -> list[Tensor]:
        """Outputs [..., out] of the heads ``after`` so many products, or of all."""
        after = [int(name) for name in self.heads] if after is None else after
        results, z = [], None
        for layer, g in enumerate(self.filters(x)):
            z = g if z is None else g * F.linear(z, *self._linear(layer))
            if layer in after:
                results.append(F.linear(z, *self._head(layer)))
        return results

    def jet(
        self, x: Tensor, directions: Tensor, accelerations: Tensor | None = None, operators: Tensor | None = None
    ) -> jets.Jet:
        """Outputs of the last head with first and second derivatives; see `derivatives_along`."""
        sines = backend_ops(self.backend).mlp_jet(
            x, directions, **self._sines(), accelerations=accelerations, operators=operators
        )
        whole = self._windowed(sines, (x, directions, accelerations), operators)
        z: jets.Jets | None = None
        for layer in range(self.n_hidden_layers + 1):
            g = jets.channels(whole, slice(layer * self.n_neurons, (layer + 1) * self.n_neurons))
            if z is not None:
                g = jets.product(g, jets.linear(z, *self._linear(layer)), operators)
            z = g
        assert z is not None
        return jets.linear(z, *self._head(self.n_hidden_layers))  # type: ignore[return-value]

    def _linear(self, layer: int) -> tuple[Tensor, Tensor]:
        """Weight and bias before product number ``layer``; of half precision, as fp32."""
        return at_least_fp32(self.weights[layer - 1]), at_least_fp32(self.biases[layer - 1])

    def _head(self, layer: int) -> tuple[Tensor, Tensor]:
        head = self.heads[str(layer)]
        return at_least_fp32(head.weight), at_least_fp32(head.bias)  # type: ignore[arg-type]

    def filters(self, x: Tensor) -> Sequence[Tensor]:
        """The L + 1 filters [..., width] at ``x`` [..., in]."""
        if x.dim() == 0 or x.shape[-1] != self.n_input_dims:
            raise ValueError(f"`x` must have shape [..., {self.n_input_dims}], got {list(x.shape)}")
        # of half precision, under autocast, nothing would be left of many turns
        sines = backend_ops(self.backend).mlp(x, **self._sines(), compute_dtype=maths_dtype(self.frequencies))
        window = self.window(x)
        return (sines if window is None else sines * window).split(self.n_neurons, dim=-1)

    def window(self, x: Tensor) -> Tensor | None:
        """What the sines are multiplied by; None for 1."""
        return None

    def _windowed(self, sines: jets.Jet, x: jets.Jets, operators: Tensor | None) -> jets.Jet:
        return sines

    def _sines(self) -> dict[str, object]:
        return {"weights": [self.frequencies], "biases": [self.phases], "output_activation": "sine"}


class MultiplicativeFilterNetwork(FilterNetwork):
    """Products of sines (``filters="fourier"``), or of sines within Gaussians (``"gabor"``), with linear functions
    between them (Fathony et al. 2021): a sum of exponentially many of them, for inputs in [-1, 1]^D.

    Args:
        n_input_dims: inputs.
        n_output_dims: outputs.
        n_neurons: width.
        n_hidden_layers: products L; there is one filter more.
        filters: ``"fourier"`` or ``"gabor"``.
        input_scale: all frequencies together are up to this large, in radians per unit.
        weight_scale: of the linear functions, drawn up to ``sqrt(weight_scale / width)``. With 1 each product
            loses a factor of 6 in power, and with 6 none (Lindell et al. 2022).
        alpha: of the Gamma distribution of the Gaussians' inverse variances, for all filters together.
        backend: ``"native"`` or ``"reference"``.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> MultiplicativeFilterNetwork(2, 3, n_neurons=64, filters="gabor")(torch.rand(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        n_neurons: int = 256,
        n_hidden_layers: int = 3,
        filters: Literal["fourier", "gabor"] = "fourier",
        input_scale: float = 256.0,
        weight_scale: float = 1.0,
        alpha: float = 6.0,
        backend: str = "native",
    ) -> None:
        check_sizes(n_input_dims, n_output_dims, n_neurons, n_hidden_layers)
        check_option("filters", filters, ("fourier", "gabor"))
        if not min(input_scale, weight_scale, alpha) > 0:
            raise ValueError(
                "`input_scale`, `weight_scale` and `alpha` must be positive, got"
                f" {input_scale}, {weight_scale} and {alpha}"
            )
        n_filters, shape = n_hidden_layers + 1, ((n_hidden_layers + 1) * n_neurons, n_input_dims)
        bound = input_scale / math.sqrt(n_filters * n_input_dims)
        frequencies = torch.empty(shape).uniform_(-bound, bound)
        gamma = None
        if filters == "gabor":
            concentration = torch.full(shape[:1], alpha / n_filters)
            gamma = torch._standard_gamma(concentration)
            frequencies *= gamma.sqrt()[:, None]
        super().__init__(
            n_input_dims,
            n_output_dims,
            n_neurons,
            n_hidden_layers,
            frequencies,
            math.sqrt(weight_scale / n_neurons),
            [n_hidden_layers],
            backend,
        )
        self.gamma = None if gamma is None else nn.Parameter(gamma)  # [(L + 1) * width]
        self.mu = None if gamma is None else nn.Parameter(torch.empty(shape).uniform_(-1, 1))

    def window(self, x: Tensor) -> Tensor | None:
        if self.mu is None or self.gamma is None:
            return None
        x, mu, gamma = (at_least_fp32(tensor) for tensor in (x, self.mu, self.gamma))
        # axis by axis: a product would be smaller and be rounded under autocast
        square = sum((x[..., d, None] - mu[:, d]).square() for d in range(self.n_input_dims))
        return torch.exp(-0.5 * gamma * square)

    def _windowed(self, sines: jets.Jet, x: jets.Jets, operators: Tensor | None) -> jets.Jet:
        if self.mu is None:
            return sines
        window: jets.Stage = self.window  # type: ignore[assignment]
        return jets.product(sines, jets.of_function(window)(*x, operators), operators)


class Bacon(FilterNetwork):
    """A multiplicative filter network of frozen, whole frequencies, whose output after each product has a known band:
    one network, several scales, no energy beyond (Lindell et al. 2022). It repeats itself in every unit of
    length: the unit cube is one period, and shapes want a margin in it.

    Args:
        n_input_dims: inputs.
        n_output_dims: outputs.
        n_neurons: width.
        n_hidden_layers: products L.
        resolution: samples per unit of length, of which half is the largest frequency.
        scales: shares of it of the L + 1 filters; those up to a product make its band.
        output_layers: products behind which there is an output; the last one is always.
        backend: ``"native"`` or ``"reference"``.

    Attributes:
        frequencies: buffer of whole numbers, in periods per unit.
        bands: largest frequency behind each output, in periods per unit, along each axis.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> bacon = Bacon(2, 3, n_neurons=64, resolution=256)
        >>> bacon.bands, len(bacon.outputs(torch.rand(5, 2)))
        ([32, 64, 128], 3)
    """

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        n_neurons: int = 256,
        n_hidden_layers: int = 4,
        resolution: float = 256,
        scales: Sequence[float] = (1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 4),
        output_layers: Sequence[int] = (1, 2, 4),
        backend: str = "native",
    ) -> None:
        check_sizes(n_input_dims, n_output_dims, n_neurons, n_hidden_layers)
        if len(scales) != n_hidden_layers + 1 or not min(scales) >= 0:
            raise ValueError(f"`scales` must be {n_hidden_layers + 1} non-negative numbers, got {tuple(scales)}")
        if not all(0 <= layer <= n_hidden_layers for layer in output_layers):
            raise ValueError(f"`output_layers` must be in 0..{n_hidden_layers}, got {tuple(output_layers)}")
        if not 0 < resolution < math.inf:
            raise ValueError(f"`resolution` must be positive and finite, got {resolution}")
        limits = [round(resolution * scale / 2) for scale in scales]
        drawn = [torch.randint(-limit, limit + 1, (n_neurons, n_input_dims)) for limit in limits]
        head_layers = sorted({*output_layers, n_hidden_layers})
        super().__init__(
            n_input_dims,
            n_output_dims,
            n_neurons,
            n_hidden_layers,
            torch.cat(drawn).to(torch.get_default_dtype()),
            math.sqrt(6 / n_neurons),
            head_layers,
            backend,
        )
        self.bands = [sum(limits[: layer + 1]) for layer in head_layers]

    def _keep(self, frequencies: Tensor) -> None:
        self.register_buffer("frequencies", frequencies)

    def _sines(self) -> dict[str, object]:
        return {**super()._sines(), "weights": [2 * math.pi * self.frequencies]}


def check_sizes(n_input_dims: int, n_output_dims: int, n_neurons: int, n_hidden_layers: int) -> None:
    """Raises ValueError unless there are inputs, outputs and neurons, and layers that are not fewer than none."""
    if min(n_input_dims, n_output_dims, n_neurons) < 1 or n_hidden_layers < 0:
        sizes = f"{n_input_dims}, {n_output_dims}, {n_neurons} and {n_hidden_layers}"
        raise ValueError(f"inputs, outputs, neurons and hidden layers must be positive, got {sizes}")
