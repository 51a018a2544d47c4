"""ScanNet as its exporter writes it: `color/N.jpg`, `pose/N.txt`, `intrinsic/intrinsic_color.txt`.

Poses are camera to world with the axes of OpenCV; where tracking was lost they are infinite, and the frame is left out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hashgrid.data.errors import SceneError, some, warn_of_scene
from hashgrid.data.images import Photo
from hashgrid.data.loaders.boxes import found_box
from hashgrid.data.loaders.poses import by_number, finish, from_opencv, images_in, lens_of, numbers, rigid, warn_of_rest
from hashgrid.data.scene import Scene, SceneOptions, hold_out

LENS = Path("intrinsic") / "intrinsic_color.txt"


def matches(path: Path) -> bool:
    """Whether ``path`` is a folder with `color`, `pose` and `intrinsic/intrinsic_color.txt`."""
    return (path / "color").is_dir() and (path / "pose").is_dir() and (path / LENS).is_file()


def load(path: Path, options: SceneOptions) -> Scene:
    """Loads all frames with a pose, in the order of their numbers; every so many-th is tested."""
    fx, fy, cx, cy = lens_of(numbers(path / LENS, (4, 4), (3, 3)), str(path / LENS))
    values = [fx, fy, cx + 0.5, cy + 0.5]  # their pixels are numbered at their middles
    photos, lost = [], []
    images = sorted(images_in(path / "color"), key=by_number)
    warn_of_rest((path / "pose").glob("*.txt"), images)
    for image in images:
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
    return finish(hold_out(photos, options.holdout), found_box(), path, options, one_size=True)
