"""Compressed photos of every method: bytes to pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hashgrid.compress import coin_code, grid_code
from hashgrid.compress.container import Compressed, unpack
from hashgrid.compress.entropy import CodecError

SUFFIX = ".hgi"


def decompress(data: bytes, allow_huge: bool = False) -> np.ndarray:
    """The photo [H, W, 3] uint8 of a file's bytes: the same on every machine.

    Args:
        data: what the file holds.
        allow_huge: whether to read photos of more than 179 million pixels.

    Raises:
        CodecError: the bytes are no compressed photo, or a damaged one.
        ImportError: ``constriction`` is not installed.
    """
    return render(unpack(data, allow_huge))


def render(file: Compressed) -> np.ndarray:
    """The photo [H, W, 3] uint8.

    Raises:
        CodecError: the payload is none of the method.
    """
    width, height, payload = file.width, file.height, file.payload
    if file.method == "coin":
        return coin_code.render(coin_code.decode(width, height, payload), width, height)
    return grid_code.render(grid_code.decode(width, height, payload))


def read_compressed(path: Path, allow_huge: bool = False) -> np.ndarray:
    """:func:`decompress` of a file; errors name it.

    Raises:
        CodecError: it does not exist, or is no compressed photo.
    """
    if not path.is_file():
        raise CodecError(f"`FILE` must be a file of `hashgrid image --compress`, `{path}` does not exist")
    try:
        return decompress(path.read_bytes(), allow_huge)
    except CodecError as error:
        raise CodecError(f"`{path}`: {error}") from error
