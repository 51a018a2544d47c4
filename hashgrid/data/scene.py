"""Posed photographs: `transforms.json` folders in the Blender, instant-ngp and nerfstudio dialects.

`load_scene(folder)` gives a `Scene`: training and test `Views` (cameras with their pixels) and the box to reconstruct.
Images stay uint8 on the host; colours are sRGB as stored, alpha is straight (not premultiplied).
"""

from __future__ import annotations

import json
import math
import posixpath
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.backdrop import cut_out, find_backdrop
from hashgrid.data.errors import SceneError, SceneWarning
from hashgrid.data.images import PhotoError, read_photo
from hashgrid.data.masks import find_mask, read_mask
from hashgrid.geometry.boxes import Placement, choose_box
from hashgrid.geometry.cameras import N_DISTORTION, Cameras, focal_length
from hashgrid.maths import draw_pixels, locate_pixels, pixel_colors, pixel_draws
from hashgrid.ops._backend import backend_ops, ngp_ops

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG", ".webp")
LENS_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "PERSPECTIVE")
LENS_FLAGS = ("is_fisheye", "latlong", "equirectangular", "orthographic", "rolling_shutter")
NORMAL_HALF = 1.5  # half side of cascade 0 in normalised coordinates: that of NeRF-synthetic
BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0), "grey": (0.5, 0.5, 0.5)}


