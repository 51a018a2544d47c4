"""Reads photographs: whatever a file stores, as grey or RGB, with straight alpha where it has some; and views of them.

Pillow tells the colour space, the palette, the transparent colour and the orientation of a file; counting channels does
not. Files that only another of imageio's plugins knows are taken from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.errors import SceneError, some, warn_of_scene
from hashgrid.data.masks import tell_of, warn_if_inverted, with_masks
from hashgrid.data.photo_store import InMemory, OnDisk, Plan, make_store
from hashgrid.data.scene import VOID, SceneOptions, Views
from hashgrid.geometry.cameras import Cameras, lit_pixels
from hashgrid.geometry.lenses import COEFFICIENTS, KINDS
from hashgrid.util.optional import optional_import
from hashgrid.util.pictures import FORBIDDEN

ORIENTATION, PHOTOMETRIC, BITS, PLANES, SUBFILE = 274, 262, 258, 284, 254  # tags of EXIF and TIFF
BLACK = 16  # of 255, in masks: JPEG leaves noise in what was black
STRIP = 1 << 22  # values that are reduced at a time
OPAQUE = 128  # of 255, where transparent pixels are masked
_opening = threading.Lock()  # the limit of pixels is Pillow's, and that of all threads
MOST_PIXELS = 1e9  # of focal lengths, and what else a lens has
SEQUENCES = ("GIF", "PNG", "WEBP", "AVIF", "TIFF")  # formats whose further frames are pictures of their own


class PhotoError(SceneError):
    """A file that cannot be read as one picture; the message names it and says what to do."""


def load_photo(path: Path, *, allow_huge: bool = False) -> Tensor:
    """sRGB [H, W, 3] in [0, 1]; transparency is blended onto white. See :func:`read_photo`.

    Raises:
        ValueError: the file is missing or not one picture.
    """
    if not path.is_file():
        raise ValueError(f"`PHOTO` must be an image file, `{path}` does not exist")
    try:
        pixels = torch.from_numpy(read_photo(path, allow_huge=allow_huge))
    except PhotoError as error:
        raise ValueError(f"`PHOTO`: {error}") from error
    image = pixels.float().div_(255 if pixels.dtype == torch.uint8 else 65535)
    if image.shape[2] in (2, 4):
        alpha = image[..., -1:]
        image = image[..., :-1] * alpha + (1 - alpha)
    return image.expand(-1, -1, 3).contiguous()


def read_photo(
    path: Path, *, allow_huge: bool = False, turn: Callable[[int, int, int], bool] | None = None
) -> np.ndarray:
    """The picture [H, W, C], uint8 or uint16, C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha).

    CMYK, YCCK, L*a*b*, HSV and YCbCr become sRGB, through the colour profile of the file where CMYK or L*a*b* has one.
    A palette's transparency and a transparent colour become alpha. 16 bits of PNG and TIFF stay 16 bits.

    Args:
        allow_huge: whether to read more pixels than Pillow reads of a file that might be malicious.
        turn: asked, with EXIF's orientation (2 to 8) and the width and height that are stored, whether to turn the
            picture; None turns every one.

    Raises:
        PhotoError: the file is no picture, more than one, too large, or of a kind whose colours are not known.
        ImportError: Pillow is not installed.
    """
    optional_import("PIL")
    from PIL import UnidentifiedImageError

    try:
        with open_photo(path, allow_huge) as image:
            _check_single(path, _pages(image))
            turned = image.format == "TIFF"  # Pillow turns those itself as it loads them, and forgets the tag
            orientation = image.tag_v2.get(ORIENTATION, 1) if turned else 1
            pixels = _pixels(path, image)
            if not turned:
                orientation = image.getexif().get(ORIENTATION, 1)
    except UnidentifiedImageError:
        return _read_otherwise(path)
    except PhotoError:
        raise
    except Exception as error:  # every plugin raises its own kinds
        raise PhotoError(f"`{path}` cannot be read as an image: {error}") from error
    if orientation not in range(2, 9):
        return pixels
    stored = _turned(pixels, {6: 8, 8: 6}.get(orientation, orientation)) if turned else pixels
    if turn is not None and not turn(orientation, stored.shape[1], stored.shape[0]):
        return np.ascontiguousarray(stored)
    return np.ascontiguousarray(_turned(stored, orientation))


def open_photo(source: Any, allow_huge: bool) -> Any:
    """A picture of a file, by Pillow. Its limit of pixels is lifted while it looks at the header: it would warn from
    the limit on, and raise without a remedy from twice as many."""
    from PIL import Image

    with _opening:
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(source)
        finally:
            Image.MAX_IMAGE_PIXELS = usual
    width, height = image.size
    if usual is not None and width * height > 2 * usual and not allow_huge:
        image.close()
        raise PhotoError(
            f"`{source}` has {width} x {height} pixels, more than the {2 * usual / 1e6:.0f} million that Pillow"
            " takes from a file that might be malicious; `--allow-huge` (`allow_huge=True`) reads it"
        )
    return image


def _pages(image: Any) -> list[int]:
    """The `NewSubfileType` of the pages of a TIFF, and 0 for each picture of another format."""
    pages = [0] * (getattr(image, "n_frames", 1) if image.format in SEQUENCES else 1)
    if image.format == "TIFF" and len(pages) > 1:
        for page in range(len(pages)):
            image.seek(page)
            pages[page] = image.tag_v2.get(SUBFILE, 0)
        image.seek(0)
    return pages


def _check_single(path: Path, pages: Iterable[int]) -> None:
    """Refuses animations and documents, of which several pages are neither reduced copies nor masks."""
    count = sum(page & 5 == 0 for page in pages)
    if count > 1:
        raise PhotoError(f"`{path}` must hold one picture, it holds {count}; save the one that is meant by itself")


def _pixels(path: Path, image: Any) -> np.ndarray:
    """The pixels of a picture that Pillow has opened."""
    tags = getattr(image, "tag_v2", {})
    if image.mode in ("RGB", "RGBA"):
        if max(tags.get(BITS, (8,))) > 8 and tags.get(PLANES) == 2:  # Pillow takes bytes of samples for samples
            return _read_tiff(path)
        if ";16" in (raw_mode := _raw_mode(image)):
            return _read_deep(path, image, raw_mode)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _deep_grey(path, image, tags)
    if image.mode in ("I", "F"):
        _check_depth(path, np.array(image).dtype)
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        raise PhotoError(
            f"`{path}` has four channels and no Adobe marker, which would say what they mean (inverted CMYK or not);"
            " convert it to RGB first"
        )
    if image.format == "PNG" and image.mode == "L" and "transparency" in image.info:
        bits = {"L;2": 2, "L;4": 4}.get(_raw_mode(image), 8)  # the colour is given in the file's bits
        image.info["transparency"] = image.info["transparency"] * 255 // (2**bits - 1)
    if image.mode in ("CMYK", "LAB"):
        return np.array(_to_srgb(image))
    if image.mode in ("LA", "La"):
        mode = "LA"
    elif image.mode in ("P", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        mode = "RGBA"
    else:
        mode = "L" if image.mode in ("1", "L") else "RGB"
    return np.atleast_3d(np.array(image.convert(mode)))


def _to_srgb(image: Any) -> Any:
    """CMYK or L*a*b* as RGB: by the file's profile, or by the plain formulas."""
    profile = image.info.get("icc_profile")
    if profile:
        with contextlib.suppress(Exception):  # no littlecms, or a profile of something else: as if there were none
            from PIL import ImageCms

            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
    return image.convert("RGB")


