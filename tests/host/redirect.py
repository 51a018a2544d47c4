"""Ops of other kernels behind `hashgrid.ops`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import torch

from hashgrid import _extension

# What only some kernels have. The modules' names are also their functions', so that importing them by name is needed.
OPTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("hashgrid.ops.mlp", "SECOND_ORDER_DEVICES", ()),
    ("hashgrid.ops._ngp.radiance_field", "KERNEL_DEVICES", ("cpu",)),
    ("hashgrid.ops._ngp.radiance_mlp", "TENSOR_CORE_DEVICES", ("cpu",)),
    ("hashgrid.ops._ngp.gather_rows", "KERNEL_DEVICES", ()),
    ("hashgrid.ops._ngp.visible_cells", "KERNEL_DEVICES", ()),
)


def take_cuda_ops(library: Any, set_attribute: Callable[[Any, str, Any], None] = setattr) -> None:
    """`hashgrid.ops` calls ``library``: CUDA's kernels behind ops that take tensors on the CPU."""
    tensor_cores = has_tensor_cores(library)
    set_attribute(_extension, "ops", lambda: library)
    set_attribute(
        importlib.import_module("hashgrid.ops._ngp.radiance_mlp"), "_has_tensor_cores", lambda device: tensor_cores
    )
    for module, name, value in OPTIONS:
        set_attribute(importlib.import_module(module), name, value)


def has_tensor_cores(library: Any) -> bool:
    """Whether the GPU behind ``library``, real or emulated, runs the kernels on tensor cores."""
    if library is not torch.ops.hashgrid_on_host:
        assert _extension.cuda_module is not None
        return _extension.cuda_module.has_tensor_cores()
    return float(os.environ.get("HASHGRID_EMULATED_CAPABILITY", "9.0")) >= 8
