"""NSVF scenes (Liu et al. 2020): `rgb`, `pose`, `intrinsics.txt`, `bbox.txt`; also BlendedMVS and Tanks and Temples as
they come with it.

Poses are camera to world with the axes of OpenCV. Images and poses belong together in the order of their names, which
begin with 0 for training, 1 for validation (where there is no 2: test) and 2 for test views.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from hashgrid.data.errors import SceneError, some
from hashgrid.data.images import Photo
from hashgrid.data.loaders.boxes import found_box
from hashgrid.data.loaders.poses import finish, floats, from_opencv, images_in, lens_of, numbers, read_text, rigid
from hashgrid.data.scene import Scene, SceneOptions, hold_out
from hashgrid.geometry.boxes import Box


def matches(path: Path) -> bool:
    """Whether ``path`` is a folder with `rgb`, `pose` and `intrinsics.txt`."""
    return (path / "rgb").is_dir() and (path / "pose").is_dir() and (path / "intrinsics.txt").is_file()


def load(path: Path, options: SceneOptions) -> Scene:
    """Loads all images; those of the split that is not asked for are left out."""
    images, poses = images_in(path / "rgb"), sorted((path / "pose").glob("*.txt"))
    if not images or len(images) != len(poses):
        alone = {file.stem for file in images} ^ {file.stem for file in poses}
        got = f"{len(images)} and {len(poses)}; of one kind only: {some(sorted(alone)) or 'none'}"
        raise SceneError(f"{path}: `rgb` and `pose` must have as many files, got {got}")
    focal_x, focal_y, centre_x, centre_y = _intrinsics(path / "intrinsics.txt")

    def photo(image: Path, pose: Path) -> Photo:
        c2w = rigid(numbers(pose, (4, 4), (3, 4)), str(pose))

        def lens(width: int, height: int) -> list[float]:
            if not (0.25 < centre_x / width < 0.75 and 0.25 < centre_y / height < 0.75):
                got = f"{centre_x:g}, {centre_y:g} and {width}x{height}"
                raise SceneError(f"{path / 'intrinsics.txt'}: the centre must be that of the images, got {got}")
            return [focal_x, focal_y, centre_x, centre_y]

        return Photo(image.name, image, from_opencv(c2w), lens, f"{pose} ({image.name})")

    photos = [photo(*pair) for pair in zip(images, poses, strict=True)]
    of_split = {key: [photo for photo in photos if photo.name.startswith(f"{key}_")] for key in "012"}
    if of_split["0"]:
        order = "21" if options.test_split == "test" else "12"
        key = next((key for key in order if of_split[key]), None)
        views = of_split["0"], of_split[key] if key else [], f"prefix {key}_" if key else "none"
    else:
        views = hold_out(photos, options.holdout)
    file = path / "bbox.txt"
    box = Box(_bounds(file)) if file.is_file() else None
    return finish(views, found_box() if box is None else lambda _: box, path, options, one_size=True)


def _intrinsics(file: Path) -> list[float]:
    """Focal lengths and centre of a matrix, or of a line `f cx cy 0.` before others."""
    lines = read_text(file).split("\n")
    first = floats(lines[0].split(), str(file)).tolist()
    if len(first) == 4 and len(" ".join(lines).split()) != 16 and first[3] == 0:
        focal, centre_x, centre_y, _ = first
        matrix = np.array([[focal, 0, centre_x], [0, focal, centre_y]])
    else:
        matrix = numbers(file, (4, 4), (3, 3))
    return lens_of(matrix, str(file))


def _bounds(file: Path) -> torch.Tensor:
    """The box [6], with the size of a voxel behind it."""
    values = numbers(file, (7,), (6,))[:6]
    if not np.isfinite(values).all() or not (values[3:] > values[:3]).all():
        raise SceneError(f"{file}: must hold two corners, the lower one first, got {values.tolist()}")
    return torch.from_numpy(values)
