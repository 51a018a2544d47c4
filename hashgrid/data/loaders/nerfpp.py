"""NeRF++'s Tanks and Temples (Zhang et al. 2020): `train`, `test`, `validation` with `rgb`, `pose`, `intrinsics`.

Poses are camera to world with the axes of OpenCV, 16 numbers each, in coordinates in which all cameras lie inside the
unit sphere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hashgrid.data.errors import SceneError
from hashgrid.data.images import Photo
from hashgrid.data.loaders.boxes import ball_box
from hashgrid.data.loaders.poses import finish, from_opencv, images_in, lens_of, numbers, rigid, warn_of_rest
from hashgrid.data.scene import Scene, SceneOptions, hold_out
from hashgrid.geometry.boxes import CAPTURE_CASCADES

SPLITS = {"test": ("test", "validation"), "val": ("validation", "test")}


def matches(path: Path) -> bool:
    """Whether ``path`` is a folder whose folder `train` has `rgb`, `pose` and `intrinsics`."""
    return all((path / "train" / name).is_dir() for name in ("rgb", "pose", "intrinsics"))


def load(path: Path, options: SceneOptions) -> Scene:
    """Loads the training views and those of a split to be tested."""
    train = _photos(path / "train")
    split = next((name for name in SPLITS[options.test_split] if images_in(path / name / "rgb")), None)
    views = hold_out(train, options.holdout) if split is None else (train, _photos(path / split), split)
    return finish(views, ball_box(np.zeros(3), 1.0, CAPTURE_CASCADES, 0.02), path, options, one_size=True)


def _photos(folder: Path) -> list[Photo]:
    images = images_in(folder / "rgb")
    if not images:
        raise SceneError(f"{folder}: there must be images in `rgb`")
    warn_of_rest((folder / "pose").glob("*.txt"), images)
    return [_photo(image) for image in images]


def _photo(image: Path) -> Photo:
    folder = image.parent.parent
    pose, lens = (folder / kind / f"{image.stem}.txt" for kind in ("pose", "intrinsics"))
    values = lens_of(numbers(lens, (4, 4), (3, 3)), str(lens))
    mask = folder / "mask" / f"{image.stem}.png"
    c2w = from_opencv(rigid(numbers(pose, (4, 4), (3, 4)), str(pose)))
    name = f"{folder.name}/{image.name}"
    return Photo(name, image, c2w, lambda *_: values, str(pose), mask=(mask, True) if mask.is_file() else None)
