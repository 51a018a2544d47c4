"""The radiance field of Instant-NGP (Müller et al. 2022, section 5.4), as one kernel where there is one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.levels import LevelTable
from hashgrid.ops._autograd import is_recorded
from hashgrid.ops._ngp.hash_encode_into import hash_encode_into
from hashgrid.ops._ngp.radiance_mlp import N_GEOMETRY, fits_tensor_cores, radiance_mlp
from hashgrid.ops._tensors import product_dtype
from hashgrid.ops.hash_encode import encoding_options
from hashgrid.ops.mlp import check_network
from hashgrid.util.choices import ACTIVATIONS, BOUNDS, FACTORS, INTERPOLATIONS, check_option

KERNEL_DEVICES = ("cuda",)


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
    """Density and colour of points: a hash grid, a network whose first output is the logarithm of the density, and one
    that makes colours of all its outputs and of features of the point's ray. Hidden layers are ReLU, without biases.

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
    if not has_kernel(
        positions, ray_features, table, levels, density_weights, color_weights, half_table, compute_dtype
    ):
        encoded = hash_encode_into(positions, table, levels, interpolation, bounds, None, half_table)
        return radiance_mlp(
            encoded, ray_features, rays, density_weights, color_weights, output_activation, compute_dtype
        )
    check_field(
        ray_features, table, levels, density_weights, color_weights,
        interpolation, bounds, output_activation, compute_dtype,
    )  # fmt: skip
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


def check_field(
    ray_features: Tensor,
    table: Tensor,
    levels: LevelTable,
    density_weights: list[Tensor],
    color_weights: list[Tensor],
    interpolation: str,
    bounds: str,
    output_activation: str,
    compute_dtype: torch.dtype | None,
) -> None:
    """Raises a ValueError where an option is unknown or shapes do not chain."""
    check_option("interpolation", interpolation, INTERPOLATIONS)
    check_option("bounds", bounds, BOUNDS)
    width = levels.n_levels * table.shape[1]
    check_network(width, density_weights, [], "relu", "none", compute_dtype, "density_weights")
    width = density_weights[-1].shape[0] + ray_features.shape[1]
    check_network(width, color_weights, [], "relu", output_activation, compute_dtype, "color_weights")


def has_kernel(
    positions: Tensor,
    ray_features: Tensor,
    table: Tensor,
    levels: LevelTable,
    density_weights: list[Tensor],
    color_weights: list[Tensor],
    half_table: Tensor | None,
    compute_dtype: torch.dtype | None,
) -> bool:
    """Whether there is one for points like ``positions``, in their device and dtype, and this field."""
    if not (density_weights and color_weights and all(tensor.dim() == 2 for tensor in (*color_weights, ray_features))):
        return False
    weights = [*density_weights, *color_weights]
    return (
        has_density_kernel(positions, table, levels, weights, half_table, compute_dtype)
        and not is_recorded(ray_features)
        and ray_features.dtype == torch.float32
        and ray_features.shape[1] % 2 == 0
        and density_weights[-1].shape[0] == N_GEOMETRY
    )


def has_density_kernel(
    positions: Tensor,
    table: Tensor,
    levels: LevelTable,
    weights: list[Tensor],
    half_table: Tensor | None,
    compute_dtype: torch.dtype | None,
) -> bool:
    """Whether there is one for a grid and the networks behind it, whatever lies between these."""
    tensors = [positions, table, *weights]
    if positions.device.type not in KERNEL_DEVICES or is_recorded(*tensors):
        return False
    if not (weights and all(tensor.dim() == 2 for tensor in (*weights, table))):
        return False
    products = product_dtype(compute_dtype, weights[0])
    return (
        fits_tensor_cores(positions.device, weights, products)
        and all(tensor.dtype == torch.float32 for tensor in tensors)
        and (half_table is None or half_table.dtype == products)
        and levels.n_input_dims == 3
        and not levels.per_axis
        and table.shape[1] % 2 == 0
    )


def _register() -> None:
    @torch.library.register_fake("hashgrid::radiance_field")
    def _(positions, table, ray_features, rays, scales, geometry, interpolation, bounds, *options):
        _, color_weights, *_ = options
        n = positions.shape[0]
        return positions.new_empty(n), positions.new_empty(n, color_weights[-1].shape[0])


if _extension.module is not None:
    _register()
