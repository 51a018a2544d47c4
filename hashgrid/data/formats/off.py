"""Object File Format, with or without normals, colours and texture coordinates."""

from __future__ import annotations

import re

import numpy as np

from hashgrid.data.errors import MeshError
from hashgrid.data.formats.polygons import triangulate
from hashgrid.data.formats.text import coordinates, integers, plain


def read(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] and triangles [F, 3]."""
    data = re.sub(rb"#[^\n]*", b"", plain(data)).strip()
    word = re.match(rb"(?:ST)?C?N?(4?n?)OFF(\s+BINARY\b)?", data)  # `OFF490 518 0` occurs, too
    if word is not None:
        if word[1] or word[2]:
            raise MeshError(f"only OFF in three dimensions and as text is read, got `{word[0].decode()}`")
        data = data[word.end() :]
    lines = [words for line in data.split(b"\n") if (words := line.split())]
    head = integers(b" ".join(lines[0]), "the counts of vertices and faces") if lines else np.zeros(0)
    if len(head) not in (2, 3):
        raise MeshError("the first line after `OFF` must have the numbers of vertices and faces")
    n_vertices, n_faces, n_lines = int(head[0]), int(head[1]), len(lines) - 1
    if min(n_vertices, n_faces) < 0 or n_lines != n_vertices + n_faces:
        what = "cut off" if n_lines < n_vertices + n_faces else "longer than its header says"
        raise MeshError(f"the file is {what}: {n_vertices} vertices and {n_faces} faces are on {n_lines} lines")
    vertices, polygons = coordinates(lines[1 : 1 + n_vertices]), lines[1 + n_vertices :]
    sizes = integers(b" ".join([words[0] for words in polygons]), "the numbers of faces' corners")
    if any(not 0 <= size < len(words) for words, size in zip(polygons, sizes, strict=True)):
        raise MeshError("faces must have their number of corners and these on a line; the file may be cut off")
    words = [word for words, n in zip(polygons, sizes, strict=True) for word in words[1 : 1 + n]]
    corners = integers(b" ".join(words), "corners of faces")
    return vertices, triangulate(vertices, sizes, corners)
