"""PLY: text and binary, polygons and triangle strips, and whatever other properties there are."""

from __future__ import annotations

import re
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
    if order:
        left = len(data) - _read_binary(data, stop, order, elements)
    else:
        body = numbers(plain(data[stop:]), "the values of elements")
        left = len(body) - _read_text(body, elements)
    if left:
        unit = "bytes" if order else "numbers"
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


def _cut(element: Element, n: int) -> MeshError:
    return MeshError(f"the file is cut off: its header says {element.n} of `{element.name}`, there are {n}")


# ---- binary ----------------------------------------------------------------------------------------------------------


def _read_binary(data: bytes, offset: int, order: str, elements: list[Element]) -> int:
    """Fills the elements in; returns where they end."""
    for element in elements:
        if element.n == 0 or not element.properties:
            _fill(element, [])
            continue
        first = _sizes(data, offset, order, element, 0)
        record = _record(element, order, first)
        whole = min(element.n, (len(data) - offset) // record.itemsize)
        rows = np.frombuffer(data, record, whole, offset)
        same = all((rows[f"n{i}"] == n).all() for i, n in first.items())
        if same and whole == element.n:
            _fill(element, [(np.arange(element.n), rows)])
            offset += element.n * record.itemsize
            continue
        if not first:
            raise _cut(element, whole)
        offset = _read_ragged(data, offset, order, element)
    return offset


def _read_ragged(data: bytes, offset: int, order: str, element: Element) -> int:
    """Fills in rows whose lists differ in length: those of equal lengths together."""
    starts: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    records: dict[tuple[int, ...], np.dtype] = {}
    for row in range(element.n):
        sizes = _sizes(data, offset, order, element, row)
        key = tuple(sizes.values())
        if key not in records:
            records[key], starts[key] = _record(element, order, sizes), []
        starts[key].append((row, offset))
        offset += records[key].itemsize
        if offset > len(data):
            raise _cut(element, row)
    content = np.frombuffer(data, np.uint8)
    groups = []
    for key, places in starts.items():
        index, start = np.array(places).T
        groups.append((index, content[start[:, None] + np.arange(records[key].itemsize)].view(records[key])[:, 0]))
    _fill(element, groups)
    return offset


def _sizes(data: bytes, offset: int, order: str, element: Element, row: int) -> dict[int, int]:
    """Lengths of the lists of the row at ``offset``, by the number of the property."""
    sizes = {}
    for i, p in enumerate(element.properties):
        if p.counted_by is None:
            offset += int(p.type[1])
            continue
        width = int(p.counted_by[1])
        if offset + width > len(data):
            raise _cut(element, row)
        if p.counted_by[0] == "f":
            raise MeshError(f"lengths of lists must be integers, those of `{p.name}` are not")
        end = "big" if order == ">" else "little"
        sizes[i] = int.from_bytes(data[offset : offset + width], end, signed=p.counted_by[0] == "i")  # type: ignore
        if sizes[i] < 0 or offset + width + sizes[i] * int(p.type[1]) > len(data):
            raise _cut(element, row)
        offset += width + sizes[i] * int(p.type[1])
    return sizes


def _record(element: Element, order: str, sizes: dict[int, int]) -> np.dtype:
    """The bytes of a row: field ``v0`` of the first property, ``n0`` of the length where it is a list, and so on."""
    fields: list[tuple] = []
    for i, p in enumerate(element.properties):
        if p.counted_by is None:
            fields.append((f"v{i}", order + p.type))
        else:
            fields += [(f"n{i}", order + p.counted_by), (f"v{i}", order + p.type, (sizes[i],))]
    return np.dtype(fields)


def _fill(element: Element, groups: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Puts the values of groups of rows (their numbers, and their values by fields) into an element."""
    rows = np.concatenate([index for index, _ in groups]) if groups else np.zeros(0, np.int64)
    for i, p in enumerate(element.properties):
        parts = [group[f"v{i}"] for _, group in groups]
        if p.counted_by is None:
            values = np.concatenate(parts) if parts else np.zeros(0)
            element.values[p.name] = values[np.argsort(rows)] if len(parts) > 1 else values
        else:
            lengths = np.concatenate([np.full(len(part), part.shape[1]) for part in parts] or [np.zeros(0, np.int64)])
            flat = np.concatenate([part.reshape(-1) for part in parts] or [np.zeros(0)])
            back = np.argsort(rows)
            if len(parts) > 1:
                flat = flat[np.argsort(np.repeat(rows, lengths), kind="stable")]
            element.lists[p.name] = lengths[back], flat


# ---- text ------------------------------------------------------------------------------------------------------------


def _read_text(body: np.ndarray, elements: list[Element]) -> int:
    """Fills the elements in from all numbers of a text; returns how many were used."""
    place = 0
    for element in elements:
        groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        lists = [i for i, p in enumerate(element.properties) if p.counted_by is not None]
        if not lists:
            width = len(element.properties)
            if place + element.n * width > len(body):
                raise _cut(element, (len(body) - place) // width)
            values = body[place : place + element.n * width].reshape(element.n, width)
            element.values = {p.name: values[:, i] for i, p in enumerate(element.properties)}
            place += element.n * width
            continue
        for row in range(element.n):
            begin, sizes = place, []
            for p in element.properties:
                if p.counted_by is not None and place < len(body):
                    sizes.append(_length(p, body[place]))
                    place += sizes[-1]
                place += 1
            if place > len(body):
                raise _cut(element, row)
            groups.setdefault(tuple(sizes), []).append((row, begin))
        doubles = [Property(p.name, "f8", p.counted_by and "f8") for p in element.properties]
        parts = []
        for key, places in groups.items():
            index, start = np.array(places, np.int64).T
            record = _record(Element("", 0, doubles, {}, {}), "<", dict(zip(lists, key, strict=True)))
            values = body[start[:, None] + np.arange(record.itemsize // 8)]
            parts.append((index, np.ascontiguousarray(values, "<f8").view(record)[:, 0]))
        _fill(element, parts)
    return place


def _length(p: Property, value: float) -> int:
    if not (0 <= value < 2**31 and value == int(value)):
        raise MeshError(f"lengths of the lists `{p.name}` must be natural numbers, got {value:g}")
    return int(value)
