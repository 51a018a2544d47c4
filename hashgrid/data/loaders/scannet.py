"""ScanNet as its exporter writes it: `color/N.jpg`, `pose/N.txt`, `intrinsic/intrinsic_color.txt`.

Poses are camera to world with the axes of OpenCV; where tracking was lost they are infinite, and the frame is left out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hashgrid.data.errors import SceneError, some, warn_of_scene
from hashgrid.data.images import Photo
from hashgrid.data.loaders.boxes import found_box
from hashgrid.data.loaders.poses import by_number, finish, from_opencv, images_in, numbers, rigid
from hashgrid.data.scene import Scene, SceneOptions, hold_out

LENS = Path("intrinsic") / "intrinsic_color.txt"


def matches(path: Path) -> bool:
    """Whether ``path`` is a folder with `color`, `pose` and the lens."""
    return (path / "color").is_dir() and (path / "pose").is_dir() and (path / LENS).is_file()


def load(path: Path, options: SceneOptions) -> Scene:
    """Loads all frames with a pose, in the order of their numbers; every so many-th is tested."""
    matrix = numbers(path / LENS, (4, 4), (3, 3))
    lens = [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]
    if not (np.isfinite(lens).all() and lens[0] > 0 and lens[1] > 0):
        raise SceneError(f"{path / LENS}: focal lengths must be positive, got {lens}")
    values = [*lens[:2], lens[2] + 0.5, lens[3] + 0.5]  # their pixels are numbered at their middles
    photos, lost = [], []
    for image in sorted(images_in(path / "color"), key=by_number):
        file = path / "pose" / f"{image.stem}.txt"
        pose = numbers(file, (4, 4))
        if not np.isfinite(pose).all():
            lost.append(image.name)
            continue
        photos.append(Photo(image.name, image, from_opencv(rigid(pose, str(file))), lambda *_: values, str(file)))
    if not photos:
        raise SceneError(f"{path}: no image in `color` has a finite pose in `pose`")
    if lost:
        warn_of_scene(f"{path}: skipping {len(lost)} frames where tracking was lost: {some(lost)}")
    return finish(hold_out(photos, options.holdout), found_box(), path, options)
