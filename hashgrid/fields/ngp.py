"""Instant-NGP (Müller et al. 2022): hash grid, density network, colour network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from hashgrid.fields.base import FusedRadiance, Kept, RadianceField
from hashgrid.geometry.rays import At, Rays
from hashgrid.maths import color_inputs, density_of
from hashgrid.nn import FusedMLP, HashGrid, SphericalHarmonics
from hashgrid.nn.encoding import EncodingConfig, make_encoding
from hashgrid.nn.network_with_input_encoding import encode_and_pass
from hashgrid.ops._backend import ngp_ops
from hashgrid.util.device import DTYPES, fast_dtype


@dataclass(frozen=True)
class NgpConfig(EncodingConfig):
    """Sizes of an :class:`Ngp`. 8 levels of 4 features touch half the cache lines of 16 x 2 at the same output width;
    2^18 entries per level train 10 % faster on a CPU than 2^19, to the same PSNR after 60 and 240 s."""

    name = "ngp"

    n_levels: int = 8  # of the hash grid
    n_features_per_level: int = 4  # of the hash grid: 1, 2, 4 or 8
    log2_hashmap_size: int = 18  # of the hash grid: entries per level; 19 on a GPU
    max_resolution: int = 1024  # vertices along the innermost box; outer cascades scale it
    n_neurons: int = 64  # of a hidden layer
    n_geometry_features: int = 16  # that the density network tells the colour network
    sh_degree: int = 4  # bands of spherical harmonics of the view direction
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of MLP products
    table_dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the copy of the table that is read

    def resolved(self, backend: str, device: torch.device) -> NgpConfig:
        """With ``compute_dtype`` decided for this machine."""
        return replace(self, compute_dtype=fast_dtype(self.compute_dtype, backend, device))  # type: ignore[arg-type]


class Ngp(RadianceField):
    """Density and view-dependent colour from features of positions.

    Args:
        config: sizes of the field.
        aabb: [6] box the field covers, in scene units.
        n_cascades: the box is this many doublings of the innermost one; the finest grid level grows with it.
        backend: ``"native"`` or ``"reference"``.
    """

    Config = NgpConfig
    colors_follow_carry = True

    def __init__(self, config: NgpConfig, aabb: Tensor, n_cascades: int = 1, backend: str = "native") -> None:
        super().__init__(aabb)
        self.backend = backend
        dtype = DTYPES[fast_dtype(config.compute_dtype, backend, aabb.device)]
        self._network = partial(FusedMLP, n_neurons=config.n_neurons, compute_dtype=dtype, backend=backend)
        self.n_geometry, self.n_codes = config.n_geometry_features, 0
        self.grid = self.make_grid(config, n_cascades)
        self.density_mlp = self._network(self.grid.n_output_dims, self.n_geometry, n_hidden_layers=1)
        self.directions = SphericalHarmonics(config.sh_degree, backend=backend)
        self.see_codes(0)

    def see_codes(self, n: int) -> None:
        n_seen, self.n_codes = self.n_geometry + self.directions.n_output_dims + n, n
        self.color_mlp = self._network(n_seen, 3, n_hidden_layers=2, output_activation="sigmoid").to(self.aabb.device)

    def seen_of(self, rays: Rays) -> Tensor:
        """What the colour network knows of rays [R, E]."""
        harmonics = self.directions(rays.directions)
        return harmonics if self.n_codes == 0 else torch.cat((harmonics, self.capture.code(rays)), dim=1)

    def make_grid(self, config: NgpConfig, n_cascades: int) -> Any:
        """The encoding of positions."""
        sizes = replace(config, max_resolution=config.max_resolution * 2 ** (n_cascades - 1))
        dtype = DTYPES[config.table_dtype]
        return make_encoding(3, sizes, self.backend, compute_dtype=dtype, accumulate_grad=True)

    def where(self, at: At) -> Tensor:
        """Places [S, D] at which the encoding is asked."""
        return at.unit

    def density(self, at: At) -> tuple[Tensor, Tensor]:
        geometry = encode_and_pass(self.grid, self.density_mlp, self.where(at), self.level_weights)
        return self.thinned(density_of(geometry)), geometry

    def color(self, at: At, carry: Tensor) -> Tensor:
        return self.color_mlp(color_inputs(carry, self.seen_of(at.rays), at.ray_indices))

    def sketch(self, at: At, to_train: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        if not to_train:
            sigmas, geometry = self.density(at)
            return sigmas, (at.unit, geometry)
        encoded = self.grid(self.where(at), self.level_weights)
        return self.thinned(density_of(self.density_mlp(encoded))), (at.unit, encoded)

    def radiance(self, at: At, kept: Kept | None = None) -> tuple[Tensor, Tensor]:
        seen = self.seen_of(at.rays)
        if kept is not None and not kept.to_train:
            return kept.sigmas, self.color_mlp(kept.column(1, beside=seen, beside_rows=at.ray_indices))
        if kept is not None and isinstance(self.grid, HashGrid):
            encoded = self.grid(self.where(at), self.level_weights, kept.column(1))
        else:
            encoded = self.grid(self.where(at), self.level_weights)
        sigmas, colors = ngp_ops(self.backend).radiance_mlp(encoded, seen, at.ray_indices, **self._networks())
        return self.thinned(sigmas), colors

    def fused(self) -> FusedRadiance | None:
        if type(self.grid) is not HashGrid or self.needs:
            return None
        return FusedRadiance(self.grid.table_arguments(), self._networks(), lambda d: self.seen_of(Rays(d, d)))

    def _networks(self) -> dict[str, Any]:
        color = self.color_mlp.op_arguments()
        return {
            "density_weights": list(self.density_mlp.weights),
            "color_weights": color["weights"],
            "output_activation": color["output_activation"],
            "compute_dtype": color["compute_dtype"],
        }
