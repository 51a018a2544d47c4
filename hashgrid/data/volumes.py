"""Volumes as signals: NumPy arrays, NIfTI, stacks of TIFF pages; and a generated one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.signals import Signal, SignalError
from hashgrid.util.files import atomic_path
from hashgrid.util.optional import optional_import

SUFFIXES = (".npy", ".nii", ".nii.gz", ".tif", ".tiff")


@dataclass
class Volume:
    """Densities [D, H, W, 1] of any dtype; the place in the world of voxel (k, j, i) is ``affine @ (k, j, i, 1)``."""

    name: str
    signal: Signal
    affine: np.ndarray = field(default_factory=lambda: np.eye(4))
    header: Any = None  # of NIfTI, written again

    def describe(self) -> str:
        depth, height, width = self.signal.shape
        return f"{self.name}: {width}x{height}x{depth} voxels of {str(self.signal.values.dtype).removeprefix('torch.')}"

    @property
    def extension(self) -> str:
        """Of the format it is written in."""
        return "npy" if self.header is None else "nii.gz"

    def write(self, path: Path, values: Tensor) -> None:
        """Writes stored values [D, H, W, 1] in their dtype."""
        array = values.squeeze(-1).numpy()
        with atomic_path(path) as temporary:
            if self.header is None:
                np.save(temporary, array)
            else:
                nibabel = optional_import("nibabel")
                nibabel.Nifti1Image(array, self.affine, self.header).to_filename(temporary)


def read_volume(path: Path) -> Volume:
    """A volume of a file.

    Raises:
        SignalError: the file is missing, is none of these formats, or holds no numbers in three dimensions.
    """
    if not path.is_file():
        raise SignalError(f"`VOLUME` must be a file, one of {', '.join(SUFFIXES)}; `{path}` does not exist")
    name, affine, header = path.name.lower(), np.eye(4), None
    if not name.endswith(SUFFIXES):
        raise SignalError(f"`VOLUME` must be one of {', '.join(SUFFIXES)}, got `{path}`")
    try:
        if name.endswith(".npy"):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        elif name.endswith((".nii", ".nii.gz")):
            image = optional_import("nibabel").load(path)
            array, affine, header = np.asanyarray(image.dataobj), image.affine, image.header
        else:
            array = optional_import("tifffile").imread(path)
    except ImportError:
        raise
    except Exception as error:  # every library raises its own kinds
        raise SignalError(f"`{path}` cannot be read as a volume: {error}") from error
    array = array[..., 0] if array.ndim == 4 and array.shape[3] == 1 else array
    if array.ndim != 3 or not array.size:
        raise SignalError(f"`{path}` must hold an array [D, H, W], got shape {list(array.shape)}")
    if array.dtype.kind not in "uifb":
        raise SignalError(f"`{path}` must hold real numbers, got {array.dtype}")
    return Volume(path.name, signal_of(array), np.asarray(affine), header)


def signal_of(array: np.ndarray) -> Signal:
    """An array [D, H, W] of real numbers as a signal whose range is shown as 0..1."""
    if array.dtype not in (np.uint8, np.uint16, np.int16):
        array = array.astype(np.float32)
    values = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="))[..., None])
    low, high = float(array.min()), float(array.max())
    return Signal(values, low, high if high > low else low + 1.0)


def generated_volume(size: int = 128) -> Volume:
    """A gyroid in a ball, the walls between its two labyrinths, smooth over two voxels: floats in 0..1."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    a, b, c = 7 * x, 7 * y, 7 * z
    wall = (a.sin() * b.cos() + b.sin() * c.cos() + c.sin() * a.cos()).abs() - 0.5
    distance = torch.maximum(wall / 9, (x * x + y * y + z * z).sqrt() - 0.85)
    return Volume("generated", Signal((0.5 - 0.5 * (distance * size / 4).clamp(-1, 1))[..., None]))
