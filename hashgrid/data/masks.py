"""Masks: pixels of the images that are neither trained on nor scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hashgrid.data.errors import SceneError
from hashgrid.data.images import PhotoError, read_photo

MASK_KEYS = ("mask_path", "mask_filename")
BLACK = 16  # of 255: JPEG leaves noise in what was black


def find_mask(keys: dict[str, Any], image: Path, folder: Path, where: str) -> tuple[Path, bool] | None:
    """The mask of an image and whether its bright pixels count, or None where there is no mask.

    nerfstudio's `mask_path`, of the frame or of the whole scene, is black where pixels are ignored. instant-ngp's
    `dynamic_mask_NAME.png` beside the image is not black there.

    Raises:
        SceneError: the file that is named does not exist.
    """
    for key in MASK_KEYS:
        name = keys.get(key)
        if name is None:
            continue
        file = folder / str(name).strip().replace("\\", "/")
        if not file.is_file():
            raise SceneError(f"{where}: `{key}` must be an image relative to {folder}, {name!r} does not exist")
        return file, True
    file = image.with_name(f"dynamic_mask_{image.stem}.png")
    return (file, False) if file.is_file() else None


def read_mask(file: Path, bright_counts: bool, height: int, width: int) -> np.ndarray:
    """Whether pixels count [H, W] bool.

    Raises:
        SceneError: the file is no image of this size.
    """
    try:
        mask = read_photo(file, turn=lambda *_: False)
    except PhotoError as error:
        raise SceneError(str(error)) from error
    if mask.shape[:2] != (height, width):
        raise SceneError(
            f"{file}: a mask must have the size of its image, {width}x{height}, got {mask.shape[1]}x{mask.shape[0]}"
        )
    n_colors = mask.shape[2] - (mask.shape[2] in (2, 4))
    brightest = mask[..., :n_colors].max(axis=-1)
    return np.asarray((brightest >= BLACK * np.iinfo(mask.dtype).max // 255) == bright_counts)
