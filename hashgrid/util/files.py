"""Files that are either the old version or the new one, never half of it, whatever kills the process."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hashgrid.util.optional import optional_import

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path, same name, that takes the place of ``path`` when the block ends without an error.

    The content is on the disk before the name changes. The temporary file lies in a folder of its own beside ``path``,
    where libraries that make further files for themselves leave them; the remains of a killed process go when the next
    one writes the same file. Two processes must not write it at once.
    """
    path = Path(path)
    folder = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    temporary = folder / path.name
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # so that the new name survives a power cut, where the system can flush a folder
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def atomic_write_bytes(path: str | Path, content: bytes) -> None:
    """Write ``content`` to ``path``, making its folder where needed."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def atomic_write_text(path: str | Path, content: str) -> None:
    """Write ``content`` as UTF-8."""
    atomic_write_bytes(path, content.encode("utf-8"))


def atomic_write_json(path: str | Path, content: Any, indent: int | None = 2) -> None:
    """Write ``content`` as strict JSON: NaN and inf become null."""
    atomic_write_text(path, json.dumps(_strict(content), indent=indent, allow_nan=False) + "\n")


def atomic_write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table with a line of names."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    atomic_write_text(path, text.getvalue())


def to_uint8(image: Tensor) -> np.ndarray:
    """A float image in [0, 1] (or a uint8 one) as uint8, rounded."""
    image = image.detach().cpu()
    if image.is_floating_point():
        image = image.float().nan_to_num(0).clamp_(0, 1).mul_(255).add_(0.5).byte()
    return image.numpy()


def atomic_write_image(path: str | Path, image: Tensor) -> None:
    """Write an image [H, W, 3 or 4], floats in [0, 1] or uint8; the extension of ``path`` says in which format."""
    iio = optional_import("imageio.v3")
    with atomic_path(path) as temporary:
        iio.imwrite(temporary, to_uint8(image))


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a NumPy or torch scalar
        return _strict(value.item())
    return value
