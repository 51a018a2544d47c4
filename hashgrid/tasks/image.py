"""``hashgrid image``: colour as a function of pixel position."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from hashgrid.data.differences import bending, difference_error, levelled
from hashgrid.data.pictures import Picture, generated_picture, read_mask, read_picture
from hashgrid.data.signals import Signal, SignalError
from hashgrid.rendering.picture_views import write_picture_views
from hashgrid.tasks.signal import SignalConfig, SignalTask
from hashgrid.train.config import RunConfig
from hashgrid.train.task import Progress, Report, Step


@dataclass(frozen=True)
class ImageConfig(SignalConfig):
    """Defaults of image fitting."""

    allow_huge: bool = False  # read photos of more than 179 million pixels
    inpaint: Path | None = None  # mask: what is bright in it is filled in, not learned
    paste: Path | None = None  # photo that is pasted where `mask` is bright, without seams (Pérez et al. 2003)
    mask: Path | None = None  # where `paste` goes
    domain: Literal["values", "gradients", "laplacian"] = "values"  # of pixels: what is learned
    smoothness: float = 0.0  # weight of bending between pixels; .03 with `keep` or `inpaint`
    zoom: int = 0  # also write the middle, so many times larger

    def check(self) -> None:
        super().check()
        if (self.paste is None) != (self.mask is None):
            raise ValueError(f"`paste` and `mask` must be given together, got {self.paste} and {self.mask}")
        if self.paste is not None and (self.domain != "values" or self.inpaint is not None):
            raise ValueError("`paste` goes with neither `domain` nor `inpaint`: it is their combination; give one")
        if self.smoothness < 0 or (self.smoothness > 0 and (self.domain != "values" or self.paste is not None)):
            raise ValueError(f"`smoothness` must be at least 0, and is for values alone, got {self.smoothness}")
        if self.zoom < 0:
            raise ValueError(f"`zoom` must be at least 0, got {self.zoom}")


class Image(SignalTask):
    """Fits a field to a picture.

    Args:
        config: the recipe.
        picture: what to fit.
        path: its file, if it has one.
    """

    name = "image"
    preview = "detail.png"
    Config = ImageConfig
    summary = (
        "Fits colour as a function of position to a photo, and writes what was learned and where it errs."
        " With --compress BPP it writes a small file instead: hashgrid compress --help."
    )
    source_help = "photo: 8 or 16 bits, or OpenEXR; a drawn one if none"
    config: ImageConfig

    def __init__(self, config: ImageConfig, picture: Picture, path: Path | None = None) -> None:
        self.picture, self.path, shape = picture, path, picture.signal.shape
        if config.inpaint is not None:
            picture.signal.known = (~read_mask(config.inpaint, shape)).view(-1).nonzero().squeeze(1)
        if config.domain == "laplacian" and config.knows("max_resolution"):  # coarser cells have none inside
            config = config.replace(max_resolution=getattr(config.field, "max_resolution", 0) or max(shape))
        super().__init__(config, picture.signal)
        self.pasted: Signal | None = None  # where `inside` [pixels] is true
        if config.paste is not None and config.mask is not None:
            other = read_picture(config.paste)
            if other.signal.values.shape != picture.signal.values.shape or other.is_linear != picture.is_linear:
                raise SignalError(f"`paste` must be like the photo, got {other.describe()} beside {picture.describe()}")
            self.pasted = other.signal.to(self.device)
            self.inside = read_mask(config.mask, shape).view(-1).to(self.device)

    @classmethod
    def defaults(cls, field: str | None, device: torch.device, given: set[str]) -> RunConfig:
        config = super().defaults(field, device, given)
        return config.replace(smoothness=0.03) if given & {"--keep", "--inpaint"} else config

    @classmethod
    def make(cls, config: ImageConfig, source: Path | None, notes: dict[str, Any]) -> Image:
        source = Path(notes["photo"]) if source is None and notes.get("photo") else source
        picture = generated_picture() if source is None else read_picture(source, allow_huge=config.allow_huge)
        return cls(config, picture, source)

    def describe(self) -> str:
        return self.picture.describe()

    def notes(self) -> dict[str, Any]:
        return {"photo": None if self.path is None else str(self.path.resolve())}

    def loss(self, progress: Progress) -> Step:
        config = self.config
        if config.domain == "values" and self.pasted is None:
            step = super().loss(progress)
            side = min(64, *self.signal.shape)
            if config.smoothness == 0 or side < 3:  # no pixel has neighbours all around
                return step
            n_patches = max(1, config.batch // side**2)
            patches = self.signal.draw_patches(n_patches, side, config.seed + 1, progress.step)
            bent = bending(self.model, self.signal, patches)
            return step._replace(loss=step.loss + config.smoothness * bent)
        index = self.signal.draw(config.batch, config.seed, progress.step)
        laplacian = config.domain == "laplacian"
        if self.pasted is None:
            source, inside = self.signal, torch.ones_like(index, dtype=torch.bool)
        else:
            source, inside = self.pasted, self.inside[index]
        loss, around = difference_error(self.model, self.signal, source, index, inside, laplacian)
        terms = {"mse_of_differences": loss.detach()}
        if self.pasted is not None:  # what is around it stays as it is
            loss = loss + (around * ~inside).sum() / (~inside).sum().clamp_min(1)
        return Step(loss, terms, {"samples": config.batch})

    def evaluate(self, report: Report) -> dict[str, Any]:
        field: Any = self.model
        if self.config.domain != "values":
            some = self.signal.draw(min(len(self.signal), 1 << 16), self.config.seed, 0, everywhere=True)
            field = levelled(field, self.signal, some)
        values = self.signal.sampled(field)
        self.picture.write(report.out / f"reconstruction.{self.picture.extension}", values)
        height, width = self.signal.shape
        figures = {"photo": str(self.path or "generated"), "width": width, "height": height}
        figures |= self.quality(values, None if self.pasted is None else ~self.inside)
        figures |= write_picture_views(report.out, self.picture, values, field, self.config.zoom)
        report.say(f"{self.describe()}, PSNR {figures['psnr']:.2f} dB")
        return figures
