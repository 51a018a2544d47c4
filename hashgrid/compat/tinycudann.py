"""tiny-cuda-nn's Python module ``tinycudann`` on hashgrid's kernels: the same classes, dictionaries and checkpoints,
also without a GPU.

Change ``import tinycudann as tcnn`` to ``from hashgrid.compat import tinycudann as tcnn``. What differs is in
docs/compat.md.
"""

from __future__ import annotations

import enum
import gc
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hashgrid import _extension
from hashgrid.compat.tinycudann_config import read_encoding, read_network
from hashgrid.compat.tinycudann_layout import Grid, Part, next_multiple
from hashgrid.compat.tinycudann_network import NETWORK_MULTIPLE, Layers
from hashgrid.compat.tinycudann_options import Options, warn
from hashgrid.compat.tinycudann_start import Pcg32
from hashgrid.ops._tensors import maths_dtype
from hashgrid.util.choices import BACKENDS, as_integer, check_option

__all__ = [
    "Encoding",
    "Network",
    "NetworkWithInputEncoding",
    "Precision",
    "batch_size_granularity",
    "default_loss_scale",
    "free_temporary_memory",
    "has_networks",
    "preferred_precision",
    "rtc_set_cache_dir",
    "supports_jit_fusion",
]

DTYPES = (None, torch.float32, torch.float16)


class Precision(enum.Enum):
    """Of outputs and parameters."""

    Fp32 = 0
    Fp16 = 1


def batch_size_granularity() -> int:
    """1: batches may have any size. tiny-cuda-nn pads them to multiples of 256."""
    return 1


def default_loss_scale(precision: Precision) -> float:
    """What tiny-cuda-nn multiplies gradients with that it holds in half precision."""
    return 1.0 if precision is Precision.Fp32 else 128.0


def free_temporary_memory() -> None:
    """Collects garbage. Memory is PyTorch's: `torch.cuda.empty_cache` returns what is unused."""
    gc.collect()


def has_networks() -> bool:
    """True."""
    return True


def preferred_precision() -> Precision:
    """That of modules without ``dtype``: fp32, in which all sums are taken."""
    return Precision.Fp32


def rtc_set_cache_dir(dir: object) -> None:
    """Nothing: kernels are compiled when hashgrid is installed."""


def supports_jit_fusion(device: int = -1) -> bool:
    """False: kernels are compiled when hashgrid is installed."""
    return False


