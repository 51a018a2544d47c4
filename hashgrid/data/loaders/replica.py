"""Replica as Semantic-NeRF and as NICE-SLAM render it: `rgb` with `traj_w_c.txt`, or `results` with `traj.txt`.

A line of the trajectory is a pose camera to world, 16 numbers, with the axes of OpenCV. Semantic-NeRF's pictures are 90
degrees wide, and may have labels, 0 for void, in `semantic_class`; NICE-SLAM's lens is in `cam_params.json` one folder
above.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hashgrid.data.errors import SceneError, some
from hashgrid.data.images import Photo
from hashgrid.data.loaders.boxes import found_box
from hashgrid.data.loaders.poses import (
    array_of,
    by_number,
    finish,
    from_opencv,
    images_in,
    lens_of,
    numbers,
    read_json,
    rigid,
)
from hashgrid.data.scene import Scene, SceneOptions, hold_out

FORMS = (("rgb", "traj_w_c.txt"), ("results", "traj.txt"))
LABELS = "semantic_class"


def matches(path: Path) -> bool:
    """Whether ``path`` is a folder with `rgb` and `traj_w_c.txt`, or `results` and `traj.txt`."""
    return any((path / folder).is_dir() and (path / file).is_file() for folder, file in FORMS)


def load(path: Path, options: SceneOptions) -> Scene:
    """Loads all frames, every so many-th of which is tested."""
    folder, name = next(form for form in FORMS if (path / form[1]).is_file() and (path / form[0]).is_dir())
    images = [image for image in images_in(path / folder) if not image.stem.startswith("depth")]
    images.sort(key=by_number)
    if not images:
        raise SceneError(f"{path}: there must be images in `{folder}` beside {name}")
    poses = numbers(path / name, (-1, 16)).reshape(-1, 4, 4)
    if len(poses) != len(images):
        got = f"{len(poses)} and {len(images)}"
        raise SceneError(f"{path / name}: must have as many poses as {path / folder} has images, got {got}")
    file = path.resolve().parent / "cam_params.json"
    if folder == "results" and not file.is_file():
        raise SceneError(f"{path}: the lens must be in {file}, which does not exist")
    values = _lens(file) if folder == "results" else None

    def lens(width: int, height: int) -> list[float]:
        # without a file 90 degrees; pixels are numbered at their middles, the axis is between the middle ones
        return [width / 2, width / 2, width / 2, height / 2] if values is None else values

    def photo(image: Path, pose: np.ndarray, i: int) -> Photo:
        where = f"{path / name}, pose {i} ({image.name})"
        labels = maps.get(image.stem.removeprefix("rgb_"))
        return Photo(image.name, image, from_opencv(rigid(pose, where)), lens, where, labels=labels)

    maps = {file.stem.removeprefix("semantic_class_"): file for file in images_in(path / LABELS)}
    without = [image.name for image in images if image.stem.removeprefix("rgb_") not in maps]
    if maps and without:
        raise SceneError(
            f"{path / LABELS}: every image must have labels, {len(without)} of {len(images)} have none:"
            f" {some(without)}; save them, 0 for void, or leave the folder out"
        )
    photos = [photo(image, pose, i) for i, (image, pose) in enumerate(zip(images, poses, strict=True))]
    return finish(hold_out(photos, options.holdout), found_box(), path, options, one_size=True)


def _lens(file: Path) -> list[float]:
    """``fx, fy, cx, cy`` in `cam_params.json`, whose pixels are numbered at their middles."""
    meta = read_json(file)
    camera = meta.get("camera") if isinstance(meta, dict) else None
    fx, fy, cx, cy = (float(array_of(camera, key, (), f"{file}, `camera`")) for key in ("fx", "fy", "cx", "cy"))
    return lens_of(np.array([[fx, 0, cx + 0.5], [0, fy, cy + 0.5]]), str(file))
