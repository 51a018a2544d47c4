"""``hashgrid video``: colour as a function of position and time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid.data.videos import Video, generated_video, read_video
from hashgrid.tasks.signal import SignalConfig, SignalTask
from hashgrid.train.task import Report
from hashgrid.util.files import atomic_write_image
from hashgrid.util.pictures import write_comparison


@dataclass(frozen=True)
class VideoConfig(SignalConfig):
    """Defaults of fitting videos."""

    max_frames: int = 0  # to read at most; 0 for all
    downscale: int = 1  # frames are read so many times smaller
    frames_between: int = 0  # frames that are also written between each two, at as many times the rate

    def check(self) -> None:
        super().check()
        for name in ("max_frames", "frames_between"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}")
        if self.downscale < 1:
            raise ValueError(f"`downscale` must be at least 1, got {self.downscale}")


class VideoTask(SignalTask):
    """Fits a field to a video.

    Args:
        config: the recipe.
        video: what to fit.
        path: its file, if it has one.
    """

    name = "video"
    preview = "comparison.png"
    Config = VideoConfig
    summary = "Fits colour as a function of position and time to a video, and writes what was learned."
    source_help = "video: any file that FFmpeg reads; a generated one if none"
    packages = ("PIL", "imageio.v3", "imageio_ffmpeg")
    config: VideoConfig

    def __init__(self, config: VideoConfig, video: Video, path: Path | None = None) -> None:
        self.video, self.path = video, path
        super().__init__(config, video.signal)

    @classmethod
    def make(cls, config: VideoConfig, source: Path | None, notes: dict[str, Any]) -> VideoTask:
        source = Path(notes["video"]) if source is None and notes.get("video") else source
        video = generated_video() if source is None else read_video(source, config.max_frames, config.downscale)
        return cls(config, video, source)

    def describe(self) -> str:
        return self.video.describe()

    def notes(self) -> dict[str, Any]:
        return {"video": None if self.path is None else str(self.path.resolve())}

    def evaluate(self, report: Report) -> dict[str, Any]:
        values, truth = self.signal.sampled(self.model), self.signal.values.cpu()
        figures = {"video": str(self.path or "generated"), "frames": len(values), **self.quality(values)}
        middle = len(values) // 2
        write_comparison(report.out / "comparison.png", truth[middle], values[middle], f"frame {middle}")
        atomic_write_image(report.out / "reconstruction.png", values[middle])
        if not report.interrupted:
            self.video.write(report.out / "reconstruction.mp4", values)
            if self.config.frames_between:
                frames = self.between(self.config.frames_between)
                rate = self.video.rate * (self.config.frames_between + 1)
                self.video.write(report.out / "interpolated.mp4", frames, rate)
        report.say(f"{self.describe()}, PSNR {figures['psnr']:.2f} dB")
        return figures

    @torch.no_grad()
    def between(self, n: int) -> Tensor:
        """The frames that were learned with ``n`` further ones between each two, uint8
        [(T - 1) (n + 1) + 1, H, W, 3]."""
        n_frames, height, width = self.signal.shape
        index = torch.arange(height * width, device=self.device)
        xy = self.signal.places(index)[:, :2]
        times = torch.arange((n_frames - 1) * (n + 1) + 1, device=self.device) / (n + 1)
        frames = torch.empty(len(times), height, width, 3, dtype=torch.uint8)
        for frame, time in zip(frames, (times + 0.5) / n_frames, strict=True):
            output = [self.model(torch.cat([part, time.expand(len(part), 1)], dim=1)) for part in xy.split(1 << 16)]
            frame.copy_(self.signal.stored(torch.cat(output)).view(height, width, 3))
        return frames