class Module(nn.Module):
    """What the three modules share.

    Attributes:
        params: all parameters, a flat fp32 Parameter in tiny-cuda-nn's order: the network's layers first, padded to
            multiples of 16 inputs and outputs, then the encoding's tables.
        dtype: of outputs.
        loss_scale: without effect, as gradients are fp32.
        seed: the start was drawn from it, with tiny-cuda-nn's generator in its order.
    """

    params: nn.Parameter

    def __init__(
        self,
        encoding: Part,
        network: Layers | None,
        seed: int,
        dtype: torch.dtype | None,
        backend: str,
    ) -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"`dtype` must be torch.float32, torch.float16 or None, got {dtype}")
        self.n_input_dims = encoding.n_input_dims
        self.n_output_dims = encoding.width if network is None else network.n_output_dims
        self.seed = as_integer("seed", seed)
        self.dtype = dtype or torch.float32
        self.loss_scale = default_loss_scale(Precision.Fp16 if dtype == torch.float16 else Precision.Fp32)
        self._encoding, self._network = encoding, network
        self.backend = backend
        self._n_layers = 0 if network is None else len(network.sizes)
        parts = [part for part in (network, encoding) if part is not None]
        self._sizes = [size for part in parts for size in part.sizes]
        self.params = nn.Parameter(self.native_tcnn_module.initial_params(self.seed))

    @property
    def backend(self) -> str:
        """``"native"`` or ``"reference"``; may be assigned at any time."""
        return self.__dict__["backend"]

    @backend.setter
    def backend(self, backend: str) -> None:
        self.__dict__["backend"] = check_option("backend", backend, BACKENDS)
        self._encoding.set_backend(backend)
        if self._network is not None:
            self._network.backend = backend

    @property
    def native_tcnn_module(self) -> Native:
        """Sizes, and the start of a seed."""
        return Native(self)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [..., n_output_dims] of ``x`` [..., n_input_dims], in ``dtype``.

        Raises:
            ValueError: the last dimension of ``x`` does not fit.
        """
        if x.dim() == 0 or x.shape[-1] != self.n_input_dims:
            raise ValueError(f"`x` must have shape [..., {self.n_input_dims}], got {list(x.shape)}")
        if x.device != self.params.device:
            warn(f"`x` must be on {self.params.device}, as `params` is, got {x.device}; it is copied in every call")
        x = x.to(device=self.params.device, dtype=maths_dtype(self.params))
        # one split, whose gradient is one concatenation: slices would add up as many tensors as long as `params`
        y = self._outputs(x, self.params.to(x.dtype).split(self._sizes))
        return y.to(self.dtype) if self.dtype == torch.float16 else y

    def _outputs(self, x: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        encoding, network = self._encoding, self._network
        if network is None:
            return encoding(x, params)
        layers, tables = params[: self._n_layers], params[self._n_layers :]
        compute_dtype = torch.float16 if self.dtype == torch.float16 else None
        if isinstance(encoding, Grid):  # whose padding is zero, so that the network can leave it out
            y = network.fused(encoding, x, params, compute_dtype)
            return network(encoding.features(x, tables), layers, compute_dtype) if y is None else y
        return network(encoding(x, tables), layers, compute_dtype)

    @property
    def jit_fusion(self) -> bool:
        """False, whatever is assigned: kernels are compiled when hashgrid is installed."""
        return False

    @jit_fusion.setter
    def jit_fusion(self, value: bool) -> None:
        pass

    def extra_repr(self) -> str:
        sizes = f"n_input_dims={self.n_input_dims}, n_output_dims={self.n_output_dims}"
        return f"{sizes}, seed={self.seed}, dtype={self.dtype}, n_params={sum(self._sizes)}"


class Native:
    """What scripts ask of a module's ``native_tcnn_module``."""

    def __init__(self, module: Module) -> None:
        self._module = module

    def initial_params(self, seed: int) -> Tensor:
        """Flat parameters that ``seed`` stands for, where tiny-cuda-nn would have them: on the GPU, if there is one."""
        device, module = torch.get_default_device(), self._module
        if device.type == "cpu" and _extension.cuda_module is not None and torch.cuda.is_available():
            device = torch.device("cuda")
        if device.type == "meta":
            return torch.empty(self.n_params(), device=device)
        random = Pcg32(seed)
        parts = [part.initial(random) for part in (module._network, module._encoding) if part is not None]
        values = [np.empty(0, np.float32), *(flat for part in parts for flat in part)]
        return torch.from_numpy(np.concatenate(values)).to(device)

    def n_params(self) -> int:
        return sum(self._module._sizes)

    def n_input_dims(self) -> int:
        return self._module.n_input_dims

    def n_output_dims(self) -> int:
        """With padding, which outputs of modules do not have."""
        n = self._module.n_output_dims
        return n if self._module._network is None else next_multiple(n, NETWORK_MULTIPLE)

    def param_precision(self) -> Precision:
        return Precision.Fp16 if self._module.dtype == torch.float16 else Precision.Fp32

    def output_precision(self) -> Precision:
        return self.param_precision()

    def hyperparams(self) -> dict[str, Any]:
        """The dictionaries that the module was made of."""
        names = ("encoding_config", "network_config")
        return {name.removesuffix("_config"): getattr(self._module, name, None) for name in names}


