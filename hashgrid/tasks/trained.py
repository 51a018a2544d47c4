"""Tasks that were trained, from their checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from hashgrid.rendering.capture_scores import refined
from hashgrid.tasks.manifest import Composed, manifest_of
from hashgrid.tasks.nerf import Nerf
from hashgrid.tasks.surface import Surface
from hashgrid.train.checkpoint import Checkpoint, load_metadata, with_prefix
from hashgrid.train.loop import load_model
from hashgrid.train.run import CHECKPOINT, read_checkpoint
from hashgrid.train.task import Task

T = TypeVar("T", bound=Task)
OF_SCENES: dict[str, type[Nerf]] = {kind.name: kind for kind in (Nerf, Surface)}


def task_of(run: Path) -> str:
    """The name of the command whose run a folder, or a checkpoint, is of; ``nerf`` of a manifest of blocks.

    Raises:
        ValueError: there is no checkpoint.
    """
    if manifest_of(run) is not None:
        return Nerf.name
    checkpoint = run / CHECKPOINT if run.is_dir() else run
    if not checkpoint.is_file():
        raise ValueError(f"`RUN` must be the folder of a run, or a checkpoint; there is no `{checkpoint}`")
    return str(load_metadata(checkpoint).get("task"))


def trained_nerf(run: Path, device: str = "auto") -> tuple[Nerf, Path]:
    """The task of a run of ``hashgrid nerf`` or ``surface`` as it ended, with its scene, and the folder of its results.

    Args:
        run: the folder, or the checkpoint in it; or those of a manifest of `hashgrid blocks`.
        device: where it goes.

    Raises:
        ValueError: there is no checkpoint of such a run.
        SceneError: the scene is not where it was.
    """
    if (manifest := manifest_of(run)) is not None:
        return Composed(manifest, device), manifest.parent
    checkpoint = run / CHECKPOINT if run.is_dir() else run
    kind = OF_SCENES.get(task_of(run), Nerf)
    task = restored(kind, read_checkpoint(checkpoint, kind), device)
    task.scene = refined(task.scene, task.model.capture)
    return task, checkpoint.parent


def restored(command: type[T], stored: Checkpoint, device: str = "auto") -> T:
    """The task of a checkpoint as it ended, on its data."""
    config: Any = command.Config.from_dict({**stored.metadata["config"], "device": device}, "the checkpoint")
    config = config.replace(video=False) if config.knows("video") else config
    task: Any = command.make(config.with_budget().on_device(), None, stored.metadata["notes"])
    load_model(task.model, stored.tensors, averaged=True)
    task.load_state(with_prefix(stored.tensors, "state."))
    return task  # type: ignore[no-any-return]


def times_of(task: Nerf, time: Sequence[float], n_frames: int) -> Tensor:
    """When each frame is seen [N].

    Raises:
        ValueError: the field knows no time, or there are more than two, or one is not of the training views.
    """
    known = task.scene.train.times
    if known is None or "time" not in task.model.needs:
        raise ValueError(f"`--time` is for fields that move, the field {task.config.field.name!r} stands still")
    first, last = (float(x) for x in known.aminmax())
    if len(time) > 2 or not all(first <= t <= last for t in time):
        raise ValueError(f"`--time` must be one or two numbers between {first:g} and {last:g}, got {list(time)}")
    return torch.linspace(time[0], time[-1], n_frames)


def seen_at(task: Nerf, time: float | None) -> None:
    """Makes ``time`` that of the training views, where a field moves.

    Raises:
        ValueError: it moves and there is none, or it stands still, or the time is not one of the scene.
    """
    views = task.scene.train
    if time is not None:
        views.times = times_of(task, [time], len(views))
    elif "time" in task.model.needs and views.times is not None:
        first, last = views.times.aminmax()
        raise ValueError(f"`--time` must say which moment of a field that moves, from {first:g} to {last:g}, got none")
