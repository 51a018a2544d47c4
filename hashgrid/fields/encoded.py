"""Classic networks behind encodings that are no hash grid, each by its name and with its own recipe, for any signal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hashgrid.fields.coordinate import CoordinateConfig, CoordinateField

MOST_ENTRIES = 1 << 22  # of a dense grid whose size nobody gave
LONGEST_PLANE = 1024  # vertices along a side, likewise


@dataclass(frozen=True)
class MlpConfig(CoordinateConfig):
    """Sizes of a :class:`MlpField`."""

    name = "mlp"

    encoding: str = "none"
    n_neurons: int = 128  # of a hidden layer
    n_hidden_layers: int = 4  # of the network


class MlpField(CoordinateField):
    """A ReLU network of coordinates alone, which learns low frequencies (Rahaman et al. 2019)."""

    Config = MlpConfig
    recipe = {"learning_rate": 5e-3, "final_learning_rate": 1e-4, "batch": 1 << 13}
    size = "n_neurons"


@dataclass(frozen=True)
class FrequencyConfig(MlpConfig):
    """Sizes of a :class:`FrequencyField`."""

    name = "frequency"

    encoding: str = "frequency"
    n_frequencies: int = 0  # of frequency and integrated: octaves; 0: as many as the samples can show


class FrequencyField(MlpField):
    """A ReLU network of sines and cosines along the axes (Mildenhall et al. 2020)."""

    Config = FrequencyConfig
    recipe = {"learning_rate": 5e-3, "final_learning_rate": 1e-4, "batch": 1 << 13}

    @classmethod
    def configured(cls, config: Any, shape: Sequence[int]) -> Any:
        # the last octave has 2^(K - 2) periods along a side
        octaves = min(max(math.ceil(math.log2(max(shape))) + 1, 1), 20)
        config = super().configured(config, shape)
        return config if config.n_frequencies > 0 else config.replace(n_frequencies=octaves)


@dataclass(frozen=True)
class FourierConfig(MlpConfig):
    """Sizes of a :class:`FourierField`."""

    name = "fourier"

    encoding: str = "fourier"
    n_hidden_layers: int = 3  # of the network
    fourier_scale: float = 0.0  # periods along a side; 0: 10, or more for many samples


class FourierField(MlpField):
    """A ReLU network of random Fourier features (Tancik et al. 2020)."""

    Config = FourierConfig
    recipe = {"learning_rate": 2e-3, "final_learning_rate": 1e-4, "batch": 1 << 13}

    @classmethod
    def configured(cls, config: Any, shape: Sequence[int]) -> Any:
        config = super().configured(config, shape)
        scale = max(10.0, max(shape) / (25 if len(shape) == 1 else 100))  # spectra of pictures fall faster
        return config if config.fourier_scale > 0 else config.replace(fourier_scale=scale)


@dataclass(frozen=True)
class DenseConfig(CoordinateConfig):
    """Sizes of a :class:`DenseField`."""

    name = "dense"

    encoding: str = "dense"
    dense_resolutions: tuple[int, ...] = ()  # of a dense grid: vertices along a side; none: 4 that double to `finest`
    finest: int = 0  # vertices along a side of the finest grid; 0: half the samples along the longest one


class DenseField(CoordinateField):
    """Dense grids of several resolutions.

    Args:
        config: sizes of the field.
        n_input_dims: D.
        n_output_dims: C.
        backend: ``"native"`` or ``"reference"``.
    """

    Config = DenseConfig
    size = "finest"

    def __init__(self, config: Any, n_input_dims: int, n_output_dims: int, backend: str = "native") -> None:
        if not config.dense_resolutions:
            config = config.replace(dense_resolutions=octaves_to(config.finest or 128, 4))
        super().__init__(config, n_input_dims, n_output_dims, backend)

    @classmethod
    def configured(cls, config: Any, shape: Sequence[int]) -> Any:
        config = super().configured(config, shape)
        finest = min(max(shape) // 2, int(MOST_ENTRIES ** (1 / len(shape))))
        return config if config.finest > 0 else config.replace(finest=max(finest, 2))


@dataclass(frozen=True)
class PlanesConfig(CoordinateConfig):
    """Sizes of a :class:`PlanesSignal`."""

    name = "planes"

    encoding: str = "planes"
    plane_resolutions: tuple[int, ...] = ()  # vertices along a side; none: 3 that double to `finest`
    finest: int = 0  # vertices along a side of the finest planes; 0: half the samples along the longest one


class PlanesSignal(CoordinateField):
    """Planes through pairs of axes, multiplied (Fridovich-Keil et al. 2023).

    Args:
        config: sizes of the field.
        n_input_dims: D.
        n_output_dims: C.
        backend: ``"native"`` or ``"reference"``.
    """

    Config = PlanesConfig
    recipe = {"learning_rate": 1e-2, "final_learning_rate": 1e-4}
    size = "finest"

    def __init__(self, config: Any, n_input_dims: int, n_output_dims: int, backend: str = "native") -> None:
        if not config.plane_resolutions:
            config = config.replace(plane_resolutions=octaves_to(config.finest or 256, 3))
        super().__init__(config, n_input_dims, n_output_dims, backend)

    @classmethod
    def configured(cls, config: Any, shape: Sequence[int]) -> Any:
        config = super().configured(config, shape)
        return config if config.finest > 0 else config.replace(finest=min(max(max(shape) // 2, 2), LONGEST_PLANE))


@dataclass(frozen=True)
class VmConfig(PlanesConfig):
    """Sizes of a :class:`VmField`."""

    name = "vm"

    encoding: str = "vm"


class VmField(PlanesSignal):
    """Planes times lines (Chen et al. 2022)."""

    Config = VmConfig


@dataclass(frozen=True)
class CpConfig(PlanesConfig):
    """Sizes of a :class:`CpField`."""

    name = "cp"

    encoding: str = "cp"
    n_plane_features: int = 64  # of planes, cp and vm, per resolution: 1, 2, 4 or a multiple of 8


class CpField(PlanesSignal):
    """Lines along the axes, multiplied (Chen et al. 2022)."""

    Config = CpConfig


def octaves_to(finest: int, count: int) -> tuple[int, ...]:
    """Up to ``count`` resolutions that double up to ``finest``; none below 2, and one at least."""
    return tuple(side for i in reversed(range(count)) if (side := max(finest, 2) >> i) >= 2)
