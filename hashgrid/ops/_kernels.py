"""Which kernels there are: asked of the dispatcher and of the extensions, so that no rule is written down here."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from operator import index
from types import ModuleType

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.levels import LevelTable
from hashgrid.util.choices import ACTIVATIONS, FACTORS

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # numbers of csrc/core/dtype.h
_ACTIVATIONS = {name: number for number, name in enumerate(ACTIVATIONS)}
_FACTORS = {dtype: number for number, dtype in enumerate(FACTORS)}


def place_of(device_type: str) -> tuple[str, str, ModuleType | None]:
    """Where kernels for tensors on such devices are: the namespace of their ops, the kind of device they are registered
    for, and the extension module that knows what they take."""
    return "hashgrid", device_type, _extension.cuda_module if device_type == "cuda" else _extension.module


@torch.compiler.assume_constant_result
def has_kernel(op: str, device_type: str) -> bool:
    """Whether ``torch.ops.hashgrid.<op>`` has a kernel for tensors on such devices."""
    return _is_registered(op, *place_of(device_type)[:2])


@functools.cache
def _is_registered(op: str, namespace: str, device_type: str) -> bool:
    if device_type == "meta" or _extension.module is None:  # fake kernels are none
        return False
    key = torch._C._dispatch_key_for_device(device_type)
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::{op}", key)


def takes(
    op: str,
    tensors: Sequence[Tensor],
    width: int,
    weights: Sequence[Tensor],
    products: torch.dtype | None,
    n_density: int = 0,
    n_ray_features: int = 0,
    output_activation: str = "none",
    levels: LevelTable | None = None,
    table: Tensor | None = None,
) -> bool:
    """Whether the fused ``op`` has a kernel for networks, and for a grid in front of them. Where it has, shapes chain.

    Args:
        op: "radiance_mlp", "radiance_field", "render_rays" or "occupancy_values".
        tensors: its other arguments in floating point. They are on one device, and of one dtype if there is a kernel.
        width: inputs of the first layer.
        weights: of all layers, matrices [out, in].
        products: their dtype, None for that of the weights.
        n_density: layers of the first network, of two; 0 for a single one.
        n_ray_features: further inputs of the second network.
        output_activation: of the last layer.
        levels, table: of the grid; ``table`` is what the kernel would read, in a dtype of its own.
    """
    if not weights or not has_kernel(op, weights[0].device.type):
        return False
    device, dtype = weights[0].device, weights[0].dtype
    sizes: list[int] = []
    for weight in weights:
        sizes += weight.shape
    grid: list[int] = []
    if levels is not None and table is not None:
        grid = [levels.n_input_dims, table.shape[-1], int(levels.per_axis), DTYPES.get(table.dtype, -1)]
    if torch.compiler.is_compiling():  # the answer holds for these sizes: they are not left open
        sizes, width, n_ray_features = [index(size) for size in sizes], index(width), index(n_ray_features)
    return _ask(
        op, device.type, -1 if device.index is None else device.index,
        [DTYPES.get(tensor.dtype, -1) for tensor in (*tensors, *weights)], width, sizes, n_density, n_ray_features,
        _ACTIVATIONS.get(output_activation, -1), _FACTORS.get(None if products == dtype else products, -1), grid,
    )  # fmt: skip


@torch.compiler.assume_constant_result
def _ask(op: str, device_type: str, *numbers: object) -> bool:
    module = place_of(device_type)[2]
    return module is not None and module.supports(op, *numbers)
