"""`torch.func.vmap` over the native ops.

A batch is one more dimension of rows where only rows are batched; with batched parameters, as in gradients per sample,
the op is called once per element.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

_library = torch.library.Library("hashgrid", "IMPL")


def register_vmap(
    name: str, rows: Sequence[str] = (), row_outputs: Sequence[int] = (0,), sums: Sequence[str] = ()
) -> None:
    """Gives ``torch.ops.hashgrid.<name>`` a rule for vmap.

    Args:
        name: of the op.
        rows: its arguments [N, ...] of which each row is computed by itself; without any, all is done in turn.
        row_outputs: which of its results have such rows. The others are sums over rows, empty unless asked for.
        sums: its arguments that ask for them.
    """
    op = getattr(torch.ops.hashgrid, name).default
    names = [argument.name for argument in op._schema.arguments]

    def one_by_one(size: int, leaves: list[Any], dims: list[int | None], spec: Any) -> list[Tensor]:
        results = []
        for i in range(size):
            parts = [x if dim is None else x.select(dim, i).contiguous() for x, dim in zip(leaves, dims, strict=True)]
            results.append(_listed(op(*tree_unflatten(parts, spec))))
        return [torch.stack(column) for column in zip(*results, strict=True)]

    def as_rows(size: int, arguments: Sequence[Any], dims: Sequence[Any]) -> list[Tensor]:
        merged = list(arguments)
        for i, (argument, x, dim) in enumerate(zip(names, arguments, dims, strict=True)):
            if argument in rows and x is not None:
                x = x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
                merged[i] = x.flatten(0, 1).contiguous()
        return [
            y.unflatten(0, (size, -1)) if i in row_outputs else y.unsqueeze(0).expand(size, *y.shape)
            for i, y in enumerate(_listed(op(*merged)))
        ]

    def batched(size: int, in_dims: Sequence[Any], arguments: Sequence[Any]) -> tuple[Any, Any]:
        changing = {argument for argument, dim in zip(names, in_dims, strict=True) if _has_any(dim)}
        if changing <= set(rows) and not any(arguments[names.index(ask)] for ask in sums):
            results = as_rows(size, arguments, in_dims)
        else:
            leaves, spec = tree_flatten(tuple(arguments))
            results = one_by_one(size, leaves, _flat(in_dims), spec)
        return (results[0], 0) if len(op._schema.returns) == 1 else (tuple(results), (0,) * len(results))

    def rule(info: Any, in_dims: Any, *arguments: Any) -> Any:
        return batched(info.batch_size, in_dims, arguments)

    def legacy_rule(*arguments: Any) -> Any:
        """Gives it the same rule for ``vectorize=True`` and ``is_grads_batched=True``, which PyTorch maps in another
        way."""
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        if level != 1:
            raise RuntimeError(f"{name} takes one `vectorize=True` at a time; use torch.func.vmap, which may be nested")
        leaves, spec = tree_flatten(arguments)
        dims = [0 if isinstance(x, Tensor) and is_legacy_batchedtensor(x) else None for x in leaves]
        plain = [
            x if dim is None else torch._remove_batch_dim(x, level, 0, 0) for x, dim in zip(leaves, dims, strict=True)
        ]
        size = next(len(x) for x, dim in zip(plain, dims, strict=True) if dim is not None)
        results, _ = batched(size, tree_unflatten(dims, spec), tree_unflatten(plain, spec))
        return tree_map_only(Tensor, lambda y: torch._add_batch_dim(y, 0, level), results)

    torch.library.register_vmap(f"hashgrid::{name}", rule)
    _library.impl(name, legacy_rule, "Batched")


def _listed(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def _flat(dims: Any) -> list[int | None]:
    return tree_flatten(dims, is_leaf=lambda x: x is None)[0]


def _has_any(dims: Any) -> bool:
    return any(dim is not None for dim in _flat(dims))
