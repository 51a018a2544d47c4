"""Encodings by name: what turns points of the unit cube into the inputs of a network.

Each has ``n_input_dims``, ``n_output_dims``, ``n_levels`` (that ``level_weights`` [n_levels] fade in; 0 for none) and
``forward(x [..., n_input_dims], level_weights=None) -> [..., n_output_dims]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from hashgrid.levels import dense_level_table
from hashgrid.nn.encodings import Frequency, IntegratedFrequency
from hashgrid.nn.fourier import LearnedFourier, RandomFourier
from hashgrid.nn.hash_grid import HashGrid
from hashgrid.nn.planes import Lines, Planes, PlanesAndLines
from hashgrid.util.choices import check_option
from hashgrid.util.config import Config


@dataclass(frozen=True)
class EncodingConfig(Config):
    """Which encoding, and its sizes; those of the others are not looked at."""

    # of positions: hash, dense, planes, cp, vm, frequency, integrated, fourier, learned_fourier or none
    encoding: str = "hash"
    n_levels: int = 16  # of a hash grid
    n_features_per_level: int = 2  # of hash and dense grids: 1, 2, 4 or 8
    log2_hashmap_size: int = 19  # of a hash grid: entries per level
    base_resolution: int = 16  # of a hash grid: cells of the coarsest level
    max_resolution: int = 2048  # of a hash grid: cells of the finest level
    interpolation: Literal["linear", "smoothstep", "nearest"] = "linear"  # of hash and dense grids
    dense_resolutions: tuple[int, ...] = (16, 32, 64, 128)  # of a dense grid: vertices along a side
    plane_resolutions: tuple[int, ...] = (64, 128, 256)  # of planes, cp and vm: vertices along a side
    n_plane_features: int = 16  # of planes, cp and vm, per resolution: 1, 2, 4 or a multiple of 8
    n_frequencies: int = 10  # of frequency and integrated: octaves
    frequency_pi: bool = True  # of frequency and integrated: pi is among the factors of x
    frequency_identity: bool = False  # of frequency: x itself comes first
    frequency_deviation: float = 1e-3  # of integrated: what is smaller fades, in sides of the cube
    n_fourier_features: int = 256  # of Fourier features: pairs of sine and cosine
    fourier_scale: float = 10.0  # of Fourier features: periods along a side

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


def _dense(n_input_dims: int, sizes: EncodingConfig, backend: str, **options: object) -> nn.Module:
    levels = dense_level_table([(side,) * n_input_dims for side in sizes.dense_resolutions])
    return HashGrid(
        n_input_dims,
        n_features_per_level=sizes.n_features_per_level,
        level_table=levels,
        interpolation=sizes.interpolation,
        backend=backend,
        **options,  # type: ignore[arg-type]
    )


def _factorised(kind: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def make(n_input_dims: int, sizes: EncodingConfig, backend: str, **_: object) -> nn.Module:
        return kind(n_input_dims, sizes.plane_resolutions, sizes.n_plane_features, backend=backend)

    return make


# by the names of `--encoding`
ENCODINGS: dict[str, Callable[..., nn.Module]] = {
    "hash": _hash,
    "dense": _dense,
    "planes": _factorised(Planes),
    "cp": _factorised(Lines),
    "vm": _factorised(PlanesAndLines),
    "frequency": lambda n_input_dims, sizes, backend, **_: Frequency(
        n_input_dims, sizes.n_frequencies, backend, sizes.frequency_pi, sizes.frequency_identity
    ),
    "integrated": lambda n_input_dims, sizes, backend, **_: IntegratedFrequency(
        n_input_dims, sizes.n_frequencies, backend, sizes.frequency_pi, sizes.frequency_deviation
    ),
    "fourier": lambda n_input_dims, sizes, backend, **_: RandomFourier(
        n_input_dims, sizes.n_fourier_features, sizes.fourier_scale, backend
    ),
    "learned_fourier": lambda n_input_dims, sizes, backend, **_: LearnedFourier(
        n_input_dims, sizes.n_fourier_features, sizes.fourier_scale, backend
    ),
    "none": lambda n_input_dims, sizes, backend, **_: Centred(n_input_dims),
}


def make_encoding(n_input_dims: int, sizes: EncodingConfig, backend: str = "native", **options: object) -> Any:
    """The encoding that ``sizes.encoding`` names; ``options`` are for those of hash grids alone."""
    return ENCODINGS[check_option("encoding", sizes.encoding, ENCODINGS)](n_input_dims, sizes, backend, **options)
