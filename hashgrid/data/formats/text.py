"""Text of any origin: byte order marks, line ends, numbers."""

from __future__ import annotations

import codecs
import warnings

import numpy as np

from hashgrid.data.errors import MeshError

STRANGERS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself; run `git lfs pull`",
    b"\x1f\x8b": "is compressed (gzip); unpack it",
    b"PK\x03\x04": "is an archive (zip); unpack it",
    b"<!doctype html": "is a web page, perhaps of a failed download",
    b"<html": "is a web page, perhaps of a failed download",
}


def check_content(data: bytes) -> None:
    """Raises MeshError for what is saved under the names of meshes and points by mistake."""
    head = data[:100].removeprefix(codecs.BOM_UTF8).lstrip().lower()
    for start, what in STRANGERS.items():
        if head.startswith(start.lower()):
            raise MeshError(f"its content {what}")


def plain(data: bytes) -> bytes:
    """Text without a byte order mark, in an encoding that contains ASCII, with ``\\n`` at the end of lines."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        data = data.decode("utf-16", "replace").encode()
    data = data.removeprefix(codecs.BOM_UTF8)
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in data else data


def numbers(text: bytes, what: str) -> np.ndarray:
    """The numbers [N] float64 of a text, between them white space; ``what`` names them in errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # what older NumPy makes of a word among numbers
        try:
            return np.fromstring(text, sep=" ") if text and not text.isspace() else np.zeros(0)
        except (ValueError, DeprecationWarning) as error:
            raise MeshError(f"{what} must be numbers, got {_first_word(text)}") from error


def coordinates(rows: list[list[bytes]]) -> np.ndarray:
    """The first three numbers [N, 3] of lines, each split into words: weights, colours or normals may follow."""
    short = next((row for row in rows if len(row) < 3), None)
    if short is not None:
        line = b" ".join(short).decode("ascii", "replace")
        raise MeshError(f"a vertex must have three coordinates, got `{line[:60]}`; the file may be cut off")
    return numbers(b" ".join([word for row in rows for word in row[:3]]), "vertices").reshape(-1, 3)


def integers(text: bytes, what: str) -> np.ndarray:
    """As :func:`numbers`, int64."""
    return whole(numbers(text, what), what)


def whole(values: np.ndarray, what: str) -> np.ndarray:
    """Numbers as int64; ``what`` names them in errors."""
    bad = values[~((np.round(values) == values) & (np.abs(values) < 2**53))] if values.dtype.kind == "f" else []
    if len(bad):
        raise MeshError(f"{what} must be integers, got {bad[0]:g}")
    return values.astype(np.int64)


def _first_word(text: bytes) -> str:
    for word in text.split():
        try:
            float(word)
        except ValueError:
            remedy = "; write decimal points, not commas" if b"," in word else ""
            return f"`{word[:40].decode('ascii', 'replace')}`{remedy}"
    return "something else"
