"""TensoRF (Chen et al. 2022): a volume as a sum of products of planes and lines, or of lines alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hashgrid.fields.growing import GrowingConfig, GrowingField
from hashgrid.geometry.rays import At
from hashgrid.maths import color_inputs
from hashgrid.nn import FusedMLP, SphericalHarmonics
from hashgrid.nn.planes import Lines, PlanesAndLines
from hashgrid.util.device import DTYPES, fast_dtype


@dataclass(frozen=True)
class TensorfConfig(GrowingConfig):
    """Sizes of a :class:`Tensorf` for a few CPU cores; :class:`TensorfPaperConfig` has the paper's."""

    name = "tensorf"

    n_density_features: int = 8  # products for the density, per plane: 1, 2, 4 or a multiple of 8
    n_color_features: int = 24  # and for the colour
    n_basis: int = 27  # mixtures of these that the network sees
    n_neurons: int = 64  # of its hidden layers
    sh_degree: int = 4  # bands of spherical harmonics of the view direction
    density_shift: float = -3.0  # of the sum of products, below which there is nothing
    density_scale: float = 10.0  # per unit of length
    density_weight: float = 8e-5  # of the mean size of what densities are products of
    deviation: float = 0.1  # of all factors, at first
    compute_dtype: str = "auto"  # of MLP products


class Tensorf(GrowingField):
    """Three planes, each times a line through it (VM decomposition).

    Args:
        config: sizes of the field.
        aabb: [6] box the field covers.
        n_cascades: not looked at: the cells of all of the box are alike.
        backend: ``"native"`` or ``"reference"``.
    """

    Config = TensorfConfig
    # many small steps: of 30 s on a chair 836 of these teach 7 dB more than 248 of four times the size
    recipe = {"learning_rate": 2e-2, "final_learning_rate": 1e-3, "decay_start": 0.0, "target_samples": 1 << 13}
    config: TensorfConfig

    def __init__(self, config: TensorfConfig, aabb: Tensor, n_cascades: int = 1, backend: str = "native") -> None:
        super().__init__(config, aabb)
        self.backend = backend
        self.densities = self.factors(config.n_density_features)
        self.colors = self.factors(config.n_color_features)
        self.basis = nn.Linear(self.colors.n_output_dims, config.n_basis, bias=False)
        self.directions = SphericalHarmonics(config.sh_degree, backend=backend)
        self.color_mlp = FusedMLP(
            config.n_basis + self.directions.n_output_dims,
            3,
            config.n_neurons,
            2,
            output_activation="sigmoid",
            compute_dtype=DTYPES[fast_dtype(config.compute_dtype, backend, aabb.device)],
            backend=backend,
        )
        self.made()

    def factors(self, n_features: int) -> Any:
        """What is multiplied."""
        spread = 3**0.5 * self.config.deviation  # of a uniform distribution
        return PlanesAndLines(3, [self.sides()], n_features, (-spread, spread), self.backend)

    def points(self, at: At) -> Tensor:
        """What the factors are asked for."""
        return at.unit

    def density(self, at: At) -> tuple[Tensor, None]:
        total = self.densities(self.points(at)).sum(1)
        return nn.functional.softplus(total + self.config.density_shift) * self.config.density_scale, None

    def color(self, at: At, carry: None) -> Tensor:
        features = self.basis(self.colors(self.points(at)))
        return self.color_mlp(color_inputs(features, self.directions(at.rays.directions), at.ray_indices))

    def penalty(self) -> Tensor | float:
        if not self.config.density_weight:
            return 0.0
        tables = list(self.densities.parameters())
        return self.config.density_weight * torch.stack([table.abs().mean() for table in tables]).sum()


@dataclass(frozen=True)
class TensorfCpConfig(TensorfConfig):
    """Sizes of a :class:`TensorfCp`."""

    name = "tensorf_cp"

    n_density_features: int = 48  # products for the density: 1, 2, 4 or a multiple of 8
    n_color_features: int = 96  # and for the colour
    density_weight: float = 1e-5  # of the mean size of what densities are products of
    deviation: float = 0.2  # of all factors, at first


class TensorfCp(Tensorf):
    """A line along each axis (CP decomposition)."""

    Config = TensorfCpConfig
    recipe = {**Tensorf.recipe, "learning_rate": 3e-2}

    def factors(self, n_features: int) -> Any:
        spread = 3**0.5 * self.config.deviation
        return Lines(3, [self.sides()], n_features, (-spread, spread), self.backend)


@dataclass(frozen=True)
class TensorfPaperConfig(TensorfConfig):
    """Sizes of the paper's VM-192, and its steps of 30000."""

    name = "tensorf_paper"

    resolutions: tuple[int, ...] = (128, 152, 180, 214, 253, 300)  # vertices along the longest side of the box
    grow_at: tuple[float, ...] = (0.067, 0.1, 0.133, 0.183, 0.233)  # progress of training at which the next one comes
    n_density_features: int = 16  # products for the density, per plane: 1, 2, 4 or a multiple of 8
    n_color_features: int = 48  # and for the colour
    n_neurons: int = 128  # of its hidden layers
    density_shift: float = -10.0  # of the sum of products, below which there is nothing
    density_scale: float = 25.0  # per unit of length


class TensorfPaper(Tensorf):
    """The same with the sizes and the densities of the paper."""

    Config = TensorfPaperConfig
    recipe = {"learning_rate": 2e-2, "final_learning_rate": 2e-3, "decay_start": 0.0}
