"""Wavefront OBJ."""

from __future__ import annotations

import re

import numpy as np

from hashgrid.data.errors import MeshError
from hashgrid.data.formats.polygons import triangulate
from hashgrid.data.formats.text import coordinates, integers, plain


def read(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] of the lines ``v``, triangles [F, 3] of the lines ``f``; everything else is no shape."""
    data = re.sub(rb"#[^\n]*", b"", plain(data).replace(b"\t", b" "))
    if b"\\" in data:
        data = re.sub(rb"(?<=[\s\d])\\ *\n", b" ", data)  # lines that go on in the next one
    lines = re.findall(rb"^ *([vf]) +(.*)", data, re.MULTILINE)
    vertices = coordinates([line.split() for kind, line in lines if kind == b"v"])
    polygons = [line for kind, line in lines if kind == b"f"]
    sizes = np.array([len(line.split()) for line in polygons], np.int64)
    if data.rpartition(b"\n")[2].lstrip()[:1] == b"f" and (len(sizes) == 0 or sizes[-1] < 3):
        raise MeshError("the file is cut off: its last line is a face of fewer than three corners")
    corners = integers(re.sub(rb"/\S*", b"", b" ".join(polygons)), "corners of faces")
    if len(corners) != sizes.sum():
        raise MeshError("corners of faces must be `v`, `v/vt`, `v//vn` or `v/vt/vn`")
    is_vertex = np.array([kind == b"v" for kind, _ in lines], bool)
    known = np.cumsum(is_vertex)[~is_vertex]  # vertices before each face: negative numbers count from there
    corners = np.where(corners < 0, corners + np.repeat(known, sizes), corners - 1)
    if len(corners) and (corners.min() < 0 or corners.max() >= len(vertices)):
        raise MeshError(
            f"corners of faces must be 1..{len(vertices)}, got {corners.min() + 1}..{corners.max() + 1}; the file may"
            " be cut off, or a part of another one"
        )
    return vertices, triangulate(vertices, sizes, corners)
