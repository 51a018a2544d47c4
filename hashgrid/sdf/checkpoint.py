"""A field in a file: parameters, recipe and where its cube lies in the coordinates of the input."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hashgrid.data.mesh import Placement
from hashgrid.fields.distance import Field, make_field
from hashgrid.sdf.config import SdfConfig
from hashgrid.train.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

KIND = "sdf"


class StoredField(NamedTuple):
    """What a file holds.

    Attributes:
        field: on the CPU.
        placement: of the cube in the input.
        config: the recipe.
        notes: what the writer added; ``name`` among it.
    """

    field: Field
    placement: Placement
    config: SdfConfig
    notes: dict[str, Any]


def save_field(path: str | Path, field: Field, placement: Placement, config: SdfConfig, **notes: Any) -> None:
    """Writes a field as safetensors, replacing an earlier file only once the new one is complete.

    Args:
        path: file to write.
        field: what :func:`hashgrid.fields.distance.make_field` makes of ``config``.
        placement: of the cube in the input.
        config: the recipe.
        notes: anything else that is JSON, for instance ``name``.
    """
    metadata = {
        "kind": KIND,
        "config": config.to_dict(),
        "placement": {"scale": float(placement.scale), "offset": [float(x) for x in placement.offset]},
        "notes": notes,
    }
    save_checkpoint(path, field.state_dict(), metadata)


def read_field(path: str | Path) -> StoredField:
    """Reads what :func:`save_field` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, or holds something else.
    """
    tensors, metadata = load_checkpoint(path)
    if metadata.get("kind") != KIND:
        raise CheckpointError(f"{path} must hold a signed distance field, got a checkpoint of something else")
    known = {field.name for field in dataclasses.fields(SdfConfig)}
    if unknown := sorted(set(metadata["config"]) - known):
        raise CheckpointError(f"{path}: the options {', '.join(unknown)} are not known; update hashgrid")
    config = SdfConfig(**metadata["config"]).replace(device="auto")  # it may have been another machine
    with torch.random.fork_rng(devices=[]):
        field = make_field(config)
    try:
        field.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit its own recipe: {error}") from error
    placement = metadata["placement"]
    return StoredField(
        field, Placement(placement["scale"], np.array(placement["offset"], np.float64)), config, metadata["notes"]
    )


def load_field(path: str | Path) -> tuple[Field, Placement]:
    """The field in a file that ``hashgrid sdf`` or :func:`save_field` wrote, on the CPU, and its place in the input.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, or holds something else.
    """
    stored = read_field(path)
    return stored.field, stored.placement
