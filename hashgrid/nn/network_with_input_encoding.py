"""An encoding and the network behind it as one module."""

from __future__ import annotations

from torch import Tensor, nn

from hashgrid.nn.fused_mlp import FusedMLP
from hashgrid.nn.hash_grid import HashGrid
from hashgrid.ops._backend import ngp_ops
from hashgrid.util.autograd import is_recorded


class NetworkWithInputEncoding(nn.Module):
    """``network(encoding(x))``. Where no gradient is recorded, a hash grid and a multilayer perceptron run as one op,
    whose features do not reach memory: see :func:`hashgrid.ops._ngp.hash_encode_mlp`.

    Args:
        encoding: `HashGrid`, or any module that makes [..., n] of positions [..., D].
        network: `FusedMLP`, or any module that takes [..., n].

    Raises:
        ValueError: the encoding has more or fewer outputs than the network has inputs.
    """

    def __init__(self, encoding: nn.Module, network: nn.Module) -> None:
        super().__init__()
        outputs, inputs = getattr(encoding, "n_output_dims", None), getattr(network, "n_input_dims", None)
        if outputs is not None and inputs is not None and outputs != inputs:
            raise ValueError(f"`network` must have {outputs} inputs, as `encoding` has outputs, got {inputs}")
        self.encoding = encoding
        self.network = network

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Outputs [..., out] of positions ``x`` [..., D]; ``level_weights`` [L] scale the levels of a hash grid.

        Raises:
            ValueError: a shape does not fit.
        """
        return encode_and_pass(self.encoding, self.network, x, level_weights)


def encode_and_pass(encoding: nn.Module, network: nn.Module, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
    """The same of two modules that belong to another one. Where no gradient is recorded, their hooks do not run."""
    if (
        not (isinstance(encoding, HashGrid) and isinstance(network, FusedMLP))
        or encoding.backend != network.backend
        or is_recorded(x, encoding.table)
        or is_recorded(*network.parameters())
    ):
        return network(encoding(x) if level_weights is None else encoding(x, level_weights))
    grid, layers = encoding.op_arguments(x, level_weights), network.op_arguments()
    return ngp_ops(encoding.backend).hash_encode_mlp(**grid, **layers)
