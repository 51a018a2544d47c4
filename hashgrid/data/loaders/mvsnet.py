"""MVSNet's form, which BlendedMVS comes in (Yao et al. 2020): `cams/N_cam.txt` beside `blended_images` or `images`.

A file has the words `extrinsic` (world to camera, the axes of OpenCV) and `intrinsic` before their matrices, then the
nearest depth, the distance of depth planes and, mostly, their number and the farthest depth.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from hashgrid.data.errors import SceneError
from hashgrid.data.images import Photo
from hashgrid.data.loaders.boxes import range_box
from hashgrid.data.loaders.poses import finish, from_opencv, images_in, inverse, rigid
from hashgrid.data.scene import Scene, SceneOptions, hold_out

IMAGES = ("blended_images", "images")
PLANES = 192  # of depth, where the file does not say how many


def matches(path: Path) -> bool:
    """Whether ``path`` is a folder with `cams/N_cam.txt` and images."""
    return any((path / "cams").glob("*_cam.txt")) and any((path / name).is_dir() for name in IMAGES)


def load(path: Path, options: SceneOptions) -> Scene:
    """Loads all images that have a camera, every so many-th of which is tested."""
    images = [image for name in IMAGES for image in images_in(path / name) if not image.stem.endswith("_masked")]
    read = [(image, *_camera(path / "cams" / f"{image.stem}_cam.txt")) for image in images]
    if not read:
        raise SceneError(f"{path}: there must be images in `{IMAGES[0]}` or `{IMAGES[1]}`")

    def photo(image: Path, w2c: np.ndarray, k: np.ndarray) -> Photo:
        where = f"{path / 'cams' / image.stem}_cam.txt"
        values = [k[0, 0], k[1, 1], k[0, 2], k[1, 2]]
        return Photo(image.name, image, from_opencv(inverse(w2c)), lambda *_: values, where)

    photos = [photo(image, w2c, k) for image, w2c, k, _ in read]
    near, far = min(depths[0] for *_, depths in read), max(depths[1] for *_, depths in read)
    return finish(hold_out(photos, options.holdout), range_box(near, far), path, options)


def _camera(file: Path) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """The pose world to camera [3, 4], the matrix of the lens [3, 3], the nearest and the farthest depth."""
    try:
        words = re.split(r"\s+", file.read_text(encoding="utf-8-sig").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise SceneError(f"{file} cannot be read, it must be text: {error}") from error
    if len(words) < 29 or words[0] != "extrinsic" or words[17] != "intrinsic":
        raise SceneError(f"{file}: must be `extrinsic`, 16 numbers, `intrinsic`, 9 numbers and depths, got {words[:3]}")
    try:
        values = np.array([float(word) for word in (*words[1:17], *words[18:])])
    except ValueError as error:
        raise SceneError(f"{file}: {error}") from error
    k, depths = values[16:25].reshape(3, 3), values[25:]
    far = depths[3] if len(depths) > 3 else depths[0] + depths[1] * (depths[2] if len(depths) > 2 else PLANES)
    if not (np.isfinite(values).all() and k[0, 0] > 0 and k[1, 1] > 0 and 0 < depths[0] < far):
        got = values[16:].tolist()
        raise SceneError(f"{file}: focal lengths and depths must be positive, the nearest first, got {got}")
    return rigid(values[:16].reshape(4, 4), str(file), "extrinsic"), k, (float(depths[0]), float(far))
