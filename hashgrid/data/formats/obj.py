"""Wavefront OBJ."""

from __future__ import annotations

import re

import numpy as np

from hashgrid.data.errors import MeshError
from hashgrid.data.formats.polygons import triangulate
from hashgrid.data.formats.text import integers, numbers, plain


def read(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] of the lines ``v``, triangles [F, 3] of the lines ``f``; everything else is no shape."""
    data = re.sub(rb"#[^\n]*", b"", plain(data).replace(b"\t", b" "))
    if b"\\" in data:
        data = re.sub(rb"(?<=[\s\d])\\ *\n", b" ", data)  # lines that go on in the next one
    lines = [line.strip() for line in data.split(b"\n")]
    kind = np.array([{b"v ": 1, b"f ": 2}.get(line[:2], 0) for line in lines])
    vertices = _vertices([line[2:] for line, k in zip(lines, kind, strict=True) if k == 1])
    polygons = [line[2:] for line, k in zip(lines, kind, strict=True) if k == 2]
    sizes = np.array([len(line.split()) for line in polygons], np.int64)
    if kind[-1] == 2 and sizes[-1] < 3:
        raise MeshError(f"the file is cut off: its last line is a face of {sizes[-1]} corners")
    corners = integers(re.sub(rb"/\S*", b"", b" ".join(polygons)), "corners of faces")
    if len(corners) != sizes.sum():
        raise MeshError("corners of faces must be `v`, `v/vt`, `v//vn` or `v/vt/vn`")
    known = np.cumsum(kind == 1)[kind == 2]  # vertices before each face: negative numbers count from there
    corners = np.where(corners < 0, corners + np.repeat(known, sizes), corners - 1)
    if len(corners) and (corners.min() < 0 or corners.max() >= len(vertices)):
        raise MeshError(
            f"corners of faces must be 1..{len(vertices)}, got {corners.min() + 1}..{corners.max() + 1}; the file may"
            " be cut off, or a part of another one"
        )
    return vertices, triangulate(vertices, sizes, corners)


def _vertices(lines: list[bytes]) -> np.ndarray:
    """The first three numbers [V, 3] of each line; a weight or a colour may follow."""
    words = [line.split()[:3] for line in lines]
    short = next((line for line, row in zip(lines, words, strict=True) if len(row) < 3), None)
    if short is not None:
        raise MeshError(f"a vertex must have three coordinates, got `v {short.decode('ascii', 'replace')[:60]}`")
    return numbers(b" ".join([word for row in words for word in row]), "vertices").reshape(-1, 3)
