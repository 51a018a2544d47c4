"""The file of a compressed photo: what it is, its size, what the method wrote, and a checksum."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from hashgrid.compress.entropy import CodecError

MAGIC = b"HGI"
VERSION = 1
MAX_PIXELS = 178_956_970  # more is only read when asked to: 8 GB of float64, from a file of any length
MAX_SIDE = 65535
_HEAD, _TAIL = struct.Struct("<3sBBHH"), struct.Struct("<I")
METHODS = {1: "grid", 2: "coin"}


@dataclass(frozen=True)
class Compressed:
    """What a file holds."""

    method: str  # of `METHODS`
    width: int  # of the photo, in pixels
    height: int
    payload: bytes  # the method's own

    @property
    def n_bytes(self) -> int:
        """Bytes of the file, everything counted."""
        return overhead() + len(self.payload)


def overhead() -> int:
    """Bytes of a file beside its payload."""
    return _HEAD.size + _TAIL.size


def check_size(width: int, height: int, allow_huge: bool = False) -> None:
    """Raises CodecError where a photo has no pixels, or more than are allowed."""
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise CodecError(f"a photo must be 1..{MAX_SIDE} pixels wide and high, got {width} x {height}")
    if width * height > MAX_PIXELS and not allow_huge:
        limit = f"more than the {MAX_PIXELS / 1e6:.0f} million that are read of a file that might be malicious"
        raise CodecError(f"{width} x {height} pixels are {limit}; `--allow-huge` (`allow_huge=True`) reads them")


def pack(content: Compressed) -> bytes:
    """The bytes of a file.

    Raises:
        CodecError: the size does not fit.
    """
    check_size(content.width, content.height, allow_huge=True)
    code = next(code for code, name in METHODS.items() if name == content.method)
    body = _HEAD.pack(MAGIC, VERSION, code, content.width, content.height) + content.payload
    return body + _TAIL.pack(zlib.crc32(body))


def unpack(data: bytes, allow_huge: bool = False) -> Compressed:
    """The inverse of :func:`pack`; allocates nothing that the file does not hold.

    Raises:
        CodecError: the bytes are no such file, are damaged or cut off, or of a version or size that is not read.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise CodecError(f"it is no file of `hashgrid image --compress`: it must begin with {MAGIC!r}")
    if len(data) < overhead():
        raise CodecError(f"it is cut off: {len(data)} bytes are fewer than the header has")
    _, version, code, width, height = _HEAD.unpack_from(data)
    if version != VERSION:
        raise CodecError(f"its format has version {version}, this program reads version {VERSION}; use a newer one")
    if zlib.crc32(data[: -_TAIL.size]) != _TAIL.unpack(data[-_TAIL.size :])[0]:
        raise CodecError("it is damaged or cut off: the checksum does not fit")
    if code not in METHODS:
        raise CodecError(f"it was made by method {code}, this program knows {METHODS}")
    check_size(width, height, allow_huge)
    return Compressed(METHODS[code], width, height, data[_HEAD.size : -_TAIL.size])
