"""Record3D's export: `metadata` or `metadata.json` beside `rgbd/N.jpg`.

Poses are camera to world with the axes of OpenGL, `qx, qy, qz, qw, x, y, z`; the lens `K` is a matrix by columns, or
`perFrameIntrinsicCoeffs` has `fx, fy, cx, cy` of each frame.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from hashgrid.data.errors import SceneError
from hashgrid.data.images import Photo, fits_shape
from hashgrid.data.loaders.boxes import found_box
from hashgrid.data.loaders.poses import array_of, by_number, finish, images_in, of_quaternion, read_json, rigid
from hashgrid.data.scene import Scene, SceneOptions, hold_out

FILES = ("metadata.json", "metadata")
IMAGES = ("rgbd", "rgb")


def matches(path: Path) -> bool:
    """Whether ``path`` is a folder with `metadata` or `metadata.json`, and `rgbd` or `rgb`."""
    return any((path / name).is_file() for name in FILES) and any((path / name).is_dir() for name in IMAGES)


def load(path: Path, options: SceneOptions) -> Scene:
    """Loads all frames, every so many-th of which is tested."""
    file = next(path / name for name in FILES if (path / name).is_file())
    meta, where = read_json(file), str(file)
    images = next((found for name in IMAGES if (found := images_in(path / name))), [])
    images.sort(key=by_number)
    n = len(meta["poses"]) if isinstance(meta, dict) and isinstance(meta.get("poses"), list) else 0
    if not n or n != len(images):
        folder = images[0].parent if images else path / IMAGES[0]
        raise SceneError(f"{file}: must have as many `poses` as {folder} has images, got {n} and {len(images)}")
    poses, matrix = array_of(meta, "poses", (n, 7), where), array_of(meta, "K", (3, 3), where).T
    lenses = np.tile([matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]], (n, 1))
    if meta.get("perFrameIntrinsicCoeffs"):  # the focus moves
        lenses = array_of(meta, "perFrameIntrinsicCoeffs", (n, 4), where)
    size = tuple(float(array_of(meta, key, (), where)) for key in ("w", "h"))

    def lens(values: np.ndarray, place: str, width: int, height: int) -> list[float]:
        if not fits_shape(width, height, size):  # type: ignore[arg-type]
            raise SceneError(f"{place}: images must have the shape {size[0]:g}x{size[1]:g}, got {width}x{height}")
        scale = width / size[0], height / size[1]
        return (values * [*scale, *scale]).tolist()  # type: ignore[no-any-return]

    def photo(image: Path, pose: np.ndarray, i: int) -> Photo:
        place = f"{where}, pose {i} ({image.name})"
        rotation = of_quaternion((pose[3], *pose[:3]), place)
        c2w = rigid(np.concatenate((rotation, pose[4:, None]), axis=1), place)
        return Photo(image.name, image, c2w, partial(lens, lenses[i], place), place)

    photos = [photo(image, pose, i) for i, (image, pose) in enumerate(zip(images, poses, strict=True))]
    return finish(hold_out(photos, options.holdout), found_box(), path, options)
