"""COLMAP models: `sparse/N/{cameras,images,points3D}.{bin,txt}` beside `images`.

Poses are world to camera, with the axes of OpenCV. The largest of several models is taken. The sparse points give the
box: cascades reach to what the cameras see. Masks are `masks/IMAGE.png`, black where pixels are ignored.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hashgrid.data.errors import SceneError, some, warn_of_scene
from hashgrid.data.images import Photo, fits_shape
from hashgrid.data.loaders.boxes import found_box
from hashgrid.data.loaders.poses import finish, floats, from_opencv, inverse, of_quaternion, rigid
from hashgrid.data.scene import Scene, SceneOptions, hold_out
from hashgrid.geometry.lenses import coefficients

# Models in the order of their numbers: kind, and what the parameters are. One focal length is `f`.
_FISHEYE = ("k1", "k2", "k3", "k4")
MODELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "SIMPLE_PINHOLE": ("perspective", ("f", "cx", "cy")),
    "PINHOLE": ("perspective", ("fx", "fy", "cx", "cy")),
    "SIMPLE_RADIAL": ("perspective", ("f", "cx", "cy", "k1")),
    "RADIAL": ("perspective", ("f", "cx", "cy", "k1", "k2")),
    "OPENCV": ("perspective", ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2")),
    "OPENCV_FISHEYE": ("fisheye", ("fx", "fy", "cx", "cy", *_FISHEYE)),
    "FULL_OPENCV": ("perspective", ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "q1", "q2", "q3")),
    "FOV": ("fov", ("fx", "fy", "cx", "cy", "k1")),
    "SIMPLE_RADIAL_FISHEYE": ("fisheye", ("f", "cx", "cy", "k1")),
    "RADIAL_FISHEYE": ("fisheye", ("f", "cx", "cy", "k1", "k2")),
    "THIN_PRISM_FISHEYE": ("fisheye", ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "s1", "s3")),
    "RAD_TAN_THIN_PRISM_FISHEYE": (
        "fisheye",
        ("fx", "fy", "cx", "cy", *_FISHEYE, "k5", "k6", "p2", "p1", "s1", "s2", "s3", "s4"),
    ),
    "SIMPLE_DIVISION": ("division", ("f", "cx", "cy", "k1")),
    "DIVISION": ("division", ("fx", "fy", "cx", "cy", "k1")),
    "SIMPLE_FISHEYE": ("fisheye", ("f", "cx", "cy")),
    "FISHEYE": ("fisheye", ("fx", "fy", "cx", "cy")),
    "EUCM": ("eucm", ("fx", "fy", "cx", "cy", "k1", "k2")),
    "EQUIRECTANGULAR": ("equirectangular", ("width", "height")),
}
FOLDERS = ("sparse", "colmap/sparse", "distorted/sparse")
IMAGES = ("images", "input")
MOST_NAME = 4096  # bytes of an image's name; more is no model


class Camera(NamedTuple):
    """A line of `cameras`."""

    model: str
    size: tuple[int, int]
    parameters: tuple[float, ...]


class Image(NamedTuple):
    """A line of `images`."""

    name: str
    w2c: np.ndarray  # [3, 4]
    camera: int
    where: str


def matches(path: Path) -> bool:
    """Whether ``path`` is a folder that holds a model (`cameras.bin` or `cameras.txt`), or is one."""
    return path.is_dir() and _models(path) != []


def load(path: Path, options: SceneOptions) -> Scene:
    """Loads the model with most images of a folder."""
    models = _models(path)
    read = [(folder, *_read_model(folder)) for folder in models]
    folder, cameras, images = max(read, key=lambda model: len(model[2]))
    if not images:
        raise SceneError(f"{folder}: the model has no registered image; reconstruct it again")
    if len(models) > 1:
        sizes = ", ".join(f"{model.name} ({len(found)} images)" for model, _, found in read)
        warn_of_scene(f"{path}: {len(models)} models that are not connected: {sizes}; taking {folder.name}")
    photos = _photos(path, folder, cameras, images)
    return finish(hold_out(photos, options.holdout), found_box(_read_points(folder)), path, options)


# Files ---------------------------------------------------------------------------------------------------------------


def _models(path: Path) -> list[Path]:
    """Folders of models."""
    for name in FOLDERS:
        folder = path / name
        found = [f for f in (folder, *sorted(folder.glob("*"))) if f.is_dir() and _file(f, "cameras") is not None]
        if found:
            return found
    return [path] if _file(path, "cameras") is not None else []


def _file(folder: Path, name: str) -> Path | None:
    return next((f for f in (folder / f"{name}.bin", folder / f"{name}.txt") if f.is_file()), None)


def _read_model(folder: Path) -> tuple[dict[int, Camera], list[Image]]:
    cameras, images = _file(folder, "cameras"), _file(folder, "images")
    assert cameras is not None  # `matches` has seen it
    if images is None:
        raise SceneError(f"{folder}: `images.bin` or `images.txt` is missing beside {cameras.name}")
    known = _cameras_bin(cameras) if cameras.suffix == ".bin" else _cameras_txt(cameras)
    found = list(_images_bin(images) if images.suffix == ".bin" else _images_txt(images))
    strangers = [image.name for image in found if image.camera not in known]
    twice = [name for name, n in Counter(image.name for image in found).items() if n > 1]
    if twice:
        raise SceneError(f"{images}: every image must be there once, more often are {some(twice)}; remove the others")
    if strangers:
        raise SceneError(f"{images}: {len(strangers)} image(s) of cameras that {cameras.name} lacks: {some(strangers)}")
    return known, found


class _Reader:
    """The bytes of a file, one value after the other."""

    def __init__(self, file: Path) -> None:
        self.file, self.place = file, 0
        try:
            self.data = file.read_bytes()
        except OSError as error:
            raise SceneError(f"{file} cannot be read: {error}") from error

    def take(self, form: str) -> tuple[float, ...]:
        size = struct.calcsize("<" + form)
        self.check(size)
        values = struct.unpack_from("<" + form, self.data, self.place)
        self.place += size
        return values

    def skip(self, size: int) -> None:
        self.check(size)
        self.place += size

    def count(self, least: int) -> int:
        """A number of entries, of which each has so many bytes at least."""
        n = int(self.take("Q")[0])
        if n * least > len(self.data) - self.place:
            raise SceneError(f"{self.file}: says it has {n} entries, more than its {len(self.data)} bytes can hold")
        return n

    def name(self) -> str:
        end = self.data.find(b"\0", self.place, self.place + MOST_NAME)
        if end < 0:
            raise SceneError(f"{self.file}, byte {self.place}: a name must end with a zero byte; the file is damaged")
        raw, self.place = self.data[self.place : end], end + 1
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise SceneError(f"{self.file}: the name {raw!r} must be UTF-8; rename the image") from None

    def finish(self) -> None:
        """Refuses what follows the last entry."""
        if self.place < len(self.data):
            got = f"{len(self.data) - self.place} bytes follow"
            raise SceneError(f"{self.file}: must end with its last entry, at byte {self.place}, {got}; copy it again")

    def check(self, size: int) -> None:
        if size < 0 or self.place + size > len(self.data):
            raise SceneError(f"{self.file}: ends at byte {len(self.data)}, in the middle of an entry; copy it again")


def _cameras_bin(file: Path) -> dict[int, Camera]:
    reader, names = _Reader(file), list(MODELS)
    cameras = {}
    for _ in range(reader.count(24)):
        number, model, width, height = map(int, reader.take("IiQQ"))
        if not 0 <= model < len(names):
            raise SceneError(f"{file}, camera {number}: the model must be one of 0..{len(names) - 1}, got {model}")
        parameters = reader.take(f"{len(MODELS[names[model]][1])}d")
        where = f"{file}, camera {number}"
        if number in cameras:
            raise SceneError(f"{where}: must be there once, it is there twice; copy the file again")
        cameras[number] = _camera(names[model], width, height, parameters, where)
    reader.finish()
    return cameras


def _cameras_txt(file: Path) -> dict[int, Camera]:
    cameras = {}
    for line, words in _lines(file):
        where = f"{file}, line {line}"
        if len(words) < 4 or words[1] not in MODELS:
            got = words[1] if len(words) > 1 else "nothing"
            raise SceneError(
                f"{where}: must be number, model, width, height, parameters; a model COLMAP has, got {got}"
            )
        values = floats([*words[:1], *words[2:]], where).tolist()
        if int(values[0]) in cameras:
            raise SceneError(f"{where}: camera {int(values[0])} must be there once, it is there twice; remove one")
        cameras[int(values[0])] = _camera(words[1], int(values[1]), int(values[2]), tuple(values[3:]), where)
    return cameras


def _camera(model: str, width: int, height: int, parameters: tuple[float, ...], where: str) -> Camera:
    wanted = MODELS[model][1]
    if len(parameters) != len(wanted):
        raise SceneError(f"{where}: {model} must have {', '.join(wanted)}, got {len(parameters)} numbers")
    if not all(map(math.isfinite, parameters)) or not all(
        value > 0 for name, value in zip(wanted, parameters, strict=True) if name in ("f", "fx", "fy")
    ):
        raise SceneError(f"{where}: parameters must be finite and focal lengths positive, got {list(parameters)}")
    if not (0 < width < 1 << 20 and 0 < height < 1 << 20):
        raise SceneError(f"{where}: width and height must be positive, got {width} and {height}")
    return Camera(model, (width, height), parameters)


def _images_bin(file: Path) -> Iterator[Image]:
    reader = _Reader(file)
    for _ in range(reader.count(73)):
        number, *pose, camera = reader.take("I7dI")
        name = reader.name()
        reader.skip(24 * reader.count(24))
        yield _image(name, pose, int(camera), f"{file}, image {int(number)} ({name})")
    reader.finish()


def _images_txt(file: Path) -> Iterator[Image]:
    """Two lines for an image, of which the second, its points, may be empty."""
    is_points = False
    for line, text in _raw_lines(file):
        if not is_points and not text.strip():
            continue
        if not is_points:
            words, where = text.split(None, 9), f"{file}, line {line}"
            if len(words) < 10:
                raise SceneError(
                    f"{where}: must be number, quaternion, translation, camera, name, got {text.strip()!r:.60}"
                )
            values, name = floats(words[:9], where).tolist(), words[9].strip()
            yield _image(name, values[1:8], int(values[8]), f"{where} ({name})")
        is_points = not is_points


def _image(name: str, pose: list[float], camera: int, where: str) -> Image:
    if not np.isfinite(pose).all():
        raise SceneError(f"{where}: the pose must be finite, got {pose}; remove the image")
    w2c = np.concatenate((of_quaternion(pose[:4], where), np.array(pose[4:7])[:, None]), axis=1)
    return Image(name, rigid(w2c, where), camera, where)


def _read_points(folder: Path) -> np.ndarray:
    """Positions [P, 3] of the sparse points that are finite; none without the file."""
    file = _file(folder, "points3D")
    if file is None:
        return np.zeros((0, 3))
    found = list(_points_bin(file) if file.suffix == ".bin" else _points_txt(file))
    points = np.array(found, dtype=np.float64).reshape(-1, 3)
    return points[np.isfinite(points).all(axis=1)]


def _points_bin(file: Path) -> Iterator[tuple[float, ...]]:
    reader = _Reader(file)
    for _ in range(reader.count(51)):
        yield reader.take("Q3d3Bd")[1:4]
        reader.skip(8 * reader.count(8))
    reader.finish()


def _points_txt(file: Path) -> Iterator[tuple[float, ...]]:
    for line, words in _lines(file):
        if len(words) < 4:
            raise SceneError(f"{file}, line {line}: must be number, x, y, z, ..., got {' '.join(words)!r:.60}")
        yield tuple(floats(words[1:4], f"{file}, line {line}"))


def _raw_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines that are no comments, with their numbers."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SceneError(f"{file} cannot be read, it must be UTF-8: {error}") from error
    for line, content in enumerate(text.splitlines(), 1):
        if not content.startswith("#"):
            yield line, content


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    for line, content in _raw_lines(file):
        if content.strip():
            yield line, content.split()


# Views ---------------------------------------------------------------------------------------------------------------


def _photos(path: Path, folder: Path, cameras: dict[int, Camera], images: list[Image]) -> list[Photo]:
    """Images of the model that are there, by name."""
    here = folder.resolve()
    roots = [root / name for root in (path, here.parent, here.parent.parent) for name in IMAGES]
    place = next((root for root in roots if root.is_dir()), None)
    if place is None:
        raise SceneError(f"{path}: there must be a folder `images` beside the model, there is none of {some(roots)}")
    photos, missing = [], []
    for image in sorted(images, key=lambda image: image.name):
        file, camera = place / image.name, cameras[image.camera]
        if not file.is_file():
            missing.append(image.name)
            continue
        mask = place.parent / "masks" / f"{image.name}.png"
        photos.append(
            Photo(
                name=image.name,
                image=file,
                c2w=from_opencv(inverse(image.w2c)),
                lens=partial(_lens, camera, image.where),
                where=image.where,
                size=camera.size,
                mask=(mask, True) if mask.is_file() else None,
                kind=MODELS[camera.model][0],
            )
        )
    if not photos:
        raise SceneError(f"{place}: none of the {len(images)} images of the model is there (first: {missing[0]})")
    if missing:
        warn_of_scene(f"{place}: skipping {len(missing)} of {len(images)} images that are not there: {some(missing)}")
    return photos


def _lens(camera: Camera, where: str, width: int, height: int) -> list[float]:
    """``fx, fy, cx, cy`` and coefficients of a picture of this width and height."""
    if not fits_shape(width, height, camera.size):
        raise SceneError(
            f"{where}: the image must have the shape of its camera, {camera.size[0]}x{camera.size[1]} (or scaled),"
            f" got {width}x{height}; was it rotated or cropped?"
        )
    kind, names = MODELS[camera.model]
    values = dict(zip(names, camera.parameters, strict=True))
    if kind == "equirectangular":
        return [width / (2 * math.pi), height / math.pi, width / 2, height / 2]
    if "f" in values:
        values["fx"] = values["fy"] = values.pop("f")
    scale_x, scale_y = width / camera.size[0], height / camera.size[1]
    lens = [
        values.pop(name) * scale for name, scale in (("fx", scale_x), ("fy", scale_y), ("cx", scale_x), ("cy", scale_y))
    ]
    return [*lens, *coefficients(**values, late=camera.model == "RAD_TAN_THIN_PRISM_FISHEYE")]
