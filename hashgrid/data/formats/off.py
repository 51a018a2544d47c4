"""Object File Format, with or without normals, colours and texture coordinates."""

from __future__ import annotations

import re

import numpy as np

from hashgrid.data.errors import MeshError
from hashgrid.data.formats.polygons import triangulate
from hashgrid.data.formats.text import integers, numbers, plain


def read(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] and triangles [F, 3]."""
    data = re.sub(rb"#[^\n]*", b"", plain(data)).strip()
    word = re.match(rb"(?:ST)?C?N?(4?n?)OFF(\s+BINARY\b)?", data)  # `OFF490 518 0` occurs, too
    if word is not None:
        if word[1] or word[2]:
            raise MeshError(f"only OFF in three dimensions and as text is read, got `{word[0].decode()}`")
        data = data[word.end() :]
    lines = [line for line in data.split(b"\n") if line and not line.isspace()]
    head = integers(lines[0], "the counts of vertices and faces") if lines else np.zeros(0)
    if len(head) not in (2, 3):
        raise MeshError("the first line after `OFF` must have the numbers of vertices and faces")
    n_vertices, n_faces = int(head[0]), int(head[1])
    n_lines = len(lines) - 1
    if min(n_vertices, n_faces) < 0 or n_lines != n_vertices + n_faces:
        what = "cut off" if n_lines < n_vertices + n_faces else "longer than its header says"
        raise MeshError(f"the file is {what}: {n_vertices} vertices and {n_faces} faces are on {n_lines} lines")
    words = [line.split()[:3] for line in lines[1 : 1 + n_vertices]]
    if any(len(row) < 3 for row in words):
        raise MeshError("each of the vertices must have three coordinates on a line of its own")
    vertices = numbers(b" ".join([x for row in words for x in row]), "vertices").reshape(-1, 3)
    rows = [line.split() for line in lines[1 + n_vertices : 1 + n_vertices + n_faces]]
    sizes = integers(b" ".join([row[0] for row in rows]), "the numbers of faces' corners")
    if any(len(row) <= size for row, size in zip(rows, sizes, strict=True)):
        raise MeshError(
            "each of the faces must have its number of corners and these on a line; the file may be cut off"
        )
    corners = integers(
        b" ".join([x for row, n in zip(rows, sizes, strict=True) for x in row[1 : 1 + n]]), "corners of faces"
    )
    return vertices, triangulate(vertices, sizes, corners)