def background_color(name: str | Sequence[float]) -> Tensor:
    """The colour [3] of ``"white"``, ``"black"``, ``"grey"``, ``"#rrggbb"``, ``"R,G,B"`` or three numbers in [0, 1].

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(name, str):
        if name in BACKGROUNDS:
            return torch.tensor(BACKGROUNDS[name])
        if re.fullmatch("#[0-9a-fA-F]{6}", name):
            return torch.tensor([int(name[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    try:
        color = [float(part) for part in (name.split(",") if isinstance(name, str) else name)]
    except (TypeError, ValueError):
        color = []
    if len(color) != 3 or not all(0 <= value <= 1 for value in color):
        raise ValueError(f"`background` must be {', '.join(BACKGROUNDS)}, #rrggbb or R,G,B in 0..1, got {name!r}")
    return torch.tensor(color)


def hex_color(color: Iterable[float]) -> str:
    """``"#rrggbb"`` of a colour in [0, 1]."""
    return "#" + "".join(f"{round(255 * x):02x}" for x in color)


def blend(rgba: Tensor, background: Tensor) -> Tensor:
    """Straight-alpha colours [..., 4] over ``background`` (broadcast to [..., 3]) -> [..., 3]."""
    return torch.lerp(background.to(rgba).expand(rgba.shape[:-1] + (3,)), rgba[..., :3], rgba[..., 3:])


@dataclass
class Views(Cameras):
    """N cameras with their images.

    Attributes:
        data: the pixels of all images one after the other, row by row [P, C] uint8, C = 3 or 4.
        offsets: first row of each image in ``data`` [N + 1], int64.
        names: file names, relative to the scene.
        counts: whether a pixel is drawn and scored, by the scene's masks [P] bool; None where there are none.
    """

    data: Tensor = None  # type: ignore[assignment]
    offsets: Tensor = None  # type: ignore[assignment]
    names: tuple[str, ...] = ()
    counts: Tensor | None = None
    _drawn: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = [0, *torch.cumsum(self.sizes.prod(dim=1), 0).tolist()]
        if self.offsets is None:
            self.offsets = torch.tensor(expected, dtype=torch.int64)
        if self.data.dtype != torch.uint8 or self.data.ndim != 2 or self.data.shape[1] not in (3, 4):
            raise ValueError(
                f"`data` must be uint8 of shape [P, 3] or [P, 4], got {self.data.dtype} {list(self.data.shape)}"
            )
        if self.offsets.tolist() != expected or len(self.data) != expected[-1]:
            raise ValueError(f"`data` must have {expected[-1]} rows, one per pixel of `sizes`, got {len(self.data)}")
        if self.counts is not None and (self.counts.dtype != torch.bool or self.counts.shape != self.data.shape[:1]):
            raise ValueError(f"`counts` must be bool of shape [{len(self.data)}], got {list(self.counts.shape)}")

    @property
    def n_pixels(self) -> int:
        return len(self.data)

    @property
    def has_alpha(self) -> bool:
        return self.data.shape[1] == 4

    def image(self, view: int) -> Tensor:
        """The stored image [H, W, C], uint8, without a copy."""
        width, height = self.sizes[view].tolist()
        begin, end = self.offsets[view : view + 2].tolist()
        return self.data[begin:end].view(height, width, -1)

    def mask(self, view: int) -> Tensor | None:
        """Whether the pixels of an image are drawn and scored [H, W] bool; None for all."""
        width, height = self.sizes[view].tolist()
        begin, end = self.offsets[view : view + 2].tolist()
        return None if self.counts is None else self.counts[begin:end].view(height, width)

    def image_rgb(self, view: int, background: Tensor | None = None) -> Tensor:
        """The image as floats [H, W, 3] in [0, 1], over ``background`` [3] (black by default) where it has alpha."""
        image = self.image(view).float() / 255
        if not self.has_alpha:
            return image
        return blend(image, torch.zeros(3) if background is None else background)

    def locate(self, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``view_index, pixel_x, pixel_y`` [n] of rows [n] of ``data``."""
        return locate_pixels(row, self.offsets, self.sizes)

    def sample_rays(
        self, n: int, seed: int | Tensor = 0, step: int | Tensor = 0, backend: str = "native"
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A training batch, a function of ``seed`` and ``step``: ``rays_o`` [n, 3], ``rays_d`` [n, 3], RGBA [n, 4] of
        random pixels, and random colours [n, 3] to put behind them. See :func:`hashgrid.ops._ngp.sample_rays`."""
        if self.counts is not None and self._drawn is None:
            self._drawn = self.counts.nonzero().squeeze(-1)
        if not self.rays_are_tabulated or self._drawn is not None:
            n_drawn = self.n_pixels if self._drawn is None else len(self._drawn)
            draws = backend_ops(backend).counter_uniform(seed, step, pixel_draws(n, self.data.device))
            row, noise = draw_pixels(draws, n_drawn)
            row = row if self._drawn is None else self._drawn.index_select(0, row)
            return *self.rays(*self.locate(row)), pixel_colors(self.data, row), noise
        return ngp_ops(backend).sample_rays(
            *(seed, step, n, self.data, self.offsets, self.sizes, self.c2w.float(), self.intrinsics),
            *(self.undistorted_table() if self.is_distorted else (None, None)),
        )

    def subset(self, views: Iterable[int]) -> Views:
        """The views ``views``, in that order, with copies of their pixels."""
        index = list(views)
        cameras = self.select(index)
        data = [self.image(i).reshape(-1, self.data.shape[1]) for i in index]
        counts = [] if self.counts is None else [self.counts[self.offsets[i] : self.offsets[i + 1]] for i in index]
        return Views(
            cameras.c2w,
            cameras.intrinsics,
            cameras.sizes,
            cameras.distortion,
            data=torch.cat(data) if data else self.data[:0],
            names=tuple(self.names[i] for i in index),
            counts=None if self.counts is None else torch.cat([self.counts[:0], *counts]),
        )


@dataclass
class Scene:
    """A scene to reconstruct.

    Attributes:
        train, test: the views; no test view is ever trained on.
        aabb: box of cascade 0, ``xmin, ymin, zmin, xmax, ymax, zmax`` [6].
        n_cascades: boxes doubling around it; 1 for a bounded scene.
        bounded: whether everything the images show lies inside ``aabb`` (the rest is background).
        near: distance from the camera at which rays begin.
        up: unit vector [3].
        path: the folder it came from; the file, where that is not the one the folder stands for.
        split: what made the test views: the name of a file or of a list, "every 8th view", or "none".
        backdrop: colour in [0, 1] of the plain background that opaque images had, and that is transparent now.
        placement: where these coordinates lie in those of the file; the same, as :func:`load_scene` gives it.
    """

    train: Views
    test: Views
    aabb: Tensor
    n_cascades: int
    bounded: bool
    near: float
    up: Tensor
    path: Path
    placement: Placement = Placement()
    split: str = "none"
    backdrop: tuple[float, float, float] | None = None

    def normalized(self) -> Scene:
        """The scene in coordinates that depend neither on the unit nor on the origin of the file, with the box of
        cascade 0 around 0: what a field is fitted in, fp32. ``placement`` leads back.

        A field's density starts near 1 per unit of length: were the unit the file's, a scene in centimetres would start
        with fog before every lens.
        """
        low, high = self.aabb.double().split(3)
        unit, centre = float((high - low).max()) / (2 * NORMAL_HALF), (low + high) / 2
        if abs(unit - 1) < 1e-6 and float(centre.abs().max()) < 1e-6 and self.train.c2w.dtype == torch.float32:
            return self
        step = Placement(tuple(centre.tolist()), unit)
        train, test = (replace(views, c2w=step.poses_from_file(views.c2w).float()) for views in (self.train, self.test))
        aabb = torch.cat([step.from_file(corner) for corner in (low, high)]).float()
        placement = Placement(tuple(self.placement.to_file(centre).tolist()), self.placement.unit * unit)
        return replace(self, train=train, test=test, aabb=aabb, near=self.near / unit, placement=placement)

    def background(self, name: str) -> Tensor:
        """The colour [3] to evaluate on: that of :func:`background_color`; with ``"auto"`` the backdrop, else white."""
        return background_color((self.backdrop or "white") if name == "auto" else name)

    @property
    def name(self) -> str:
        return scene_name(self.path)

    @property
    def centre(self) -> Tensor:
        """Centre of the box [3]."""
        return 0.5 * (self.aabb[:3] + self.aabb[3:])

    @property
    def outer_aabb(self) -> Tensor:
        """Box of the outermost cascade [6]."""
        half = 0.5 * (self.aabb[3:] - self.aabb[:3]) * 2 ** (self.n_cascades - 1)
        return torch.cat((self.centre - half, self.centre + half))

    @property
    def has_alpha(self) -> bool:
        return self.train.has_alpha

    @property
    def cone_angle(self) -> float:
        """Growth of the marching step with distance."""
        return 0.0 if self.bounded else 1 / 256

    def describe(self) -> str:
        """One line for a person."""
        width, height = self.train.sizes[0].tolist()
        channels = "RGBA" if self.has_alpha else "RGB"
        if self.backdrop is not None:
            channels = f"RGB on plain {hex_color(self.backdrop)} (cut out)"
        low, high = (self.placement.to_file(corner).tolist() for corner in self.outer_aabb.split(3))
        digits = 3 if max(map(abs, (*low, *high))) < 1000 * max(b - a for a, b in zip(low, high, strict=True)) else 9
        box = " x ".join(f"[{a:.{digits}g}, {b:.{digits}g}]" for a, b in zip(low, high, strict=True))
        return (
            f"{self.name}: {len(self.train)} training and {len(self.test)} test views, {width}x{height} {channels},"
            f" {'bounded' if self.bounded else 'unbounded'}, box {box}, {self.n_cascades} cascade(s)"
        )


def load_scene(
    path: str | Path,
    *,
    test_split: str = "test",
    holdout: int = 8,
    downscale: int = 1,
    allow_huge: bool = False,
    cut_out_backdrop: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Scene:
    """Load a folder that holds `transforms.json` or `transforms_{train,val,test}.json`.

    Poses and boxes are in the file's coordinates, float32, or float64 where float32 would move the cameras (survey
    coordinates); :meth:`Scene.normalized` is what training works in.

    Split: the files' own (`transforms_test.json`, or nerfstudio's `train_filenames` / `test_filenames`; the one of the
    validation views where there is none of test views, and the other way round); else every ``holdout``-th view,
    beginning with the first, is a test view. No test view is trained on.

    Args:
        path: the folder, or one `transforms*.json` file; `transforms_train.json` has its siblings beside it.
        test_split: which file or list the test views come from, ``"test"`` or ``"val"``.
        holdout: distance between held-out views where the scene has no split; 0 holds none out.
        downscale: integer factor by which images are reduced (box filter, on premultiplied alpha).
        allow_huge: whether to read images of more than 179 million pixels.
        cut_out_backdrop: whether one colour around the object in all opaque images is taken as transparent.
        progress: called with (images read, images in all).

    Raises:
        SceneError: the folder, the JSON, a camera or an image is unusable.
        ImportError: Pillow is not installed.
    """
    if test_split not in ("test", "val"):
        raise ValueError(f"`test_split` must be 'test' or 'val', got {test_split!r}")
    if downscale < 1 or holdout < 0:
        raise ValueError(f"`downscale` must be at least 1 and `holdout` at least 0, got {downscale} and {holdout}")
    train_file, test_file = _find_files(Path(path), test_split)
    meta = _read_json(train_file)
    train = _parse_frames(meta, train_file)
    test: list[_Frame] = []
    split = "none"
    if test_file is not None:
        test, split = _parse_frames(_read_json(test_file), test_file, required=False), test_file.name
        if not test:
            warnings.warn(f"{test_file} has no usable view; holding out training views", SceneWarning, stacklevel=2)
    if not test:
        train, test, split = _split(train, meta, train_file, test_split, holdout)
    train = _without(train, test, train_file)
    if not train:
        raise SceneError(f"{train_file}: the split leaves no training view; check `train_filenames` or add views")
    if not test and holdout:
        hint = "add some, or pass a smaller `holdout`" if split == "none" else f"`{split}` leaves none"
        warnings.warn(f"{train_file}: no test views, nothing will be scored: {hint}", SceneWarning, stacklevel=2)

    n_images = len(train) + len(test)
    train_views = _load_views(train, downscale, lambda done: progress and progress(done, n_images), allow_huge)
    test_views = _load_views(
        test, downscale, lambda done: progress and progress(len(train) + done, n_images), allow_huge
    )
    backdrop = find_backdrop(train_views) if cut_out_backdrop else None
    if backdrop is not None:
        train_views, test_views = (cut_out(views, backdrop) for views in (train_views, test_views))
    aabb, n_cascades, bounded, near = choose_box(meta, train_views, train_file)
    up = torch.nn.functional.normalize(train_views.c2w[:, :, 1].mean(0), dim=0).float()
    if not _needs_fp64(torch.cat((train_views.origins, test_views.origins))):
        train_views.c2w, test_views.c2w, aabb = train_views.c2w.float(), test_views.c2w.float(), aabb.float()
    return Scene(
        train_views,
        test_views,
        aabb,
        n_cascades,
        bounded,
        near,
        up,
        scene_path(Path(path)),
        split=split,
        backdrop=backdrop,
    )


def _needs_fp64(origins: Tensor) -> bool:
    """Whether fp32 would move cameras at ``origins`` [N, 3] by more than 1e-5 of how far apart they are."""
    spread = (origins - origins.mean(0)).abs().max()
    return bool((origins - origins.float().double()).abs().max() > 1e-5 * spread)


# Files ---------------------------------------------------------------------------------------------------------------


def scene_path(path: Path) -> Path:
    """What finds the scene again, absolute: its folder, or the file where the folder stands for another one."""
    path = path.resolve()
    return path.parent if path.is_file() and path == _folder_file(path.parent) else path


def scene_name(path: Path) -> str:
    """The name of results of a scene: its folder's, and the file's where that is not the one the folder stands for."""
    path = scene_path(path)
    return f"{path.parent.name}_{path.stem}" if path.suffix == ".json" else path.name


def _folder_file(folder: Path) -> Path | None:
    """The file of the training views that a folder stands for."""
    return next((f for f in (folder / "transforms_train.json", folder / "transforms.json") if f.is_file()), None)


def _find_files(path: Path, test_split: str) -> tuple[Path, Path | None]:
    """The JSON files of the training and, where there is one, the test views."""
    if path.is_file():
        if path.suffix != ".json":
            raise SceneError(f"`scene` must be a folder or a transforms.json file, got the file {path}")
        if path.name != "transforms_train.json":
            return path, None
        path = path.parent
    if not path.is_dir():
        raise SceneError(f"`scene` must be a folder that holds transforms.json, got {path}, which does not exist")
    train_file = _folder_file(path)
    if train_file is None:
        inside = sorted({f.parent for f in [*path.glob("*/transforms.json"), *path.glob("*/transforms_train.json")]})
        if inside:
            hint = "did you mean " + " or ".join(str(folder) for folder in inside[:3]) + "?"
        elif not any(path.iterdir()):
            hint = "the folder is empty"
        else:
            hint = "make one with COLMAP and instant-ngp's colmap2nerf.py or nerfstudio's ns-process-data"
        raise SceneError(f"{path} holds no transforms.json or transforms_train.json; {hint}")
    test_files = (path / f"transforms_{split}.json" for split in _splits(test_split))
    return train_file, next((f for f in test_files if f.is_file()), None)


def _splits(test_split: str) -> tuple[str, str]:
    """Where test views may come from, best first."""
    return (test_split, "val" if test_split == "test" else "test")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = file.read_bytes()
        # Windows tools write a byte order mark, PowerShell UTF-16.
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        meta = json.loads(text)
    except json.JSONDecodeError as error:
        raise SceneError(f"{file}, line {error.lineno}, column {error.colno}: broken JSON: {error.msg}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SceneError(f"{file} cannot be read, it must be UTF-8 or UTF-16: {error}") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("frames"), list):
        raise SceneError(f"{file} must be a JSON object with a list `frames`, got {_kind(meta)}")
    if not meta["frames"]:
        raise SceneError(f"{file}: `frames` is empty; a scene needs at least one view")
    return meta


def _kind(meta: Any) -> str:
    if not isinstance(meta, dict):
        return f"a {type(meta).__name__}"
    return f"`frames` of type {type(meta['frames']).__name__}" if "frames" in meta else "no `frames`"


@dataclass
class _Frame:
    """One frame of the file whose image exists."""

    name: str  # as in the file
    image: Path
    c2w: np.ndarray  # [3, 4]
    lens: dict[str, Any]  # scene keys, overridden by the frame's own
    where: str  # file and frame, for messages
    mask: tuple[Path, bool] | None = None  # of find_mask


def _parse_frames(meta: dict[str, Any], file: Path, required: bool = True) -> list[_Frame]:
    """The usable frames; those without a file name or without an image are skipped with one warning each kind."""
    scene_lens = {key: value for key, value in meta.items() if key != "frames"}
    frames: list[_Frame] = []
    nameless: list[int] = []
    missing: list[str] = []
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
        where += f" ({name})"
        keys = {**scene_lens, **entry}
        mask = find_mask(keys, image, file.parent, where)
        frames.append(_Frame(name, image, _parse_pose(entry, where), keys, where, mask))
    if nameless:
        warnings.warn(
            f"{file}: skipping {len(nameless)} frame(s) without `file_path`: {_some(nameless)}",
            SceneWarning,
            stacklevel=3,
        )
    if not frames and required:
        raise SceneError(
            f"{file}: none of its {len(meta['frames'])} frames has an image on disk (first:"
            f" {missing[0] if missing else 'no name'}); `file_path` is relative to {file.parent}"
        )
    if missing:
        warnings.warn(
            f"{file}: skipping {len(missing)} of {len(meta['frames'])} frames whose image is missing: {_some(missing)}",
            SceneWarning,
            stacklevel=3,
        )
    return frames


def _some(items: Sequence[Any], n: int = 5) -> str:
    return ", ".join(str(item) for item in items[:n]) + (f", ... ({len(items) - n} more)" if len(items) > n else "")


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
    if matrix.shape not in ((4, 4), (3, 4)):
        raise SceneError(f"{where}: `transform_matrix` must have shape [4, 4], got {list(matrix.shape)}")
    if not np.isfinite(matrix).all():
        raise SceneError(f"{where}: `transform_matrix` must be finite, got NaN or inf; remove the frame")
    rotation = matrix[:3, :3]
    deviation = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
    if deviation > 1e-2 or np.linalg.det(rotation) < 0:
        got = f"a deviation of {deviation:.2g} from orthonormal, determinant {np.linalg.det(rotation):.3g}"
        raise SceneError(f"{where}: `transform_matrix` must be rigid (rotation and translation), got {got}")
    u, _, vt = np.linalg.svd(rotation)  # the nearest rotation: files round to a few digits
    return np.concatenate((u @ vt, matrix[:3, 3:]), axis=1)


def _split(
    frames: list[_Frame], meta: dict, file: Path, test_split: str, holdout: int
) -> tuple[list[_Frame], list[_Frame], str]:
    """Training and test frames of a single file, and what made the split."""
    lists = {key: _listed(meta, f"{key}_filenames", file) for key in ("train", "test", "val")}
    if any(listed is not None for listed in lists.values()):
        source = next((key for key in _splits(test_split) if lists[key]), None)
        reserved = (lists["test"] or set()) | (lists["val"] or set())
        everything = {_key(frame.name) for frame in frames}
        train_names = everything - reserved if lists["train"] is None else lists["train"]
        # only a training list: whatever it leaves out
        test_names = everything - train_names if source is None else lists[source] or set()
        train = [frame for frame in frames if _key(frame.name) in train_names - test_names]
        test = [frame for frame in frames if _key(frame.name) in test_names]
        return train, test, f"{source or 'train'}_filenames"
    if not holdout or len(frames) < 2:
        return frames, [], "none"
    held_out = [i % holdout == 0 for i in range(len(frames))]
    train = [frame for frame, held in zip(frames, held_out, strict=True) if not held]
    test = [frame for frame, held in zip(frames, held_out, strict=True) if held]
    return train, test, f"every {holdout}{ {2: 'nd', 3: 'rd'}.get(holdout, 'th') } view"


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
            f"{file}: `{key}` names {len(unknown)} view(s) that are no `file_path` of any frame: {_some(unknown)};"
            " spell them alike, or remove them from the list"
        )
    return {_key(name) for name in names}


def _without(train: list[_Frame], test: list[_Frame], file: Path) -> list[_Frame]:
    """Training frames whose image is not also a test image."""
    test_images = {frame.image.resolve() for frame in test}
    kept = [frame for frame in train if frame.image.resolve() not in test_images]
    if len(kept) < len(train):
        shared = [frame.name for frame in train if frame.image.resolve() in test_images]
        warnings.warn(
            f"{file}: not training on {len(shared)} view(s) that are test views, too: {_some(shared)}",
            SceneWarning,
            stacklevel=3,
        )
    return kept


# Images and lenses ---------------------------------------------------------------------------------------------------


def _load_views(
    frames: list[_Frame], downscale: int, progress: Callable[[int], object], allow_huge: bool = False
) -> Views:
    images: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    unturned: list[str] = []

    is_masked = any(frame.mask is not None for frame in frames)

    def read(frame: _Frame) -> tuple[np.ndarray, np.ndarray | None]:
        image, mask = _read_image(frame, allow_huge, unturned.append), None
        if frame.mask is not None:
            mask = read_mask(*frame.mask, *image.shape[:2])
        elif is_masked:
            mask = np.ones(image.shape[:2], dtype=bool)
        return _reduce(image, downscale), None if mask is None else _reduce_mask(mask, downscale)

    with ThreadPoolExecutor(max_workers=4) as pool:
        for image, mask in pool.map(read, frames):
            images.append(image)
            if mask is not None:
                masks.append(mask.reshape(-1))
            progress(len(images))
    counts = torch.from_numpy(np.concatenate(masks)) if masks else None
    if counts is not None and not counts.any():
        raise SceneError(f"{frames[0].where}: the masks leave no pixel of {len(frames)} image(s); are they inverted?")
    if unturned:
        warnings.warn(
            f"{len(unturned)} image(s) have an EXIF orientation, and no `w` and `h` tell whether the cameras belong to"
            " the turned pictures; they are taken as stored, as COLMAP and nerfstudio do. If the result is wrong, turn"
            f" the files (mogrify -auto-orient): {_some(sorted(unturned))}",
            SceneWarning,
            stacklevel=3,
        )
    lenses = [
        _parse_lens(f, image.shape[1], image.shape[0], downscale) for f, image in zip(frames, images, strict=True)
    ]
    sizes = torch.tensor([image.shape[1::-1] for image in images], dtype=torch.int64).reshape(-1, 2)
    # Alpha is kept only where some image is really transparent.
    channels = 4 if any(image.shape[2] == 4 and (image[..., 3] < 255).any() for image in images) else 3
    if channels == 4 and not any(image.shape[2] == 3 or image[..., 3].any() for image in images):
        raise SceneError(
            f"{frames[0].image}: every pixel of all {len(images)} images is transparent; if their fourth channel is not"
            " alpha, save them without it"
        )
    data = np.empty((int(sizes.prod(dim=1).sum()), channels), dtype=np.uint8)
    begin = 0
    while images:
        image = images.pop(0)  # freed as soon as it is copied
        rows = data[begin : begin + image.shape[0] * image.shape[1]]
        rows[:, 3:] = 255
        n_shared = min(channels, image.shape[2])
        rows[:, :n_shared] = image.reshape(-1, image.shape[2])[:, :n_shared]
        begin += len(rows)
    return Views(
        torch.from_numpy(np.array([f.c2w for f in frames], dtype=np.float64).reshape(-1, 3, 4)),
        torch.tensor([lens for lens, _ in lenses], dtype=torch.float32).reshape(-1, 4),
        sizes,
        torch.tensor([distortion for _, distortion in lenses], dtype=torch.float32).reshape(-1, N_DISTORTION),
        data=torch.from_numpy(data),
        names=tuple(f.name for f in frames),
        counts=counts,
    )


def _read_image(
    frame: _Frame, allow_huge: bool = False, on_unturned: Callable[[str], object] | None = None
) -> np.ndarray:
    """The image as uint8 [H, W, 3 or 4].

    Cameras belong to the pixels that are stored (COLMAP, instant-ngp and nerfstudio read those), not to the picture as
    EXIF's orientation wants it seen, unless only the turned one fits `w` and `h`. Where nothing tells, ``on_unturned``
    is called with the name.
    """

    def turn(orientation: int, width: int, height: int) -> bool:
        stored = _fits_file_size(frame.lens, width, height)
        turned = _fits_file_size(frame.lens, height, width) if orientation >= 5 else stored
        if turned and not stored:
            return True
        if stored == turned and on_unturned is not None:
            on_unturned(frame.name)
        return False

    try:
        image = read_photo(frame.image, allow_huge=allow_huge, turn=turn)
    except PhotoError as error:
        raise SceneError(str(error)) from error
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.shape[2] <= 2:  # grey, grey + alpha
        image = np.concatenate((np.repeat(image[..., :1], 3, axis=2), image[..., 1:]), axis=2)
    return image


def _fits_file_size(lens: dict[str, Any], width: int, height: int) -> bool | None:
    """Whether an image has the shape of the file's `w` x `h`; None where the file does not say."""
    try:
        ratio = float(lens["w"]) / float(lens["h"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    if not 0 < ratio < math.inf:
        return None
    return abs(width / height / ratio - 1) <= 0.01 + 1 / min(width, height)  # as in _parse_lens


def _reduce(image: np.ndarray, factor: int) -> np.ndarray:
    """Box filter on premultiplied alpha; rows and columns that do not fill a box are cropped."""
    if factor == 1:
        return image
    height, width = image.shape[0] // factor, image.shape[1] // factor
    if not height or not width:
        raise ValueError(f"`downscale` {factor} leaves nothing of an image of {image.shape[1]}x{image.shape[0]}")
    blocks = image[: height * factor, : width * factor].reshape(height, factor, width, factor, -1).astype(np.float32)
    alpha = blocks[..., 3:] / 255 if image.shape[2] == 4 else np.ones_like(blocks[..., :1])
    coverage = alpha.mean(axis=(1, 3))
    reduced = (blocks[..., :3] * alpha).mean(axis=(1, 3)) / np.maximum(coverage, 1e-6)
    if image.shape[2] == 4:
        reduced = np.concatenate((reduced, coverage * 255), axis=2)
    return np.clip(reduced + 0.5, 0, 255).astype(np.uint8)


def _reduce_mask(mask: np.ndarray, factor: int) -> np.ndarray:
    """A reduced pixel counts where all of its pixels do."""
    height, width = mask.shape[0] // factor, mask.shape[1] // factor
    counts: np.ndarray = mask[: height * factor, : width * factor].reshape(height, factor, width, factor)
    return np.asarray(counts.all(axis=(1, 3)))


def _parse_lens(frame: _Frame, width: int, height: int, downscale: int = 1) -> tuple[list[float], list[float]]:
    """``fx, fy, cx, cy`` for an image of the given size (after ``downscale``), and the distortion coefficients."""
    lens = frame.lens
    model = str(lens.get("camera_model", "PINHOLE")).upper()
    unsupported = [key for key in LENS_FLAGS if lens.get(key)] + ([model] if model not in LENS_MODELS else [])
    if unsupported:
        raise SceneError(
            f"{frame.where}: the lens must be perspective with k1 k2 k3 k4 p1 p2, got {unsupported[0]!r};"
            " undistort the images first (COLMAP's image_undistorter)"
        )

    def number(*keys: str, unit: float = 1.0) -> float | None:
        """The first key that is given, as a number."""
        for key in keys:
            if lens.get(key) is None:
                continue
            try:
                value = float(lens[key])
            except (TypeError, ValueError):
                value = math.nan
            if not math.isfinite(value):
                raise SceneError(f"{frame.where}: `{key}` must be a finite number, got {lens[key]!r}")
            return value * unit
        return None

    file_width = number("w") or float(width * downscale)
    file_height = number("h") or float(height * downscale)
    scale_x, scale_y = width / file_width, height / file_height
    # One pixel of rounding is allowed: 1/8 of 1081 rows is 135 rows.
    if abs(scale_x / scale_y - 1) > 0.01 + 1 / min(width, height):
        raise SceneError(
            f"{frame.where}: the image must have the shape of `w` x `h` = {file_width:g} x {file_height:g} (or scaled),"
            f" got {width} x {height}; was it rotated or cropped?"
        )

    def focal(key: str, angle_key: str, fov_key: str, size: float) -> float | None:
        value, angle = number(key), number(angle_key)
        if angle is None:
            angle = number(fov_key, unit=math.pi / 180)
        if value is None and angle is not None:
            if not 0 < angle < math.pi:
                degrees = math.degrees(angle)
                raise SceneError(f"{frame.where}: the field of view must be within (0, 180) degrees, got {degrees:g}")
            value = focal_length(angle, size)
        if value is not None and value <= 0:
            raise SceneError(f"{frame.where}: `{key}` must be positive, got {value:g}")
        return value

    focal_x = focal("fl_x", "camera_angle_x", "x_fov", file_width)
    focal_y = focal("fl_y", "camera_angle_y", "y_fov", file_height)
    if focal_x is None and focal_y is None:
        raise SceneError(
            f"{frame.where}: no focal length; give `fl_x` (pixels), `camera_angle_x` (radians) or `x_fov` (degrees)"
        )
    focal_x = focal_x if focal_x is not None else focal_y
    focal_y = focal_y if focal_y is not None else focal_x
    assert focal_x is not None and focal_y is not None
    centre_x, centre_y = number("cx"), number("cy")
    centre_x = centre_x if centre_x is not None else file_width / 2
    centre_y = centre_y if centre_y is not None else file_height / 2
    coefficients = [number(key) or 0.0 for key in ("k1", "k2", "k3", "k4", "p1", "p2")]
    assert len(coefficients) == N_DISTORTION
    return [focal_x * scale_x, focal_y * scale_y, centre_x * scale_x, centre_y * scale_y], coefficients
