"""Ops on tensors of another device than the kernels': lets tests written for the CPU run on a GPU's kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class OpsOn:
    """The ops of ``library`` on ``device``, for callers whose tensors are on the CPU.

    Each call copies its tensors over as they lie in memory, offsets, strides and shared storage included, and copies
    back what the op returns and what its schema says it writes.
    """

    def __init__(self, library: Any, device: str) -> None:
        self._library, self._device = library, device

    def __getattr__(self, name: str) -> Callable[..., Any]:
        overload = getattr(self._library, name).default

        def call(*arguments: Any, **named: Any) -> Any:
            storages: dict[int, Tensor] = {}

            def over(value: Any) -> Any:
                return _map(value, lambda tensor: self._over(tensor, storages))

            moved, moved_named = [over(value) for value in arguments], {k: over(value) for k, value in named.items()}
            results = overload(*moved, **moved_named)
            names = [argument.name for argument in overload._schema.arguments]
            here = dict(zip(names, arguments, strict=False)) | named
            there = dict(zip(names, moved, strict=False)) | moved_named
            for argument in overload._schema.arguments:
                writes = argument.alias_info is not None and argument.alias_info.is_write
                if writes and here.get(argument.name) is not None:
                    for target, source in zip(*(_listed(x[argument.name]) for x in (here, there)), strict=True):
                        target.detach().copy_(source)
            return _map(results, lambda tensor: tensor.cpu())

        return call

    def _over(self, tensor: Tensor, storages: dict[int, Tensor]) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage.data_ptr() or id(tensor)  # empty storages all begin at 0
        if key not in storages:
            here = torch.empty(0, dtype=torch.uint8).set_(storage)
            storages[key] = torch.empty(len(here), dtype=torch.uint8, device=self._device).copy_(here)
        there = torch.empty(0, dtype=tensor.dtype, device=self._device)
        return there.set_(storages[key].untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def _listed(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_map(x, function) for x in value)
    return value
