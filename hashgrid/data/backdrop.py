"""Objects on a plain background: one colour around every picture stands for what is transparent.

Trained as they are, a field puts walls of that colour before every lens, which no other view contradicts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from hashgrid.util.optional import optional_import

if TYPE_CHECKING:
    from hashgrid.data.scene import Views

PLAIN = 10  # of 255: how far the border of the pictures may be from one colour; JPEG alone takes 5
PLAIN_SHARE = 0.97  # of the border, for what reaches out of the picture
MIN_SHARE = 0.1  # of the pixels that must be background
SOME = 32  # views that are looked at where all of them are not in memory
_SIDES = (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1])


def find_backdrop(views: Views) -> tuple[float, float, float] | None:
    """The colour in [0, 1] around the object in all opaque ``views``, or None where it is not one colour."""
    if views.has_alpha or not len(views):
        return None
    n = len(views) if views.pages is None else min(len(views), SOME)
    chosen = [i * len(views) // n for i in range(n)]
    border = np.concatenate([_border(views, view) for view in chosen])
    if not len(border):
        return None
    color = np.median(border, axis=0)
    if np.mean(np.abs(border - color).max(axis=1) <= PLAIN) < PLAIN_SHARE:
        return None
    share = np.mean([_outside(views.image(view).numpy(), color).mean() for view in chosen])
    if views.pages is not None:
        views.pages.drop()
    r, g, b = (color / 255).tolist()
    return (r, g, b) if MIN_SHARE <= share < 1.0 else None


def cut_out(views: Views, backdrop: tuple[float, float, float]) -> Views:
    """The views with alpha: 0 where the backdrop is connected with the border of the picture. Over ``backdrop`` they
    look as before."""
    color = np.array(backdrop) * 255
    data = [_with_alpha(views.image(view).numpy(), color).reshape(-1, 4) for view in range(len(views))]
    return replace(views, data=torch.from_numpy(np.concatenate(data) if data else np.empty((0, 4), dtype=np.uint8)))


def _border(views: Views, view: int) -> np.ndarray:
    """The outermost pixels [B, 3] of a view, those that count, as floats."""
    image, mask = views.image(view).numpy(), views.mask(view)
    counts = np.ones(image.shape[:2], dtype=bool) if mask is None else mask.numpy()
    return np.concatenate([image[side][counts[side]] for side in _SIDES]).astype(np.float32)


def _outside(image: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Pixels of about ``color`` from which the border is reached over such pixels [H, W] bool."""
    other = np.abs(image.astype(np.float32) - color).max(axis=2) > PLAIN
    return ~np.asarray(optional_import("scipy.ndimage").binary_fill_holes(other))


def _with_alpha(image: np.ndarray, color: np.ndarray) -> np.ndarray:
    """RGBA [H, W, 4] uint8. Pixels at the rim are mixtures: as far from ``color`` as they are by the strongest of their
    neighbours, so opaque they are."""
    ndimage = optional_import("scipy.ndimage")
    outside = _outside(image, color)
    offset = image.astype(np.float32) - color.astype(np.float32)  # [H, W, 3]
    distance = np.where(outside, 0, np.abs(offset).max(axis=2))
    rim = ~outside & ndimage.maximum_filter(outside, 3)
    alpha = np.where(rim, distance / np.maximum(ndimage.maximum_filter(distance, 3), 1e-6), ~outside)
    opaque = np.where(rim[..., None], offset / np.maximum(alpha, 1e-6)[..., None] + color.astype(np.float32), image)
    rgba = np.concatenate((opaque.clip(0, 255), alpha[..., None] * 255), axis=2)
    return (rgba + 0.5).astype(np.uint8)
