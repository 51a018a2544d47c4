"""The multilayer perceptron as a module."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hashgrid.maths import activate
from hashgrid.ops._backend import backend_ops
from hashgrid.ops._tensors import maths_dtype
from hashgrid.util.choices import (
    ACTIVATIONS,
    BACKENDS,
    FACTORS,
    as_integer,
    as_integers,
    check_option,
    check_softplus_beta,
)

MAX_HIDDEN_LAYERS = 8
SIREN_FREQUENCY = 30.0  # omega_0 of Sitzmann et al. 2020


class Activation(nn.Module):
    """One of the MLP's activations by name, for those PyTorch has no module for."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = check_option("name", name, ACTIVATIONS)

    def forward(self, x: Tensor) -> Tensor:
        return activate(x, self.name)

    def extra_repr(self) -> str:
        return repr(self.name)


class FusedMLP(nn.Module):
    """Multilayer perceptron whose layers run as one kernel, with fp32 sums and exact derivatives up to the second.

    Under ``torch.autocast`` it multiplies in the dtype of autocast, as ``nn.Linear`` does, unless ``compute_dtype``
    says otherwise (``torch.float32`` for none of it). Sums and outputs stay fp32 there, too: an exp or a loss behind it
    neither overflows nor rounds. After ``.half()`` or ``.bfloat16()`` the parameters are read as the values they then
    have, and outputs stay fp32; better keep the parameters and set ``compute_dtype``.

    Args:
        n_input_dims: inputs.
        n_output_dims: outputs.
        n_neurons: width of the hidden layers, or one width per hidden layer.
        n_hidden_layers: 0..8.
        activation: of the hidden layers: ``"none"``, ``"relu"``, ``"leaky_relu"``, ``"silu"``, ``"softplus"``,
            ``"sigmoid"``, ``"tanh"``, ``"exp"`` or ``"sine"``.
        output_activation: of the last layer, from the same set.
        bias: adds a trainable vector after every product.
        compute_dtype: ``torch.bfloat16`` or ``torch.float16`` multiplies in it and sums in fp32; parameters stay as
            they are. Gradients need no loss scale with either; float16 rounds more finely, but values beyond 65504
            become infinite.
        backend: ``"native"`` or ``"reference"``.
        softplus_beta: of a hidden ``"softplus"``, ``log(1 + exp(beta x)) / beta``; 100 makes the nearly sharp corner
            that networks of signed distances have (Gropp et al. 2020).

    Attributes:
        weights: ParameterList of [out, in], one per layer.
        biases: ParameterList of [out], empty without ``bias``.

    Raises:
        ValueError: an argument is out of range.
    """

    weights: nn.ParameterList
    biases: nn.ParameterList

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        n_neurons: int | Sequence[int] = 64,
        n_hidden_layers: int = 2,
        activation: str = "relu",
        output_activation: str = "none",
        bias: bool = False,
        compute_dtype: torch.dtype | None = None,
        backend: str = "native",
        softplus_beta: float = 1.0,
    ) -> None:
        super().__init__()
        n_input_dims = as_integer("n_input_dims", n_input_dims)
        n_output_dims = as_integer("n_output_dims", n_output_dims)
        n_hidden_layers = as_integer("n_hidden_layers", n_hidden_layers)
        if not 0 <= n_hidden_layers <= MAX_HIDDEN_LAYERS:
            raise ValueError(f"`n_hidden_layers` must be in 0..{MAX_HIDDEN_LAYERS}, got {n_hidden_layers}")
        widths = [n_input_dims, *as_integers("n_neurons", n_neurons, n_hidden_layers), n_output_dims]
        if min(widths) < 1:
            raise ValueError(f"`n_input_dims`, `n_neurons` and `n_output_dims` must be positive, got {widths}")
        if compute_dtype not in (*FACTORS, torch.float32):
            raise ValueError(
                f"`compute_dtype` must be {', '.join(map(str, FACTORS))} or torch.float32, got {compute_dtype}"
            )
        self.n_input_dims = n_input_dims
        self.n_output_dims = n_output_dims
        self.n_neurons = n_neurons
        self.n_hidden_layers = n_hidden_layers
        self.activation = check_option("activation", activation, ACTIVATIONS)
        self.output_activation = check_option("output_activation", output_activation, ACTIVATIONS)
        self.softplus_beta = check_softplus_beta(activation, softplus_beta)
        self.compute_dtype = compute_dtype
        self.backend = check_option("backend", backend, BACKENDS)
        shapes = [(n_out, n_in) for n_in, n_out in zip(widths, widths[1:], strict=False)]
        self.weights = nn.ParameterList([nn.Parameter(torch.empty(shape)) for shape in shapes])
        self.biases = nn.ParameterList([nn.Parameter(torch.empty(n_out)) for n_out, _ in shapes] if bias else [])
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws weights from Xavier's uniform distribution and zeroes biases; for sine, SIREN's initialisation.

        SIREN (Sitzmann et al. 2020, section 3.2) computes ``sin(30 (W x + b))``; its factor 30 is part of the
        parameters here.
        """
        if self.activation == "sine" and self.n_hidden_layers > 0:
            return self._reset_siren()
        for weight in self.weights:
            nn.init.xavier_uniform_(weight)
        for bias in self.biases:
            nn.init.zeros_(bias)

    def _reset_siren(self) -> None:
        for layer, weight in enumerate(self.weights):
            n_in = weight.shape[1]
            bound = 1 / n_in if layer == 0 else math.sqrt(6 / n_in) / SIREN_FREQUENCY
            factor = SIREN_FREQUENCY if layer < self.n_hidden_layers else 1.0
            nn.init.uniform_(weight, -bound * factor, bound * factor)
            if len(self.biases) > 0:
                bound = factor / math.sqrt(n_in)
                nn.init.uniform_(self.biases[layer], -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [..., out] of inputs ``x`` [..., in], in the dtype of the weights, at least fp32.

        Raises:
            ValueError: the last dimension of ``x`` does not fit.
        """
        if x.dim() == 0 or x.shape[-1] != self.n_input_dims:
            raise ValueError(f"`x` must have shape [..., {self.n_input_dims}], got {list(x.shape)}")
        return backend_ops(self.backend).mlp(x, **self.op_arguments())

    def jet(
        self, x: Tensor, directions: Tensor, accelerations: Tensor | None = None, operators: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs [..., out] of ``x`` [..., in], first and second derivatives [..., K, out] along ``directions``
        [..., K, in], the second ones summed up by ``operators`` [M, K] if given, whatever autocast says:
        :func:`hashgrid.ops.mlp_jet`. What `derivatives_along` calls.

        Raises:
            ValueError: a shape does not fit, or ``compute_dtype`` is of half precision.
        """
        if self.compute_dtype not in (None, torch.float32):
            raise ValueError(f"`compute_dtype` must be None for derivatives along directions, got {self.compute_dtype}")
        arguments = self.op_arguments()
        del arguments["compute_dtype"]
        return backend_ops(self.backend).mlp_jet(
            x, directions, **arguments, accelerations=accelerations, operators=operators
        )

    def op_arguments(self) -> dict[str, Any]:
        """What :func:`hashgrid.ops.mlp` takes besides its inputs."""
        return {
            "weights": list(self.weights),
            "biases": list(self.biases) if len(self.biases) > 0 else None,
            "activation": self.activation,
            "output_activation": self.output_activation,
            "compute_dtype": (
                maths_dtype(self.weights[0]) if self.compute_dtype == torch.float32 else self.compute_dtype
            ),
            "softplus_beta": self.softplus_beta,
        }

    @classmethod
    def from_sequential(
        cls, model: nn.Sequential, compute_dtype: torch.dtype | None = None, backend: str = "native"
    ) -> FusedMLP:
        """Copies an ``nn.Sequential`` of ``nn.Linear`` layers with activations between them.

        Raises:
            ValueError: it holds something else, activations that differ between hidden layers, or biases in some
                layers only.
        """
        linears: list[nn.Linear] = []
        activations: list[tuple[str, float]] = []  # what follows each linear layer, with its beta
        for module in _flat_modules(model):
            if isinstance(module, nn.Linear):
                linears.append(module)
                activations.append(("none", 1.0))
            elif not linears:
                raise ValueError(f"`model` must begin with nn.Linear, got {module}")
            elif activations[-1][0] != "none":
                raise ValueError(f"`model` must have one activation after each nn.Linear, got {module} besides")
            else:
                activations[-1] = _name_of(module)
        if not linears:
            raise ValueError("`model` must hold at least one nn.Linear, got none")
        hidden, (output, output_beta) = activations[:-1], activations[-1]
        if len(set(hidden)) > 1:
            raise ValueError(f"`model` must have the same activation after every hidden layer, got {hidden}")
        if output_beta != 1:
            raise ValueError(f"nn.Softplus after the last layer must have beta 1, got {output_beta}")
        activation, softplus_beta = hidden[0] if hidden else ("relu", 1.0)
        with_bias = [linear.bias is not None for linear in linears]
        if len(set(with_bias)) > 1:
            raise ValueError("`model` must have biases in all layers or in none; set the missing ones to zero")
        mlp = cls(
            linears[0].in_features,
            linears[-1].out_features,
            [linear.out_features for linear in linears[:-1]],
            len(linears) - 1,
            activation,
            output,
            with_bias[0],
            compute_dtype,
            backend,
            softplus_beta,
        )
        mlp.to(device=linears[0].weight.device, dtype=linears[0].weight.dtype)
        mlp.load_state_dict(
            {f"weights.{i}": linear.weight for i, linear in enumerate(linears)}
            | {f"biases.{i}": linear.bias for i, linear in enumerate(linears) if linear.bias is not None}
        )
        return mlp

    def to_sequential(self) -> nn.Sequential:
        """The same function without the rounding of ``compute_dtype``: ``nn.Sequential`` with copied parameters."""
        modules: list[nn.Module] = []
        for layer, weight in enumerate(self.weights):
            n_out, n_in = weight.shape
            has_bias = len(self.biases) > 0
            linear = nn.Linear(n_in, n_out, bias=has_bias, device=weight.device, dtype=weight.dtype)
            with torch.no_grad():
                linear.weight.copy_(weight)
                if has_bias:
                    linear.bias.copy_(self.biases[layer])
            modules.append(linear)
            hidden = layer < self.n_hidden_layers
            name = self.activation if hidden else self.output_activation
            if name == "softplus":
                modules.append(nn.Softplus(self.softplus_beta if hidden else 1.0, threshold=40))
            elif name != "none":
                modules.append(_MODULES[name]() if name in _MODULES else Activation(name))
        return nn.Sequential(*modules)

    def extra_repr(self) -> str:
        sizes = f"{self.n_input_dims}, {self.n_output_dims}, n_neurons={self.n_neurons}"
        layers = f"n_hidden_layers={self.n_hidden_layers}, activation={self.activation!r}"
        output = f"output_activation={self.output_activation!r}, bias={len(self.biases) > 0}"
        layers += f", softplus_beta={self.softplus_beta}" if self.softplus_beta != 1 else ""
        dtype = "" if self.compute_dtype is None else f", compute_dtype={self.compute_dtype}"
        return f"{sizes}, {layers}, {output}, backend={self.backend!r}{dtype}"


_MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,  # slope 0.01
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


def _flat_modules(model: nn.Sequential) -> Iterator[nn.Module]:
    for module in model:
        if isinstance(module, nn.Sequential):
            yield from _flat_modules(module)
        else:
            yield module


def _name_of(module: nn.Module) -> tuple[str, float]:
    """Return the name and the beta of the activation an ``nn.Module`` stands for."""
    if isinstance(module, nn.Identity):
        return "none", 1.0
    if isinstance(module, Activation):
        return module.name, 1.0
    for name, kind in _MODULES.items():
        if type(module) is kind:
            if isinstance(module, nn.LeakyReLU) and module.negative_slope != 0.01:
                raise ValueError(f"nn.LeakyReLU must have slope 0.01, got {module.negative_slope}")
            return name, module.beta if isinstance(module, nn.Softplus) else 1.0
    raise ValueError(f"`model` may hold nn.Linear, nn.Identity and {[*_MODULES]}, got {module}")
