"""What loaders have in common: poses and numbers in files, pictures in folders, and the scene they end in."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hashgrid.data.errors import SceneError, some, warn_of_scene
from hashgrid.data.images import MOST_PIXELS, Photo, read_views
from hashgrid.data.scene import Scene, SceneOptions, Views, make_scene
from hashgrid.geometry.boxes import Box
from hashgrid.util.pictures import FORBIDDEN

FURTHEST = 1e12  # from the origin, in any unit: the earth has 1e7 metres
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
    if np.abs(matrix[:3, 3]).max() > FURTHEST:
        raise SceneError(f"{where}: `{name}` must be within {FURTHEST:g} of the origin, got {matrix[:3, 3].tolist()}")
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


def lens_of(matrix: np.ndarray, where: str) -> list[float]:
    """``fx, fy, cx, cy`` of the matrix [3 or 4, 3 or 4] of a lens.

    Raises:
        SceneError: it is not finite, a focal length is not positive, or axes of pixels are not at right angles.
    """
    fx, fy, cx, cy, skew = (float(matrix[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2), (0, 1)))
    if not (all(abs(x) < MOST_PIXELS for x in (fx, fy, cx, cy, skew)) and fx > 0 and fy > 0):
        raise SceneError(f"{where}: focal lengths must be positive, all finite, got {[fx, fy, cx, cy, skew]}")
    if abs(skew) > 1e-3 * fx:
        raise SceneError(f"{where}: the axes of pixels must be at right angles, got a skew of {skew:g}")
    return [fx, fy, cx, cy]


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


def read_text(file: Path) -> str:
    """What a text file holds, in UTF-8.

    Raises:
        SceneError: it does not exist or is no text.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise SceneError(f"{file} does not exist; put it there, or remove the image it belongs to") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SceneError(f"{file} cannot be read, it must be text: {error}") from error


def numbers(file: Path, *shapes: tuple[int, ...]) -> np.ndarray:
    """The numbers of a text file, in the first of some shapes that has as many; float64. A first side of -1 is any.

    Raises:
        SceneError: the file cannot be read, holds something else, or another number of numbers.
    """
    values = floats(re.split(r"[\s,]+", read_text(file).strip(" \t\r\n,")), str(file))
    for shape in shapes:
        n = int(np.prod(shape))
        if values.size == n or (n < 0 and values.size and values.size % -n == 0):
            return values.reshape(shape)
    wanted = " or ".join("x".join("N" if n < 0 else str(n) for n in shape) for shape in shapes)
    raise SceneError(f"{file}: must hold {wanted} numbers, got {values.size}")


def floats(words: Sequence[str], where: str) -> np.ndarray:
    """The numbers that words are, float64; none of a single empty one.

    Raises:
        SceneError: one of them is no number.
    """
    values = []
    for i, word in enumerate(words if list(words) != [""] else []):
        try:
            values.append(float(word))
        except ValueError:
            raise SceneError(f"{where}: word {i + 1} must be a number, got {word!r:.40}") from None
    return np.array(values, dtype=np.float64)


def read_json(file: Path) -> Any:
    """What a JSON file holds, in UTF-8 or UTF-16.

    Raises:
        SceneError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(file.read_bytes())  # Windows tools write a byte order mark, PowerShell UTF-16
    except json.JSONDecodeError as error:
        raise SceneError(f"{file}, line {error.lineno}, column {error.colno}: broken JSON: {error.msg}") from error
    except FileNotFoundError as error:
        raise SceneError(f"{file} does not exist; put it there, or remove the image it belongs to") from error
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
    """The pictures in a folder, sorted by name; none where there is no folder.

    Raises:
        SceneError: two have the same name but for its extension: which one is the view's nobody knows.
    """
    images = sorted(f for f in folder.glob("*") if f.suffix in IMAGE_EXTENSIONS) if folder.is_dir() else []
    names: dict[str, Path] = {}
    for image in images:
        other = names.setdefault(image.stem, image)
        if other != image:
            raise SceneError(f"{folder}: has both {other.name} and {image.name}; remove one of them")
    return images


def warn_of_rest(cameras: Iterable[Path], images: Sequence[Path], suffix: str = "") -> None:
    """Warns about files of cameras, whose names are those of images and ``suffix``, that have no image."""
    stems = {image.stem + suffix for image in images}
    rest = sorted(file for file in cameras if file.stem not in stems)
    if rest:
        where, names = rest[0].parent, some([file.name for file in rest])
        warn_of_scene(f"{where}: skipping {len(rest)} camera(s) without an image: {names}")


def read_arrays(file: Path) -> Any:
    """What a `.npy` or `.npz` holds.

    Raises:
        SceneError: it is another kind of file, or damaged.
    """
    try:
        with open(file, "rb") as stream:
            head = stream.read(6)
            if head not in (b"\x93NUMPY", b"PK\x03\x04" + head[4:]):
                raise SceneError(f"{file} must be what numpy.save or numpy.savez writes, it begins with {head!r}")
            stream.seek(0)
            stored = np.load(stream, allow_pickle=False)
            if not isinstance(stored, np.ndarray):
                return {key: stored[key] for key in stored.files}
            if stream.read(1):
                raise SceneError(f"{file}: must end with its array, something follows; save it again")
            return stored
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, SceneError):
            raise
        raise SceneError(f"{file} cannot be read as arrays, copy it again: {error}") from error


def by_number(path: Path) -> tuple[list[int], str]:
    """A key that sorts 2.png before 10.png."""
    return [int(digits) for digits in re.findall(r"\d+", path.stem)], path.name


def finish(
    split: tuple[Sequence[Photo], Sequence[Photo], str],
    choose_box: Callable[[Views], Box],
    path: Path,
    options: SceneOptions,
    name: str | None = None,
    one_size: bool = False,
) -> Scene:
    """The scene of photos.

    Args:
        split: training and test photos, and what made the split: what :func:`hashgrid.data.scene.hold_out` gives.
        choose_box: gives the box of views; of :mod:`hashgrid.data.loaders.boxes`.
        path: what finds the scene again.
        options: how it is read.
        name: of its results; that of the folder if none.
        one_size: whether all images have to have one size: files do not say which of them a lens belongs to.

    Raises:
        SceneError: an image, a mask or a lens is unusable.
    """
    path, tested = path.resolve(), {photo.image.resolve() for photo in split[1]}
    shared = [photo.name for photo in split[0] if photo.image.resolve() in tested]
    if shared:
        warn_of_scene(f"{path}: not training on {len(shared)} view(s) that are test views, too: {some(shared)}")
    photos = [photo for photo in split[0] if photo.image.resolve() not in tested], split[1]
    if not photos[0]:
        raise SceneError(f"{path}: the split ({split[2]}) leaves no training view; add views, or choose another one")
    train, test = (read_views(part, options) for part in photos)
    if one_size:
        sizes = [f"{width}x{height}" for views in (train, test) for width, height in views.sizes.tolist()]
        names = [*train.names, *test.names]
        other = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
        if other is not None:
            got = f"{sizes[0]} ({names[0]}) and {sizes[other]} ({names[other]})"
            raise SceneError(f"{path}: all images must have one size, which its lenses are of, got {got}")
    folder = path.parent if path.is_file() else path
    return make_scene(train, test, choose_box, path, name or FORBIDDEN.sub("_", folder.name), options, split[2])
