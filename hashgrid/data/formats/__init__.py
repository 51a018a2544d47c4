"""Readers of mesh files: bytes in, vertices [V, 3] float64 and triangles [F, 3] int64 out.

Each says what is wrong with the file in a :class:`hashgrid.data.errors.MeshError`, without the file's name. Names and
comments may have any encoding: nothing of them is decoded.
"""

from __future__ import annotations

import numpy as np

from hashgrid.data.errors import MeshError
from hashgrid.data.formats import glb, obj, off, ply, stl
from hashgrid.data.formats.text import check_content

READERS = {".obj": obj.read, ".ply": ply.read, ".stl": stl.read, ".off": off.read, ".glb": glb.read}


def read_mesh(data: bytes, suffix: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] and triangles [F, 3] of a file's content; ``suffix`` is a key of ``READERS``.

    Raises:
        MeshError: the content is not a mesh of this format, or not all of one.
    """
    check_content(data)
    vertices, faces = READERS[suffix](data)
    if len(faces) and (faces.min() < 0 or faces.max() >= len(vertices)):
        raise MeshError(f"faces must refer to its {len(vertices)} vertices, got {faces.min()}..{faces.max()}")
    return vertices, faces
