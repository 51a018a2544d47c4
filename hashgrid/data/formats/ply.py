"""PLY: text and binary, polygons and triangle strips, and whatever other properties there are."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

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
DOUBLE = np.dtype("<f8")
FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


@dataclass
class Property:
    """A property of an element: numbers, or lists of them where ``counted_by`` is the type of their lengths."""

    name: str
    type: np.dtype
    counted_by: np.dtype | None = None


@dataclass
class Element:
    """What a header says of an element, and its values."""

    name: str
    n: int
    properties: list[Property] = field(default_factory=list)
    values: dict[str, np.ndarray] = field(default_factory=dict)  # [N] each
    lists: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)  # lengths [N], and values in a row


def read(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] and triangles [F, 3]."""
    elements = read_elements(data)
    vertices = columns(elements, ("x", "y", "z"))
    faces = [np.zeros((0, 3), np.int64)]
    if "face" in elements and elements["face"].n:
        sizes, corners = _list(elements["face"])
        faces.append(triangulate(vertices, sizes, whole(corners, "corners of faces")))
    if "tristrips" in elements and elements["tristrips"].n:
        sizes, corners = _list(elements["tristrips"])
        corners = whole(corners, "corners of strips")
        ends = np.union1d(np.flatnonzero(corners < 0), np.cumsum(sizes)[:-1])  # -1 is between strips of one row
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
    is_text, elements = _header(data[: end.start()])
    body = numbers(plain(data[stop:]), "the values of elements").astype(DOUBLE).tobytes() if is_text else data[stop:]
    offset = 0
    for element in elements:
        offset = _read_rows(element, body, offset)
    if left := len(body) - offset:
        what = f"{left // DOUBLE.itemsize} numbers" if is_text else f"{left} bytes"
        raise MeshError(f"header and content disagree: {what} are left behind the last element")
    return {element.name: element for element in elements}


def _header(text: bytes) -> tuple[bool, list[Element]]:
    """Whether the content is text, and the elements, still without values."""
    order: str | None = None
    elements: list[Element] = []

    def type_of(word: str) -> np.dtype:
        if order is None:
            raise ValueError("the line `format` must come first")
        # all numbers of a text are read as doubles: it may say float of coordinates that do not fit
        binary = np.dtype(order + TYPES[word])
        return binary if order else DOUBLE

    for line in plain(text).decode("latin-1").split("\n"):
        words = line.split() or [""]
        try:
            if words[0] == "format":
                order = FORMATS[words[1]]
            elif words[0] == "element":
                elements.append(Element(words[1], int(words[2])))
                if elements[-1].n < 0:
                    raise ValueError
            elif words[0] == "property" and words[1] == "list":
                elements[-1].properties.append(Property(words[4], type_of(words[3]), type_of(words[2])))
            elif words[0] == "property":
                elements[-1].properties.append(Property(words[2], type_of(words[1])))
        except (KeyError, IndexError, ValueError) as error:
            raise MeshError(f"the line `{line[:80]}` of the header is not understood") from error
    if order is None:
        raise MeshError("the header must have a line `format`")
    return order == "", elements


def _list(element: Element) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and values of the list of vertices of an element."""
    for name in ("vertex_indices", "vertex_index"):
        if name in element.lists:
            return element.lists[name]
    there = ", ".join(p.name for p in element.properties)
    raise MeshError(f"element `{element.name}` must have a list `vertex_indices`, it has {there or 'nothing'}")


def _read_rows(element: Element, body: bytes, offset: int) -> int:
    """Fills an element in with its rows, which begin at ``offset``; returns where they end."""
    groups, end = _groups(element, body, offset) if element.n and element.properties else ([], offset)
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
    return end


def _groups(element: Element, body: bytes, offset: int) -> tuple[list[tuple[slice | np.ndarray, np.ndarray]], int]:
    """Numbers and contents of rows whose lists are as long, for each such set, and where the rows end."""
    sizes = _sizes(element, body, offset, 0)
    record = _record(element, sizes)
    end = offset + element.n * record.itemsize
    if end <= len(body):
        rows = np.frombuffer(body, record, element.n, offset)
        if all((rows[name] == size).all() for name, size in sizes.items()):
            return [(slice(None), rows)], end
    records: dict[tuple[int, ...], np.dtype] = {}
    places: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for row in range(element.n):
        sizes = _sizes(element, body, offset, row)
        key = tuple(sizes.values())
        if key not in records:
            records[key], places[key] = _record(element, sizes), []
        places[key].append((row, offset))
        offset += records[key].itemsize
    content, groups = np.frombuffer(body, np.uint8), []
    for key, record in records.items():
        index, start = np.array(places[key]).T
        groups.append((index, content[start[:, None] + np.arange(record.itemsize)].view(record)[:, 0]))
    return groups, offset


def _sizes(element: Element, body: bytes, offset: int, row: int) -> dict[str, int]:
    """Lengths of the lists of the row at ``offset``, by the names of their fields."""
    sizes = {}
    for i, p in enumerate(element.properties):
        n = 1
        if p.counted_by is not None and offset + p.counted_by.itemsize <= len(body):
            count = np.frombuffer(body, p.counted_by, 1, offset)[0]
            if count < 0 or count % 1:
                raise MeshError(f"lengths of the lists `{p.name}` must be natural numbers, got {count:g}")
            n = sizes[f"n{i}"] = int(count)
        offset += n * p.type.itemsize + (p.counted_by.itemsize if p.counted_by else 0)
    if offset > len(body):
        raise MeshError(f"the file is cut off: its header says {element.n} of `{element.name}`, there are {row}")
    return sizes


def _record(element: Element, sizes: dict[str, int]) -> np.dtype:
    """The bytes of a row: field ``v0`` of the first property, ``n0`` of the length where it is a list, and so on."""
    fields: list[tuple] = []
    for i, p in enumerate(element.properties):
        if p.counted_by is None:
            fields.append((f"v{i}", p.type))
        else:
            fields += [(f"n{i}", p.counted_by), (f"v{i}", p.type, (sizes[f"n{i}"],))]
    return np.dtype(fields)
