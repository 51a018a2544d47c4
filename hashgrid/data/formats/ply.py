"""PLY: text and binary, polygons and triangle strips, and whatever other properties there are."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import numpy as np

from hashgrid.data.errors import MeshError
from hashgrid.data.formats.polygons import strip, triangulate
from hashgrid.data.formats.text import numbers, plain, whole

TYPES = {
    **{name: "i1" for name in ("char", "int8")},
    **{name: "u1" for name in ("uchar", "uint8")},
    **{name: "i2" for name in ("short", "int16")},
    **{name: "u2" for name in ("ushort", "uint16")},
    **{name: "i4" for name in ("int", "int32")},
    **{name: "u4" for name in ("uint", "uint32")},
    **{name: "f4" for name in ("float", "float32")},
    **{name: "f8" for name in ("double", "float64")},
}
FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


@dataclass
class Property:
    """A property of an element: numbers, or lists of them where ``counted_by`` is the type of their lengths."""

    name: str
    type: str
    counted_by: str | None = None


@dataclass
class Element:
    """What a header says of an element, and its values: per property an array [N], or of lists the lengths [N] and
    all values one after the other."""

    name: str
    n: int
    properties: list[Property]
    values: dict[str, np.ndarray]
    lists: dict[str, tuple[np.ndarray, np.ndarray]]


def read(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] and triangles [F, 3]."""
    elements = read_elements(data)
    vertices = columns(elements, ("x", "y", "z"))
    faces = [np.zeros((0, 3), np.int64)]
    if "face" in elements and elements["face"].n:
        sizes, corners = _list(elements["face"])
        faces.append(triangulate(vertices, sizes, whole(corners, "corners of faces")))
    if "tristrips" in elements and elements["tristrips"].n:
        corners = whole(_list(elements["tristrips"])[1], "corners of strips")
        ends = np.flatnonzero(corners < 0)  # -1 is between strips
        faces += [strip(part[part >= 0]) for part in np.split(corners, ends)]
    return vertices, np.concatenate(faces)


def columns(elements: dict[str, Element], names: tuple[str, ...]) -> np.ndarray:
    """Properties ``names`` of the vertices [V, len(names)] float64."""
    vertex = elements.get("vertex")
    if vertex is None:
        raise MeshError(f"there must be an element `vertex`, the header has {', '.join(elements) or 'none'}")
    missing = [name for name in names if name not in vertex.values]
    if missing:
        there = ", ".join(vertex.values) or "none"
        raise MeshError(f"vertices must have properties {' '.join(names)}, '{missing[0]}' is missing: {there}")
    return np.stack([vertex.values[name] for name in names], axis=-1).astype(np.float64)


def read_elements(data: bytes) -> dict[str, Element]:
    """All elements of a file by name."""
    if not data.startswith(b"ply"):
        data = plain(data)  # a byte order mark before text
    end = re.search(rb"[\r\n]end_header[ \t]*(\r\n|\n|\r|$)", data)
    if not data.startswith(b"ply") or end is None:
        raise MeshError("a PLY file must begin with `ply` and a header up to `end_header`")
    stop = end.end()
    if data[3:5] != b"\r\n" and data[3:4] == b"\r" and end[1] == b"\r\n":
        stop -= 1  # lines end with \r: what looks like \n is the first byte of the body
    order, elements = _header(data[: end.start()])
    body, unit = data[stop:], "bytes"
    if not order:
        # numbers of a text are doubles, whatever the header says: it says float of the far coordinates of surveys
        body, order, unit = numbers(plain(body), "the values of elements").astype("<f8").tobytes(), "<", "numbers"
        for p in (p for element in elements for p in element.properties):
            p.type, p.counted_by = "f8", p.counted_by and "f8"
    offset = 0
    for element in elements:
        offset = _read_rows(element, body, offset, order)
    if left := len(body) - offset:
        left = left if unit == "bytes" else left // 8
        raise MeshError(f"header and content disagree: {left} {unit} are left behind the last element")
    return {element.name: element for element in elements}