def _deep_grey(path: Path, image: Any, tags: Any) -> np.ndarray:
    values: np.ndarray = np.array(image).astype(np.uint16)[..., None]
    if tags.get(BITS) == (12,):
        values = values << 4 | values >> 8
    if tags.get(PHOTOMETRIC) == 0:  # white is zero
        values = ~values
    return _keyed(values, image.info.get("transparency"))


def _keyed(values: np.ndarray, key: Any) -> np.ndarray:
    """16-bit channels, and alpha where a colour ``key`` stands for what is transparent."""
    if key is None:
        return values
    alpha = np.where((values == np.array(key)).all(axis=2, keepdims=True), 0, 65535).astype(np.uint16)
    return np.concatenate((values, alpha), axis=2)


def _raw_mode(image: Any) -> str:
    """How Pillow is about to unpack the bytes of the file."""
    args = image.tile[0][3] if image.tile else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _read_deep(path: Path, image: Any, raw_mode: str) -> np.ndarray:
    """16 bits per channel. Pillow keeps the upper 8; read in the other byte order, those are the lower ones."""
    if raw_mode == "LA;16B":
        return _read_deep_grey_alpha(path)
    name, _, order = raw_mode.partition(";16")
    order = order.replace("N", "L" if sys.byteorder == "little" else "B")
    premultiplied, stored = name == "RGBa", name.upper()
    key = image.info.pop("transparency", None)
    with open_photo(path, allow_huge=True) as again:
        values = _unpacked(image, f"{stored};16{order}") << 8
        values |= _unpacked(again, f"{stored};16{'B' if order == 'L' else 'L'}")
    return _keyed(_straight(values) if premultiplied else values, key)


