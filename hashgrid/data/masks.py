"""Masks: which pixels of photographs neither train nor count, where their files are, and whether they look inverted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hashgrid.data.errors import SceneError, some, warn_of_scene
from hashgrid.util.pictures import write_grid

if TYPE_CHECKING:
    from hashgrid.data.images import Photo
    from hashgrid.data.scene import SceneOptions, Views

EXTENSIONS = (".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG", ".webp", ".bmp", ".tif", ".tiff")
TESTED = ("test", "val", "validation")  # folders of pictures that are not trained on
FEW = 0.25  # of the pixels: what masks of moving things keep is more, unless they are inverted
WIDTH = 400  # of a picture of masks
HIDDEN = (255, 40, 40)


def with_masks(photos: Sequence[Photo], options: SceneOptions) -> list[Photo]:
    """The photos with the files of their masks: those of the format, of ``masks`` beside the images where it names
    none, or of the folder that ``options`` give.

    Raises:
        SceneError: the folder is none, or has one mask for two images.
    """
    if options.masks == "none":
        return [replace(photo, mask=None) for photo in photos]
    if options.masks is not None:
        folder = Path(options.masks)
        if not folder.is_dir():
            raise SceneError(f"`--masks` must be a folder of masks or `none`, got {options.masks}, which is no folder")
        found = [_first(folder, _tails(photo.image.parts[-5:]), photo.image) for photo in photos]
        if photos and not any(found):
            image = photos[0].image
            warn_of_scene(
                f"`--masks` {folder} has no mask for any of {len(photos)} images, which would be named as"
                f" {image.name}.png or {image.stem}.png for {photos[0].name}"
            )
        photos = _with_own(photos, found)
    elif not any(photo.mask or photo.alpha for photo in photos):
        photos = _with_own(photos, [_beside(photo.image) for photo in photos])
    without = [photo.name for photo in photos if photo.mask is None]
    if 0 < len(without) < len(photos):
        warn_of_scene(f"{len(without)} of {len(photos)} images have no mask, all of them counts: {some(without)}")
    if options.mask_polarity != "format":
        keeps = options.mask_polarity == "white-kept"
        photos = [replace(photo, mask=photo.mask and (photo.mask[0], keeps)) for photo in photos]
    return list(photos)


def _beside(image: Path) -> Path | None:
    """The mask of an image in a folder ``masks`` beside the folder of images, or beside one around it."""
    for parent in list(image.parents)[1:4]:
        folder, parts = parent / "masks", image.relative_to(parent).parts
        if folder.is_dir():
            file = _first(folder, [path for path in _tails(parts) if len(path.parts) >= len(parts) - 1], image)
            if file is not None:
                return file
    return None


def _tails(parts: Sequence[str]) -> list[Path]:
    """The last parts of a path, most of them first. Pictures of splits often have the same names: a mask of that name
    alone is that of a training image."""
    least = 2 if len(parts) > 1 and parts[-2] in TESTED else 1
    return [Path(*parts[i:]) for i in range(len(parts) - least + 1)]


def _first(folder: Path, tails: Sequence[Path], image: Path) -> Path | None:
    """The first file in a folder for one of some paths: named as COLMAP does, `a.jpg.png`, or with the same stem."""
    for tail in tails:
        place = folder / tail
        names = [f"{place.name}.png", *(place.stem + extension for extension in EXTENSIONS)]
        file = next((f for f in map(place.with_name, names) if f.is_file() and f != image), None)
        if file is not None:
            return file
    return None


def _with_own(photos: Sequence[Photo], files: Sequence[Path | None]) -> list[Photo]:
    """The photos with files of masks, white of which counts; raises where two images have one by their names."""
    users: dict[Path, Photo] = {}
    for photo, file in zip(photos, files, strict=True):
        if file is not None and users.setdefault(file, photo).image != photo.image:
            raise SceneError(
                f"{file} would be the mask of both {users[file].name} and {photo.name}; put masks into folders named"
                " as those of the images"
            )
    masks = [None if file is None else (file, True) for file in files]
    return [replace(photo, mask=mask) for photo, mask in zip(photos, masks, strict=True)]


def tell_of(photos: Sequence[Photo], n_alpha: int, share: float) -> str:
    """What masks do, in one line; nothing without any.

    Args:
        photos: with the masks they have.
        n_alpha: images whose alpha is a mask.
        share: of the pixels that count.
    """
    masks = [photo.mask for photo in photos if photo.mask is not None]
    circles = sum(photo.circle is not None for photo in photos)
    kinds = []
    for keeps, word in ((True, "black"), (False, "white")):
        files = [file for file, bright in masks if bright == keeps]
        if files:
            other = "white-hidden" if keeps else "white-kept"
            kinds.append(f"{len(files)} files, {word} is hidden ({files[0].name}; --mask-polarity {other} flips)")
    kinds += [f"{n_alpha} images, transparent is hidden"] if n_alpha else []
    kinds += [f"{circles} images, outside of a circle is hidden"] if circles else []
    return f"{'; '.join(kinds)}: {share:.1%} of the pixels of {len(photos)} images count" if kinds else ""


def warn_if_inverted(views: Views, white_kept: Mapping[int, bool]) -> None:
    """Warns where masks look as if they were the other way round: they hide the middle of nearly every picture and
    keep its rim, as those of an object would, or keep little of it, and not the middle. Nobody can tell in general.

    Args:
        views: whose pixels count or not.
        white_kept: of those with a file for a mask, whether white pixels count; at most 64 are looked at.
    """
    masked, n = list(white_kept), min(64, len(white_kept))
    if not masked:
        return
    chosen = [masked[i * len(masked) // n] for i in range(n)]
    kept, middle, rim = torch.tensor([_shares(views, view) for view in chosen]).mean(0).tolist()
    if middle < 0.1 and rim > 0.9:
        why = f"they hide the middle of nearly every picture and keep {rim:.0%} of its rim"
    elif kept < FEW and middle < 0.5:
        why = f"they keep {kept:.1%} of the pixels, and the middle of {middle:.0%} of the pictures"
    else:
        return
    flip = "white-hidden" if white_kept[masked[0]] else "white-kept"
    warn_of_scene(
        f"the masks may be the wrong way round: {why}; if so, pass `--mask-polarity {flip}`. `masks.png` in the folder"
        " of the results shows one"
    )


def _shares(views: Views, view: int) -> tuple[float, float, float]:
    """How much of a view counts: of all of it, of its middle, and of its outermost pixels."""
    mask = views.mask(view)
    assert mask is not None
    height, width = mask.shape
    middle = mask[height * 9 // 20 : height * 11 // 20 + 1, width * 9 // 20 : width * 11 // 20 + 1]
    rim = torch.cat((mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    return tuple(float(part.float().mean()) for part in (mask, middle, rim))  # type: ignore[return-value]


def write_masks(path: Path, views: Views, background: Tensor) -> None:
    """Writes a picture of a view beside the same with hidden pixels in red: of the first 16 that hide some, the one
    that hides most without hiding all but a tenth. Nothing where all pixels of all views count.

    Args:
        path: of the picture.
        views: some of whose pixels may not count.
        background: colour [3] behind transparent pixels.
    """
    hiding: list[tuple[float, int]] = []
    for view in range(len(views)):
        mask = views.mask(view)
        if mask is not None and len(hiding) < 16 and not bool(mask.all()):
            share = float(mask.float().mean())
            hiding.append((share if share >= 0.1 else 1 + share, view))
    if not hiding:
        return
    view = min(hiding)[1]
    mask, step = views.mask(view), max(1, -(-views.size(view)[0] // WIDTH))
    assert mask is not None
    image, hidden = views.image_rgb(view, background)[::step, ::step], ~mask[::step, ::step, None]
    marked = torch.where(hidden, 0.35 * image + 0.65 * torch.tensor(HIDDEN) / 255, image)
    write_grid(path, {views.names[view] if views.names else f"view {view}": [image], "red is hidden": [marked]})
