"""The radiance field of Instant-NGP: hash grid, density MLP, colour MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hashgrid.maths import color_inputs, density_of
from hashgrid.nerf.config import NerfConfig
from hashgrid.nn import FusedMLP, HashGrid, OccupancyGrid, SphericalHarmonics
from hashgrid.nn.network_with_input_encoding import encode_and_pass
from hashgrid.ops._backend import ngp_ops
from hashgrid.ops._tensors import keeping_dtype

REFERENCE_CELLS = 1 << 17  # of an occupancy grid, evaluated at a time
_DTYPES = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


class NerfModel(nn.Module):
    """Density and view-dependent colour of points inside a box.

    Args:
        config: sizes of the field.
        aabb: [6] box the field covers, in scene units.
        n_cascades: the box is this many doublings of the innermost one; the finest grid level grows with it.
    """

    aabb: Tensor
    inverse_extent: Tensor

    def __init__(self, config: NerfConfig, aabb: Tensor, n_cascades: int = 1) -> None:
        super().__init__()
        self.register_buffer("aabb", aabb.float().clone())
        self.register_buffer("inverse_extent", torch.empty(3, dtype=torch.float32), persistent=False)
        _measure_box(self)
        self.register_load_state_dict_post_hook(_measure_box)
        config = config.resolved()
        dtype = _DTYPES[config.compute_dtype]
        self.grid = HashGrid(
            3,
            n_levels=config.n_levels,
            n_features_per_level=config.n_features_per_level,
            log2_hashmap_size=config.log2_hashmap_size,
            base_resolution=config.base_resolution,
            max_resolution=config.max_resolution * 2 ** (n_cascades - 1),
            compute_dtype=_DTYPES[config.table_dtype],
            backend=config.backend,
            accumulate_grad=True,
        )
        self.density_mlp = FusedMLP(
            self.grid.n_output_dims,
            config.n_geometry_features,
            n_neurons=config.n_neurons,
            n_hidden_layers=1,
            compute_dtype=dtype,
            backend=config.backend,
        )
        self.directions = SphericalHarmonics(config.sh_degree, backend=config.backend)
        self.color_mlp = FusedMLP(
            config.n_geometry_features + self.directions.n_output_dims,
            3,
            n_neurons=config.n_neurons,
            n_hidden_layers=2,
            output_activation="sigmoid",
            compute_dtype=dtype,
            backend=config.backend,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NerfModel:
        super()._apply(keeping_dtype(fn, (self.aabb, self.inverse_extent)), recurse)
        return self

    def unit(self, positions: Tensor) -> Tensor:
        """Scene positions [S, 3] in the unit cube of the grid."""
        return (positions - self.aabb[:3]) * self.inverse_extent

    def unit_direction(self, directions: Tensor) -> Tensor:
        """Scene directions [R, 3] in the unit cube of the grid: a point moves along them as :meth:`unit` moves it."""
        return directions * self.inverse_extent

    def geometry(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Density [S] per scene unit and geometry features [S, G] from grid features [S, L * F]."""
        geometry = self.density_mlp(encoded)
        return self.density_of(geometry), geometry

    def geometry_at(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """The same from positions [S, 3] in the unit cube of the grid."""
        geometry = encode_and_pass(self.grid, self.density_mlp, unit)
        return self.density_of(geometry), geometry

    def density_of(self, geometry: Tensor) -> Tensor:
        """Density [S] per scene unit from geometry features [S, G]."""
        return density_of(geometry)

    def color(self, geometry: Tensor, encoded_directions: Tensor, rays: Tensor) -> Tensor:
        """sRGB colour [S, 3] from geometry features [S, G], seen along rays [S] of encoded view directions
        [R, degree^2]."""
        return self.color_mlp(color_inputs(geometry, encoded_directions, rays))

    def radiance(self, encoded: Tensor, encoded_directions: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
        """Density [S] per scene unit and sRGB colour [S, 3] from grid features [S, L * F], seen along rays [S] of
        encoded view directions [R, degree^2]."""
        return ngp_ops(self.grid.backend).radiance_mlp(encoded, encoded_directions, rays, **self._networks())

    def render(
        self, occupancy: OccupancyGrid, rays_o: Tensor, rays_d: Tensor, **march: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What rays [R, 3] see, without gradients: :func:`hashgrid.ops._ngp.render_rays`, which takes ``march``."""
        return ngp_ops(self.grid.backend).render_rays(
            rays_o,
            rays_d,
            self.directions(rays_d),
            **occupancy.op_arguments(),
            field_aabb=self.aabb,
            **self.grid.table_arguments(),
            **self._networks(),
            **march,
        )

    def cell_values(self, occupancy: OccupancyGrid, cells: Tensor, seed: int, step: int, step_size: float) -> Tensor:
        """Values [M] of ``cells`` [M] for :meth:`OccupancyGrid.raise_cells`, from `_ngp.occupancy_values`."""
        # the reference keeps all features of what it is asked
        parts = cells.split(REFERENCE_CELLS) if self.grid.backend == "reference" else (cells,)
        values = [
            ngp_ops(self.grid.backend).occupancy_values(
                part,
                occupancy.aabb,
                occupancy.resolution,
                occupancy.n_cascades,
                seed,
                step,
                self.aabb,
                **self.grid.table_arguments(),
                weights=list(self.density_mlp.weights),
                compute_dtype=self.density_mlp.op_arguments()["compute_dtype"],
                step_size=step_size,
            )
            for part in parts
        ]
        return torch.cat(values)

    def _networks(self) -> dict[str, Any]:
        color = self.color_mlp.op_arguments()
        return {
            "density_weights": list(self.density_mlp.weights),
            "color_weights": color["weights"],
            "output_activation": color["output_activation"],
            "compute_dtype": color["compute_dtype"],
        }

    def drop_network_gradients(self) -> None:
        """The networks' next gradients need not be added to anything; the table's buffer stays."""
        for weight in (*self.density_mlp.parameters(), *self.color_mlp.parameters()):
            weight.grad = None

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        """The table without decay, skipping entries without gradient; the MLPs with decay."""
        weights = [*self.density_mlp.parameters(), *self.color_mlp.parameters()]
        return [
            {"params": [self.grid.table], "skip_zero": True},
            {"params": weights, "weight_decay": weight_decay},
        ]


def _measure_box(model: NerfModel, *_: object) -> None:
    model.inverse_extent.copy_(1.0 / (model.aabb[3:] - model.aabb[:3]))
