"""What can be wrong with data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any


class SceneError(ValueError):
    """A scene that cannot be used; the message says what, where and what to do."""


class SceneWarning(UserWarning):
    """Part of a scene was skipped, or is a guess."""


class MeshError(ValueError):
    """A mesh or point cloud that cannot be used; the message says what, where and what to do."""


class MeshWarning(UserWarning):
    """Something in a mesh or point cloud was repaired, left out or guessed."""


def warn_of_scene(message: str) -> None:
    """Warns about a scene, what the caller's caller's caller asked for."""
    warnings.warn(message, SceneWarning, stacklevel=4)


def warn_of_mesh(message: str) -> None:
    """Warns about a mesh or points, what the caller's caller asked for."""
    warnings.warn(message, MeshWarning, stacklevel=3)


def some(items: Sequence[Any], n: int = 5) -> str:
    """The first of some items, and how many more there are, for a message."""
    return ", ".join(str(item) for item in items[:n]) + (f", ... ({len(items) - n} more)" if len(items) > n else "")