def _straight(values: np.ndarray) -> np.ndarray:
    """Channels of which the last is alpha, no longer multiplied with it."""
    largest = np.iinfo(values.dtype).max
    alpha = np.maximum(values[..., -1:], 1).astype(np.float64)
    colours = np.minimum(values[..., :-1] * (largest / alpha) + 0.5, largest).astype(values.dtype)
    return np.concatenate((colours, values[..., -1:]), axis=2)


def _unpacked(image: Any, raw_mode: str) -> np.ndarray:
    image.tile = [
        tile._replace(args=raw_mode if isinstance(tile.args, str) else (raw_mode, *tile.args[1:]))
        for tile in image.tile
    ]
    return np.array(image).astype(np.uint16)


def _read_deep_grey_alpha(path: Path) -> np.ndarray:
    """A PNG of 16-bit grey and alpha, read as the 8-bit RGBA that has the same bytes."""
    content = bytearray(path.read_bytes())
    content[24:26] = bytes((8, 6))  # depth and colour type in the header, which begins at 12 and ends with its checksum
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    with open_photo(io.BytesIO(content), allow_huge=True) as image:
        values = np.array(image).astype(np.uint16)
    return values[..., ::2] << 8 | values[..., 1::2]


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The picture as EXIF's ``orientation`` wants it seen; a view."""
    rows = -1 if orientation in (3, 4, 6, 7) else 1
    columns = -1 if orientation in (2, 3, 7, 8) else 1
    pixels = pixels[::rows, ::columns]
    return pixels.swapaxes(0, 1) if orientation >= 5 else pixels


def _read_otherwise(path: Path) -> np.ndarray:
    """What Pillow does not know."""
    if path.suffix.lower() in (".tif", ".tiff"):
        return _read_tiff(path)
    iio = optional_import("imageio.v3")
    try:
        pixels = np.asarray(iio.imread(path))
    except Exception as error:  # every plugin raises its own kinds
        head = path.read_bytes()[:8] if path.is_file() else b""
        why = f"no format is known that begins with {head!r}; save it as PNG" if head else "it is empty"
        raise PhotoError(f"`{path}` cannot be read as an image: {why}") from error
    _check_depth(path, pixels.dtype)
    pixels = np.atleast_3d(pixels)
    if pixels.ndim == 4:
        _check_single(path, [0] * len(pixels))
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4) or 0 in pixels.shape:
        raise PhotoError(f"`{path}` must have shape [H, W] or [H, W, 1..4], got {list(pixels.shape)}")
    return pixels


def _check_depth(path: Path, dtype: Any) -> None:
    if dtype not in (np.uint8, np.uint16):
        raise PhotoError(f"`{path}` must have 8 or 16 bits per channel, got {dtype}; make it a PNG")


