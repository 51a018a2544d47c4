"""Optical thickness of the cells of an occupancy grid by a radiance field, as one kernel where there is one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.levels import LevelTable
from hashgrid.maths import optical_thickness
from hashgrid.ops._kernels import has_kernel, takes
from hashgrid.ops._ngp.hash_encode_mlp import hash_encode_mlp
from hashgrid.ops._ngp.occupancy_points import occupancy_points
from hashgrid.ops._tensors import at_least_fp32, product_dtype
from hashgrid.ops.counter_uniform import as_counter
from hashgrid.ops.hash_encode import encoding_options
from hashgrid.util.autograd import is_recorded
from hashgrid.util.choices import FACTORS

N_CHUNK = 1 << 17  # cells at a time, where points go through memory


@torch.no_grad()
def occupancy_values(
    cells: Tensor,
    aabb: Tensor,
    resolution: tuple[int, int, int],
    n_cascades: int,
    seed: int | Tensor | None,
    step: int | Tensor,
    field_aabb: Tensor,
    table: Tensor,
    levels: LevelTable,
    weights: Sequence[Tensor],
    interpolation: str = "linear",
    bounds: str = "clamp",
    half_table: Tensor | None = None,
    compute_dtype: torch.dtype | None = None,
    *,
    step_size: float,
) -> Tensor:
    """Optical thickness of a step at a point of each cell: what `occupancy_update` takes. Not differentiable.

    The density is the exponential of the first output of a network behind a hash grid. On a GPU from sm_80 on it is one
    kernel for fp32, 3 dimensions, an even number of features per level, 16-bit products, a table of fp32 or a half
    table of their dtype and layers up to 64 wide. Everywhere else it is made of `occupancy_points` and
    `hash_encode_mlp`.

    Args:
        cells, aabb, resolution, n_cascades, seed, step: see `occupancy_points`.
        field_aabb: [6], the box that is the field's unit cube, (x_min, y_min, z_min, x_max, y_max, z_max).
        table, levels, interpolation, bounds, half_table: see `hash_encode_into`.
        weights: matrices [out, in] of the density network's layers; hidden ones are ReLU, without biases.
        compute_dtype: of the products, see `mlp`.
        step_size: length of a step in cascade 0, doubled from cascade to cascade.

    Returns:
        [M], density times length, in the dtype of ``aabb``, at least fp32.

    Raises:
        ValueError: an option is unknown, or a shape does not fit.
        RuntimeError: a dtype or size the kernels do not take, or a cell does not exist (in the kernel: its value is
            NaN).
    """
    weights, aabb = list(weights), at_least_fp32(aabb.detach()).contiguous()
    field_aabb = field_aabb.detach().to(aabb).contiguous()
    if field_aabb.shape != (6,):
        raise ValueError(f"`field_aabb` must have shape [6], got {list(field_aabb.shape)}")
    read, products = table if half_table is None else half_table, compute_dtype
    in_one = bool(weights) and has_kernel("occupancy_values", aabb.device.type) and not is_recorded(table, *weights)
    if in_one:
        products = product_dtype(compute_dtype, weights[0])
        width = levels.n_levels * read.shape[-1]
        in_one = takes("occupancy_values", (aabb,), width, weights, products, levels=levels, table=read)
    if in_one:
        return _extension.ops().occupancy_values(
            cells.contiguous(), aabb, list(resolution), n_cascades,
            None if seed is None else as_counter(seed, step, aabb.device), field_aabb,
            read.contiguous(),
            *encoding_options(levels, interpolation, bounds),
            [weight.contiguous() for weight in weights], FACTORS.index(products),
            step_size,
        )  # fmt: skip

    low, inverse_extent = field_aabb[:3], 1.0 / (field_aabb[3:] - field_aabb[:3])
    values = []
    for part in cells.split(N_CHUNK):
        points = occupancy_points(part, aabb, resolution, n_cascades, seed, step)
        unit = (points - low) * inverse_extent
        geometry = hash_encode_mlp(
            unit, table, levels, weights, interpolation=interpolation, bounds=bounds, half_table=half_table,
            compute_dtype=compute_dtype,
        )  # fmt: skip
        values.append(optical_thickness(geometry, part, resolution, n_cascades, step_size))
    return torch.cat(values)


def _register() -> None:
    @torch.library.register_fake("hashgrid::occupancy_values")
    def _(cells, aabb, *options):
        return aabb.new_empty(cells.shape[0])


if _extension.module is not None:
    _register()
