"""Reads MessagePack (https://github.com/msgpack/msgpack/blob/master/spec.md), without extension types."""

from __future__ import annotations

import struct
from typing import Any

_NUMBERS = {
    0xCA: "f", 0xCB: "d", 0xCC: "B", 0xCD: "H", 0xCE: "I", 0xCF: "Q", 0xD0: "b", 0xD1: "h", 0xD2: "i", 0xD3: "q",
}  # fmt: skip
_BYTES = {0xC4: "B", 0xC5: "H", 0xC6: "I"}
_TEXTS = {0xD9: "B", 0xDA: "H", 0xDB: "I"}
_ARRAYS, _MAPS = {0xDC: "H", 0xDD: "I"}, {0xDE: "H", 0xDF: "I"}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_MAX_DEPTH = 100


def unpack(data: bytes) -> Any:
    """The one object that ``data`` holds; byte strings are views of it.

    Raises:
        ValueError: ``data`` ends early, goes on behind the object, or is no such object.
    """
    reader = _Reader(memoryview(data))
    try:
        value = reader.read(0)
    except (struct.error, UnicodeDecodeError, TypeError) as error:  # of numbers, of texts, of a list that is a key
        raise ValueError(f"the file is no MessagePack, or was cut off: {error}") from error
    if reader.place != len(data):
        raise ValueError(f"MessagePack must hold one object of {len(data)} bytes, got {reader.place} and others behind")
    return value


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self.data, self.place = data, 0

    def take(self, n: int) -> memoryview:
        begin, self.place = self.place, self.place + n
        if self.place > len(self.data):
            raise ValueError(f"MessagePack ends after {len(self.data)} bytes, {self.place} are wanted at least")
        return self.data[begin : self.place]

    def number(self, kind: str) -> Any:
        return struct.unpack(f">{kind}", self.take(struct.calcsize(f">{kind}")))[0]

    def read(self, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError(f"MessagePack must not be nested deeper than {_MAX_DEPTH}")
        tag = self.number("B")
        if tag in _CONSTANTS:
            return _CONSTANTS[tag]
        if tag < 0x80 or tag >= 0xE0:
            return tag - 256 * (tag >= 0xE0)
        if tag in _NUMBERS:
            return self.number(_NUMBERS[tag])
        if tag in _BYTES:
            return self.take(self.number(_BYTES[tag]))
        if 0xA0 <= tag < 0xC0 or tag in _TEXTS:
            return str(self.take(self.number(_TEXTS[tag]) if tag in _TEXTS else tag & 31), "utf-8")
        if 0x90 <= tag < 0xA0 or tag in _ARRAYS:
            n = self.number(_ARRAYS[tag]) if tag in _ARRAYS else tag & 15
            return [self.read(depth + 1) for _ in range(n)]
        if tag < 0x90 or tag in _MAPS:
            n = self.number(_MAPS[tag]) if tag in _MAPS else tag & 15
            return {self.read(depth + 1): self.read(depth + 1) for _ in range(n)}
        raise ValueError(f"MessagePack has no values here that begin with {tag:#x}")
