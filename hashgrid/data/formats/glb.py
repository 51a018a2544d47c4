"""Binary glTF 2.0: the triangles of a scene, moved by its nodes."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np

from hashgrid.data.errors import MeshError
from hashgrid.data.formats.polygons import fans, strip
from hashgrid.util.optional import optional_import

TYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
LOOKS = ("KHR_materials_", "KHR_texture_", "EXT_texture_", "MSFT_texture_", "KHR_lights_", "EXT_lights_", "KHR_xmp")
DRACO = "KHR_draco_mesh_compression"
MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")
INSTANCES = "EXT_mesh_gpu_instancing"


def read(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] and triangles [F, 3] of the default scene; points and lines are left out."""
    tree, chunk = _chunks(data)
    for name in tree.get("extensionsRequired", []):
        if name not in (DRACO, *MESHOPT, INSTANCES, "KHR_mesh_quantization") and not name.startswith(LOOKS):
            raise MeshError(f"it requires the glTF extension {name}, which is not read; export without it")
    try:
        return _Scene(tree, chunk).triangles()
    except MeshError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise MeshError(f"its JSON does not describe meshes as glTF 2.0 does ({why})") from error


def _chunks(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON and the binary chunk."""
    if data[:4] != b"glTF" or len(data) < 20:
        raise MeshError("a GLB file must begin with `glTF` and a header")
    version, length = struct.unpack_from("<II", data, 4)
    if version != 2:
        raise MeshError(f"only glTF 2.0 is read, the file is of version {version}")
    if length > len(data):
        raise MeshError(f"the file is cut off: its header says {length} bytes, there are {len(data)}")
    chunks: dict[bytes, bytes] = {}
    offset = 12
    while offset + 8 <= length:
        size, kind = struct.unpack_from("<I4s", data, offset)
        if offset + 8 + size > length:
            raise MeshError(f"the file is cut off: a chunk of {size} bytes ends behind it")
        chunks.setdefault(kind, data[offset + 8 : offset + 8 + size])
        offset += 8 + size
    try:
        tree = json.loads(chunks.get(b"JSON", b""))
    except ValueError as error:
        raise MeshError(f"its JSON is broken: {error}") from error
    if not isinstance(tree, dict):
        raise MeshError("its JSON must be an object")
    return tree, chunks.get(b"BIN\0", b"")


class _Scene:
    def __init__(self, tree: dict[str, Any], chunk: bytes) -> None:
        self.tree, self.chunk = tree, chunk

    def triangles(self) -> tuple[np.ndarray, np.ndarray]:
        nodes = self.tree.get("nodes", [])
        vertices, faces, n = [np.zeros((0, 3))], [np.zeros((0, 3), np.int64)], 0
        todo = [(i, np.eye(4)) for i in self._roots()]
        seen = 0
        while todo:
            i, above = todo.pop()
            seen += 1
            if seen > len(nodes):
                raise MeshError("its nodes are no tree")
            node = nodes[i]
            matrix = above @ _matrix(node)
            todo += [(child, matrix) for child in node.get("children", [])]
            if "mesh" not in node:
                continue
            if INSTANCES in node.get("extensions", {}):
                raise MeshError(f"meshes of {INSTANCES} are not read; export without instances")
            for primitive in self.tree["meshes"][node["mesh"]]["primitives"]:
                points, triangles = self._primitive(primitive)
                if np.linalg.det(matrix[:3, :3]) < 0:
                    triangles = triangles[:, ::-1]  # a mirror image would look inwards
                with np.errstate(over="ignore", invalid="ignore"):  # vertices that are no numbers are refused later
                    vertices.append(points @ matrix[:3, :3].T + matrix[:3, 3])
                faces.append(triangles + n)
                n += len(points)
        return np.concatenate(vertices), np.concatenate(faces)

    def _roots(self) -> list[int]:
        """Top nodes of the default scene, of the first one or, without scenes, of all there is."""
        scenes = self.tree.get("scenes", [])
        if scenes:
            return list(scenes[self.tree.get("scene", 0)].get("nodes", []))
        nodes = self.tree.get("nodes", [])
        return sorted(set(range(len(nodes))) - {child for node in nodes for child in node.get("children", [])})

    def _primitive(self, primitive: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Vertices [V, 3] and triangles [F, 3], none where it is points or lines."""
        mode = primitive.get("mode", 4)
        if mode not in (4, 5, 6) or "POSITION" not in primitive["attributes"]:
            return np.zeros((0, 3)), np.zeros((0, 3), np.int64)
        position = self.tree["accessors"][primitive["attributes"]["POSITION"]]
        if DRACO in primitive.get("extensions", {}) and "bufferView" not in position:
            raise MeshError(f"meshes of {DRACO} are not read; export without Draco compression")
        points = self._accessor(position).astype(np.float64)
        if "indices" in primitive:
            corners = self._accessor(self.tree["accessors"][primitive["indices"]])[:, 0].astype(np.int64)
        else:
            corners = np.arange(len(points))
        if len(corners) and corners.max() >= len(points):
            raise MeshError(f"indices must be below the number of vertices {len(points)}, got {corners.max()}")
        if mode == 4:
            if len(corners) % 3:
                raise MeshError(f"triangles must have three corners each, got {len(corners)}")
            return points, corners.reshape(-1, 3)
        return points, strip(corners) if mode == 5 else fans(corners[None])[0]

    def _accessor(self, accessor: dict[str, Any]) -> np.ndarray:
        """Values [N, width], normalised integers as fractions."""
        n, width, dtype = accessor["count"], WIDTHS[accessor["type"]], np.dtype(TYPES[accessor["componentType"]])
        if "bufferView" in accessor:
            values = self._view(accessor, n, width, dtype)
        elif "sparse" in accessor:
            values = np.zeros((n, width), dtype)
        else:
            raise MeshError("accessors must have a buffer view")
        if "sparse" in accessor:
            index, new = accessor["sparse"]["indices"], accessor["sparse"]["values"]
            n = accessor["sparse"]["count"]
            rows = self._view(index, n, 1, np.dtype(TYPES[index["componentType"]]))[:, 0]
            values = values.copy()
            values[rows] = self._view(new, n, width, dtype)
        if accessor.get("normalized") and dtype.kind != "f":
            return np.maximum(values / float(np.iinfo(dtype).max), -1.0)
        return values

    def _view(self, where: dict[str, Any], n: int, width: int, dtype: np.dtype) -> np.ndarray:
        """``n`` rows [n, width] at a place in a buffer view."""
        if n == 0:
            return np.zeros((0, width), dtype)
        view, offset = self.tree["bufferViews"][where["bufferView"]], where.get("byteOffset", 0)
        start, stride = view.get("byteOffset", 0), view.get("byteStride", width * dtype.itemsize)
        content = self._buffer(view)[start : start + view["byteLength"]]
        needed = offset + (n - 1) * stride + width * dtype.itemsize
        if needed > len(content):
            number = where["bufferView"]
            raise MeshError(
                f"buffer view {number} must have {needed} bytes, got {len(content)}; the file may be cut off"
            )
        return np.ndarray((n, width), dtype, content, offset, (stride, dtype.itemsize))

    def _buffer(self, view: dict[str, Any]) -> bytes:
        """The content of the buffer of a view, which the file itself must hold."""
        number = view["buffer"]
        buffer = self.tree["buffers"][number]
        uri = buffer.get("uri")
        stand_in = any(buffer.get("extensions", {}).get(name, {}).get("fallback") for name in MESHOPT)
        if uri is None and number == 0 and len(self.chunk) >= buffer["byteLength"] and not stand_in:
            return self.chunk
        if uri is not None and uri.startswith("data:"):
            return base64.b64decode(uri.partition(",")[2])
        packed = next((name for name in MESHOPT if name in view.get("extensions", {})), None)
        if packed is not None:
            raise MeshError(f"buffers of {packed} are not read; export without meshopt compression")
        raise MeshError(f"buffer {number} must be in the file, {uri or 'it'} is not; export everything to one GLB file")


def _matrix(node: dict[str, Any]) -> np.ndarray:
    """Where a node lies in the one above it [4, 4]."""
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    matrix = np.eye(4)
    if "rotation" in node:
        matrix[:3, :3] = optional_import("scipy.spatial.transform").Rotation.from_quat(node["rotation"]).as_matrix()
    matrix[:3, :3] *= np.array(node.get("scale", [1, 1, 1]), np.float64)
    matrix[:3, 3] = node.get("translation", [0, 0, 0])
    return matrix
