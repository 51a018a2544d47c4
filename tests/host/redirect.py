"""Ops of other kernels behind `hashgrid.ops`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from hashgrid import _extension
from hashgrid.ops import _kernels


def take_cuda_ops(library: Any, set_attribute: Callable[[Any, str, Any], None] = setattr) -> None:
    """`hashgrid.ops` calls ``library``: CUDA's kernels behind ops that take tensors on the CPU."""
    namespace, device_type = ("hashgrid_on_host", "cpu") if _is_emulated(library) else ("hashgrid", "cuda")
    set_attribute(_extension, "ops", lambda: library)
    set_attribute(_kernels, "KERNELS", {"cpu": _kernels.Kernels(_module(library), device_type, namespace)})


def has_tensor_cores(library: Any) -> bool:
    """Whether the GPU behind ``library``, real or emulated, runs the kernels on tensor cores."""
    float32, bfloat16_products = 0, 1
    sizes, no_activation = [16, 32, 3, 32], 0
    return _module(library).supports(
        "radiance_mlp", -1, [float32], 32, sizes, 1, 16, no_activation, bfloat16_products, []
    )


def _is_emulated(library: Any) -> bool:
    return library is torch.ops.hashgrid_on_host


def _module(library: Any) -> ModuleType:
    module = sys.modules["hashgrid_on_host"] if _is_emulated(library) else _extension.cuda_module
    assert module is not None
    return module
