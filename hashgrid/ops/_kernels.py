"""Tells which kernels there are and what they take, by asking the dispatcher and the extensions: no rule is written
here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.levels import LevelTable
from hashgrid.util.choices import ACTIVATIONS, FACTORS

F = TypeVar("F", bound=Callable[..., bool])

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # numbers of csrc/core/dtype.h
_ACTIVATIONS = {name: number for number, name in enumerate(ACTIVATIONS)}
_FACTORS = {dtype: number for number, dtype in enumerate(FACTORS)}


def _constant_to_compilers(function: F) -> F:
    """`torch.compiler.assume_constant_result`, without the compiler, which that would load with the package."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class Kernels:
    """The kernels for tensors on one kind of device.

    Args:
        module: extension module with them, None where it is missing.
        device_type: what they are registered for.
        namespace: of their ops in ``torch.ops``.
    """

    def __init__(self, module: ModuleType | None, device_type: str, namespace: str = "hashgrid") -> None:
        self.module, self._namespace = module, namespace
        self._key = torch._C._dispatch_key_for_device(device_type)
        self._known: dict[str, bool] = {}

    def have(self, op: str) -> bool:
        """Returns whether one is registered for ``op``."""
        known = self._known.get(op)
        if known is None:
            name = f"{self._namespace}::{op}"
            known = self.module is not None and torch._C._dispatch_has_kernel_for_dispatch_key(name, self._key)
            self._known[op] = known
        return known


KERNELS = {"cpu": Kernels(_extension.module, "cpu"), "cuda": Kernels(_extension.cuda_module, "cuda")}


@_constant_to_compilers
def has_kernel(op: str, device_type: str) -> bool:
    """Returns whether ``torch.ops.hashgrid.<op>`` has a kernel for tensors on such devices."""
    kernels = KERNELS.get(device_type)
    return kernels is not None and kernels.have(op)


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
    """Returns whether the fused ``op`` has a kernel for networks and, with ``levels``, for a grid in front of them. If
    it has, each layer takes what the one before it gives.

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
    if not weights:
        return False
    device, dtype = weights[0].device, weights[0].dtype
    number = -1 if device.index is None else device.index
    dtypes = [DTYPES.get(tensor.dtype, -1) for tensor in (*tensors, *weights)]
    sizes = [size for weight in weights for size in weight.shape]
    activation = _ACTIVATIONS.get(output_activation, -1)
    factors = _FACTORS.get(None if products == dtype else products, -1)
    grid: list[int] = []
    if levels is not None and table is not None:
        grid = [levels.n_input_dims, table.shape[-1], int(levels.per_axis), DTYPES.get(table.dtype, -1)]
    ask = _ask
    if torch.compiler.is_compiling():  # the answer holds for these sizes: they are not left open
        sizes, width, n_ray_features = [index(size) for size in sizes], index(width), index(n_ray_features)
        ask = _ask_as_constant
    return ask(op, device.type, number, dtypes, width, sizes, n_density, n_ray_features, activation, factors, grid)


def _ask(op: str, device_type: str, *numbers: object) -> bool:
    kernels = KERNELS.get(device_type)
    return kernels is not None and kernels.module is not None and kernels.module.supports(op, *numbers)


@_constant_to_compilers
def _ask_as_constant(op: str, device_type: str, *numbers: object) -> bool:
    return _ask(op, device_type, *numbers)
