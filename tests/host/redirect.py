"""Ops of other kernels behind `hashgrid.ops`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from hashgrid import _extension

# What only some kernels have. The modules' names are also their functions', so that importing them by name is needed.
OPTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("hashgrid.ops.mlp", "SECOND_ORDER_DEVICES", ()),
    ("hashgrid.ops.radiance_field", "KERNEL_DEVICES", ("cpu",)),
    ("hashgrid.ops.radiance_mlp", "TENSOR_CORE_DEVICES", ("cpu",)),
)


def take_cuda_ops(library: Any, set_attribute: Callable[[Any, str, Any], None] = setattr) -> None:
    """`hashgrid.ops` calls ``library``: CUDA's kernels behind ops that take tensors on the CPU."""
    set_attribute(_extension, "ops", lambda: library)
    for module, name, value in OPTIONS:
        set_attribute(importlib.import_module(module), name, value)
