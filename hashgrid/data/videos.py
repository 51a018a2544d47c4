"""Videos as signals: any file that FFmpeg reads, a folder of pictures is none; and a generated one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.signals import Signal, SignalError
from hashgrid.util.optional import optional_import
from hashgrid.util.pictures import write_video


@dataclass
class Video:
    """Frames [T, H, W, 3], sRGB of 8 bits."""

    name: str
    signal: Signal
    rate: float  # frames per second

    def describe(self) -> str:
        n, height, width = self.signal.shape
        return f"{self.name}: {n} frames of {width}x{height} at {self.rate:g} per second"

    def write(self, path: Path, frames: Tensor, rate: float | None = None) -> None:
        """Writes frames [T, H, W, 3] as H.264, cropped to even sides."""
        height, width = (size // 2 * 2 for size in frames.shape[1:3])
        write_video(path, iter(frames[:, :height, :width]), max(1, round(rate or self.rate)), len(frames))


def read_video(path: Path, max_frames: int = 0, downscale: int = 1) -> Video:
    """The frames of a file, ``max_frames`` at most if positive, each ``downscale`` times smaller by averaging.

    Raises:
        SignalError: the file is missing, or holds no frame that can be decoded.
    """
    if not path.is_file():
        raise SignalError(f"`VIDEO` must be a video file, `{path}` does not exist")
    av = optional_import("av")
    frames: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise SignalError(f"`{path}` must hold a video, it holds none")
            rate = float(container.streams.video[0].average_rate or 25)
            for frame in container.decode(video=0):
                pixels = frame.to_ndarray(format="rgb24")
                if frames and pixels.shape[0] // downscale != frames[0].shape[0]:
                    raise SignalError(f"`{path}`: frames must all have one size, got {pixels.shape[:2]} later")
                frames.append(_reduced(pixels, downscale, path))
                if len(frames) == max_frames:
                    break
    except av.error.FFmpegError as error:
        raise SignalError(f"`{path}` cannot be read as a video: {error}") from error
    if not frames:
        raise SignalError(f"`{path}` must hold at least one frame, got none")
    return Video(path.name, Signal(torch.from_numpy(np.stack(frames)), 0.0, 255.0), rate)


def _reduced(pixels: np.ndarray, factor: int, path: Path) -> np.ndarray:
    if factor == 1:
        return pixels
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    if not height or not width:
        raise SignalError(
            f"`downscale` {factor} leaves nothing of frames of {pixels.shape[1]}x{pixels.shape[0]}, `{path}`"
        )
    blocks = pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return (blocks.mean(axis=(1, 3)) + 0.5).astype(np.uint8)


def generated_video(n_frames: int = 48, size: int = 256) -> Video:
    """Balls that bounce before turning stripes: things that move, appear and hide others."""
    y, x = np.meshgrid((np.arange(size) + 0.5) / size, (np.arange(size) + 0.5) / size, indexing="ij")
    colours = np.array([[0.9, 0.3, 0.2], [0.2, 0.6, 0.9], [0.95, 0.8, 0.2], [0.3, 0.8, 0.4]])
    frames = np.empty((n_frames, size, size, 3), np.uint8)
    for i in range(n_frames):
        t = i / max(n_frames, 48)
        angle = 1.5 * t
        across = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)
        stripes = 0.5 + 0.25 * np.sin(70 * across) * np.sin(20 * (x + y) + 4 * t)
        frame = stripes[..., None] * np.array([0.8, 0.75, 0.9])
        for k, colour in enumerate(colours):
            cx = 0.5 + 0.38 * np.sin(2 * np.pi * (1 + 0.5 * k) * t + k)
            cy = 0.85 - 0.6 * np.abs(np.sin(np.pi * (2 + k) * t + 0.7 * k))
            radius = 0.09 + 0.02 * k
            distance = np.hypot(x - cx, y - cy)
            light = np.clip(1.1 - np.hypot(x - cx + 0.3 * radius, y - cy + 0.3 * radius) / (1.6 * radius), 0.15, 1)
            cover = np.clip((radius - distance) * size, 0, 1)[..., None]
            texture = 1 + 0.15 * np.sign(np.sin(60 * (x - cx)) * np.sin(60 * (y - cy)))
            frame = frame * (1 - cover) + cover * colour * (light * texture)[..., None]
        frames[i] = (frame.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return Video("generated", Signal(torch.from_numpy(frames), 0.0, 255.0), 24.0)
