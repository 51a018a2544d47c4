"""An encoding and a network behind it, for any signal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from hashgrid.fields.base import SignalField
from hashgrid.nn import FusedMLP, HashGrid, jets
from hashgrid.nn.encoding import EncodingConfig, make_encoding
from hashgrid.nn.network_with_input_encoding import encode_and_pass
from hashgrid.util.device import DTYPES

Activation = Literal["relu", "leaky_relu", "silu", "softplus", "sigmoid", "tanh", "exp", "sine"]


@dataclass(frozen=True)
class CoordinateConfig(EncodingConfig):
    """Sizes of a :class:`CoordinateField`."""

    name = "hash"

    max_resolution: int = 0  # of a hash grid: cells of the finest level; 0: half the samples along the longest side
    n_neurons: int = 64  # of a hidden layer
    n_hidden_layers: int = 2  # of the network
    activation: Activation = "relu"  # of hidden layers
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of MLP products; sums stay fp32

    def make_network(self, n_inputs: int, n_outputs: int, bias: bool, backend: str) -> FusedMLP:
        """The network behind the encoding."""
        sizes = {"n_neurons": self.n_neurons, "n_hidden_layers": self.n_hidden_layers, "activation": self.activation}
        dtype = DTYPES[self.compute_dtype]
        return FusedMLP(n_inputs, n_outputs, bias=bias, compute_dtype=dtype, backend=backend, **sizes)  # type: ignore[arg-type]


class CoordinateField(SignalField):
    """An encoding and an MLP behind it: by default Instant-NGP's (Müller et al. 2022).

    Args:
        config: encoding and network.
        n_input_dims: D.
        n_output_dims: C.
        backend: ``"native"`` or ``"reference"``.
        accumulate_grad: whether a hash grid's gradient is added to one buffer that stays; see :class:`HashGrid`.

    Example:
        >>> import torch
        >>> field = CoordinateField(CoordinateConfig(n_levels=4, log2_hashmap_size=10, max_resolution=64), 2, 3)
        >>> field(torch.rand(5, 2)).shape
        torch.Size([5, 3])
    """

    Config = CoordinateConfig
    size = "log2_hashmap_size"

    def __init__(
        self,
        config: CoordinateConfig,
        n_input_dims: int,
        n_output_dims: int,
        backend: str = "native",
        accumulate_grad: bool = False,
    ) -> None:
        super().__init__(config, n_input_dims, n_output_dims, backend)
        self.encoding = make_encoding(n_input_dims, config, backend, accumulate_grad=accumulate_grad)
        # without biases sines are odd about the centre, and rectifiers have all their corners in the origin of their
        # inputs; a grid's features have no such place
        bias = config.activation == "sine" or not isinstance(self.encoding, HashGrid)
        self.mlp = config.make_network(self.encoding.n_output_dims, n_output_dims, bias, backend)

        self.n_levels = self.encoding.n_levels

    @classmethod
    def configured(cls, config: CoordinateConfig, shape: Sequence[int]) -> CoordinateConfig:
        if config.max_resolution > 0:
            return config
        # finer cells would hold noise: between two samples nothing is known
        return config.replace(max_resolution=max(max(shape) // 2, config.base_resolution))

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Values [..., C] of points [..., D]."""
        return encode_and_pass(self.encoding, self.mlp, x, level_weights)

    def jet(
        self, x: Tensor, directions: Tensor, accelerations: Tensor | None = None, operators: Tensor | None = None
    ) -> jets.Jet:
        """Values with first and second derivatives; see `derivatives_along`."""
        return jets.through([self.encoding, self.mlp], x, directions, accelerations, operators)
