"""Readers of mesh files: bytes in, vertices [V, 3] float64 and triangles [F, 3] int64 out.

Each says what is wrong with the file in a :class:`hashgrid.data.errors.MeshError`, without the file's name. Names and
comments may have any encoding: nothing of them is decoded. Whether triangles refer to vertices is left to
:func:`hashgrid.data.mesh.make_mesh`, where the format does not say how they are numbered.
"""

from __future__ import annotations

from hashgrid.data.formats import glb, obj, off, ply, stl

READERS = {".obj": obj.read, ".ply": ply.read, ".stl": stl.read, ".off": off.read, ".glb": glb.read}
