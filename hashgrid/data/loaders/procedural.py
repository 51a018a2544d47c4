"""The scene of formulas by its name: ``procedural``, or ``procedural:train=60,test=20,resolution=200,seed=0``."""

from __future__ import annotations

from pathlib import Path

from hashgrid.data.errors import SceneError
from hashgrid.data.procedural import procedural_scene
from hashgrid.data.scene import Scene, SceneOptions

DEFAULTS = {"train": 60, "test": 20, "resolution": 200, "seed": 0}


def matches(path: Path) -> bool:
    """Whether ``path`` is the name of this scene, and nothing on the disk."""
    return str(path).partition(":")[0] == "procedural" and not path.exists()


def load(path: Path, options: SceneOptions) -> Scene:
    """Renders the scene that a name describes."""
    values = dict(DEFAULTS)
    for pair in filter(None, str(path).partition(":")[2].split(",")):
        key, _, number = pair.partition("=")
        if key not in values or not number.isdecimal():
            known = ",".join(f"{key}=N" for key in values)
            raise SceneError(f"`scene` must be procedural:{known} or fewer of these, got {pair!r} in {path}")
        values[key] = int(number)
    if options.masks not in (None, "none"):
        raise SceneError(f"`--masks` is for scenes of files, got {options.masks} for {path}")
    return procedural_scene(values["train"], values["test"], values["resolution"], values["seed"], options)
