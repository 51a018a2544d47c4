"""Scenes: training and test views with their cameras, and the box to reconstruct. What every loader makes.

A loader is a module of `hashgrid.data.loaders` with two functions, named in `LOADERS`: ``matches(path) -> bool`` says
whether a folder, a file or a name is of its format, ``load(path, options) -> Scene`` makes a scene of it, in the
coordinates of the file. Most find photos, and end in :func:`hashgrid.data.loaders.poses.finish`.

Images stay uint8 on the host; colours are sRGB as stored, alpha is straight (not premultiplied).
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from hashgrid.data.backdrop import cut_out, find_backdrop
from hashgrid.data.blocks import BlockOptions, block_of
from hashgrid.data.errors import SceneError, SceneWarning, warn_of_scene
from hashgrid.data.photo_store import Pages
from hashgrid.geometry.boxes import Box, Placement
from hashgrid.geometry.cameras import Cameras
from hashgrid.geometry.rays import Rays
from hashgrid.maths import draw_pixels, locate_pixels, pixel_colors, pixel_draws
from hashgrid.ops._backend import backend_ops, ngp_ops
from hashgrid.util.choices import check_option
from hashgrid.util.config import Config
from hashgrid.util.pictures import background_color, blend, hex_color

LOADERS = (  # modules of `hashgrid.data.loaders`; the first that matches
    *("transforms", "colmap", "llff", "nsvf", "idr", "nerfpp", "mvsnet", "nerfies", "scannet", "replica", "polycam"),
    *("record3d", "procedural"),
)
VOID = 255  # the label of pixels of which nobody says what they show
RUN = 512  # pixels whose flags are looked through for one that is drawn
NORMAL_HALF = 1.5  # half side of cascade 0 in normalised coordinates: that of NeRF-synthetic
T = TypeVar("T")


@dataclass(frozen=True)
class SceneOptions(Config):
    """How a scene is read."""

    format: str | None = None  # name of a loader; the first that knows the scene if none
    test_split: Literal["test", "val"] = "test"  # which of the scene's splits is tested
    holdout: int = 8  # distance of test views in a scene without a split, the first one included; 0 for none
    downscale: int = 1  # factor by which images are reduced (box filter, on premultiplied alpha)
    cut_out_backdrop: bool = True  # one colour around the object in all opaque images is taken as transparent
    allow_huge: bool = False  # read images of more than 179 million pixels
    masks: str | None = None  # folder of masks, named as COLMAP does or as the images; none: do without the scene's own
    mask_polarity: Literal["format", "white-kept", "white-hidden"] = "format"  # what is white in files of masks
    transparent: Literal["empty", "masked"] = "empty"  # what transparent pixels are: of empty space, or hidden
    cache: str = "auto"  # where pixels are kept: memory, a folder for a file, or auto: a file from 4 GiB on
    block: BlockOptions = BlockOptions()

    def check(self) -> None:
        super().check()
        if self.format is not None:
            check_option("format", self.format, LOADERS)
        if self.downscale < 1 or self.holdout < 0:
            got = f"{self.downscale} and {self.holdout}"
            raise ValueError(f"`downscale` must be at least 1 and `holdout` at least 0, got {got}")


@dataclass(kw_only=True)
class Views(Cameras):
    """N cameras with their images.

    Attributes:
        data: the pixels of all images one after the other, row by row [P, C] uint8, C = 3 or 4.
        names: file names, relative to the scene.
        counts: whether a pixel is drawn and scored, by the scene's masks [P] bool; None where there are none.
        ends: how far away along its ray what each pixel shows is [P] fp32, 0 where nobody knows; None where nobody
            knows any.
        labels: number of the class of what each pixel shows [P] uint8, `VOID` where nobody says; None where there are
            none.
        note: what masks do, in words.
        pages: to be told of accesses, where the pixels are those of a mapped file; None where they are in memory.
        offsets: first row of each image in ``data`` [N + 1], int64.
    """

    data: Tensor
    names: tuple[str, ...] = ()
    counts: Tensor | None = None
    ends: Tensor | None = None
    labels: Tensor | None = None
    note: str = ""
    pages: Pages | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.offsets = torch.nn.functional.pad(torch.cumsum(self.sizes.prod(dim=1), 0), (1, 0))
        if self.data.dtype != torch.uint8 or self.data.ndim != 2 or self.data.shape[1] not in (3, 4):
            raise ValueError(
                f"`data` must be uint8 of shape [P, 3] or [P, 4], got {self.data.dtype} {list(self.data.shape)}"
            )
        if len(self.data) != self.offsets[-1]:
            raise ValueError(
                f"`data` must have {self.offsets[-1]} rows, one per pixel of `sizes`, got {len(self.data)}"
            )
        if self.counts is not None and (self.counts.dtype != torch.bool or self.counts.shape != self.data.shape[:1]):
            raise ValueError(f"`counts` must be bool of shape [{len(self.data)}], got {list(self.counts.shape)}")
        if self.ends is not None and self.ends.shape != self.data.shape[:1]:
            raise ValueError(f"`ends` must have shape [{len(self.data)}], got {list(self.ends.shape)}")
        if self.labels is not None and (self.labels.dtype != torch.uint8 or self.labels.shape != self.data.shape[:1]):
            got = f"{self.labels.dtype} {list(self.labels.shape)}"
            raise ValueError(f"`labels` must be uint8 of shape [{len(self.data)}], one per pixel, got {got}")

    @cached_property
    def _counted(self) -> Tensor:
        """How many pixels are drawn of each `RUN` rows of ``data`` and of all before them [R] int64. Their rows would
        take 8 bytes each."""
        assert self.counts is not None
        found, step = [], RUN << 15
        for begin in range(0, len(self.counts), step):
            part = self.counts[begin : begin + step]
            part = torch.nn.functional.pad(part, (0, -len(part) % RUN))
            found.append(part.view(-1, RUN).sum(1))
            if self.pages is not None:
                self.pages.drop()
        return torch.cat(found).cumsum(0)

    def _rows_of(self, nth: Tensor) -> Tensor:
        """The rows of ``data`` of the n-th of the pixels that are drawn, from 0 [B] int64."""
        assert self.counts is not None
        run = torch.searchsorted(self._counted, nth, right=True)
        before = torch.nn.functional.pad(self._counted, (1, 0)).index_select(0, run)
        whole = len(self.counts) // RUN
        last = torch.nn.functional.pad(self.counts[whole * RUN :], (0, -len(self.counts) % RUN)).view(-1, RUN)
        runs = self.counts[: whole * RUN].view(-1, RUN) if whole else last
        counted = runs.index_select(0, run.clamp(max=len(runs) - 1))
        if len(last):
            counted[run == whole] = last
        return run * RUN + (counted.cumsum(1, dtype=torch.int16) <= (nth - before)[:, None]).sum(1)

    @property
    def has_alpha(self) -> bool:
        return self.data.shape[1] == 4

    def image(self, view: int) -> Tensor:
        """The stored image [H, W, C], uint8, without a copy."""
        return self._of(self.data, view)

    def mask(self, view: int) -> Tensor | None:
        """Whether the pixels of an image are drawn and scored [H, W] bool; None for all."""
        return None if self.counts is None else self._of(self.counts, view)

    def label_map(self, view: int) -> Tensor | None:
        """The labels of the pixels of an image [H, W] uint8; None where there are none."""
        return None if self.labels is None else self._of(self.labels, view)

    def _of(self, pixels: Tensor, view: int) -> Tensor:
        begin, end = self.offsets[view : view + 2].tolist()
        return pixels[begin:end].unflatten(0, self.size(view)[::-1])

    def may_be_opaque(self, view: int) -> Tensor:
        """The pixels of an image with alpha that are not transparent, or of which nothing is known [H, W] bool."""
        opaque, mask = self.image(view)[..., 3] > 0, self.mask(view)
        return opaque if mask is None else opaque | ~mask

    def image_rgb(self, view: int, background: Tensor) -> Tensor:
        """The image as floats [H, W, 3] in [0, 1], over ``background`` [3] where it has alpha."""
        image = self.image(view).float() / 255
        return blend(image, background) if self.has_alpha else image

    def near(self, device: torch.device) -> Views:
        """The same on a GPU that has room for them, where its kernel can draw from them: not if pixels are masked, or
        lenses bend light without a table; else as they are, on the host."""
        if device.type != "cuda" or not self.rays_are_tabulated or self.counts is not None:
            return self
        return self.to(device) if self.data.numel() < torch.cuda.mem_get_info(device)[0] / 2 else self

    def _check_times(self) -> None:
        if self.times is None:
            raise SceneError("every view must have a `time`, which the field needs; this scene has none")
        first, last = (float(x) for x in self.times.aminmax())
        if not (first >= 0 and last <= 1):
            raise SceneError(
                f"the `time` of each view must be between 0 and 1 with a field of moments, got {first:g} to {last:g};"
                " subtract the first one and divide by the last"
            )

    def sample_rays(
        self,
        n: int,
        seed: int | Tensor = 0,
        step: int | Tensor = 0,
        backend: str = "native",
        needs: Collection[str] = (),
    ) -> tuple[Rays, Tensor, Tensor]:
        """A training batch, a function of ``seed`` and ``step``: rays through random pixels, their RGBA [n, 4], and
        random colours [n, 3] to put behind them. See :func:`hashgrid.ops._ngp.sample_rays`, which is asked wherever it
        can: it knows neither camera, time, end, coverage nor label of a ray, which ``needs`` may name.

        Raises:
            SceneError: times, ends or labels are needed, and there are none, or a time is outside of 0..1.
        """
        if "time" in needs:
            self._check_times()
        if "ends" in needs and self.ends is None:
            raise SceneError("some view must have depths, which are to be learned from; this scene has none")
        if "labels" in needs and self.labels is None:
            raise SceneError("some view must have labels, which are to be learned from; this scene has none")
        if not needs and self.rays_are_tabulated and self.counts is None:
            rays_o, rays_d, rgba, noise = ngp_ops(backend).sample_rays(
                *(seed, step, n, self.data, self.offsets, self.sizes, self.c2w.float(), self.intrinsics),
                *(self.directions_table if self.is_distorted else (None, None)),
            )
            self._forget(n)
            return Rays(rays_o, rays_d), rgba, noise
        draws = backend_ops(backend).counter_uniform(seed, step, pixel_draws(n, self.data.device))
        row, noise = draw_pixels(draws, len(self.data) if self.counts is None else int(self._counted[-1]))
        if self.counts is not None:
            row = self._rows_of(row)
        rays = self.rays(*locate_pixels(row, self.offsets, self.sizes))
        if self.ends is not None and "ends" in needs:
            rays = replace(rays, ends=self.ends.index_select(0, row))
        if self.labels is not None and "labels" in needs:
            labels = self.labels.index_select(0, row).long()
            rays = replace(rays, labels=labels.masked_fill(labels == VOID, -1))
        colors = pixel_colors(self.data, row)
        if "coverage" in needs:
            rays = replace(rays, coverage=colors[:, 3])
        self._forget(n if self.counts is None else 2 * n)
        return rays, colors, noise

    def _forget(self, n: int) -> None:
        """Notes ``n`` accesses to pixels, where those of a mapped file must not become too many."""
        if self.pages is not None:
            self.pages.touch(n)


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
        path: what finds the scene again, for :func:`load_scene`.
        name: of its results, fit for a folder.
        split: what made the test views: the name of a file or of a list, "every 8th view", or "none".
        backdrop: colour in [0, 1] of the plain background that opaque images had, and that is transparent now.
        points: sparse points [P, 3] of a reconstruction, float64, where the file has some.
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
    name: str = "scene"
    placement: Placement = Placement()
    split: str = "none"
    backdrop: tuple[float, float, float] | None = None
    points: Tensor | None = None

    def normalized(self) -> Scene:
        """The scene in coordinates that depend neither on the unit nor on the origin of the file, with the box of
        cascade 0 around 0: what a field is fitted in, fp32. ``placement`` leads back.

        A field's density starts near 1 per unit of length: were the unit the file's, a scene in centimetres would start
        with fog before every lens.
        """
        low, high = self.aabb.double().split(3)
        unit, centre = float((high - low).max()) / (2 * NORMAL_HALF), (low + high) / 2
        single = self.train.c2w.dtype == self.aabb.dtype == torch.float32
        if single and abs(unit - 1) < 1e-6 and float(centre.abs().max()) < 1e-6:
            return self
        step = Placement(tuple(centre.tolist()), unit)
        train, test = (
            replace(
                views,
                c2w=step.poses_from_file(views.c2w).float(),
                ends=None if views.ends is None else views.ends / unit,
            )
            for views in (self.train, self.test)
        )
        aabb = torch.cat([step.from_file(corner) for corner in (low, high)]).float()
        placement = Placement(tuple(self.placement.to_file(centre).tolist()), self.placement.unit * unit)
        points = None if self.points is None else step.from_file(self.points)
        near = self.near / unit
        return replace(self, train=train, test=test, aabb=aabb, near=near, placement=placement, points=points)

    def in_box(self) -> Scene:
        """The scene for a field of what is in a box, which has another one around it. Of a scene without an end that
        is a cube about the middle of the innermost one which reaches to the nearest training camera: none is in the
        ball inside of it."""
        if self.bounded:
            return self
        low, high = self.aabb.double().split(3)
        centre, half = (low + high) / 2, (high - low) / 2
        nearest = (self.train.origins.double() - centre).norm(dim=-1).min()
        if nearest > half.max() / 100:  # where cameras look outwards it would be next to nothing
            half = half.clamp(max=float(nearest))
        return replace(self, aabb=torch.cat((centre - half, centre + half)), n_cascades=1, bounded=True)

    def background(self, name: str) -> Tensor:
        """The colour [3] to evaluate on: that of :func:`background_color`; with ``"auto"`` the backdrop, else white."""
        return background_color((self.backdrop or "white") if name == "auto" else name)

    @property
    def n_classes(self) -> int:
        """How many classes the labels of training views name; 0 where there are none."""
        labels = self.train.labels
        known = None if labels is None else labels[labels != VOID]
        return 0 if known is None or not len(known) else int(known.max()) + 1

    @property
    def outer_aabb(self) -> Tensor:
        """Box of the outermost cascade [6]."""
        low, high = self.aabb.split(3)
        centre, half = 0.5 * (low + high), 0.5 * (high - low) * 2 ** (self.n_cascades - 1)
        return torch.cat((centre - half, centre + half))

    @property
    def cone_angle(self) -> float:
        """Growth of the marching step with distance."""
        return 0.0 if self.bounded else 1 / 256

    def describe(self) -> str:
        """One line for a person, and one more on masks where there are some."""
        width, height = self.train.sizes[0].tolist()
        channels = "RGBA (transparent is empty)" if self.train.has_alpha else "RGB"
        if self.backdrop is not None:
            channels = f"RGB on plain {hex_color(self.backdrop)} (cut out)"
        low, high = (self.placement.to_file(corner).tolist() for corner in self.outer_aabb.split(3))
        digits = 3 if max(map(abs, (*low, *high))) < 1000 * max(b - a for a, b in zip(low, high, strict=True)) else 9
        box = " x ".join(f"[{a:.{digits}g}, {b:.{digits}g}]" for a, b in zip(low, high, strict=True))
        if self.train.ends is not None:
            channels += f", {float((self.train.ends > 0).float().mean()):.0%} of depths known"
        if self.train.labels is not None:
            share = float((self.train.labels != VOID).float().mean())
            channels += f", labels of {self.n_classes} classes on {share:.0%} of the pixels"
        masks = f"\nmasks: {self.train.note}" if self.train.note else ""
        return (
            f"{self.name}: {len(self.train)} training and {len(self.test)} test views, {width}x{height} {channels},"
            f" {'bounded' if self.bounded else 'unbounded'}, box {box}, {self.n_cascades} cascade(s){masks}"
        )


def load_scene(path: str | Path, options: SceneOptions | None = None, **changes: Any) -> Scene:
    """Loads a scene of any format in `LOADERS`.

    Poses and boxes are in the file's coordinates, float32, or float64 where float32 would move the cameras (survey
    coordinates); :meth:`Scene.normalized` is what training works in. No test view is trained on.

    Args:
        path: a folder or a file, or a name that a loader knows.
        options: how to read it.
        changes: fields of :class:`SceneOptions` that differ from ``options``.

    Raises:
        SceneError: the folder, the description of the views, a camera or an image is unusable.
        ImportError: Pillow is not installed.
    """
    options = replace(options or SceneOptions(), **changes)
    options.check()
    path = Path(path)
    names = LOADERS if options.format is None else (options.format,)
    loader = next((found for found in map(_loader, names) if found.matches(path)), None)
    if loader is None:
        raise SceneError(_why_unknown(path, names))
    scene: Scene = loader.load(path, options)
    if options.masks not in (None, "none") and not scene.train.note:
        raise SceneError(f"`--masks` {options.masks}: must have a mask for some training image; there is none for any")
    if not len(scene.test) and options.holdout:
        hint = "add some, or pass a smaller `holdout`" if scene.split == "none" else f"`{scene.split}` leaves none"
        warnings.warn(f"{path}: no test views, nothing will be scored: {hint}", SceneWarning, stacklevel=2)
    return block_of(scene, options.block)


def _loader(name: str) -> ModuleType:
    return importlib.import_module(f"hashgrid.data.loaders.{name}")


def _why_unknown(path: Path, names: Sequence[str]) -> str:
    """What to tell about a path that no loader knows."""
    if not path.exists():
        return f"`scene` must be a folder or a file of a scene, got {path}, which does not exist"
    if len(names) == 1:
        wanted = (_loader(names[0]).matches.__doc__ or "").partition("Whether ``path`` is ")[2].rstrip(".")
        return f"`scene` must be of the format `{names[0]}`, {wanted or 'which its loader knows'}, got {path}"
    known = f"is no scene of a known format ({', '.join(names)})"
    if not path.is_dir():
        return f"`scene` must be a folder or a file of a scene, got {path}, which {known}"
    inside = sorted(f for f in path.iterdir() if f.is_dir() and any(_loader(name).matches(f) for name in names))
    remedy = "make a transforms.json with COLMAP and instant-ngp's colmap2nerf.py or nerfstudio's ns-process-data"
    if inside:
        remedy = f"did you mean {' or '.join(str(folder) for folder in inside[:3])}?"
    elif not any(path.iterdir()):
        remedy = "the folder is empty"
    return f"{path} {known}; {remedy}"


def hold_out(items: Sequence[T], every: int) -> tuple[list[T], list[T], str]:
    """Training and test views of a scene without a split, and what made it: every so many-th view is a test view,
    beginning with the first; none with 0."""
    if not every or len(items) < 2:
        return list(items), [], "none"
    ordinal = f"{every}{ {2: 'nd', 3: 'rd'}.get(every, 'th') }"
    return [x for i, x in enumerate(items) if i % every], list(items[::every]), f"every {ordinal} view"


def make_scene(
    train: Views,
    test: Views,
    choose_box: Callable[[Views], Box],
    path: Path,
    name: str,
    options: SceneOptions,
    split: str = "none",
) -> Scene:
    """The scene of views, after the backdrop is cut out and the box chosen by the training views.

    Args:
        train, test: views in the coordinates of the file, poses in float64.
        choose_box: gives the box to reconstruct.
        path, name, split: as of :class:`Scene`.
        options: how the scene is read.
    """
    backdrop = find_backdrop(train) if options.cut_out_backdrop else None
    if backdrop is not None and train.pages is not None:
        warn_of_scene(
            f"the pictures have a plain background of {hex_color(backdrop)}, which is cut out of pictures in memory"
            " only; pass `--cache memory`, or `--downscale 2` where that is too much"
        )
        backdrop = None
    if backdrop is not None:
        train, test = cut_out(train, backdrop), cut_out(test, backdrop)
    aabb, n_cascades, bounded, near, points = choose_box(train)
    if not bool((aabb.abs() < 1e12).all() and (aabb[3:] > aabb[:3]).all()):
        raise SceneError(f"{path}: the box must be two corners, the lower one first, within 1e12, got {aabb.tolist()}")
    up = torch.nn.functional.normalize(train.c2w[:, :, 1].mean(0), dim=0).float()
    origins = torch.cat((train.origins, test.origins))
    if bool((origins - origins.float().double()).abs().max() <= 1e-5 * (origins - origins.mean(0)).abs().max()):
        train, test, aabb = replace(train, c2w=train.c2w.float()), replace(test, c2w=test.c2w.float()), aabb.float()
    more: dict[str, Any] = {"split": split, "backdrop": backdrop, "points": points}
    return Scene(train, test, aabb, n_cascades, bounded, near, up, path, name, **more)
