"""Polycam's raw export: `keyframes/images/TIME.jpg` and `keyframes/cameras/TIME.json`, or `corrected_images` and
`corrected_cameras`, which are taken where they are there.

Poses are camera to world with y up, the axes of OpenGL, three rows `t_00` to `t_23`.
"""

from __future__ import annotations

from pathlib import Path

from hashgrid.data.errors import SceneError, some, warn_of_scene
from hashgrid.data.images import Photo, fits_shape
from hashgrid.data.loaders.boxes import found_box
from hashgrid.data.loaders.poses import array_of, finish, images_in, read_json, rigid, warn_of_rest
from hashgrid.data.scene import Scene, SceneOptions, hold_out

FORMS = (("corrected_images", "corrected_cameras"), ("images", "cameras"))


def matches(path: Path) -> bool:
    """Whether ``path`` is a folder with `keyframes/cameras`, or `keyframes` itself."""
    return any(_keyframes(path, form) is not None for form in FORMS)


def load(path: Path, options: SceneOptions) -> Scene:
    """Loads all keyframes, every so many-th of which is tested."""
    images_name, cameras_name = next(form for form in FORMS if _keyframes(path, form) is not None)
    folder = _keyframes(path, (images_name, cameras_name))
    assert folder is not None
    photos, missing, images = [], [], images_in(folder / images_name)
    warn_of_rest((folder / cameras_name).glob("*.json"), images)
    for image in images:
        file = folder / cameras_name / f"{image.stem}.json"
        if file.is_file():
            photos.append(_photo(image, file))
        else:
            missing.append(image.name)
    if not photos:
        raise SceneError(f"{folder}: no image in `{images_name}` has a camera in `{cameras_name}`")
    if missing:
        warn_of_scene(f"{folder}: skipping {len(missing)} image(s) without a camera: {some(missing)}")
    return finish(hold_out(photos, options.holdout), found_box(), path, options)


def _keyframes(path: Path, form: tuple[str, str]) -> Path | None:
    for folder in (path / "keyframes", path):
        if all((folder / name).is_dir() for name in form) and any((folder / form[1]).glob("*.json")):
            return folder
    return None


def _photo(image: Path, file: Path) -> Photo:
    camera, where = read_json(file), str(file)
    rows = [[float(array_of(camera, f"t_{row}{column}", (), where)) for column in range(4)] for row in range(3)]

    def lens(width: int, height: int) -> list[float]:
        size = tuple(float(array_of(camera, key, (), where)) for key in ("width", "height"))
        if not fits_shape(width, height, size):  # type: ignore[arg-type]
            raise SceneError(f"{where}: the image must have the shape {size[0]:g}x{size[1]:g}, got {width}x{height}")
        fx, fy, cx, cy = (float(array_of(camera, key, (), where)) for key in ("fx", "fy", "cx", "cy"))
        scale = width / size[0], height / size[1]
        return [fx * scale[0], fy * scale[1], cx * scale[0], cy * scale[1]]

    return Photo(image.name, image, rigid(array_of({"t": rows}, "t", (3, 4), where), where), lens, where)
