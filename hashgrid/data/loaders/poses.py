"""What loaders have in common: poses and numbers in files, pictures in folders, and the scene they end in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hashgrid.data.errors import SceneError
from hashgrid.data.images import Photo, read_views
from hashgrid.data.scene import Scene, SceneOptions, Views, make_scene
from hashgrid.geometry.boxes import Box
from hashgrid.util.pictures import FORBIDDEN

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG", ".webp")
TO_OPENGL = np.diag([1.0, -1.0, -1.0])  # x right, y down, z ahead; and back


def rigid(matrix: np.ndarray, where: str, name: str = "pose") -> np.ndarray:
    """The nearest rigid pose [3, 4] to a matrix [3 or 4, 4], as files round to a few digits.

    Raises:
        SceneError: it has another shape, is not finite or not nearly rigid.
    """
    if matrix.shape not in ((4, 4), (3, 4)):
        raise SceneError(f"{where}: `{name}` must have shape [4, 4], got {list(matrix.shape)}")
    if not np.isfinite(matrix).all():
        raise SceneError(f"{where}: `{name}` must be finite, got NaN or inf; remove the view")
    rotation = matrix[:3, :3]
    deviation = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
    if deviation > 1e-2 or np.linalg.det(rotation) < 0:
        got = f"a deviation of {deviation:.2g} from orthonormal, determinant {np.linalg.det(rotation):.3g}"
        raise SceneError(f"{where}: `{name}` must be rigid (rotation and translation), got {got}")
    u, _, vt = np.linalg.svd(rotation)
    return np.concatenate((u @ vt, matrix[:3, 3:]), axis=1)


def from_opencv(c2w: np.ndarray) -> np.ndarray:
    """A camera-to-world pose [3, 4] whose camera has y down and looks along z, as one that has y up and looks along
    -z; and back."""
    return np.concatenate((c2w[:3, :3] @ TO_OPENGL, c2w[:3, 3:]), axis=1)


def inverse(pose: np.ndarray) -> np.ndarray:
    """The rigid pose [3, 4] that undoes another one: camera-to-world of world-to-camera."""
    rotation = pose[:3, :3].T
    return np.concatenate((rotation, -rotation @ pose[:3, 3:]), axis=1)


def of_quaternion(q: Sequence[float], where: str) -> np.ndarray:
    """The rotation [3, 3] of a quaternion ``w, x, y, z`` of any length but zero."""
    length = float(np.linalg.norm(q))
    if not np.isfinite(length) or length < 1e-9:
        raise SceneError(f"{where}: the quaternion must be finite and not zero, got {list(map(float, q))}")
    w, x, y, z = (float(value) / length for value in q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def numbers(file: Path, *shapes: tuple[int, ...]) -> np.ndarray:
    """The numbers of a text file, in the first of some shapes that has as many; float64.

    Raises:
        SceneError: the file cannot be read, holds something else, or another number of numbers.
    """
    try:
        words = re.split(r"[\s,]+", file.read_text(encoding="utf-8-sig").strip())
        values = np.array([float(word) for word in words if word], dtype=np.float64)
    except (OSError, UnicodeDecodeError) as error:
        raise SceneError(f"{file} cannot be read, it must be text: {error}") from error
    except ValueError as error:
        raise SceneError(f"{file}: must hold numbers only: {error}") from error
    for shape in shapes:
        if values.size == int(np.prod(shape)):
            return values.reshape(shape)
    wanted = " or ".join("x".join(map(str, shape)) for shape in shapes)
    raise SceneError(f"{file}: must hold {wanted} numbers, got {values.size}")


def read_json(file: Path) -> Any:
    """What a JSON file holds, in UTF-8 or UTF-16.

    Raises:
        SceneError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(file.read_bytes())  # Windows tools write a byte order mark, PowerShell UTF-16
    except json.JSONDecodeError as error:
        raise SceneError(f"{file}, line {error.lineno}, column {error.colno}: broken JSON: {error.msg}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SceneError(f"{file} cannot be read, it must be UTF-8 or UTF-16: {error}") from error


def array_of(meta: Any, key: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    """The finite numbers under a key of what a JSON file holds, in a shape.

    Raises:
        SceneError: there is no such key, or it holds something else.
    """
    try:
        values = np.asarray(meta[key], dtype=np.float64).reshape(shape)
    except (KeyError, TypeError, IndexError):
        raise SceneError(f"{where}: `{key}` is missing") from None
    except ValueError:
        wanted = "x".join(map(str, shape)) or "one"
        raise SceneError(f"{where}: `{key}` must be {wanted} number(s), got {meta[key]!r:.60}") from None
    if not np.isfinite(values).all():
        raise SceneError(f"{where}: `{key}` must be finite, got {meta[key]!r:.60}")
    return values


def images_in(folder: Path) -> list[Path]:
    """The pictures in a folder, sorted by name; none where there is no folder."""
    return sorted(f for f in folder.glob("*") if f.suffix in IMAGE_EXTENSIONS) if folder.is_dir() else []


def by_number(path: Path) -> tuple[list[int], str]:
    """A key that sorts 2.png before 10.png."""
    return [int(digits) for digits in re.findall(r"\d+", path.stem)], path.name


def finish(
    split: tuple[Sequence[Photo], Sequence[Photo], str],
    choose_box: Callable[[Views], Box],
    path: Path,
    options: SceneOptions,
    name: str | None = None,
) -> Scene:
    """The scene of photos.

    Args:
        split: training and test photos, and what made the split: what :func:`hashgrid.data.scene.hold_out` gives.
        choose_box: gives the box of views; of :mod:`hashgrid.data.loaders.boxes`.
        path: what finds the scene again.
        options: how it is read.
        name: of its results; that of the folder if none.

    Raises:
        SceneError: an image, a mask or a lens is unusable.
    """
    train, test = (read_views(photos, options) for photos in split[:2])
    path = path.resolve()
    folder = path.parent if path.is_file() else path
    return make_scene(train, test, choose_box, path, name or FORBIDDEN.sub("_", folder.name), options, split[2])
