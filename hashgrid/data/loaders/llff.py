"""LLFF captures (Mildenhall et al. 2019): `poses_bounds.npy` beside `images`.

A row for each image by name: a matrix [3, 5] of the camera's axes down, right and back, its place, and height, width
and focal length; then the nearest and the farthest depth. Numbers of pixels are those of the largest images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hashgrid.data.errors import SceneError
from hashgrid.data.images import Photo, fits_shape
from hashgrid.data.loaders.boxes import range_box
from hashgrid.data.loaders.poses import finish, images_in, read_arrays, rigid
from hashgrid.data.scene import Scene, SceneOptions, hold_out

NAME = "poses_bounds.npy"


def matches(path: Path) -> bool:
    """Whether ``path`` is a folder with `poses_bounds.npy`, or the file."""
    return path.name == NAME if path.is_file() else (path / NAME).is_file()


def load(path: Path, options: SceneOptions) -> Scene:
    """Loads all images, every so many-th of which is tested."""
    folder = path.parent if path.is_file() else path
    file = folder / NAME
    rows = read_arrays(file)
    if not isinstance(rows, np.ndarray):
        raise SceneError(f"{file}: must be one array, got an archive of {len(rows)}; save it with numpy.save")
    if rows.ndim != 2 or rows.shape[1] != 17 or not len(rows) or rows.dtype.kind not in "fiu":
        raise SceneError(f"{file}: must hold numbers of shape [N, 17], got {rows.dtype} {list(rows.shape)}")
    images, place = _images(folder)
    if len(images) != len(rows):
        raise SceneError(f"{file}: has {len(rows)} rows, and {place} has {len(images)} images; one of each is needed")
    rows = rows.astype(np.float64)
    photos = [
        _photo(image, row, f"{file}, row {i} ({image.name})")
        for i, (image, row) in enumerate(zip(images, rows, strict=True))
    ]
    near, far = float(rows[:, 15].min()), float(rows[:, 16].max())
    if not 0 < near < far < np.inf:
        raise SceneError(f"{file}: depths must be positive, the nearest first, got {near:g} and {far:g}")
    return finish(hold_out(photos, options.holdout), range_box(near, far), path, options)


def _images(folder: Path) -> tuple[list[Path], Path]:
    """The images, of the largest copy that is there, and their folder."""
    copies = sorted(folder.glob("images_*"), key=lambda f: (len(f.name), f.name))
    for place in (folder / "images", *copies):
        if found := images_in(place):
            return found, place
    raise SceneError(f"{folder}: there must be images in `images` beside {NAME}")


def _photo(image: Path, row: np.ndarray, where: str) -> Photo:
    matrix = row[:15].reshape(3, 5)
    height, width, focal = matrix[:, 4]
    if not (np.isfinite([height, width, focal]).all() and min(height, width, focal) > 0):
        raise SceneError(f"{where}: height, width and focal length must be positive, got {height}, {width}, {focal}")
    down, right, back, origin = matrix[:, :4].T
    c2w = rigid(np.stack((right, -down, back, origin), axis=1), where)

    def lens(w: int, h: int) -> list[float]:
        size = (width, height) if fits_shape(w, h, (width, height)) else (height, width)  # some wrote them so
        if not fits_shape(w, h, size):
            raise SceneError(f"{where}: the image must have the shape of {width:g} x {height:g}, got {w} x {h}")
        return [focal * w / size[0], focal * h / size[1], w / 2, h / 2]

    return Photo(image.name, image, c2w, lens, where)
