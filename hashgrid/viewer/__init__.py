"""A page in the browser that shows what is trained: cameras, the picture of the moment, curves, a crop box.

What is drawn is a subject: a module of this package with ``subject_of(task) -> Subject``, of the name of its task and
named in `SUBJECTS`. The page knows no task, and draws between two steps of training, on its thread.
"""

from __future__ import annotations

import importlib
from typing import Any

from hashgrid.viewer.subject import Drawn, Subject

SUBJECTS = ("nerf", "surface", "sdf", "volume", "image")  # tasks, and modules of this package

__all__ = ["SUBJECTS", "Drawn", "Subject", "subject_of"]


def subject_of(task: Any) -> Subject:
    """What a page draws of a task.

    Raises:
        ValueError: there is nothing to be seen of it.
    """
    if task.name not in SUBJECTS:
        raise ValueError(f"`view` must be of {', '.join(SUBJECTS[:-1])} or {SUBJECTS[-1]}, got {task.name!r}")
    found: Subject = importlib.import_module(f"hashgrid.viewer.{task.name}").subject_of(task)
    return found
