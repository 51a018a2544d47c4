"""Posed photographs in `transforms.json` folders: the Blender, instant-ngp, nerfstudio and D-NeRF dialects.

The split is the files' own (`transforms_test.json`, or nerfstudio's `train_filenames` / `test_filenames`; that of the
validation views where there is none of test views, and the other way round); else every so many-th view is held out.
"""

from __future__ import annotations

import math
import os
import posixpath
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.errors import MeshError, SceneError, some, warn_of_scene
from hashgrid.data.formats.ply import columns, read_elements
from hashgrid.data.images import Photo, fits_shape
from hashgrid.data.loaders.boxes import found_box
from hashgrid.data.loaders.keys import name_unread
from hashgrid.data.loaders.poses import IMAGE_EXTENSIONS, array_of, finish, read_json, rigid
from hashgrid.data.scene import Scene, SceneOptions, Views, hold_out
from hashgrid.geometry.boxes import Box, Placement, capture_box, cube, hull_box
from hashgrid.geometry.cameras import focal_length, nearest_point_to_axes
from hashgrid.geometry.lenses import PANORAMAS
from hashgrid.util.pictures import FORBIDDEN

LENS_MODELS = {  # of nerfstudio
    **dict.fromkeys(("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "PERSPECTIVE"), "perspective"),
    "OPENCV_FISHEYE": "fisheye",
    "EQUIRECTANGULAR": "equirectangular",
}
LENS_FLAGS = {"is_fisheye": "fisheye", "latlong": "equirectangular", "equirectangular": "equal_area"}  # of instant-ngp
UNKNOWN_FLAGS = ("orthographic", "rolling_shutter", "ftheta_p0")
MASK_KEYS = ("mask_path", "mask_filename")
BLENDER_HALF = 1.5  # half side of the box of NeRF-synthetic scenes
NGP_SCALE, NGP_OFFSET = 0.33, 0.5  # instant-ngp's defaults: ngp = file * scale + offset
NGP = Placement((-NGP_OFFSET / NGP_SCALE,) * 3, 1 / NGP_SCALE)  # where its coordinates lie in those of a file


def matches(path: Path) -> bool:
    """Whether ``path`` is a `transforms*.json` or a folder that holds `transforms.json` or `transforms_train.json`."""
    return path.suffix == ".json" if path.is_file() else _folder_file(path) is not None


def load(path: Path, options: SceneOptions) -> Scene:
    """Loads a folder, or one `transforms*.json` file; `transforms_train.json` has its siblings beside it."""
    train_file, test_file = _find_files(path, options.test_split)
    meta = _read_json(train_file)
    train = _parse_frames(meta, train_file)
    test: list[Photo] = []
    if test_file is not None:
        test, split = _parse_frames(_read_json(test_file), test_file, required=False), test_file.name
        if not test:
            warn_of_scene(f"{test_file} has no usable view; holding out training views")
    if not test:
        train, test, split = _split(train, meta, train_file, options)
    box = partial(_choose_box, meta, file=train_file)
    return finish((train, test, split), box, scene_path(path), options, scene_name(path))


# Files ---------------------------------------------------------------------------------------------------------------


def scene_path(path: Path) -> Path:
    """What finds the scene again, absolute: its folder, or the file where the folder stands for another one."""
    path = path.resolve()
    return path.parent if path.is_file() and path == _folder_file(path.parent) else path


def scene_name(path: Path) -> str:
    """The name of results of a scene: its folder's, and the file's where that is not the one the folder stands for."""
    path = scene_path(path)
    return FORBIDDEN.sub("_", f"{path.parent.name}_{path.stem}" if path.suffix == ".json" else path.name)


def _folder_file(folder: Path) -> Path | None:
    """The file of the training views that a folder stands for."""
    return next((f for f in (folder / "transforms_train.json", folder / "transforms.json") if f.is_file()), None)


def _find_files(path: Path, test_split: str) -> tuple[Path, Path | None]:
    """The JSON files of the training and, where there is one, the test views."""
    if path.is_file() and path.name != "transforms_train.json":
        return path, None
    folder = path.parent if path.is_file() else path
    train_file = _folder_file(folder)
    assert train_file is not None  # `matches` has seen it
    test_files = (folder / f"transforms_{split}.json" for split in _splits(test_split))
    return train_file, next((f for f in test_files if f.is_file()), None)


def _splits(test_split: str) -> tuple[str, str]:
    """Where test views may come from, best first."""
    return (test_split, "val" if test_split == "test" else "test")


def _read_json(file: Path) -> dict[str, Any]:
    meta = read_json(file)
    if not isinstance(meta, dict) or not isinstance(meta.get("frames"), list):
        raise SceneError(f"{file} must be a JSON object with a list `frames`, got {_kind(meta)}")
    if not meta["frames"]:
        raise SceneError(f"{file}: `frames` is empty; a scene needs at least one view")
    return meta


def _kind(meta: Any) -> str:
    if not isinstance(meta, dict):
        return f"a {type(meta).__name__}"
    return f"`frames` of type {type(meta['frames']).__name__}" if "frames" in meta else "no `frames`"


def _parse_frames(meta: dict[str, Any], file: Path, required: bool = True) -> list[Photo]:
    """The usable frames; those without a file name or without an image are skipped with one warning each kind."""
    scene_keys = {key: value for key, value in meta.items() if key != "frames"}
    name_unread(meta, file)
    frames: list[Photo] = []
    nameless: list[int] = []
    missing: list[str] = []
    found: dict[str, int] = {}
    for i, entry in enumerate(meta["frames"]):
        where = f"{file}, frame {i}"
        if not isinstance(entry, dict):
            raise SceneError(f"{where}: must be an object with `file_path` and `transform_matrix`, got {entry!r:.60}")
        name = entry.get("file_path")
        if not isinstance(name, str) or not name.strip():
            nameless.append(i)
            continue
        image = _find_image(file.parent, name)
        if image is None:
            missing.append(name)
            continue
        if (other := found.setdefault(os.path.normpath(image), i)) != i:
            raise SceneError(f"{where}: {name} must be in one frame, it is in frame {other}, too; remove one of them")
        where += f" ({name})"
        keys = {**scene_keys, **entry}
        width, height = _number(keys, "w", where), _number(keys, "h", where)
        frames.append(
            Photo(
                name=name,
                image=image,
                c2w=_parse_pose(entry, where),
                lens=partial(_parse_lens, keys, where),
                where=where,
                size=(width, height) if width and height else None,
                mask=_find_mask(keys, image, file.parent, where),
                time=_number(entry, "time", where),
                kind=_lens_kind(keys, where),
                alpha=_find_alpha(image, name),
                depth=_find_depth(keys, file.parent, where),
                circle=_number(keys, "fisheye_crop_radius", where, positive=True),
            )
        )
    rays = [frame.name for frame in frames if frame.image.with_name(f"rays_{frame.image.stem}.dat").is_file()]
    if rays and meta.get("enable_ray_loading", True):
        warn_of_scene(f"{file}: not read: rays_NAME.dat of {len(rays)} image(s), rays instead of lenses: {some(rays)}")
    if nameless:
        warn_of_scene(f"{file}: skipping {len(nameless)} frame(s) without `file_path`: {some(nameless)}")
    if not frames and required:
        raise SceneError(
            f"{file}: none of its {len(meta['frames'])} frames has an image on disk (first:"
            f" {missing[0] if missing else 'no name'}); `file_path` is relative to {file.parent}"
        )
    if missing:
        warn_of_scene(
            f"{file}: skipping {len(missing)} of {len(meta['frames'])} frames whose image is missing: {some(missing)}"
        )
    return frames


def _find_image(folder: Path, name: str) -> Path | None:
    """The image of ``file_path``, which may lack its extension."""
    path = folder / name.strip().replace("\\", "/")
    candidates = (path, *(path.with_name(path.name + extension) for extension in IMAGE_EXTENSIONS))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _parse_pose(entry: dict[str, Any], where: str) -> np.ndarray:
    try:
        matrix = np.asarray(entry["transform_matrix"], dtype=np.float64)
    except KeyError:
        raise SceneError(f"{where}: `transform_matrix` is missing") from None
    except (TypeError, ValueError):
        raise SceneError(f"{where}: `transform_matrix` must be 4 rows of 4 numbers, got something else") from None
    return rigid(matrix, where, "transform_matrix")


def _number(keys: dict[str, Any], key: str, where: str, positive: bool = False) -> float | None:
    """The number that a key has; None where there is no such key."""
    if keys.get(key) is None:
        return None
    try:
        value = float(keys[key])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value) or (positive and value <= 0):
        kind = "positive" if math.isfinite(value) else "finite"
        raise SceneError(f"{where}: `{key}` must be a {kind} number, got {keys[key]!r}")
    return value


def _find_mask(keys: dict[str, Any], image: Path, folder: Path, where: str) -> tuple[Path, bool] | None:
    """The mask of an image and whether its bright pixels count, or None where there is no mask.

    nerfstudio's `mask_path`, of the frame or of the whole scene, is black where pixels are ignored. instant-ngp's
    `dynamic_mask_NAME.png` beside the image is not black there.

    Raises:
        SceneError: the file that is named does not exist.
    """
    key = next((key for key in MASK_KEYS if keys.get(key) is not None), None)
    if key is None:
        file = image.with_name(f"dynamic_mask_{image.stem}.png")
        return (file, False) if file.is_file() else None
    file = folder / str(keys[key]).strip().replace("\\", "/")
    if not file.is_file():
        raise SceneError(f"{where}: `{key}` must be an image relative to {folder}, {keys[key]!r} does not exist")
    return file, True


def _find_alpha(image: Path, name: str) -> Path | None:
    """instant-ngp's picture of the alpha of an image: the name in the file, `.alpha`, and the image's extension."""
    file = image.with_name(f"{posixpath.basename(name.strip().replace(chr(92), '/'))}.alpha{image.suffix}")
    return file if file.is_file() else None


def _find_depth(keys: dict[str, Any], folder: Path, where: str) -> tuple[Path, float] | None:
    """The depths of an image and their unit: nerfstudio's millimetres, or what `depth_unit_scale_factor` says.

    Raises:
        SceneError: the file that is named does not exist.
    """
    if keys.get("depth_file_path") is None:
        return None
    file = folder / str(keys["depth_file_path"]).strip().replace("\\", "/")
    if not file.is_file():
        got = keys["depth_file_path"]
        raise SceneError(f"{where}: `depth_file_path` must be an image relative to {folder}, {got!r} does not exist")
    return file, _number(keys, "depth_unit_scale_factor", where, positive=True) or 1e-3


def _split(
    frames: list[Photo], meta: dict[str, Any], file: Path, options: SceneOptions
) -> tuple[list[Photo], list[Photo], str]:
    """Training and test frames of a single file, and what made the split."""
    lists = {key: _listed(meta, f"{key}_filenames", file) for key in ("train", "test", "val")}
    if any(listed is not None for listed in lists.values()):
        source = next((key for key in _splits(options.test_split) if lists[key]), None)
        reserved = (lists["test"] or set()) | (lists["val"] or set())
        everything = {_key(frame.name) for frame in frames}
        train_names = everything - reserved if lists["train"] is None else lists["train"]
        # only a training list: whatever it leaves out
        test_names = everything - train_names if source is None else lists[source] or set()
        train = [frame for frame in frames if _key(frame.name) in train_names - test_names]
        test = [frame for frame in frames if _key(frame.name) in test_names]
        return train, test, f"{source or 'train'}_filenames"
    return hold_out(frames, options.holdout)


def _key(name: str) -> str:
    """One spelling of a path: `./a\\b.png` and `a/b` are the same view."""
    path = posixpath.normpath(name.strip().replace("\\", "/"))
    return next((path[: -len(e)] for e in IMAGE_EXTENSIONS if path.endswith(e)), path)


def _listed(meta: dict[str, Any], key: str, file: Path) -> set[str] | None:
    """The views of a list of names in the file; None where there is no such list."""
    names = meta.get(key)
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SceneError(f"{file}: `{key}` must be a list of file names, got {names!r:.60}")
    frames = {_key(entry["file_path"]) for entry in meta["frames"] if isinstance(entry.get("file_path"), str)}
    unknown = [name for name in names if _key(name) not in frames]
    if unknown:
        raise SceneError(
            f"{file}: `{key}` names {len(unknown)} view(s) that are no `file_path` of any frame: {some(unknown)};"
            " spell them alike, or remove them from the list"
        )
    return {_key(name) for name in names}


# Lenses and boxes ----------------------------------------------------------------------------------------------------


def _lens_kind(keys: dict[str, Any], where: str) -> str:
    """The kind of a lens, by nerfstudio's model or instant-ngp's flags."""
    model, flags = str(keys.get("camera_model", "PINHOLE")).upper(), [key for key in LENS_FLAGS if keys.get(key)]
    unknown = [key for key in UNKNOWN_FLAGS if keys.get(key) and np.any(keys[key])]
    unknown += [model] if model not in LENS_MODELS else []
    if unknown or len(flags) > 1:
        raise SceneError(
            f"{where}: the lens must be one of {', '.join(LENS_MODELS)}, or of the flags {', '.join(LENS_FLAGS)}, got"
            f" {(unknown or flags)[0]!r}; undistort the images first (COLMAP's image_undistorter)"
        )
    return LENS_FLAGS[flags[0]] if flags else LENS_MODELS[model]


def _parse_lens(keys: dict[str, Any], where: str, width: int, height: int) -> list[float]:
    """``fx, fy, cx, cy, k1, k2, k3, k4, p1, p2`` of a frame with ``keys``, in pixels of its picture as it is stored."""
    kind = _lens_kind(keys, where)
    if kind in PANORAMAS:
        around, over = 2 * math.pi, math.pi if kind == "equirectangular" else 2.0
        return [width / around, height / over, width / 2, height / 2]
    size = _number(keys, "w", where) or float(width), _number(keys, "h", where) or float(height)
    if not fits_shape(width, height, size):
        raise SceneError(
            f"{where}: the image must have the shape of `w` x `h` = {size[0]:g} x {size[1]:g} (or scaled),"
            f" got {width} x {height}; was it rotated or cropped?"
        )

    def focal(key: str, angle_key: str, fov_key: str, side: float) -> float | None:
        value, angle = _number(keys, key, where, positive=True), _number(keys, angle_key, where)
        if angle is None:
            degrees = _number(keys, fov_key, where)
            angle = degrees and math.radians(degrees)
        if value is not None or angle is None:
            return value
        if not 0 < angle < math.pi:
            degrees = math.degrees(angle)
            raise SceneError(f"{where}: the field of view must be within (0, 180) degrees, got {degrees:g}")
        return focal_length(angle, side)

    focal_x = focal("fl_x", "camera_angle_x", "x_fov", size[0])
    focal_y = focal("fl_y", "camera_angle_y", "y_fov", size[1])
    focal_x, focal_y = focal_x or focal_y, focal_y or focal_x
    if focal_x is None or focal_y is None:
        raise SceneError(
            f"{where}: no focal length; give `fl_x` (pixels), `camera_angle_x` (radians) or `x_fov` (degrees)"
        )
    centre_x, centre_y = _number(keys, "cx", where), _number(keys, "cy", where)
    scale_x, scale_y = width / size[0], height / size[1]
    return [
        focal_x * scale_x,
        focal_y * scale_y,
        width / 2 if centre_x is None else centre_x * scale_x,
        height / 2 if centre_y is None else centre_y * scale_y,
        *_distortion(keys, where),
    ]


def _distortion(keys: dict[str, Any], where: str) -> list[float]:
    """``k1, k2, k3, k4, p1, p2``, each by its name or all in a list."""
    names = ("k1", "k2", "k3", "k4", "p1", "p2")
    if keys.get("distortion_params") is not None:
        return [float(x) for x in array_of(keys, "distortion_params", (len(names),), where)]
    return [_number(keys, key, where) or 0.0 for key in names]


def _choose_box(meta: dict[str, Any], views: Views, file: Path) -> Box:
    """The box of a scene with ``views`` in the file's coordinates.

    - `aabb` in the file is taken at its word.
    - A scene that is NeRF-synthetic by its numbers (nothing but angles; cameras outside of +-1.5 that look at it and
      see as much as that there) has its box of +-1.5.
    - Images with a transparent background bound the object themselves: the box of its visual hull.
    - Anything else is a capture, whose cascades reach as far as instant-ngp's box of `aabb_scale`, or as the sparse
      points of `ply_file_path`.
    """
    aabb, aabb_scale = _aabb(meta, file), _number(meta, "aabb_scale", str(file), positive=True)
    if aabb is not None:
        return Box(aabb)
    ngp = _ngp(meta, file)
    if aabb_scale is None and _is_blender(meta, views):
        return Box(cube(torch.zeros(3), BLENDER_HALF))
    if views.has_alpha:
        hull = hull_box(views, views.may_be_opaque)
        if hull is not None:
            return Box(hull)
        # the masks contradict each other: instant-ngp's box
        return Box(cube(ngp.to_file(torch.full((3,), 0.5)), 0.5 * (aabb_scale or 1.0) * ngp.unit))
    points = None if aabb_scale else _sparse_points(meta, file)
    return (
        capture_box(views, aabb_scale and 0.5 * aabb_scale * ngp.unit) if points is None else found_box(points)(views)
    )


def _sparse_points(meta: dict[str, Any], file: Path) -> np.ndarray | None:
    """Positions [P, 3] in the PLY that the file names, in its coordinates."""
    name = meta.get("ply_file_path")
    if not isinstance(name, str) or not name.strip():
        return None
    place = file.parent / name.strip().replace("\\", "/")
    if not place.is_file():
        warn_of_scene(f"{file}: `ply_file_path` {name!r} does not exist; the box is that of the cameras")
        return None
    try:
        points = columns(read_elements(place.read_bytes()), ("x", "y", "z")).astype(np.float64)
    except (OSError, MeshError) as error:
        raise SceneError(f"{file}: `ply_file_path` cannot be read: {place}: {error}") from error
    return points[np.isfinite(points).all(axis=1)]


def _is_blender(meta: dict[str, Any], views: Views) -> bool:
    """Whether the numbers are those of a NeRF-synthetic scene; its dialect says nothing about the box.

    Its cameras are 4 away from the origin, look there and see 1.45 to each side of it.
    """
    if "camera_angle_x" not in meta or any("fl_x" in holder for holder in (meta, *meta["frames"])):
        return False
    origins = views.origins.double()
    if bool((origins.abs().amax(dim=-1) <= BLENDER_HALF).any()):
        return False
    if float(nearest_point_to_axes(views).abs().max()) > 0.5 * BLENDER_HALF:
        return False
    visible = origins.norm(dim=-1).median() * (0.5 * views.sizes[:, 0] / views.intrinsics[:, 0]).median()
    return 0.5 * BLENDER_HALF <= float(visible) <= 2.0 * BLENDER_HALF


def _aabb(meta: dict[str, Any], file: Path) -> Tensor | None:
    """The box [6] that the file names."""
    if meta.get("aabb") is None:
        return None
    try:
        aabb = torch.tensor(meta["aabb"], dtype=torch.float64).reshape(-1)
    except (TypeError, ValueError):
        aabb = torch.empty(0)
    if aabb.shape != (6,) or not bool(aabb.isfinite().all()) or not bool((aabb[3:] > aabb[:3]).all()):
        raise SceneError(f"{file}: `aabb` must be two corners, the lower one first, got {meta['aabb']!r}")
    return aabb


def ngp_placement(scene: Path) -> Placement:
    """Where instant-ngp's coordinates of a scene lie in those of its file; by its defaults in scenes of other formats.

    Raises:
        SceneError: the file is unusable.
    """
    if not matches(scene):
        return NGP
    file = _find_files(scene, "test")[0]
    return _ngp(_read_json(file), file)


def _ngp(meta: dict[str, Any], file: Path) -> Placement:
    """As `aabb`, or `scale` and `offset`, say: with a box, its middle is in that of the unit cube, which it fills."""
    aabb, scale = _aabb(meta, file), _number(meta, "scale", str(file), positive=True) or NGP_SCALE
    if aabb is not None:
        unit = float((aabb[3:] - aabb[:3]).max())
        return Placement(tuple(((aabb[3:] + aabb[:3]) / 2 - unit / 2).tolist()), unit)
    try:
        offset = torch.tensor(meta.get("offset", NGP_OFFSET), dtype=torch.float64).expand(3)
    except (TypeError, ValueError, RuntimeError):
        raise SceneError(f"{file}: `offset` must be one number or three, got {meta['offset']!r}") from None
    return Placement(tuple((-offset / scale).tolist()), 1 / scale)