def _read_tiff(path: Path) -> np.ndarray:
    """A TIFF that Pillow does not read: grey or RGB with any further channels, by tifffile where it is installed."""
    try:
        import tifffile
    except ImportError:
        raise PhotoError(
            f"`{path}` is a TIFF of a kind Pillow does not read; save it as PNG, or `pip install tifffile`"
        ) from None
    try:
        with tifffile.TiffFile(path) as file:
            kinds = [int(page.subfiletype) for page in file.pages]
            page = file.pages[0]
            pixels, axes, colours = page.asarray(), page.axes, int(page.photometric)
            extra = [int(kind) for kind in page.extrasamples]
    except Exception as error:  # a broken file, or a codec that is not installed
        raise PhotoError(f"`{path}` cannot be read as an image: {error}") from error
    _check_single(path, kinds)
    _check_depth(path, pixels.dtype)
    if axes == "SYX":
        pixels = np.moveaxis(pixels, 0, -1)
    elif axes == "YX":
        pixels = pixels[..., None]
    n_colours = 3 if colours == 2 else 1
    if colours not in (0, 1, 2) or axes not in ("YX", "YXS", "SYX") or pixels.shape[2] != n_colours + len(extra):
        raise PhotoError(f"`{path}` must be a TIFF in grey or RGB, got {page.photometric}; save it as PNG")
    values = ~pixels[..., :n_colours] if colours == 0 else pixels[..., :n_colours]
    alpha = next((i for i, kind in enumerate(extra) if kind in (1, 2)), None)  # premultiplied, straight
    if alpha is None:
        return np.ascontiguousarray(values)
    values = np.concatenate((values, pixels[..., n_colours + alpha, None]), axis=2)
    return _straight(values) if extra[alpha] == 1 else values


# Views ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Photo:
    """One view as a loader finds it, before its image is read.

    Attributes:
        name: as in the file.
        image: its file.
        c2w: camera to world [3, 4], float64: x right, y up, looking along -z.
        lens: gives ``fx, fy, cx, cy`` and coefficients, in the order of `COEFFICIENTS`, of a picture of a width and a
            height, in its pixels.
        where: file and place in it, for messages.
        size: width and height that the file gives, in pixels of this or of another scale.
        mask: a file, and whether its bright pixels are those that count; None where all do.
        time: when it was taken, where the scene moves.
        kind: of the lens, of `KINDS`.
        alpha: a file whose brightness is the alpha of the image, which has none then.
        circle: radius, in pixels of ``size``, of what counts around the middle of the picture; None for all of it.
        depth: a file of depths along the axis of the camera, integers, and what one of them is long; 0 is unknown.
        labels: a file with the number of a class, from 1 on, for each pixel of the image; 0 is void.
    """

    name: str
    image: Path
    c2w: np.ndarray
    lens: Callable[[int, int], Sequence[float]]
    where: str
    size: tuple[float, float] | None = None
    mask: tuple[Path, bool] | None = None
    time: float | None = None
    kind: str = "perspective"
    alpha: Path | None = None
    depth: tuple[Path, float] | None = None
    circle: float | None = None
    labels: Path | None = None