def _header(text: bytes) -> tuple[str, list[Element]]:
    """The byte order ("" of text) and the elements, still without values."""
    order, elements = None, []
    for line in plain(text).decode("latin-1").split("\n"):
        words = line.split() or [""]
        try:
            if words[0] == "format":
                order = FORMATS[words[1]]
            elif words[0] == "element":
                elements.append(Element(words[1], int(words[2]), [], {}, {}))
                if elements[-1].n < 0:
                    raise ValueError
            elif words[0] == "property" and words[1] == "list":
                elements[-1].properties.append(Property(words[4], TYPES[words[3]], TYPES[words[2]]))
            elif words[0] == "property":
                elements[-1].properties.append(Property(words[2], TYPES[words[1]]))
        except (KeyError, IndexError, ValueError) as error:
            raise MeshError(f"the line `{line[:80]}` of the header is not understood") from error
    if order is None:
        raise MeshError("the header must have a line `format`")
    return order, elements


def _list(element: Element) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and values of the list of vertices of an element."""
    for name in ("vertex_indices", "vertex_index"):
        if name in element.lists:
            return element.lists[name]
    there = ", ".join(p.name for p in element.properties)
    raise MeshError(f"element `{element.name}` must have a list `vertex_indices`, it has {there or 'nothing'}")


def _read_rows(element: Element, body: bytes, offset: int, order: str) -> int:
    """Fills an element in with its rows, which begin at ``offset``; returns where they end."""
    groups: list[tuple[slice | np.ndarray, np.ndarray]] = []  # rows with lists of equal lengths: numbers, contents
    if element.n and element.properties:
        groups, offset = _groups(element, body, offset, order)
    for i, p in enumerate(element.properties):
        if p.counted_by is None:
            values = element.values[p.name] = np.empty(element.n, p.type)
            for index, rows in groups:
                values[index] = rows[f"v{i}"]
            continue
        lengths = np.empty(element.n, np.int64)
        for index, rows in groups:
            lengths[index] = rows[f"v{i}"].shape[1]
        begin = np.cumsum(lengths) - lengths
        flat = np.empty(lengths.sum(), p.type)
        for index, rows in groups:
            flat[begin[index, None] + np.arange(rows[f"v{i}"].shape[1])] = rows[f"v{i}"]
        element.lists[p.name] = lengths, flat
    return offset


def _groups(
    element: Element, body: bytes, offset: int, order: str
) -> tuple[list[tuple[slice | np.ndarray, np.ndarray]], int]:
    """Numbers and contents of rows whose lists are equally long, and where they end."""
    sizes, _ = _sizes(element, body, offset, order, 0)
    record = _record(element, order, sizes)
    end = offset + element.n * record.itemsize
    if end <= len(body):
        rows = np.frombuffer(body, record, element.n, offset)
        if all((rows[name] == size).all() for name, size in sizes.items()):
            return [(slice(None), rows)], end
    places: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for row in range(element.n):
        sizes, end = _sizes(element, body, offset, order, row)
        places.setdefault(tuple(sizes.values()), []).append((row, offset))
        offset = end
    content, groups = np.frombuffer(body, np.uint8), []
    for lengths, found in places.items():
        record = _record(element, order, dict(zip(sizes, lengths, strict=True)))
        index, start = np.array(found).T
        groups.append((index, content[start[:, None] + np.arange(record.itemsize)].view(record)[:, 0]))
    return groups, offset


def _sizes(element: Element, body: bytes, offset: int, order: str, row: int) -> tuple[dict[str, int], int]:
    """Lengths of the lists of the row at ``offset``, by the names of their fields, and where the row ends."""
    sizes = {}
    for i, p in enumerate(element.properties):
        n = 1
        if p.counted_by is not None:
            width = int(p.counted_by[1])
            if offset + width > len(body):
                raise _cut(element, row)
            (n,) = struct.unpack_from(order + np.dtype(p.counted_by).char, body, offset)
            if n < 0 or n % 1:
                raise MeshError(f"lengths of the lists `{p.name}` must be natural numbers, got {n:g}")
            n = sizes[f"n{i}"] = int(n)
            offset += width
        offset += n * int(p.type[1])
    if offset > len(body):
        raise _cut(element, row)
    return sizes, offset


def _record(element: Element, order: str, sizes: dict[str, int]) -> np.dtype:
    """The bytes of a row: field ``v0`` of the first property, ``n0`` of the length where it is a list, and so on."""
    fields: list[tuple] = []
    for i, p in enumerate(element.properties):
        if p.counted_by is None:
            fields.append((f"v{i}", order + p.type))
        else:
            fields += [(f"n{i}", order + p.counted_by), (f"v{i}", order + p.type, (sizes[f"n{i}"],))]
    return np.dtype(fields)


def _cut(element: Element, n: int) -> MeshError:
    return MeshError(f"the file is cut off: its header says {element.n} of `{element.name}`, there are {n}")
