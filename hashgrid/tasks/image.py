"""``hashgrid image``: colour as a function of pixel position."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hashgrid.data.images import load_photo
from hashgrid.fields.coordinate import CoordinateConfig, CoordinateField
from hashgrid.train.config import RunConfig
from hashgrid.train.schedule import Schedule
from hashgrid.train.task import Progress, Report, Step, Task
from hashgrid.util.files import atomic_write_image
from hashgrid.util.metrics import psnr
from hashgrid.util.pictures import colorize

CHUNK = 1 << 16  # pixels of the reconstruction that are evaluated together
ERROR_SCALE = 0.1  # mean absolute error that is shown brightest


@dataclass(frozen=True)
class ImageConfig(RunConfig):
    """Defaults of image fitting: Instant-NGP's recipe (Müller et al. 2022) with a batch for a few CPU cores."""

    fields = {"mlp": CoordinateField}
    default_steps = 2000

    field: CoordinateConfig = CoordinateConfig(max_resolution=0)
    batch: int = 1 << 15  # pixels per step
    learning_rate: float = 1e-2  # after the first steps
    final_learning_rate: float = 1e-4  # at the end of a run
    allow_huge: bool = False  # read photos of more than 179 million pixels


class Image(Task):
    """Fits a field to a photo [H, W, 3] of sRGB colours in [0, 1]."""

    name = "image"
    Config = ImageConfig
    summary = "Fits colour as a function of position to a photo, and writes what was learned and where it errs."
    source_help = "photo"
    packages = ("PIL", "imageio.v3")
    config: ImageConfig

    def __init__(self, config: ImageConfig, image: Tensor, photo: Path = Path("image")) -> None:
        self.photo, self.image = photo, image
        self.height, self.width = image.shape[:2]
        if config.field.max_resolution == 0:  # cells of half a pixel less would be noise
            finest = max(self.width, self.height) // 2
            config = config.replace(max_resolution=max(finest, config.field.base_resolution))
        super().__init__(config)
        config = self.config
        self.model = CoordinateField(config.field, 2, 3, config.backend).to(config.device)
        self.schedule = Schedule(config.learning_rate, config.final_learning_rate, power=2.0, warmup_steps=0)
        self.pixels = image.reshape(-1, 3).to(self.device)

    @classmethod
    def make(cls, config: ImageConfig, source: Path | None, notes: dict[str, Any]) -> Image:
        source = Path(notes["photo"]) if source is None and "photo" in notes else source
        if source is None:
            raise ValueError("`SOURCE` must be a photo, got none")
        return cls(config, load_photo(source, allow_huge=config.allow_huge), source)

    def describe(self) -> str:
        return f"{self.photo.name}: {self.width}x{self.height}"

    def notes(self) -> dict[str, Any]:
        return {"photo": str(self.photo.resolve())}

    def loss(self, progress: Progress) -> Step:
        config = self.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + progress.step)
        index = torch.randint(len(self.pixels), (config.batch,), generator=generator).to(self.device)
        loss = nn.functional.mse_loss(self.model(self._centres(index)), self.pixels[index])
        return Step(loss, {"mse": loss.detach()}, {"samples": config.batch})

    @torch.no_grad()
    def reconstruct(self) -> Tensor:
        """The image [H, W, 3] that was learned, clipped to [0, 1], on the CPU."""
        image = torch.empty(self.width * self.height, 3)
        for start in range(0, len(image), CHUNK):
            pixel = torch.arange(start, min(start + CHUNK, len(image)), device=self.device)
            image[start : start + CHUNK] = self.model(self._centres(pixel))
        return image.clamp_(0, 1).view(self.height, self.width, 3)

    def evaluate(self, report: Report) -> dict[str, Any]:
        rendered = self.reconstruct()
        result = psnr(rendered, self.image)
        atomic_write_image(report.out / "reconstruction.png", rendered)
        atomic_write_image(report.out / "error.png", error_map(rendered, self.image))
        report.say(f"{self.describe()}, PSNR {result:.2f} dB")
        return {"photo": str(self.photo), "width": self.width, "height": self.height, "psnr": result}

    def _centres(self, pixel: Tensor) -> Tensor:
        """Middles [N, 2] of pixels [N] in the unit square."""
        x = (pixel % self.width + 0.5) / self.width
        y = (torch.div(pixel, self.width, rounding_mode="floor") + 0.5) / self.height
        return torch.stack((x, y), dim=1)


def error_map(rendered: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error per pixel as a colour image [H, W, 3]."""
    image, n_rows = torch.empty_like(truth), 256  # at once: further copies of a gigapixel would not fit
    for start in range(0, len(truth), n_rows):
        rows = slice(start, start + n_rows)
        image[rows] = colorize((rendered[rows] - truth[rows]).abs().mean(dim=-1) / ERROR_SCALE)
    return image
