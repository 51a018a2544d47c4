"""tiny-cuda-nn's layers in a few lines of PyTorch, in any precision: what third-party models are compared with.

Formulas only, from tiny-cuda-nn's source (commit 6ee3546), nothing of hashgrid but the start of a seed. What the three
models of ``models.py`` do not use is not here.
"""

from __future__ import annotations

import itertools
import math
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hashgrid.compat import tinycudann

PRIMES = (1, 2654435761, 805459861)
ACTIVATIONS = {"none": lambda x: x, "relu": torch.relu, "sigmoid": torch.sigmoid}


class Grid:
    """Levels of a hash grid, a table [entries, F] each."""

    def __init__(self, n_dims: int, config: dict[str, Any]) -> None:
        n_levels, log2_size = config.get("n_levels", 16), config.get("log2_hashmap_size", 19)
        growth = np.float32(np.log2(np.float64(np.float32(config.get("per_level_scale", 2.0)))))
        base, self.n_features, self.n_dims = (
            config.get("base_resolution", 16),
            config.get("n_features_per_level", 2),
            n_dims,
        )
        self.levels = []
        for level in range(n_levels):
            factor = np.float32(np.exp2(np.float64(np.float32(level) * growth)))  # each step is rounded to float32
            scale = factor * np.float32(base) - np.float32(1)
            side = math.ceil(scale) + 1
            self.levels.append((float(scale), side, min(-(-(side**n_dims) // 8) * 8, 2**log2_size)))
        self.n_params = self.n_features * sum(size for _, _, size in self.levels)
        self.width = self.n_features * n_levels

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        outputs, begin = [], 0
        for scale, side, size in self.levels:
            table = params[begin : begin + size * self.n_features].view(size, self.n_features)
            begin += size * self.n_features
            place = x * scale + 0.5
            cell = place.detach().floor()
            share = place - cell
            total = 0
            for corner in itertools.product((0, 1), repeat=self.n_dims):
                at = torch.tensor(corner)
                weight = torch.where(at.bool(), share, 1 - share).prod(-1, keepdim=True)
                total = total + weight * table[self.index((cell.long() + at), side, size)]
            outputs.append(total)
        return torch.cat(outputs, dim=-1)

    def index(self, vertex: Tensor, side: int, size: int) -> Tensor:
        if side**self.n_dims <= size:
            return sum(vertex[:, d] * side**d for d in range(self.n_dims)) % 2**32 % size
        index = torch.zeros_like(vertex[:, 0])
        for d in range(self.n_dims):
            index = index ^ (vertex[:, d] * PRIMES[d] % 2**32)
        return index % size


class OneBlob:
    """A quartic bump around ``x``, integrated over bins of the unit circle."""

    n_params = 0

    def __init__(self, n_dims: int, config: dict[str, Any]) -> None:
        self.n_bins = config.get("n_bins", 16)
        self.width = n_dims * self.n_bins

    def below(self, x: Tensor) -> Tensor:
        u = (x * self.n_bins).clamp(-1, 1)
        return 15 / 16 * u * (u**4 / 5 - u**2 * 2 / 3 + 1) + 0.5

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        edges = torch.arange(self.n_bins + 1, dtype=x.dtype) / self.n_bins - x[..., None]
        return (self.below(edges) + self.below(edges - 1) + self.below(edges + 1)).diff(dim=-1).flatten(-2)


class SphericalHarmonics:
    """Sixteen real harmonics of directions ``2 x - 1``."""

    n_params, width = 0, 16

    def __init__(self, n_dims: int, config: dict[str, Any]) -> None:
        assert n_dims == 3 and config.get("degree", 4) == 4

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        x, y, z = (2 * x - 1).unbind(-1)
        a, b, c, d = (math.sqrt(k / math.pi) / 4 for k in (4, 12, 60, 15))  # of bands 0, 1 and 2
        e, f, g, h = (math.sqrt(k / math.pi) / 8 for k in (70, 420, 42, 28))  # of band 3
        return torch.stack(
            [
                *(a * torch.ones_like(x), -b * y, b * z, -b * x),
                *(
                    c * x * y,
                    -c * y * z,
                    math.sqrt(5 / math.pi) / 4 * (3 * z * z - 1),
                    -c * x * z,
                    c / 2 * (x * x - y * y),
                ),
                *(-e * y * (3 * x * x - y * y), 2 * f * x * y * z, g * y * (1 - 5 * z * z)),
                *(h * z * (5 * z * z - 3), g * x * (1 - 5 * z * z), f * z * (x * x - y * y)),
                -e * x * (x * x - 3 * y * y),
            ],
            dim=-1,
        )


class Identity:
    n_params = 0

    def __init__(self, n_dims: int, config: dict[str, Any]) -> None:
        self.width = n_dims

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        return x


def encoding_of(n_dims: int, config: dict[str, Any]) -> Any:
    kind = config["otype"]
    if kind == "Composite":
        (nested,) = config["nested"]
        assert nested.get("n_dims_to_encode", n_dims) == n_dims
        return encoding_of(n_dims, nested)
    kinds = {"OneBlob": OneBlob, "SphericalHarmonics": SphericalHarmonics, "Identity": Identity}
    return kinds.get(kind, Grid)(n_dims, config)


class Layers:
    """Matrices [out, in] row by row, inputs and outputs padded to multiples of 16."""

    def __init__(self, n_in: int, n_out: int, config: dict[str, Any]) -> None:
        width, self.n_in, self.n_out = config["n_neurons"], n_in, n_out
        widths = [-(-n_in // 16) * 16, *[width] * config["n_hidden_layers"], -(-n_out // 16) * 16]
        self.shapes = list(itertools.pairwise(widths))
        self.n_params = sum(a * b for a, b in self.shapes)
        self.activations = [config.get(key, "None").lower() for key in ("activation", "output_activation")]

    def __call__(self, x: Tensor, params: Tensor, padding: float) -> Tensor:
        x = nn.functional.pad(x, (0, self.shapes[0][0] - self.n_in), value=padding)
        for k, (n_in, n_out) in enumerate(self.shapes):
            weight, params = params[: n_in * n_out].view(n_out, n_in), params[n_in * n_out :]
            x = ACTIVATIONS[self.activations[k == len(self.shapes) - 1]](x @ weight.mT)
        return x[:, : self.n_out]


class Module(nn.Module):
    def __init__(self, encoding: Any, network: Layers | None, start: Tensor) -> None:
        super().__init__()
        self.encoding, self.network = encoding, network
        self.n_input_dims = 0
        self.n_output_dims = network.n_out if network else encoding.width
        self.params = nn.Parameter(start.detach().clone())
        assert len(start) == encoding.n_params + (network.n_params if network else 0)

    def forward(self, x: Tensor) -> Tensor:
        n = self.network.n_params if self.network else 0
        x = x.reshape(-1, x.shape[-1]).to(self.params.dtype)
        encoded = self.encoding(x, self.params[n:])
        if self.network is None:
            return encoded
        return self.network(encoded, self.params[:n], float(not isinstance(self.encoding, Grid)))


class Encoding(Module):
    def __init__(self, n_input_dims: int, encoding_config: dict[str, Any], **options: Any) -> None:
        start = tinycudann.Encoding(n_input_dims, encoding_config).params
        super().__init__(encoding_of(n_input_dims, encoding_config), None, start)
        self.n_input_dims = n_input_dims


class Network(Module):
    def __init__(self, n_input_dims: int, n_output_dims: int, network_config: dict[str, Any], **options: Any) -> None:
        start = tinycudann.Network(n_input_dims, n_output_dims, network_config).params
        super().__init__(Identity(n_input_dims, {}), Layers(n_input_dims, n_output_dims, network_config), start)
        self.n_input_dims = n_input_dims


class NetworkWithInputEncoding(Module):
    def __init__(
        self, n_input_dims: int, n_output_dims: int, encoding_config: dict[str, Any], network_config: dict[str, Any]
    ) -> None:
        start = tinycudann.NetworkWithInputEncoding(n_input_dims, n_output_dims, encoding_config, network_config).params
        encoding = encoding_of(n_input_dims, encoding_config)
        super().__init__(encoding, Layers(encoding.width, n_output_dims, network_config), start)
        self.n_input_dims = n_input_dims


def free_temporary_memory() -> None:
    pass


def install() -> None:
    """Puts this in tiny-cuda-nn's place."""
    sys.modules["tinycudann"] = sys.modules[__name__]
