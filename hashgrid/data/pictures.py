"""Pictures as signals: 8 and 16 bits, or floats of OpenEXR; grey or colours, with alpha where a file has some. They are
fitted and written in the depth they were read in."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.images import PhotoError, open_photo, read_photo
from hashgrid.data.signals import Signal, SignalError
from hashgrid.util.files import atomic_path
from hashgrid.util.optional import optional_import

ROWS = 256  # at once: copies of a hundred megapixels would not fit beside each other


@dataclass
class Picture:
    """A picture [H, W, C] with C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha). Integers are sRGB, or what the
    profile says, colours multiplied with alpha: what is behind transparency does not count. Floats are linear light,
    stored as ``sign(x) log(1 + |x|)``, in which a network can hold the sun and the shadows."""

    name: str
    signal: Signal
    profile: bytes | None = None  # ICC, written with what is fitted

    @property
    def is_linear(self) -> bool:
        return self.signal.values.is_floating_point()

    @property
    def has_alpha(self) -> bool:
        return self.signal.n_channels in (2, 4)

    @property
    def extension(self) -> str:
        """Of the format it is written in."""
        return "exr" if self.is_linear else "png"

    def describe(self) -> str:
        height, width = self.signal.shape
        depth = {torch.uint8: "8 bits", torch.uint16: "16 bits"}.get(self.signal.values.dtype, "linear floats")
        return f"{self.name}: {width}x{height}, {self.signal.n_channels} channels of {depth}"

    def write(self, path: Path, values: Tensor) -> None:
        """Writes stored values [H, W, C] as PNG with as many bits, or as EXR."""
        with atomic_path(path) as temporary:
            if self.is_linear:
                linear = {_EXR_NAMES[values.shape[-1]]: _linear(values).numpy()}
                exr = optional_import("OpenEXR")
                exr.File({"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}, linear).write(str(temporary))
            else:
                with open(temporary, "wb") as file:
                    write_png(file, values.numpy(), self.profile, unmultiply=self.has_alpha)

    def shown(self, values: Tensor) -> Tensor:
        """Stored values [h, W, C] as a screen shows them, uint8 [h, W, 3]: over white; floats in 0..1 as sRGB, what is
        brighter compressed (Reinhard et al. 2002, eq. 4, with the brightest white)."""
        if values.dtype == torch.uint8 and values.shape[-1] == 3:
            return values
        shown = torch.empty(*values.shape[:2], 3, dtype=torch.uint8)
        for start in range(0, len(values), ROWS):
            rows = values[start : start + ROWS]
            x = (rows.to(torch.int32) if rows.dtype == torch.uint16 else rows).float()
            if self.is_linear:
                x, white = _linear(x).clamp_(min=0), max(1.0, _linear(torch.tensor(self.signal.high)).item())
                x = _srgb(x * (1 + x / white**2) / (1 + x) if white > 1 else x)
            else:
                x = x / self.signal.high
            if self.has_alpha:
                x = x[..., :-1] + 1 - x[..., -1:].clamp(0, 1)
            shown[start : start + ROWS] = x.expand(*x.shape[:-1], 3).clamp(0, 1).mul(255).add(0.5).byte()
        return shown


_EXR_NAMES = {1: "Y", 3: "RGB", 4: "RGBA"}


def _linear(values: Tensor) -> Tensor:
    return values.sign() * values.abs().expm1()


def _srgb(linear: Tensor) -> Tensor:
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055)


def read_picture(path: Path, *, allow_huge: bool = False) -> Picture:
    """A picture of a file, turned as EXIF says; see :func:`hashgrid.data.images.read_photo`, and OpenEXR.

    Raises:
        PhotoError: the file is missing or not one picture.
    """
    if not path.is_file():
        raise PhotoError(f"`PHOTO` must be an image file, `{path}` does not exist")
    if path.suffix.lower() == ".exr":
        return Picture(path.name, _read_exr(path))
    pixels = read_photo(path, allow_huge=allow_huge)
    high = np.iinfo(pixels.dtype).max
    if pixels.shape[2] in (2, 4):
        for rows in np.array_split(pixels, max(1, len(pixels) // ROWS)):
            colours = rows[..., :-1].astype(np.uint32) * rows[..., -1:]
            rows[..., :-1] = (colours + high // 2) // high
    return Picture(path.name, Signal(torch.from_numpy(pixels), 0.0, float(high)), _profile(path))


def _profile(path: Path) -> bytes | None:
    """The ICC profile of RGB and grey files, whose colours are kept as they are; those of others were converted."""
    try:
        with open_photo(path, allow_huge=True) as image:
            return image.info.get("icc_profile") if image.mode not in ("CMYK", "LAB") else None
    except (OSError, ValueError):  # a file that another plugin reads
        return None


def _read_exr(path: Path) -> Signal:
    exr = optional_import("OpenEXR")
    try:
        with exr.File(str(path)) as file:
            channels = {name: channel.pixels for name, channel in file.channels().items()}
    except Exception as error:  # the library raises RuntimeError and worse
        raise PhotoError(f"`{path}` cannot be read as OpenEXR: {error}") from error
    name = next((name for name in ("RGBA", "RGB", "Y") if name in channels), None)
    if name is None:
        raise PhotoError(f"`{path}` must hold channels R, G, B or Y in its first part, got {', '.join(channels)}")
    pixels = torch.from_numpy(np.atleast_3d(channels[name]).astype(np.float32))
    if not pixels.isfinite().all():
        count = int((~pixels.isfinite()).sum())
        raise PhotoError(f"`{path}` must be finite, got {count} values that are not; replace them first")
    values = pixels.sign() * pixels.abs().log1p()
    return Signal(values, min(0.0, float(values.min())), max(float(values.max()), 1e-6))


def write_png(file: BinaryIO, pixels: np.ndarray, profile: bytes | None = None, unmultiply: bool = False) -> None:
    """Writes pixels [H, W, C] of uint8 or uint16 as PNG, some rows at a time; Pillow writes no colours of 16 bits.

    Args:
        file: open for writing.
        pixels: C as in :class:`Picture`.
        profile: ICC.
        unmultiply: whether colours are multiplied with alpha, which PNG does not want.
    """

    def chunk(kind: bytes, content: bytes) -> None:
        file.write(struct.pack(">I", len(content)) + kind + content)
        file.write(struct.pack(">I", zlib.crc32(kind + content)))

    height, width, n_channels = pixels.shape
    file.write(b"\x89PNG\r\n\x1a\n")
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[n_channels]
    chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, kind, 0, 0, 0))
    if profile is not None:
        chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))
    compressor = zlib.compressobj(6)
    above = np.zeros((1, width * n_channels * pixels.itemsize), np.uint8)
    for start in range(0, height, ROWS):
        rows = pixels[start : start + ROWS]
        if unmultiply:
            rows = _unmultiplied(rows)
        lines = np.ascontiguousarray(rows.astype(rows.dtype.newbyteorder(">"))).view(np.uint8).reshape(len(rows), -1)
        previous = np.concatenate((above, lines[:-1]))
        filtered = np.full((len(lines), 1 + lines.shape[1]), 2, np.uint8)  # each row less the one above it
        filtered[:, 1:] = lines - previous
        above = lines[-1:]
        if content := compressor.compress(filtered.tobytes()):
            chunk(b"IDAT", content)
    chunk(b"IDAT", compressor.flush())
    chunk(b"IEND", b"")


def _unmultiplied(rows: np.ndarray) -> np.ndarray:
    largest = np.iinfo(rows.dtype).max
    alpha = rows[..., -1:].astype(np.uint64)
    colours = (rows[..., :-1].astype(np.uint64) * largest + alpha // 2) // np.maximum(alpha, 1)
    return np.concatenate((np.minimum(colours, largest), alpha), axis=2).astype(rows.dtype)


def read_mask(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Which pixels of a grey picture are bright [H, W] bool; what is transparent is dark.

    Raises:
        SignalError: it is of another size, or everywhere the same.
    """
    picture = read_picture(path)
    if picture.signal.shape != tuple(shape):
        sizes = " and ".join(f"{w}x{h}" for h, w in (picture.signal.shape, shape))
        raise SignalError(f"`{path}`: a mask must have the size of the photo, got {sizes}")
    values = picture.signal.at(torch.arange(len(picture.signal)))
    mask = (values[:, : max(1, values.shape[1] - picture.has_alpha)].mean(1) > 0.5).view(shape)
    if mask.all() or not mask.any():
        raise SignalError(
            f"`{path}`: a mask must have bright and dark pixels, all are {'bright' if mask.any() else 'dark'}"
        )
    return mask


def generated_picture(width: int = 768, height: int = 512) -> Picture:
    """Rings, rays and waves with detail at every scale, three channels of 8 bits."""
    values = torch.empty(height, width, 3, dtype=torch.uint8)
    x = (torch.arange(width) + 0.5) / min(width, height) - 0.5 * width / min(width, height)
    for start in range(0, height, ROWS):
        y = (torch.arange(start, min(start + ROWS, height)) + 0.5 - 0.5 * height) / min(width, height)
        radius, angle = torch.hypot(x, y[:, None]), torch.atan2(y[:, None], x.expand(len(y), -1))
        waves = [torch.sin(160 * radius**2), torch.sin(9 * angle + 12 * radius), torch.sin(100 * x * y[:, None])]
        values[start : start + ROWS] = torch.stack(waves, dim=-1).mul(127.5).add(128).byte()
    return Picture("generated", Signal(values, 0.0, 255.0))
