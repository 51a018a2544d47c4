"""Middle slices of volumes side by side."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from hashgrid.util.files import atomic_write_image
from hashgrid.util.pictures import ERROR_MAP, GAP, HEADER, colorize, write_texts

PANEL = 128  # pixels along a side of a slice, at least


def middle_slices(volume: Tensor) -> list[Tensor]:
    """The slices [n, n] across z, y and x of a volume [n, n, n] (z, y, x), or the only one of [n, n]; upright: the
    first row is the end of z, or of y where it is across z."""
    slices = [volume.select(axis, volume.shape[axis] // 2) for axis in range(3)] if volume.dim() == 3 else [volume]
    return [part.flip(0) for part in slices]


def write_slices(path: Path, volumes: dict[str, Tensor], truth: Tensor | None = None, error_scale: float = 0.2) -> None:
    """Writes a picture with a column per volume [n, n, n] or [n, n], named above it, and a row per axis: the middle
    slices, from black at the least value of the first volume to white at its largest. Where ``truth`` is known it is
    the first column, and the error of every other one stands beside it, darkest at ``error_scale`` of the range.
    """
    columns = ({} if truth is None else {"truth": truth}) | volumes
    first = next(iter(columns.values()))
    low, high = float(first.min()), float(first.max())
    pictures: dict[str, list[Tensor]] = {}
    for name, volume in columns.items():
        unit = (volume - low) / max(high - low, 1e-12)
        pictures[name] = [part.clamp(0, 1)[..., None].expand(-1, -1, 3) for part in middle_slices(unit)]
        if truth is not None and name != "truth":
            error = (volume - truth).abs() / max(high - low, 1e-12)
            pictures["error" + len(pictures) * " "] = [  # a key of its own
                colorize(part, 0, error_scale, ERROR_MAP) for part in middle_slices(error)
            ]
    times = max(1, -(-PANEL // len(first)))
    rows = [torch.ones(HEADER, (len(first) * times + GAP) * len(pictures), 3)]
    for parts in zip(*pictures.values(), strict=True):
        large = [part.repeat_interleave(times, 0).repeat_interleave(times, 1) for part in parts]
        rows.append(torch.cat([torch.nn.functional.pad(part, (0, 0, 0, GAP, 0, GAP), value=1.0) for part in large], 1))
    texts = [(i * (len(first) * times + GAP) + 2, 3, name.strip()) for i, name in enumerate(pictures)]
    atomic_write_image(path, write_texts(torch.cat(rows), texts))
