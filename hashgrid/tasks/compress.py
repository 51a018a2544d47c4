"""``hashgrid image PHOTO --compress BPP``: a photo in a file of so many bits per pixel."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid.compress import container
from hashgrid.compress.container import Compressed
from hashgrid.compress.entropy import CodecError
from hashgrid.compress.photo import SUFFIX, decompress
from hashgrid.data.images import load_photo
from hashgrid.data.pictures import generated_picture
from hashgrid.data.signals import Signal
from hashgrid.fields.coin import Coin
from hashgrid.fields.compressed_grid import CompressedGrid, CompressedGridConfig
from hashgrid.train.config import RunConfig
from hashgrid.train.schedule import Schedule
from hashgrid.train.task import Progress, Report, Step, Task
from hashgrid.util.config import Config
from hashgrid.util.files import atomic_write_bytes, atomic_write_image
from hashgrid.util.metrics import psnr


@dataclass(frozen=True)
class CompressConfig(RunConfig):
    """Defaults of compression."""

    fields = {"grid": CompressedGrid, "coin": Coin}
    default_seconds = 180.0

    field: Config = CompressedGridConfig()
    compress: float = 0.3  # bits per pixel that the file has at most
    batch: int = 1 << 18  # pixels per step; all where there are no more
    learning_rate: float = 5e-3  # after the first steps
    final_learning_rate: float = 1e-4  # at the end of a run
    allow_huge: bool = False  # read photos of more than 179 million pixels

    def check(self) -> None:
        super().check()
        if not 0 < self.compress <= 24:
            raise ValueError(f"`compress` must be in (0, 24] bits per pixel, got {self.compress}")
        if self.batch < 1:
            raise ValueError(f"`batch` must be at least 1, got {self.batch}")


class Compress(Task):
    """Fits a field to a photo [H, W, 3] of sRGB colours, uint8, so that it is small in a file.

    Args:
        config: the recipe.
        photo: uint8 [H, W, 3].
        path: where it is from.

    Raises:
        CodecError: so few bits hold nothing.
    """

    name = "compress"
    Config = CompressConfig
    summary = "Fits a photo into a file of a given size, which `hashgrid decompress` reads, and says how good it is."
    source_help = "photo; it is read as 8 bits per channel; a drawn one if none"
    packages = ("PIL", "imageio.v3", "constriction")
    config: CompressConfig
    model: CompressedGrid | Coin

    def __init__(self, config: CompressConfig, photo: Tensor, path: Path = Path("photo")) -> None:
        super().__init__(config)
        self.photo, self.path = photo, path
        self.height, self.width = photo.shape[:2]
        container.check_size(self.width, self.height, config.allow_huge)
        self.n_bytes = int(config.compress * self.width * self.height / 8)  # of the file
        kind = CompressConfig.fields[config.field.name]
        model = kind(config.field, self.width, self.height, self.n_bytes, self.config.backend)
        self.model = model.to(self.config.device)
        self.signal = Signal(photo, 0.0, 255.0).to(self.device)
        self.model.begin(photo)
        first, last = (self.model.rate * rate for rate in (config.learning_rate, config.final_learning_rate))
        self.schedule = Schedule(first, last, power=2.0, warmup_steps=0)

    @classmethod
    def make(cls, config: CompressConfig, source: Path | None, notes: dict[str, Any]) -> Compress:
        source = Path(notes["photo"]) if source is None and "photo" in notes else source
        if source is None:
            return cls(config, generated_picture().signal.values, Path("generated"))
        photo = load_photo(source, allow_huge=config.allow_huge)
        return cls(config, photo.mul_(255).add_(0.5).byte(), source)

    def describe(self) -> str:
        return f"{self.path.name}: {self.width}x{self.height}, {self.n_bytes} bytes for it"

    def notes(self) -> dict[str, Any]:
        return {"photo": str(self.path.resolve())} if self.path.is_file() else {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.model.parameters())}]

    def before_step(self, progress: Progress) -> None:
        self.model.update(progress.step, progress.fraction, self.n_bytes - container.overhead())

    def loss(self, progress: Progress) -> Step:
        config = self.config
        if len(self.signal) <= config.batch:
            index = torch.arange(len(self.signal), device=self.device)
        else:
            index = self.signal.draw(config.batch, config.seed, progress.step)
        mse = torch.nn.functional.mse_loss(self.model(self.signal.places(index)), self.signal.at(index))
        return Step(mse + self.model.penalty(), {"mse": mse.detach()}, {"samples": len(index)})

    def file(self) -> bytes:
        """The photo as it is known now, in at most the bytes that are asked for.

        Raises:
            CodecError: it does not fit.
        """
        payload = self.model.payload(self.n_bytes - container.overhead())
        data = container.pack(Compressed(self.model.method, self.width, self.height, payload))
        if len(data) > self.n_bytes:
            raise CodecError(f"`compress` must be at least {len(data) * 8 / len(self.signal):.4f}, the file is larger")
        return data

    def evaluate(self, report: Report) -> dict[str, Any]:
        path, begin = report.out / (self.path.stem + SUFFIX), time.perf_counter()
        atomic_write_bytes(path, self.file())
        written = time.perf_counter()
        decoded = decompress(path.read_bytes(), self.config.allow_huge)
        read = time.perf_counter()
        image = torch.from_numpy(decoded)
        atomic_write_image(report.out / "reconstruction.png", image)
        n_bytes = path.stat().st_size
        figures = {
            "photo": str(self.path), "width": self.width, "height": self.height, "method": self.model.method,
            "file": str(path), "bytes": n_bytes, "bpp": 8 * n_bytes / len(self.signal),
            "psnr": psnr(image, self.photo),
            "psnr_as_trained": self.signal.psnr(self.signal.sampled(self.model)),  # not rounded as in a file
            "seconds_to_write": written - begin, "seconds_to_read": read - written,
        }  # fmt: skip
        report.say(f"{path}: {n_bytes} bytes, {figures['bpp']:.4f} bits per pixel, PSNR {figures['psnr']:.2f} dB")
        return figures
