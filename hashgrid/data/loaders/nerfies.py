"""Nerfies and HyperNeRF (Park et al. 2021): `dataset.json`, `metadata.json`, `scene.json`, `camera/ID.json`, `rgb/Nx`.

Cameras have a rotation world to camera and their place in the world, with the axes of OpenCV. A view's time is the
number of its deformation, `warp_id` or `time_id`, as a fraction of the largest one.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from hashgrid.data.errors import SceneError, some, warn_of_scene
from hashgrid.data.images import Photo, fits_shape
from hashgrid.data.loaders.boxes import range_box
from hashgrid.data.loaders.poses import array_of, finish, from_opencv, images_in, inverse, read_json, rigid
from hashgrid.data.scene import Scene, SceneOptions
from hashgrid.geometry.lenses import coefficients


def matches(path: Path) -> bool:
    """Whether ``path`` is a folder with `dataset.json`, `scene.json` and `camera`."""
    return all((path / name).exists() for name in ("dataset.json", "scene.json", "camera"))


def load(path: Path, options: SceneOptions) -> Scene:
    """Loads the training and validation views of `dataset.json`, of the largest images that are there."""
    dataset, scene = read_json(path / "dataset.json"), read_json(path / "scene.json")
    times = _times(path / "metadata.json")
    copies = sorted((path / "rgb").glob("*x"), key=lambda f: (len(f.name), f.name))
    folder = next((f for f in copies if images_in(f)), path / "rgb")
    images = {image.stem: image for image in images_in(folder)}
    if not images:
        raise SceneError(f"{path}: there must be images in `rgb/1x` or another scale")
    parts = []
    for key in ("train_ids", "val_ids"):
        ids = dataset.get(key) if isinstance(dataset, dict) else None
        if not isinstance(ids, list):
            raise SceneError(f"{path / 'dataset.json'}: `{key}` must be a list of names, got {ids!r:.60}")
        twice = [name for name, n in Counter(map(str, ids)).items() if n > 1]
        if twice:
            raise SceneError(f"{path / 'dataset.json'}: `{key}` must have a name once, more often are {some(twice)}")
        missing = [name for name in ids if str(name) not in images]
        if missing:
            warn_of_scene(f"{folder}: skipping {len(missing)} of {len(ids)} `{key}` without an image: {some(missing)}")
        parts.append([_photo(path, images[str(name)], times.get(str(name))) for name in ids if str(name) in images])
    if not parts[0]:
        raise SceneError(f"{path / 'dataset.json'}: none of `train_ids` has an image in {folder}")
    where = str(path / "scene.json")
    scale, near, far = (float(array_of(scene, key, (), where)) for key in ("scale", "near", "far"))
    if not (scale > 0 and 0 <= near < far):
        raise SceneError(f"{where}: `scale` must be positive and `near` below `far`, got {scale}, {near} and {far}")
    box = range_box(near / scale, far / scale)  # they are in the scene's own unit
    return finish((parts[0], parts[1], "val_ids"), box, path, options)


def _times(file: Path) -> dict[str, float]:
    """The time in 0..1 of each view; none without the file."""
    if not file.is_file():
        return {}
    metadata = read_json(file)
    try:
        numbers = {str(key): float(entry.get("warp_id", entry.get("time_id"))) for key, entry in metadata.items()}
    except (AttributeError, TypeError, ValueError):
        raise SceneError(f"{file}: every view must have a number `warp_id` or `time_id`") from None
    last = max(numbers.values(), default=0.0) or 1.0
    return {key: number / last for key, number in numbers.items()}


def _photo(path: Path, image: Path, time: float | None) -> Photo:
    file = path / "camera" / f"{image.stem}.json"
    camera, where = read_json(file), str(file)
    rotation, position = array_of(camera, "orientation", (3, 3), where), array_of(camera, "position", (3,), where)
    w2c = rigid(np.concatenate((rotation, np.zeros((3, 1))), axis=1), where, "orientation")
    c2w = np.concatenate((inverse(w2c)[:, :3], position[:, None]), axis=1)

    def lens(width: int, height: int) -> list[float]:
        size = tuple(array_of(camera, "image_size", (2,), where).tolist())
        if not fits_shape(width, height, size):  # type: ignore[arg-type]
            got = f"{size[0]:g}x{size[1]:g} (or scaled), got {width}x{height}"
            raise SceneError(f"{where}: the image must have the shape of `image_size`, {got}")
        scale = width / size[0], height / size[1]
        focal, centre = (
            float(array_of(camera, "focal_length", (), where)),
            array_of(camera, "principal_point", (2,), where),
        )
        (aspect,) = _terms(camera, ("pixel_aspect_ratio",), [1.0], where)
        if any(_terms(camera, ("skew",), [0.0], where)):
            raise SceneError(f"{where}: `skew` must be 0, got {camera['skew']}")
        k1, k2, k3 = _terms(camera, ("radial_distortion", "radial"), [0.0] * 3, where)
        p1, p2 = _terms(camera, ("tangential_distortion", "tangential"), [0.0] * 2, where)
        values = coefficients(k1=k1, k2=k2, k3=k3, p1=p1, p2=p2)
        return [focal * scale[0], focal * aspect * scale[1], centre[0] * scale[0], centre[1] * scale[1], *values]

    return Photo(image.stem, image, from_opencv(c2w), lens, where, time=time)


def _terms(camera: dict[str, Any], keys: tuple[str, ...], default: list[float], where: str) -> list[float]:
    """The numbers under the first of some keys that is there."""
    key = next((key for key in keys if camera.get(key) is not None), None)
    return default if key is None else array_of(camera, key, (len(default),), where).tolist()