def read_views(photos: Sequence[Photo], options: SceneOptions) -> Views:
    """The views of photos, poses in float64. Pixels are in memory, or in a file where ``options.cache`` says so.

    Raises:
        SceneError: an image, a mask or a lens is unusable, or a disk has too little space.
    """
    photos = with_masks(photos, options)
    with _workers() as pool:
        looks = list(pool.map(lambda photo: _look(photo, options), photos))
    hides_alpha = options.transparent == "masked"
    channels = 4 if any(look.has_alpha for look in looks) and not hides_alpha else 3
    kept = _keep_pixels(photos, looks, options, channels)
    if channels == 4:
        _check_visible(photos, kept)
        if all(fact["opaque"] for fact in kept.facts.values()):
            del kept  # a quarter of it is of no use
            kept = _keep_pixels(photos, looks, options, 3)
    facts = [kept.facts[i] for i in range(len(photos))]
    data, counts = kept.tensors()
    n_counted, is_masked = sum(fact["counted"] for fact in facts), any(photo.mask for photo in photos)
    if photos and not n_counted:
        raise SceneError(f"{photos[0].where}: the masks leave no pixel of {len(photos)} image(s); are they inverted?")
    unturned = [photo.name for photo, fact in zip(photos, facts, strict=True) if fact["unturned"]]
    if unturned:
        warn_of_scene(
            f"{len(unturned)} image(s) have an EXIF orientation, and no `w` and `h` tell whether the cameras belong to"
            " the turned pictures; they are taken as stored, as COLMAP and nerfstudio do. If the result is wrong, turn"
            f" the files (mogrify -auto-orient): {some(sorted(unturned))}"
        )
    timeless = [photo for photo in photos if photo.time is None]
    if 0 < len(timeless) < len(photos):
        raise SceneError(f"{timeless[0].where}: must have a time, as {len(photos) - len(timeless)} other views do")
    cameras = _cameras(photos, [fact["size"] for fact in facts], options.downscale)
    n_alpha = sum(not fact["opaque"] for fact in facts) if hides_alpha else 0
    views = Views(
        *(cameras.c2w, cameras.intrinsics, cameras.sizes, cameras.distortion),
        data=data,
        names=tuple(photo.name for photo in photos),
        counts=counts if is_masked or n_counted < len(data) else None,
        times=None if timeless or not photos else torch.tensor([photo.time for photo in photos]),
        lens=cameras.lens,
        note=tell_of(photos, n_alpha, n_counted / max(len(data), 1)),
        pages=kept.pages,
    )
    if any(photo.depth is not None for photo in photos):
        with _workers() as pool:
            depths = pool.map(_read_depth, photos, [views.size(view) for view in range(len(photos))])
            views.ends = torch.cat([_along_rays(views, view, depth) for view, depth in enumerate(depths)])
    if any(photo.labels is not None for photo in photos):
        sizes, factors = [fact["size"] for fact in facts], [options.downscale] * len(photos)
        with _workers() as pool:
            views.labels = torch.cat([*pool.map(_read_labels, photos, sizes, factors)])
    warn_if_inverted(views, {i: photo.mask[1] for i, photo in enumerate(photos) if photo.mask})
    return views


@contextlib.contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """Threads that do not begin what is left when one of them fails, or the user interrupts."""
    pool = ThreadPoolExecutor(max_workers=4)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class _Look(NamedTuple):
    """What is known of a photo before its pixels are: they may take more memory than there is."""

    size: tuple[int, int]  # width and height that are stored
    has_alpha: bool  # whether some pixel may be transparent


def _look(photo: Photo, options: SceneOptions) -> _Look:
    """Looks at the header of a photo."""
    optional_import("PIL")
    try:
        with open_photo(photo.image, options.allow_huge) as image:
            has_alpha = image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info
            return _Look(image.size, photo.alpha is not None or has_alpha or image.format == "TIFF")
    except PhotoError:
        raise
    except Exception:  # of a kind that Pillow does not know, or broken: reading it says what is wrong
        height, width, channels = _read_image(photo, options.allow_huge, lambda _: None).shape
        return _Look((width, height), photo.alpha is not None or channels == 4)


