"""Networks of coordinates that are more than a chain of equal layers: skips, weight norm, dropout, sines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hashgrid.maths import activate
from hashgrid.nn import jets
from hashgrid.nn.fused_mlp import MAX_HIDDEN_LAYERS, SIREN_FREQUENCY
from hashgrid.ops._backend import backend_ops
from hashgrid.ops._tensors import maths_dtype
from hashgrid.util.choices import ACTIVATIONS, BACKENDS, FACTORS, as_integer, check_option, check_softplus_beta

BiasInit = Literal["default", "weight", "zero"]


class MLP(nn.Module):
    """Multilayer perceptron of any depth that may see its input again. Layers that follow one another run as one
    kernel, as those of :class:`FusedMLP` do: all of them without skips and dropout, up to 9.

    Three published networks differ in how the input comes back. NeRF (Mildenhall et al. 2020): ``skips=(5,)``. DeepSDF
    (Park et al. 2019): ``skips=(4,), narrow_skips=True``. IGR (Gropp et al. 2020): the same with
    ``skip_scale=2**-0.5``.

    Args:
        n_input_dims: inputs.
        n_output_dims: outputs.
        n_neurons: width of the hidden layers.
        n_hidden_layers: layers before the last one.
        activation: of the hidden layers, as of :class:`FusedMLP`.
        output_activation: of the last layer, from the same set.
        bias: adds a trainable vector after every product.
        skips: layers, counted from 0, that get the network's input beside the output of the layer before.
        skip_scale: factor of both, where they meet.
        skip_place: whether the input comes "after" the activation of the layer before or goes through it ("before").
        narrow_skips: the layer before a skip is narrower by the number of inputs, so that ``n_neurons`` stay together.
        weight_norm: rows of weights are a length times a direction (Salimans and Kingma 2016).
        dropout: share of hidden outputs that training drops.
        softplus_beta: of a hidden ``"softplus"``.
        compute_dtype: as of :class:`FusedMLP`.
        backend: ``"native"`` or ``"reference"``.

    Attributes:
        weights: ParameterList of [out, in], one per layer; with ``weight_norm`` their directions.
        biases: ParameterList of [out], empty without ``bias``.
        gains: ParameterList of lengths [out, 1], empty without ``weight_norm``.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> mlp = MLP(3, 1, 64, 8, "softplus", skips=(4,), skip_scale=2**-0.5, narrow_skips=True, softplus_beta=100)
        >>> mlp.reset_geometric(radius=0.5)
        >>> bool(mlp(torch.zeros(1, 3)) < 0)
        True
    """

    weights: nn.ParameterList
    biases: nn.ParameterList
    gains: nn.ParameterList

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        n_neurons: int = 256,
        n_hidden_layers: int = 8,
        activation: str = "relu",
        output_activation: str = "none",
        bias: bool = True,
        skips: Sequence[int] = (),
        skip_scale: float = 1.0,
        skip_place: Literal["after", "before"] = "after",
        narrow_skips: bool = False,
        weight_norm: bool = False,
        dropout: float = 0.0,
        softplus_beta: float = 1.0,
        compute_dtype: torch.dtype | None = None,
        backend: str = "native",
    ) -> None:
        super().__init__()
        n_input_dims, n_output_dims = (
            as_integer("n_input_dims", n_input_dims),
            as_integer("n_output_dims", n_output_dims),
        )
        n_neurons, n_hidden_layers = as_integer("n_neurons", n_neurons), as_integer("n_hidden_layers", n_hidden_layers)
        if min(n_input_dims, n_output_dims, n_neurons) < 1 or n_hidden_layers < 0:
            sizes = f"{n_input_dims}, {n_output_dims}, {n_neurons} and {n_hidden_layers}"
            raise ValueError(f"inputs, outputs, neurons and hidden layers must be positive, got {sizes}")
        if not all(1 <= layer <= n_hidden_layers for layer in skips):
            raise ValueError(f"`skips` must be layers in 1..{n_hidden_layers}, got {tuple(skips)}")
        if narrow_skips and n_neurons <= n_input_dims and skips:
            raise ValueError(f"`n_neurons` must be above the {n_input_dims} inputs of narrow skips, got {n_neurons}")
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {dropout}")
        if compute_dtype not in (*FACTORS, torch.float32):
            raise ValueError(f"`compute_dtype` must be {', '.join(map(str, FACTORS))}, got {compute_dtype}")
        self.n_input_dims, self.n_output_dims = n_input_dims, n_output_dims
        self.n_neurons, self.n_hidden_layers = n_neurons, n_hidden_layers
        self.activation = check_option("activation", activation, ACTIVATIONS)
        self.output_activation = check_option("output_activation", output_activation, ACTIVATIONS)
        self.skips, self.skip_scale = tuple(sorted(set(skips))), skip_scale
        self.skip_place = check_option("skip_place", skip_place, ("after", "before"))
        self.dropout = dropout
        self.softplus_beta = check_softplus_beta(activation, softplus_beta)
        self.compute_dtype = compute_dtype
        self.backend = check_option("backend", backend, BACKENDS)
        shapes = []
        for layer in range(n_hidden_layers + 1):
            n_in = n_neurons if layer else n_input_dims
            if layer in self.skips and not narrow_skips:
                n_in += n_input_dims
            n_out = n_neurons if layer < n_hidden_layers else n_output_dims
            if layer + 1 in self.skips and narrow_skips:
                n_out -= n_input_dims
            shapes.append((n_out, n_in))
        self.weights = nn.ParameterList([nn.Parameter(torch.empty(shape)) for shape in shapes])
        self.biases = nn.ParameterList([nn.Parameter(torch.empty(n_out)) for n_out, _ in shapes] if bias else [])
        self.gains = nn.ParameterList(
            [nn.Parameter(torch.empty(n_out, 1)) for n_out, _ in shapes] if weight_norm else []
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws weights from He's uniform distribution for hidden layers of rectifiers, from Xavier's for others, and
        zeroes biases."""
        rectified = self.activation in ("relu", "leaky_relu", "silu", "softplus")
        for layer, weight in enumerate(self.weights):
            if rectified and layer < self.n_hidden_layers:
                nn.init.kaiming_uniform_(weight, nonlinearity="relu")
            else:
                nn.init.xavier_uniform_(weight)
        for bias in self.biases:
            nn.init.zeros_(bias)
        self._take_lengths()

    @torch.no_grad()
    def reset_geometric(self, radius: float = 1.0, n_coordinates: int | None = None, inside: float = -1.0) -> None:
        """Makes the first output nearly the signed distance to a sphere about the origin (Atzmon and Lipman 2020; Gropp
        et al. 2020), for softplus of a large beta or ReLU.

        Args:
            radius: of the sphere.
            n_coordinates: the first inputs that are coordinates; what follows, frequencies of them, is not looked at
                to begin with (Yariv et al. 2020). None for all inputs.
            inside: sign of the values inside the sphere.

        Raises:
            ValueError: there are no biases, or an argument is out of range.
        """
        n = self.n_input_dims if n_coordinates is None else n_coordinates
        if len(self.biases) == 0:
            raise ValueError("`bias` must be True for a sphere, got False")
        if not (1 <= n <= self.n_input_dims and radius > 0 and inside):
            raise ValueError(
                f"`n_coordinates` must be in 1..{self.n_input_dims}, `radius` positive and `inside` a sign, got {n},"
                f" {radius} and {inside}"
            )
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            n_out, n_in = weight.shape
            nn.init.zeros_(bias)
            if layer == self.n_hidden_layers:
                sign = -1.0 if inside > 0 else 1.0
                nn.init.normal_(weight, sign * math.sqrt(math.pi / n_in), 1e-5)
                nn.init.constant_(bias, -sign * radius)
            else:
                nn.init.normal_(weight, 0.0, math.sqrt(2 / n_out))
            if layer == 0 or layer in self.skips:  # the inputs come last
                weight[:, n_in - self.n_input_dims + n :] = 0
        self._take_lengths()

    def _take_lengths(self) -> None:
        """Sets lengths to those of the weights as they were drawn, which are the weights then."""
        for gain, weight in zip(self.gains, self.weights, strict=False):
            gain.copy_(weight.norm(dim=1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [..., out] of inputs ``x`` [..., in], in the dtype of the weights, at least fp32.

        Raises:
            ValueError: the last dimension of ``x`` does not fit.
        """
        if x.dim() == 0 or x.shape[-1] != self.n_input_dims:
            raise ValueError(f"`x` must have shape [..., {self.n_input_dims}], got {list(x.shape)}")
        weights, biases = self.layers_used()
        compute_dtype = maths_dtype(weights[0]) if self.compute_dtype == torch.float32 else self.compute_dtype
        y = x
        for begin, end in self._runs():
            y = backend_ops(self.backend).mlp(
                y,
                weights[begin:end],
                biases and biases[begin:end],
                self.activation,
                self._last_activation(end),
                compute_dtype,
                self.softplus_beta,
            )
            joins = end in self.skips
            if joins and self.skip_place == "before":
                y = torch.cat((y, x.to(y.dtype)), dim=-1) * self.skip_scale
            if not self._is_fused(end):
                y = activate(y, self.activation, self.softplus_beta)
            if end <= self.n_hidden_layers:
                y = F.dropout(y, self.dropout, self.training)
            if joins and self.skip_place == "after":
                y = torch.cat((y, x.to(y.dtype)), dim=-1) * self.skip_scale
        return y

    def jet(
        self, x: Tensor, directions: Tensor, accelerations: Tensor | None = None, operators: Tensor | None = None
    ) -> jets.Jet:
        """Outputs with first and second derivatives; see `derivatives_along`.

        Raises:
            ValueError: a shape does not fit, or ``compute_dtype`` is of half precision.
        """
        if self.compute_dtype not in (None, torch.float32):
            raise ValueError(f"`compute_dtype` must be None for derivatives along directions, got {self.compute_dtype}")
        weights, biases = self.layers_used()
        y: jets.Jets = (x, directions, accelerations)
        for begin, end in self._runs():
            values, first, second = y
            y = backend_ops(self.backend).mlp_jet(
                values,
                first,
                weights[begin:end],
                biases and biases[begin:end],
                self.activation,
                self._last_activation(end),
                accelerations=second,
                operators=operators,
                softplus_beta=self.softplus_beta,
            )
            joins = end in self.skips
            if joins and self.skip_place == "before":
                y = self._join_jets(y, (x, directions, accelerations))
            if not self._is_fused(end):
                activation = partial(activate, activation=self.activation, softplus_beta=self.softplus_beta)
                y = jets.of_function(activation)(*y, operators)
            if self.training and self.dropout and end <= self.n_hidden_layers:
                mask = F.dropout(torch.ones_like(y[0]), self.dropout)
                y = y[0] * mask, y[1] * mask.unsqueeze(-2), None if y[2] is None else y[2] * mask.unsqueeze(-2)
            if joins and self.skip_place == "after":
                y = self._join_jets(y, (x, directions, accelerations))
        values, first, second = y
        assert second is not None
        return values, first, second

    def layers_used(self) -> tuple[list[Tensor], list[Tensor] | None]:
        """Weights [out, in] and biases [out] as they multiply, which parameters stand for."""
        weights = list(self.weights)
        for layer, gain in enumerate(self.gains):
            lengths = weights[layer].norm(dim=1, keepdim=True).clamp_min(1e-12)  # a direction of zero makes no NaN
            weights[layer] = weights[layer] * (gain / lengths)
        return weights, list(self.biases) if len(self.biases) > 0 else None

    @property
    def directions(self) -> list[Tensor]:
        """Weights of which only the directions count, those with ``weight_norm``: nothing for weight decay. Where a
        neuron is dead it is all that Adam sees of a row, which it drives to zero at full rate."""
        return list(self.weights)[: len(self.gains)]

    def _runs(self) -> list[tuple[int, int]]:
        """Layers, from one to before another, that one kernel takes."""
        n_layers = self.n_hidden_layers + 1
        most = 1 if self.dropout and self.training else MAX_HIDDEN_LAYERS + 1
        runs, begin = [], 0
        for end in (*self.skips, n_layers):
            runs += [(first, min(first + most, end)) for first in range(begin, end, most)]
            begin = end
        return runs

    def _last_activation(self, end: int) -> str:
        """The activation behind the layer before ``end`` that its kernel applies."""
        if end > self.n_hidden_layers:
            return self.output_activation
        return self.activation if self._is_fused(end) else "none"

    def _is_fused(self, end: int) -> bool:
        """Whether the activation behind the layer before ``end`` is the kernel's: outputs know no beta."""
        if end > self.n_hidden_layers:
            return True
        return self.softplus_beta == 1 and not (self.skip_place == "before" and end in self.skips)

    def _join_jets(self, y: jets.Jets, x: jets.Jets) -> jets.Jets:
        if x[2] is None and y[2] is not None:
            x = *x[:2], x[0].new_zeros(*y[2].shape[:-1], x[0].shape[-1])
        joined = jets.concatenated([y, x])  # type: ignore[list-item]
        return jets.mapped(joined, lambda part: part * self.skip_scale)

    def extra_repr(self) -> str:
        sizes = f"{self.n_input_dims}, {self.n_output_dims}, {self.n_neurons}, {self.n_hidden_layers}"
        return f"{sizes}, {self.activation!r}, skips={self.skips}, backend={self.backend!r}"


class Siren(MLP):
    """Layers of ``sin(w0 (W x + b))`` behind one another (Sitzmann et al. 2020), for inputs in [-1, 1]^D and outputs
    about as large. Runs on the kernels of :class:`FusedMLP`, up to 9 layers as one.

    ``w0`` may stand beside the weights or be part of them: the same functions, drawn from the same distribution, but
    an Adam step of one learning rate moves them by different amounts.

    - ``Siren(...)``: the paper's code, w0 = 30 beside the weights of every layer of sines.
    - ``Siren(..., w0_hidden=1)``: w0 = 30 beside the first layer's alone, the rest in the weights, as in lucidrains'
      siren-pytorch, which draws the last layer 30 times larger, too, and biases as large as weights
      (``bias_init="weight"``). Hidden weights move 30 times less than the paper's at the same learning rate.
    - ``Siren(..., factored=False)``: all of it in the weights, as in ``FusedMLP(activation="sine")``, without the
      products. :meth:`parameter_groups` has the learning rates with which it trains as the first one.

    Args:
        n_input_dims: inputs.
        n_output_dims: outputs.
        n_neurons: width of the hidden layers.
        n_hidden_layers: layers of sines; the paper's "3 hidden layers" are 4 of them.
        w0: frequency of the first layer. It wants to grow with the signal's, and is the same as a scale of the inputs.
        w0_hidden: of the following ones.
        factored: whether ``w0`` and ``w0_hidden`` stand beside the weights.
        bias_init: biases are drawn as the paper's code does ("default": up to ``1 / sqrt(in)`` times w0), as large as
            weights ("weight"), or are zero ("zero"), for which the paper's statistics hold.
        output_activation: of the last layer.
        compute_dtype: as of :class:`FusedMLP`, but None rounds nothing under autocast either: half precision has no
            sines of large numbers.
        backend: ``"native"`` or ``"reference"``.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> siren = Siren(2, 3, n_neurons=64)
        >>> optimizer = torch.optim.Adam(siren.parameters(), lr=1e-4)
        >>> folded = Siren(2, 3, n_neurons=64, factored=False)
        >>> optimizer = torch.optim.Adam(folded.parameter_groups(learning_rate=1e-4), eps=1e-12)
    """

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        n_neurons: int = 256,
        n_hidden_layers: int = 4,
        w0: float = SIREN_FREQUENCY,
        w0_hidden: float = SIREN_FREQUENCY,
        factored: bool = True,
        bias_init: BiasInit = "default",
        output_activation: str = "none",
        compute_dtype: torch.dtype | None = None,
        backend: str = "native",
    ) -> None:
        if not (0 < w0 < math.inf and 0 < w0_hidden < math.inf):
            raise ValueError(f"`w0` and `w0_hidden` must be positive and finite, got {w0} and {w0_hidden}")
        if n_hidden_layers < 1:
            raise ValueError(f"`n_hidden_layers` must be at least 1, got {n_hidden_layers}")
        self.w0, self.w0_hidden, self.factored = w0, w0_hidden, factored
        check_option("bias_init", bias_init, ("default", "weight", "zero"))
        self.bias_init = bias_init
        super().__init__(
            n_input_dims,
            n_output_dims,
            n_neurons,
            n_hidden_layers,
            "sine",
            output_activation,
            compute_dtype=compute_dtype or torch.float32,
            backend=backend,
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws weights and biases as the paper's code does (its text has another bound for the first layer)."""
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            first, factor = layer == 0, 1.0 if self.factored else self._factor(layer)
            draw_sines_(weight, bias, self.w0_hidden, first, self.bias_init)
            weight.mul_(factor)
            bias.mul_(factor)

    def layers_used(self) -> tuple[list[Tensor], list[Tensor] | None]:
        weights, biases = list(self.weights), list(self.biases)
        if self.factored:
            factors = [self._factor(layer) for layer in range(len(weights))]
            weights, biases = (
                [factor * param for factor, param in zip(factors, params, strict=True)] for params in (weights, biases)
            )
        return weights, biases

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """What Adam takes to train as one with ``learning_rate`` trains the paper's network with w0 beside the weights:
        steps of weights that hold w0 are so many times larger. Adam's ``eps`` should be negligible for that."""
        groups = []
        for layer, params in enumerate(zip(self.weights, self.biases, strict=True)):
            factor = 1.0 if self.factored else self._factor(layer)
            groups.append({"params": list(params), "lr": factor * learning_rate})
        return groups

    def _factor(self, layer: int) -> float:
        if layer == self.n_hidden_layers:
            return 1.0
        return self.w0 if layer == 0 else self.w0_hidden

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, w0={self.w0}, w0_hidden={self.w0_hidden}, factored={self.factored}"


@torch.no_grad()
def draw_sines_(weight: Tensor, bias: Tensor, w0: float, is_first: bool, bias_init: BiasInit = "default") -> None:
    """Draws ``weight`` [out, in] and ``bias`` [out] of a layer ``sin(w0 (W x + b))``, or of the one behind the last
    such (Sitzmann et al. 2020, section 3.2, as their code has it)."""
    n_in = weight.shape[1]
    bound = 1 / n_in if is_first else math.sqrt(6 / n_in) / w0
    nn.init.uniform_(weight, -bound, bound)
    bound = {"default": 1 / math.sqrt(n_in), "weight": bound, "zero": 0.0}[bias_init]
    nn.init.uniform_(bias, -bound, bound)
