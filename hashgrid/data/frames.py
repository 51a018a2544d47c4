"""Sharp frames of a video: `pip install 'torch-hashgrid[colmap]'`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from hashgrid.data.errors import SceneError
from hashgrid.util.files import atomic_write_image
from hashgrid.util.optional import optional_import

PIXELS = 640  # longer side of frames whose sharpness is compared


def sharp_frames(video: Path, out: Path, n_frames: int) -> list[Path]:
    """Writes ``n_frames`` frames of a video, or all if there are fewer: of as many parts of equal length the sharpest
    one, by the variance of its Laplacian.

    Raises:
        SceneError: the file is missing, or no video.
    """
    if n_frames < 3:
        raise ValueError(f"`frames` must be at least 3, got {n_frames}")
    scores = [_sharpness(frame) for frame in _frames(video)]
    if not scores:
        raise SceneError(f"`{video}` must hold at least one frame, got none")
    parts = np.array_split(np.arange(len(scores)), min(n_frames, len(scores)))
    chosen = {int(part[np.argmax([scores[i] for i in part])]) for part in parts}
    written = []
    for i, frame in enumerate(_frames(video)):
        if i in chosen:
            file = out / f"frame_{i:05d}.png"
            atomic_write_image(file, torch.from_numpy(frame))
            written.append(file)
    return written


def _frames(video: Path) -> Iterator[np.ndarray]:
    """Frames [H, W, 3] uint8 of a file, one after the other."""
    if not video.is_file():
        raise SceneError(f"`{video}` must be a video file, it does not exist")
    av = optional_import("av")
    try:
        with av.open(str(video)) as container:
            if not container.streams.video:
                raise SceneError(f"`{video}` must hold a video, it holds none")
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
    except av.error.FFmpegError as error:
        raise SceneError(f"`{video}` cannot be read as a video: {error}") from error


def _sharpness(frame: np.ndarray) -> float:
    step = max(1, max(frame.shape[:2]) // PIXELS)
    grey = frame[::step, ::step].astype(np.float32).mean(axis=2)
    laplacian = grey[1:-1, 2:] + grey[1:-1, :-2] + grey[2:, 1:-1] + grey[:-2, 1:-1] - 4 * grey[1:-1, 1:-1]
    return float(laplacian.var())
