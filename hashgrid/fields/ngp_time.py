"""Instant-NGP's field with time as a fourth dimension of its hash grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hashgrid.fields.ngp import Ngp, NgpConfig
from hashgrid.geometry.rays import At
from hashgrid.nn.hash_grid import HashGrid
from hashgrid.util.device import DTYPES

# Training on what moves: few samples of many rays, since each moment is one picture
MOVING: dict[str, Any] = {"target_samples": 1 << 14, "steps_per_diagonal": 192}


@dataclass(frozen=True)
class NgpTimeConfig(NgpConfig):
    """Sizes of an :class:`NgpTime`."""

    name = "ngp_time"

    max_resolution: int = 256  # vertices along the box
    sh_degree: int = 1  # with more bands a moment that one view has seen could be a direction as well
    first_times: int = 4  # cells along time of the coarsest level
    n_times: int = 16  # and of the finest: half as many as there are pictures, or fewer


class NgpTime(Ngp):
    """Density and colour from the features of a hash grid of four dimensions, of 16 corners to a cell.

    Args:
        config: sizes of the field.
        aabb: [6] box the field covers.
        n_cascades: as of :class:`Ngp`.
        backend: ``"native"`` or ``"reference"``.
    """

    Config = NgpTimeConfig
    recipe = MOVING
    needs = ("time",)

    def make_grid(self, config: NgpConfig, n_cascades: int) -> Any:
        assert isinstance(config, NgpTimeConfig)
        return grid_over(self, config, n_cascades, [(config.first_times, config.n_times)])

    def where(self, at: At) -> Tensor:
        return at.unit_and_time


def grid_over(field: Ngp, config: NgpConfig, n_cascades: int, further: list[tuple[int, int]]) -> HashGrid:
    """A hash grid of space and further axes of so many cells at the coarsest and the finest level.

    Raises:
        ValueError: another encoding is asked for.
    """
    if config.encoding != "hash":
        raise ValueError(f"`encoding` must be hash for the field {config.name!r}, got {config.encoding!r}")
    finest = config.max_resolution * 2 ** (n_cascades - 1)
    return HashGrid(
        3 + len(further),
        n_levels=config.n_levels,
        n_features_per_level=config.n_features_per_level,
        log2_hashmap_size=config.log2_hashmap_size,
        base_resolution=[*[config.base_resolution] * 3, *(first for first, _ in further)],
        max_resolution=[*[finest] * 3, *(last for _, last in further)],
        interpolation=config.interpolation,
        compute_dtype=DTYPES[config.table_dtype],
        accumulate_grad=True,
        backend=field.backend,
    )
