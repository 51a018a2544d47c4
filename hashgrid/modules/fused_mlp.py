"""A small multilayer perceptron whose layers run fused."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hashgrid.modules._backend import check_backend, ops_of

MAX_HIDDEN_LAYERS = 8
SINE_OMEGA = 30.0
_MODULES: dict[str, type[nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}
ACTIVATIONS = (*_MODULES, "exp", "sine")


class FusedMLP(nn.Module):
    """``n_hidden_layers`` layers of ``n_neurons``, then one to ``n_output_dims``, computed block by block of rows.

    Differentiable twice in inputs and parameters. Any width and any batch size, none included.

    Args:
        n_input_dims: input size.
        n_output_dims: output size.
        n_neurons: width of the hidden layers.
        n_hidden_layers: 0..8.
        activation: of the hidden layers: ``"none"``, ``"relu"``, ``"leaky_relu"`` (slope 0.01), ``"silu"``,
            ``"softplus"``, ``"sigmoid"``, ``"tanh"``, ``"exp"`` (derivative clamped to exp(+-15)) or ``"sine"``.
        output_activation: of the last layer, from the same set.
        bias: whether layers have a bias.
        compute_dtype: ``torch.bfloat16`` rounds the factors of every product to bf16; sums and parameters stay fp32.
        backend: ``"native"`` or ``"reference"``.

    Attributes:
        weights: ParameterList of [out, in], Xavier uniform; SIREN's (Sitzmann et al. 2020) for sine.
        biases: ParameterList of [out], zeros; empty without bias.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        n_neurons: int = 64,
        n_hidden_layers: int = 2,
        activation: str = "relu",
        output_activation: str = "none",
        bias: bool = False,
        compute_dtype: torch.dtype | None = None,
        backend: str = "native",
    ) -> None:
        super().__init__()
        for name, size in (("n_input_dims", n_input_dims), ("n_output_dims", n_output_dims), ("n_neurons", n_neurons)):
            if size < 1:
                raise ValueError(f"`{name}` must be positive, got {size}")
        if not 0 <= n_hidden_layers <= MAX_HIDDEN_LAYERS:
            raise ValueError(f"`n_hidden_layers` must be in 0..{MAX_HIDDEN_LAYERS}, got {n_hidden_layers}")
        for name, value in (("activation", activation), ("output_activation", output_activation)):
            if value not in ACTIVATIONS:
                raise ValueError(f"`{name}` must be one of {ACTIVATIONS}, got {value!r}")
        if compute_dtype not in (None, torch.float32, torch.bfloat16):
            raise ValueError(f"`compute_dtype` must be torch.bfloat16, torch.float32 or None, got {compute_dtype}")
        self.backend = check_backend(backend)
        self.n_input_dims, self.n_output_dims = n_input_dims, n_output_dims
        self.n_neurons, self.n_hidden_layers = n_neurons, n_hidden_layers
        self.activation, self.output_activation = activation, output_activation
        self.compute_dtype = compute_dtype
        sizes = [n_input_dims, *[n_neurons] * n_hidden_layers, n_output_dims]
        self.weights = nn.ParameterList(torch.empty(out, into) for into, out in zip(sizes, sizes[1:], strict=False))
        self.biases = nn.ParameterList(torch.empty(out) for out in sizes[1:]) if bias else nn.ParameterList()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws new weights; biases become zero."""
        for layer, weight in enumerate(self.weights):
            if self.activation == "sine":
                # SIREN folds omega_0 = 30 into the weights of the first layer; the others start at sqrt(6 / in).
                n_in = weight.shape[1]
                bound = SINE_OMEGA / n_in if layer == 0 else math.sqrt(6 / n_in)
                weight.uniform_(-bound, bound)
            else:
                nn.init.xavier_uniform_(weight)
        for bias in self.biases:
            bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[..., n_output_dims] of ``x`` [..., n_input_dims]."""
        if x.dim() == 0 or x.shape[-1] != self.n_input_dims:
            raise ValueError(f"`x` must have shape [..., {self.n_input_dims}], got {list(x.shape)}")
        return ops_of(self.backend).mlp(
            x,
            list(self.weights),
            list(self.biases) or None,
            self.activation,
            self.output_activation,
            compute_dtype=self.compute_dtype,
        )

    @classmethod
    def from_sequential(
        cls, layers: nn.Sequential, compute_dtype: torch.dtype | None = None, backend: str = "native"
    ) -> FusedMLP:
        """A fused copy of ``nn.Linear`` layers of one hidden width with one kind of activation between them.

        Raises:
            ValueError: the modules are no such stack; the message names the first that does not fit.
        """
        names = {module: name for name, module in _MODULES.items()}
        linears: list[nn.Linear] = []
        activations: list[str] = []
        for index, module in enumerate(layers):
            if isinstance(module, nn.Linear):
                if len(activations) < len(linears):
                    activations.append("none")
                linears.append(module)
            elif type(module) in names and len(activations) == len(linears) - 1:
                if isinstance(module, nn.LeakyReLU) and module.negative_slope != 0.01:
                    raise ValueError(f"layer {index}: LeakyReLU must have slope 0.01, got {module.negative_slope}")
                if isinstance(module, nn.Softplus) and module.beta != 1:
                    raise ValueError(f"layer {index}: Softplus must have beta 1, got {module.beta}")
                activations.append(names[type(module)])
            else:
                raise ValueError(f"layer {index} must be nn.Linear or one activation after it, got {module}")
        if not linears:
            raise ValueError("`layers` must hold at least one nn.Linear, got none")
        if len(activations) < len(linears):
            activations.append("none")
        hidden, output = set(activations[:-1]) or {"relu"}, activations[-1]
        widths = {linear.out_features for linear in linears[:-1]} or {64}
        biases = {linear.bias is not None for linear in linears}
        for what, found in (("activation", hidden), ("hidden width", widths), ("use of a bias", biases)):
            if len(found) > 1:
                raise ValueError(f"`layers` must have one {what}, got {sorted(found)}")
        mlp = cls(
            linears[0].in_features,
            linears[-1].out_features,
            widths.pop(),
            len(linears) - 1,
            hidden.pop(),
            output,
            biases.pop(),
            compute_dtype,
            backend,
        )
        mlp = mlp.to(linears[0].weight)
        with torch.no_grad():
            for layer, linear in enumerate(linears):
                mlp.weights[layer].copy_(linear.weight)
                if linear.bias is not None:
                    mlp.biases[layer].copy_(linear.bias)
        return mlp

    def to_sequential(self) -> nn.Sequential:
        """The same network of ``nn.Linear`` and activation modules, with copies of the parameters.

        Raises:
            ValueError: an activation has no module in PyTorch (exp, sine).
        """
        modules: list[nn.Module] = []
        for layer, weight in enumerate(self.weights):
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=len(self.biases) > 0).to(weight)
            with torch.no_grad():
                linear.weight.copy_(weight)
                if len(self.biases) > 0:
                    linear.bias.copy_(self.biases[layer])
            modules.append(linear)
            activation = self.activation if layer < self.n_hidden_layers else self.output_activation
            if activation not in _MODULES:
                raise ValueError(f"`{activation}` has no module in torch.nn; one of {tuple(_MODULES)} does")
            if activation != "none":
                modules.append(_MODULES[activation]())
        return nn.Sequential(*modules)

    def extra_repr(self) -> str:
        return (
            f"{self.n_input_dims}, {self.n_output_dims}, n_neurons={self.n_neurons},"
            f" n_hidden_layers={self.n_hidden_layers}, activation={self.activation!r},"
            f" output_activation={self.output_activation!r}, bias={len(self.biases) > 0},"
            f" compute_dtype={self.compute_dtype}, backend={self.backend!r}"
        )