class Encoding(Module):
    """An input encoding.

    Args:
        n_input_dims: inputs, in [0, 1].
        encoding_config: dictionary of the encoding: docs/compat.md has all keys.
        seed: of the parameters to start from.
        dtype: of outputs: ``torch.float32``, also for None, or ``torch.float16``. Sums are fp32 in both.
        backend: ``"native"`` or ``"reference"``; tiny-cuda-nn has no such argument.

    Raises:
        ValueError: a value is unknown or out of range.

    Example:
        >>> config = {"otype": "HashGrid", "n_levels": 4, "log2_hashmap_size": 14}
        >>> encoding = Encoding(3, config)
        >>> encoding.n_output_dims, encoding.params.shape
        (8, torch.Size([106496]))
    """

    def __init__(
        self,
        n_input_dims: int,
        encoding_config: Mapping[str, Any],
        seed: int = 1337,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "native",
    ) -> None:
        encoding = read_encoding(n_input_dims, Options(encoding_config, "encoding_config"), backend)
        super().__init__(encoding, None, seed, dtype, backend)
        self.encoding_config = encoding_config


class Network(Module):
    """A multilayer perceptron without biases. Inputs are padded to a multiple of 16 with ones, whose weights then are
    biases of the first layer, as in tiny-cuda-nn.

    Args:
        n_input_dims: inputs.
        n_output_dims: outputs.
        network_config: dictionary of the network: docs/compat.md has all keys.
        seed: of the parameters to start from.
        dtype: of outputs: ``torch.float32``, also for None, or ``torch.float16``, which rounds the factors of all
            products to half precision as well. Sums are fp32 in both. tiny-cuda-nn has no such argument.
        backend: ``"native"`` or ``"reference"``; tiny-cuda-nn has no such argument.

    Raises:
        ValueError: a value is unknown or out of range.

    Example:
        >>> config = {"otype": "FullyFusedMLP", "n_neurons": 64, "n_hidden_layers": 2, "output_activation": "Sigmoid"}
        >>> network = Network(27, 3, config)
        >>> network.params.shape  # 32 x 64, 64 x 64 and 64 x 16
        torch.Size([7168])
    """

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        network_config: Mapping[str, Any],
        seed: int = 1337,
        *,
        dtype: torch.dtype | None = None,
        backend: str = "native",
    ) -> None:
        padding = read_encoding(n_input_dims, Options({"otype": "Identity"}, "Identity"), backend)
        network = read_network(padding, n_output_dims, Options(network_config, "network_config"), backend)
        super().__init__(padding, network, seed, dtype, backend)
        self.network_config = network_config


class NetworkWithInputEncoding(Module):
    """An input encoding and a network behind it. Where no gradient is recorded, a grid and its network run as one
    kernel.

    Args:
        n_input_dims: inputs, in [0, 1].
        n_output_dims: outputs.
        encoding_config: dictionary of the encoding: docs/compat.md has all keys.
        network_config: dictionary of the network.
        seed: of the parameters to start from.
        dtype: as of `Network`.
        backend: ``"native"`` or ``"reference"``; tiny-cuda-nn has no such argument.

    Raises:
        ValueError: a value is unknown or out of range.

    Example:
        >>> encoding = {"otype": "HashGrid", "n_levels": 4, "log2_hashmap_size": 14}
        >>> network = {"otype": "FullyFusedMLP", "n_neurons": 16, "n_hidden_layers": 1}
        >>> model = NetworkWithInputEncoding(3, 1, encoding, network)
        >>> model(torch.rand(100, 3)).shape
        torch.Size([100, 1])
    """

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        encoding_config: Mapping[str, Any],
        network_config: Mapping[str, Any],
        seed: int = 1337,
        *,
        dtype: torch.dtype | None = None,
        backend: str = "native",
    ) -> None:
        encoding = read_encoding(n_input_dims, Options(encoding_config, "encoding_config"), backend)
        network = read_network(encoding, n_output_dims, Options(network_config, "network_config"), backend)
        super().__init__(encoding, network, seed, dtype, backend)
        self.encoding_config, self.network_config = encoding_config, network_config


_C = sys.modules[__name__]  # scripts ask tinycudann.modules._C
