"""Encodings by name: what turns points of the unit cube into the inputs of a network.

Each has ``n_input_dims``, ``n_output_dims``, ``n_levels`` (that ``level_weights`` [n_levels] fade in; 0 for none) and
``forward(x [..., n_input_dims], level_weights=None) -> [..., n_output_dims]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from hashgrid.nn.encodings import Frequency
from hashgrid.nn.hash_grid import HashGrid
from hashgrid.util.choices import check_option
from hashgrid.util.config import Config


@dataclass(frozen=True)
class EncodingConfig(Config):
    """Which encoding, and its sizes; those of the others are not looked at."""

    encoding: str = "hash"  # of positions: hash, frequency or none
    n_levels: int = 16  # of a hash grid
    n_features_per_level: int = 2  # of a hash grid: 1, 2, 4 or 8
    log2_hashmap_size: int = 19  # of a hash grid: entries per level
    base_resolution: int = 16  # of a hash grid: cells of the coarsest level
    max_resolution: int = 2048  # of a hash grid: cells of the finest level
    interpolation: Literal["linear", "smoothstep", "nearest"] = "linear"  # of a hash grid
    n_frequencies: int = 10  # of a frequency encoding: octaves

    def check(self) -> None:
        super().check()
        check_option("encoding", self.encoding, ENCODINGS)


class Centred(nn.Module):
    """No encoding: the unit cube as [-1, 1]^D, where networks are initialised for."""

    n_levels = 0

    def __init__(self, n_input_dims: int) -> None:
        super().__init__()
        self.n_input_dims = self.n_output_dims = n_input_dims

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """``2 x - 1`` [..., D]."""
        return 2 * x - 1


def _hash(n_input_dims: int, sizes: EncodingConfig, backend: str, **options: object) -> nn.Module:
    return HashGrid(
        n_input_dims,
        n_levels=sizes.n_levels,
        n_features_per_level=sizes.n_features_per_level,
        log2_hashmap_size=sizes.log2_hashmap_size,
        base_resolution=sizes.base_resolution,
        max_resolution=sizes.max_resolution,
        interpolation=sizes.interpolation,
        backend=backend,
        **options,  # type: ignore[arg-type]
    )


# by the names of `--encoding`
ENCODINGS: dict[str, Callable[..., nn.Module]] = {
    "hash": _hash,
    "frequency": lambda n_input_dims, sizes, backend, **_: Frequency(n_input_dims, sizes.n_frequencies, backend),
    "none": lambda n_input_dims, sizes, backend, **_: Centred(n_input_dims),
}


def make_encoding(n_input_dims: int, sizes: EncodingConfig, backend: str = "native", **options: object) -> Any:
    """The encoding that ``sizes.encoding`` names; ``options`` are for those of hash grids alone."""
    return ENCODINGS[check_option("encoding", sizes.encoding, ENCODINGS)](n_input_dims, sizes, backend, **options)
