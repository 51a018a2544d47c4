"""The radiance field of Instant-NGP (Müller et al. 2022, section 5.4), as one kernel where there is one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.levels import LevelTable
from hashgrid.ops._kernels import has_kernel, takes
from hashgrid.ops._ngp.hash_encode_into import hash_encode_into
from hashgrid.ops._ngp.radiance_mlp import radiance_mlp
from hashgrid.ops._tensors import product_dtype
from hashgrid.ops.hash_encode import encoding_options
from hashgrid.util.autograd import is_recorded
from hashgrid.util.choices import ACTIVATIONS, FACTORS


def radiance_field(
    positions: Tensor,
    ray_features: Tensor,
    rays: Tensor,
    table: Tensor,
    levels: LevelTable,
    density_weights: Sequence[Tensor],
    color_weights: Sequence[Tensor],
    interpolation: str = "linear",
    bounds: str = "clamp",
    half_table: Tensor | None = None,
    output_activation: str = "sigmoid",
    compute_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns density and colour of points, by a hash grid, a network whose first output is the logarithm of the
    density, and a network that makes colours of all outputs of the first and of features of the point's ray. Hidden
    layers are ReLU, without biases.

    On a GPU from sm_80 on, where no gradient is recorded, it is one kernel: fp32, 3 dimensions, an even number of
    features per level and per ray, 16 outputs of the density network, 16-bit products, a table of fp32 or a half
    table of their dtype, layers up to 64 wide. Everywhere else it is made of `hash_encode` and `radiance_mlp`.

    Args:
        positions: [N, 3] in the unit cube.
        ray_features: [R, E], such as spherical harmonics of directions.
        rays: [N] int64, to which ray a point belongs.
        table, levels, interpolation, bounds, half_table: see `hash_encode_into`.
        density_weights, color_weights: matrices [out, in] of the layers; the first colour layer has G + E inputs.
        output_activation: of the colour network.
        compute_dtype: of the products, see `mlp`.

    Returns:
        Densities [N], exp of the first output, and colours [N, C].

    Raises:
        ValueError: an option is unknown, or a shape does not fit.
        RuntimeError: a dtype or size the kernels do not take.
    """
    density_weights, color_weights = list(density_weights), list(color_weights)
    if not has_field_kernel(
        "radiance_field", positions, ray_features, table, levels,
        density_weights, color_weights, half_table, output_activation, compute_dtype,
    ):  # fmt: skip
        encoded = hash_encode_into(positions, table, levels, interpolation, bounds, None, half_table)
        return radiance_mlp(
            encoded, ray_features, rays, density_weights, color_weights, output_activation, compute_dtype
        )
    return _extension.ops().radiance_field(
        positions.contiguous(),
        (table if half_table is None else half_table).contiguous(),
        ray_features.contiguous(),
        rays.contiguous(),
        *encoding_options(levels, interpolation, bounds),
        [weight.contiguous() for weight in density_weights],
        [weight.contiguous() for weight in color_weights],
        ACTIVATIONS.index(output_activation),
        FACTORS.index(product_dtype(compute_dtype, density_weights[0])),
    )


def has_field_kernel(
    op: str,
    points: Tensor,
    ray_features: Tensor,
    table: Tensor,
    levels: LevelTable,
    density_weights: list[Tensor],
    color_weights: list[Tensor],
    half_table: Tensor | None,
    output_activation: str,
    compute_dtype: torch.dtype | None,
) -> bool:
    """Returns whether ``op``, "radiance_field" or "render_rays", has a kernel for such tensors and no gradient is
    recorded."""
    if not has_kernel(op, points.device.type):
        return False
    weights = [*density_weights, *color_weights]
    if not weights or ray_features.dim() != 2 or table.dim() != 2 or is_recorded(points, ray_features, table, *weights):
        return False
    return takes(
        op, (points, ray_features), levels.n_levels * table.shape[1], weights, product_dtype(compute_dtype, weights[0]),
        len(density_weights), ray_features.shape[1], output_activation,
        levels, table if half_table is None else half_table,
    )  # fmt: skip


def _register() -> None:
    @torch.library.register_fake("hashgrid::radiance_field")
    def _(positions, table, ray_features, rays, scales, geometry, interpolation, bounds, *options):
        _, color_weights, *_ = options
        n = positions.shape[0]
        return positions.new_empty(n), positions.new_empty(n, color_weights[-1].shape[0])


if _extension.module is not None:
    _register()
