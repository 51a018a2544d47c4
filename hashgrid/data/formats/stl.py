"""STL, binary or text."""

from __future__ import annotations

import re

import numpy as np

from hashgrid.data.errors import MeshError
from hashgrid.data.formats.text import numbers, plain

HEADER, RECORD = 84, 50  # bytes


def read(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [3 F, 3], those of each triangle on their own, and triangles [F, 3]."""
    n = int.from_bytes(data[80:HEADER], "little")
    if len(data) >= HEADER and len(data) == HEADER + n * RECORD:  # whatever the header begins with
        rows = np.frombuffer(data, [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("more", "<u2")], offset=HEADER)
        corners = rows["corners"].astype(np.float64).reshape(-1, 3)
    else:
        text = plain(data)
        if not (text[:200].lstrip()[:5].lower() == b"solid" and b"\0" not in text[:2000]):
            raise MeshError(_length(data, n))
        corners = _text(text)
    return corners, np.arange(len(corners)).reshape(-1, 3)


def _length(data: bytes, n: int) -> str:
    """What is wrong with the length of a binary file."""
    if len(data) < HEADER:
        return f"neither text that begins with `solid` nor binary: {len(data)} bytes are less than a header"
    there = (len(data) - HEADER) // RECORD
    if there < n:
        return f"the file is cut off, or no STL: its header says {n} triangles, there are {there}"
    return (
        f"the file is longer than its header says: {n} triangles end at byte {HEADER + n * RECORD},"
        f" there are {len(data)}; export it again"
    )


def _text(text: bytes) -> np.ndarray:
    """Corners [3 F, 3] of all triangles."""
    lines = re.findall(rb"^\s*vertex\b(.*)", text, re.MULTILINE | re.IGNORECASE)
    if len(lines) % 3 or any(len(line.split()) != 3 for line in lines):
        last = len(lines[-1].split())
        raise MeshError(
            f"triangles must have three vertices of three coordinates, got {len(lines)} vertices, the last one"
            f" of {last}; the file may be cut off"
        )
    if text.rstrip().rpartition(b"\n")[2].lstrip()[:8].lower() not in (b"endsolid", b"endfacet"):
        raise MeshError("the file is cut off: its last line is neither `endsolid` nor `endfacet`")
    return numbers(b" ".join(lines), "vertices").reshape(-1, 3)