def _keep_pixels(
    photos: Sequence[Photo], looks: Sequence[_Look], options: SceneOptions, channels: int
) -> InMemory | OnDisk:
    """Reads photos to where their pixels are to be kept, those that are not there yet. Facts of each are ``size``, its
    width and height before it is reduced, ``opaque`` and ``visible``, whether all and any of its pixels are not
    transparent, ``counted``, how many of them no mask hides, and ``unturned``, whether it might have to be turned."""
    n, hides_alpha = options.downscale, options.transparent == "masked"
    masked = hides_alpha and any(look.has_alpha for look in looks)
    masked = masked or any(photo.mask or photo.circle or photo.kind != "perspective" for photo in photos)
    plan = Plan(
        tuple((look.size[0] // n) * (look.size[1] // n) for look in looks),
        channels,
        masked,
        source=[n, options.transparent, [_source(photo, look) for photo, look in zip(photos, looks, strict=True)]],
        name=_store_name(photos[0].image, n) if photos else "none",
        what=f"{len(photos)} images",
        remedy=f"--downscale {2 * n}",
    )
    store, lit = make_store(plan, options.cache), _Lit()

    def read(i: int) -> None:
        photo, unturned = photos[i], list[str]()
        image = _read_image(photo, options.allow_huge, unturned.append)
        height, width = image.shape[:2]
        _lens(photo, (width, height), n)  # before the rest is read, not after it
        if photo.alpha is not None:
            image = np.concatenate((image[..., :3], _read_grey(photo.alpha, photo, height, width)), axis=2)
        counts = _counted(photo, image, hides_alpha) if masked else None
        image = reduce_image(image, n)
        if counts is not None:
            lights = lit.of(_cameras([photo], [(width, height)], n))
            counts = np.asarray(_blocks(counts, n).all(axis=(1, 3, 4)) & lights)  # where all pixels do
        alpha = image[..., 3:]  # none of an image without
        pixels = image[..., :channels].reshape(-1, min(image.shape[2], channels))
        if pixels.shape[1] < channels:
            pixels = np.concatenate((pixels, np.full((len(pixels), 1), 255, dtype=np.uint8)), axis=1)
        facts = {
            "size": [width, height],
            "opaque": bool((alpha == 255).all()),
            "visible": not alpha.size or bool(alpha.any()),
            "counted": len(pixels) if counts is None else int(counts.sum()),
            "unturned": bool(unturned),
        }
        store.put(i, pixels, None if counts is None else counts.reshape(-1), facts)

    rest = [i for i in range(len(photos)) if i not in store.facts]
    try:
        with _workers() as pool:
            done = pool.map(read, rest)
            if rest and isinstance(store, OnDisk):
                done = optional_import("tqdm").tqdm(done, "photos", len(rest), unit="photo")
            for _ in done:
                pass
    finally:
        store.close()
    return store


def _source(photo: Photo, look: _Look) -> list[Any]:
    """What the pixels of a photo and their flags are made of, as JSON: its files with their sizes and times."""
    files = (photo.image, photo.mask and photo.mask[0], photo.alpha)
    stats = [file and [str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    bent = None  # where light arrives depends on the lens
    if photo.kind != "perspective":
        with contextlib.suppress(SceneError):  # a picture that is to be turned
            bent = [float(x) for x in photo.lens(*look.size)]
    return [*stats, photo.mask and photo.mask[1], photo.size, photo.circle, photo.kind, bent]


def _store_name(image: Path, downscale: int) -> str:
    """The name of a file for the pixels of photos of which the first is ``image``: the same when they change."""
    of = hashlib.sha256(f"{image.resolve()} {downscale}".encode()).hexdigest()[:12]
    return f"{FORBIDDEN.sub('_', image.resolve().parent.parent.name)}_{of}"


def _check_visible(photos: Sequence[Photo], kept: InMemory | OnDisk) -> None:
    if not any(fact["visible"] for fact in kept.facts.values()):
        raise SceneError(
            f"{photos[0].image}: every pixel of all {len(photos)} images is transparent; if their fourth channel is not"
            " alpha, save them without it"
        )


def _counted(photo: Photo, image: np.ndarray, hides_alpha: bool) -> np.ndarray:
    """Whether pixels of the image [H, W, 3 or 4] of a photo count [H, W, 1] bool, by its masks."""
    height, width = image.shape[:2]
    counts = np.ones((height, width, 1), dtype=bool)
    if photo.mask is not None:
        file, bright_counts = photo.mask
        counts &= (_read_grey(file, photo, height, width) >= BLACK) == bright_counts
    if hides_alpha and image.shape[2] == 4:
        counts &= image[..., 3:] >= OPAQUE
    if photo.circle is not None:
        radius = photo.circle * (width / photo.size[0] if photo.size else 1.0)
        y, x = np.ogrid[:height, :width]
        counts[(x + 0.5 - width / 2) ** 2 + (y + 0.5 - height / 2) ** 2 > radius**2] = False
    return counts


class _Lit:
    """Where light arrives in the pictures of lenses, each looked at once: that of a fisheye is round."""

    def __init__(self) -> None:
        self._known: dict[tuple[float, ...], np.ndarray | bool] = {}

    def of(self, camera: Cameras) -> np.ndarray | bool:
        """The pixels of one camera that light reaches [H, W] bool; True for all."""
        values = (camera.intrinsics, camera.distortion, camera.lens, camera.sizes)
        key = tuple(torch.cat([x.reshape(-1).double() for x in values]).tolist())
        if key not in self._known:
            lit = lit_pixels(camera, 0)
            self._known[key] = True if lit is None else lit.numpy()
        return self._known[key]


def _lens(photo: Photo, size: Sequence[int], downscale: int) -> list[float]:
    """Focal lengths, principal point and coefficients of a photo of this size, of its picture when it is reduced."""
    lens = photo.lens(size[0], size[1])
    if not (all(abs(x) < MOST_PIXELS for x in lens) and min(lens[:2]) > 0):
        got = list(map(float, lens))
        raise SceneError(f"{photo.where}: the lens must be finite, its focal lengths positive, got {got}")
    return [*(x / downscale for x in lens[:4]), *lens[4:], *[0.0] * (4 + len(COEFFICIENTS) - len(lens))]


def _cameras(photos: Sequence[Photo], sizes: Sequence[Sequence[int]], downscale: int) -> Cameras:
    """The cameras of photos of these widths and heights, of their pictures when they are reduced."""
    rows = [_lens(photo, size, downscale) for photo, size in zip(photos, sizes, strict=True)]
    lens = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4 + len(COEFFICIENTS))
    return Cameras(
        torch.from_numpy(np.array([photo.c2w for photo in photos], dtype=np.float64).reshape(-1, 3, 4)),
        lens[:, :4].contiguous(),
        torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2) // downscale,
        lens[:, 4:].contiguous(),
        lens=torch.tensor([KINDS.index(photo.kind) for photo in photos], dtype=torch.int64),
    )


def _read_depth(photo: Photo, size: tuple[int, int]) -> np.ndarray:
    """Depths along the axis [H, W] of a picture of this width and height: those of the nearest pixels."""
    width, height = size
    if photo.depth is None:
        return np.zeros((height, width), np.float32)
    file, unit = photo.depth
    stored = read_photo(file, turn=lambda *_: False)
    if stored.shape[2] != 1 or not fits_shape(stored.shape[1], stored.shape[0], size):
        raise SceneError(
            f"{file}: depths must be one channel of the shape of the image, {width}x{height}, got"
            f" {stored.shape[1]}x{stored.shape[0]} and {stored.shape[2]} channel(s)"
        )
    rows, columns = (
        ((np.arange(n) + 0.5) * m / n).astype(np.int64)
        for n, m in ((height, stored.shape[0]), (width, stored.shape[1]))
    )
    return stored[rows[:, None], columns, 0].astype(np.float32) * np.float32(unit)


def _read_labels(photo: Photo, size: Sequence[int], downscale: int) -> torch.Tensor:
    """Labels [h*w] uint8 of a picture of this width and height, reduced: those of the middle pixels of its squares,
    since numbers of classes have no mean."""
    width, height = size
    if photo.labels is None:
        return torch.full(((height // downscale) * (width // downscale),), VOID, dtype=torch.uint8)
    stored = read_photo(photo.labels, turn=lambda *_: False)
    if stored.shape != (height, width, 1):
        raise SceneError(
            f"{photo.labels}: labels must be one channel of the size of the image {photo.image.name}, {width}x{height},"
            f" got {stored.shape[1]}x{stored.shape[0]} and {stored.shape[2]} channel(s); resize them without"
            " interpolation, or save numbers of classes as grey values"
        )
    if stored.max() > VOID:
        raise SceneError(
            f"{photo.labels}: labels must be at most {VOID}, 0 for void and else the number of a class, from 1 on,"
            f" got {stored.max()}; number the classes anew"
        )
    middles = _blocks(stored, downscale)[:, downscale // 2, :, downscale // 2, 0]
    return torch.from_numpy((middles.astype(np.int64) - 1) % 256).to(torch.uint8).reshape(-1)


def _along_rays(views: Views, view: int, depth: np.ndarray) -> torch.Tensor:
    """Distances along rays [H*W] of depths along the axis [H, W]."""
    rays = views.view_rays(view)
    rays = replace(rays, camera=torch.full((len(rays),), view))
    return torch.from_numpy(depth).view(-1) / views.ahead(rays).clamp_min(1e-6)


def fits_shape(width: float, height: float, size: tuple[float, float]) -> bool:
    """Whether a picture has the shape of ``size``, whatever its scale, up to a pixel of rounding: 1/8 of 1081 rows is
    135 rows."""
    return abs(width / height * size[1] / size[0] - 1) <= 0.01 + 1 / min(width, height)


def _read_image(photo: Photo, allow_huge: bool, on_unturned: Callable[[str], object]) -> np.ndarray:
    """The image as uint8 [H, W, 3 or 4].

    Cameras belong to the pixels that are stored (COLMAP, instant-ngp and nerfstudio read those), not to the picture as
    EXIF's orientation wants it seen, unless only the turned one fits `w` and `h`. Where nothing tells, ``on_unturned``
    is called with the name.
    """

    def turn(orientation: int, width: int, height: int) -> bool:
        turned_size = (height, width) if orientation >= 5 else (width, height)
        stored, turned = (photo.size and fits_shape(*size, photo.size) for size in ((width, height), turned_size))
        if stored == turned:
            on_unturned(photo.name)
        return bool(turned and not stored)

    image = read_photo(photo.image, allow_huge=allow_huge, turn=turn)
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.shape[2] <= 2:  # grey, grey + alpha
        image = np.concatenate((np.repeat(image[..., :1], 3, axis=2), image[..., 1:]), axis=2)
    return image


def _read_grey(file: Path, photo: Photo, height: int, width: int) -> np.ndarray:
    """The brightest channel of a mask for a photo of this size [H, W, 1] uint8."""
    mask = read_photo(file, turn=lambda *_: False)
    if mask.shape[:2] != (height, width):
        raise SceneError(
            f"{file}: a mask must have the size of its image {photo.image.name}, {width}x{height}, got"
            f" {mask.shape[1]}x{mask.shape[0]}"
        )
    n_colors = mask.shape[2] - (mask.shape[2] in (2, 4))
    brightest = mask[..., :n_colors].max(axis=-1, keepdims=True)
    return np.asarray(brightest // 257 if mask.dtype == np.uint16 else brightest, dtype=np.uint8)


def _blocks(image: np.ndarray, factor: int) -> np.ndarray:
    """The image [H, W, C] in squares [h, factor, w, factor, C]; rows and columns that fill none are cropped."""
    height, width = image.shape[0] // factor, image.shape[1] // factor
    if not height or not width:
        raise ValueError(f"`downscale` {factor} leaves nothing of an image of {image.shape[1]}x{image.shape[0]}")
    return image[: height * factor, : width * factor].reshape(height, factor, width, factor, -1)


def reduce_image(image: np.ndarray, factor: int) -> np.ndarray:
    """Box filter on premultiplied alpha; rows and columns that do not fill a box are cropped."""
    if factor == 1:
        return image
    blocks = _blocks(image, factor)
    step = max(1, STRIP // (blocks[0].size or 1))  # as floats the whole of a photo would take ten times as much
    return np.concatenate([_reduced(blocks[i : i + step].astype(np.float32)) for i in range(0, len(blocks), step)])


def _reduced(blocks: np.ndarray) -> np.ndarray:
    """Means [h, w, C] uint8 of squares [h, factor, w, factor, C]."""
    has_alpha = blocks.shape[-1] == 4
    alpha = blocks[..., 3:] / 255 if has_alpha else np.ones_like(blocks[..., :1])
    coverage = alpha.mean(axis=(1, 3))
    reduced = (blocks[..., :3] * alpha).mean(axis=(1, 3)) / np.maximum(coverage, 1e-6)
    if has_alpha:
        reduced = np.concatenate((reduced, coverage * 255), axis=2)
    return np.clip(reduced + 0.5, 0, 255).astype(np.uint8)
