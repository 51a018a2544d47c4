"""Checkpoints: one safetensors file, with JSON metadata in its header. Atomic, and never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from hashgrid.util.files import atomic_path
from hashgrid.util.optional import optional_import

FORMAT = "hashgrid.checkpoint"
VERSION = 1


class CheckpointError(ValueError):
    """A file that is not a usable checkpoint."""


class Checkpoint(NamedTuple):
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def save_checkpoint(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write ``tensors`` and JSON-serialisable ``metadata`` to ``path``; the file is the old or the new one, never half.

    Raises:
        TypeError: a value is no tensor, or ``metadata`` is not JSON.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            got = type(tensor).__name__
            raise TypeError(f"`tensors[{name!r}]` must be a tensor, got {got}; put it into `metadata`")
    try:
        text = json.dumps(metadata)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`metadata` must be JSON: {error}") from error
    header = {"format": FORMAT, "version": str(VERSION), "metadata": text}
    save_file = optional_import("safetensors.torch").save_file
    with atomic_path(path) as temporary:
        save_file(_own_storage(tensors), temporary, metadata=header)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read what `save_checkpoint` wrote: ``(tensors, metadata)``, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is truncated, damaged, foreign or of a newer version.
    """
    return _read(Path(path), tensors=True)


def load_metadata(path: str | Path) -> dict[str, Any]:
    """Read the metadata alone; errors are those of `load_checkpoint`, of a file that is cut, too."""
    return _read(Path(path), tensors=False).metadata


def _read(path: Path, tensors: bool) -> Checkpoint:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    safetensors = optional_import("safetensors")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            kind, version = header.get("format"), header.get("version", "")
            if kind != FORMAT:
                raise CheckpointError(
                    f"{path} must be a hashgrid checkpoint, got a safetensors file of format {kind!r}"
                )
            if not version.isdigit() or int(version) > VERSION:
                wanted = f"the checkpoint version must be at most {VERSION}, got {version!r}"
                raise CheckpointError(f"{path}: {wanted}; update hashgrid")
            # Cloned: the tensors of an open file are views of its memory map.
            names = file.keys() if tensors else ()
            found = {name: file.get_tensor(name).clone() for name in names}
            metadata = json.loads(header["metadata"])
    except (safetensors.SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        what = f"{path} ({path.stat().st_size} bytes) is truncated or no hashgrid checkpoint"
        raise CheckpointError(f"{what}: {error}; use an earlier one") from error
    return Checkpoint(found, metadata)


def _own_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that share no memory, as safetensors wants them; copies only where they are not."""
    owned: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        owned[name] = tensor
    return owned


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def flatten_state(state: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Moves the tensors of a nested state into ``tensors``; returns the rest as JSON values that refer to them."""
    if isinstance(state, Tensor):
        tensors[name] = state
        return {"__tensor__": name}
    if isinstance(state, dict):
        items = [[key, flatten_state(value, f"{name}.{key}", tensors)] for key, value in state.items()]
        return {"__items__": items}
    if isinstance(state, (list, tuple)):
        return [flatten_state(value, f"{name}.{i}", tensors) for i, value in enumerate(state)]
    return state


def unflatten_state(state: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of :func:`flatten_state`; tuples come back as lists."""
    if isinstance(state, dict) and "__tensor__" in state:
        return tensors[state["__tensor__"]]
    if isinstance(state, dict):
        return {key: unflatten_state(value, tensors) for key, value in state["__items__"]}
    if isinstance(state, list):
        return [unflatten_state(value, tensors) for value in state]
    return state
