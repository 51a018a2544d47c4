"""A photo as a sine network: COIN (Dupont et al. 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hashgrid.compress import coin_code
from hashgrid.compress.coin_code import CoinCode, CoinSizes, coin_sizes
from hashgrid.nn.fused_mlp import MAX_HIDDEN_LAYERS, SIREN_FREQUENCY, FusedMLP
from hashgrid.util.config import Config


@dataclass(frozen=True)
class CoinConfig(Config):
    """Sizes of a :class:`Coin`; the largest network that fits, if none are given."""

    name = "coin"

    n_layers: int = 0  # with a sine; a linear one follows
    n_neurons: int = 0  # of each of them

    def check(self) -> None:
        super().check()
        if (self.n_layers > 0) != (self.n_neurons > 0) or min(self.n_layers, self.n_neurons) < 0:
            raise ValueError(
                f"`n_layers` and `n_neurons` must be positive, or both 0, got {self.n_layers} and {self.n_neurons}"
            )


class Coin(nn.Module):
    """Colours [..., 3] of points [..., 2] in the unit square of a photo: sines of frequency 30, the paper's
    initialisation, parameters in half precision in the file. Pixels are square, and zero is the photo's middle.

    Args:
        config: sizes of the network.
        width: of the photo, in pixels.
        height: of the photo, in pixels.
        n_bytes: of the file, where the sizes are to be found.
        backend: ``"native"`` or ``"reference"``.
    """

    Config = CoinConfig
    method = "coin"
    recipe = {"learning_rate": 1.5e-2, "final_learning_rate": 1.5e-4, "batch": 1 << 14}
    typical_width = 28  # wider networks learn at lower rates

    def __init__(self, config: CoinConfig, width: int, height: int, n_bytes: int, backend: str = "native") -> None:
        super().__init__()
        self.sizes = CoinSizes(config.n_layers, config.n_neurons) if config.n_layers else coin_sizes(n_bytes)
        self.extent = (width / max(width, height), height / max(width, height))
        n, blocks, n_inputs = self.sizes.n_neurons, [], 2
        for first in range(0, self.sizes.n_layers, MAX_HIDDEN_LAYERS + 1):  # of layers with a sine that a kernel takes
            n_here = min(MAX_HIDDEN_LAYERS + 1, self.sizes.n_layers - first)
            is_last = first + n_here == self.sizes.n_layers and n_here <= MAX_HIDDEN_LAYERS
            n_outputs, n_hidden, end = (3, n_here, "none") if is_last else (n, n_here - 1, "sine")
            blocks.append(FusedMLP(n_inputs, n_outputs, n, n_hidden, "sine", end, bias=True, backend=backend))
            n_inputs = n
        if blocks[-1].output_activation == "sine":
            blocks.append(FusedMLP(n, 3, n, 0, "sine", "none", bias=True, backend=backend))
        self.blocks = nn.ModuleList(blocks)
        self._reset()

    @torch.no_grad()
    def _reset(self) -> None:
        for i, (weight, bias) in enumerate(self._layers()):
            n_in = weight.shape[1]
            bound = 1 / n_in if i == 0 else math.sqrt(6 / n_in) / SIREN_FREQUENCY
            factor = SIREN_FREQUENCY if i < self.sizes.n_layers else 1.0
            nn.init.uniform_(weight, -bound * factor, bound * factor)
            nn.init.uniform_(bias, -bound * factor, bound * factor)

    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of every layer."""
        blocks = [block for block in self.blocks if isinstance(block, FusedMLP)]
        return [pair for block in blocks for pair in zip(block.weights, block.biases, strict=True)]

    @property
    def rate(self) -> float:
        """Factor of learning rates."""
        return min(1.0, self.typical_width / self.sizes.n_neurons)

    def begin(self, photo: Tensor) -> None:
        """Nothing of the photo is known at the beginning."""

    def forward(self, x: Tensor) -> Tensor:
        """Colours [..., 3], not clipped, of points [..., 2]."""
        x = (2 * x - 1) * x.new_tensor(self.extent)
        for block in self.blocks:
            x = block(x)
        return x

    def penalty(self) -> Tensor | float:
        """Nothing: the size is that of the network."""
        return 0.0

    def update(self, step: int, fraction: float, n_bytes: int) -> None:
        """Nothing between steps."""

    def payload(self, n_bytes: int) -> bytes:
        """Sizes and parameters in half precision.

        Raises:
            CodecError: a parameter is not finite in half precision.
        """
        layers = [(w.detach().cpu().numpy(), b.detach().cpu().numpy()) for w, b in self._layers()]
        return coin_code.encode(CoinCode(self.sizes, [w for w, _ in layers], [b for _, b in layers]))
