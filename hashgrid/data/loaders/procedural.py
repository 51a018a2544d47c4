"""Scenes that the package makes, by name: ``procedural``, or ``procedural:train=60,test=20,resolution=200,seed=0``;
``moving``, ``splitting``, ``labelled``, ``street`` and ``primitives`` likewise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hashgrid.data.errors import SceneError
from hashgrid.data.procedural import procedural_scene
from hashgrid.data.scene import Scene, SceneOptions
from hashgrid.data.scene_families import random_scene
from hashgrid.data.small_scenes import labelled_scene, moving_scene, splitting_scene, street_scene

# what makes each scene, and the numbers that it takes
SCENES: dict[str, tuple[Callable[..., Scene], dict[str, int]]] = {
    "procedural": (procedural_scene, {"train": 60, "test": 20, "resolution": 200, "seed": 0}),
    "moving": (moving_scene, {"train": 48, "test": 12, "resolution": 100, "seed": 0}),
    "splitting": (splitting_scene, {"train": 48, "test": 12, "resolution": 100, "seed": 0}),
    "labelled": (labelled_scene, {"train": 30, "test": 8, "resolution": 64, "seed": 0}),
    "street": (street_scene, {"train": 80, "test": 16, "resolution": 100, "seed": 0}),
    "primitives": (random_scene, {"train": 3, "test": 8, "resolution": 48, "seed": 0}),
}


def name_of(path: Path) -> str | None:
    """The name of the scene that ``path`` describes, None where it is none, or something on the disk."""
    name = str(path).partition(":")[0]
    return name if name in SCENES and not path.exists() else None


def matches(path: Path) -> bool:
    """Whether ``path`` is the name of such a scene, and nothing on the disk."""
    return name_of(path) is not None


def load(path: Path, options: SceneOptions) -> Scene:
    """Renders the scene that a name describes."""
    name = str(path).partition(":")[0]
    make, numbers = SCENES[name]
    values = dict(numbers)
    for pair in filter(None, str(path).partition(":")[2].split(",")):
        key, _, value = pair.partition("=")
        if key not in values or not value.isdecimal():
            known = ",".join(f"{key}=N" for key in values)
            raise SceneError(f"`scene` must be {name}:{known} or fewer of these, got {pair!r} in {path}")
        values[key] = int(value)
    if options.masks not in (None, "none"):
        raise SceneError(f"`--masks` is for scenes of files, got {options.masks} for {path}")
    return make(values["train"], values["test"], values["resolution"], values["seed"], options)
