"""MVSNet's form, which BlendedMVS comes in (Yao et al. 2020): `cams/N_cam.txt` beside `blended_images` or `images`.

A file has the words `extrinsic` (world to camera, the axes of OpenCV) and `intrinsic` before their matrices, then the
nearest depth, the distance of depth planes and, mostly, their number and the farthest depth.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hashgrid.data.errors import SceneError
from hashgrid.data.images import Photo
from hashgrid.data.loaders.boxes import range_box
from hashgrid.data.loaders.poses import (
    finish,
    floats,
    from_opencv,
    images_in,
    inverse,
    lens_of,
    read_text,
    rigid,
    warn_of_rest,
)
from hashgrid.data.scene import Scene, SceneOptions, hold_out

IMAGES = ("blended_images", "images")
PLANES = 192  # of depth, where the file does not say how many


def matches(path: Path) -> bool:
    """Whether ``path`` is a folder with `cams/N_cam.txt` and images."""
    return any((path / "cams").glob("*_cam.txt")) and any((path / name).is_dir() for name in IMAGES)


def load(path: Path, options: SceneOptions) -> Scene:
    """Loads all images that have a camera, every so many-th of which is tested."""
    found = ([i for i in images_in(path / name) if not i.stem.endswith("_masked")] for name in IMAGES)
    images = next(filter(None, found), [])
    read = [(image, *_camera(path / "cams" / f"{image.stem}_cam.txt")) for image in images]
    if not read:
        raise SceneError(f"{path}: there must be images in `{IMAGES[0]}` or `{IMAGES[1]}`")

    def photo(image: Path, w2c: np.ndarray, lens: list[float]) -> Photo:
        where = f"{path / 'cams' / image.stem}_cam.txt"
        return Photo(image.name, image, from_opencv(inverse(w2c)), lambda *_: lens, where)

    warn_of_rest((path / "cams").glob("*_cam.txt"), images, "_cam")
    photos = [photo(image, w2c, lens) for image, w2c, lens, _ in read]
    near, far = min(depths[0] for *_, depths in read), max(depths[1] for *_, depths in read)
    return finish(hold_out(photos, options.holdout), range_box(near, far), path, options, one_size=True)


def _camera(file: Path) -> tuple[np.ndarray, list[float], tuple[float, float]]:
    """The pose world to camera [3, 4], the lens ``fx, fy, cx, cy``, the nearest and the farthest depth."""
    words = read_text(file).split()
    if not 29 <= len(words) <= 31 or words[0] != "extrinsic" or words[17] != "intrinsic":
        raise SceneError(
            f"{file}: must be `extrinsic`, 16 numbers, `intrinsic`, 9 numbers and depths, got {words[:3]!s:.60}"
        )
    values = floats([*words[1:17], *words[18:]], str(file))
    lens, depths = lens_of(values[16:25].reshape(3, 3), str(file)), values[25:]
    far = depths[3] if len(depths) > 3 else depths[0] + depths[1] * (depths[2] if len(depths) > 2 else PLANES)
    if not 0 < depths[0] < far < np.inf:
        raise SceneError(f"{file}: depths must be positive, the nearest first, got {depths.tolist()}")
    return rigid(values[:16].reshape(4, 4), str(file), "extrinsic"), lens, (float(depths[0]), float(far))
