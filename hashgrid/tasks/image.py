"""``hashgrid image``: colour as a function of pixel position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hashgrid.data.pictures import Picture, generated_picture, read_mask, read_picture
from hashgrid.data.signals import CHUNK, SignalError
from hashgrid.tasks.signal import SignalConfig, SignalTask
from hashgrid.train.task import Progress, Report, Step
from hashgrid.util.files import atomic_write_image
from hashgrid.util.metrics import ssim
from hashgrid.util.pictures import GAP, colorize, write_comparison

DETAIL = 256  # pixels along the sides of the middle that is shown beside the truth
ERROR_SCALE = 0.1  # mean absolute error that is shown brightest


@dataclass(frozen=True)
class ImageConfig(SignalConfig):
    """Defaults of image fitting."""

    allow_huge: bool = False  # read photos of more than 179 million pixels
    inpaint: Path | None = None  # mask: what is bright in it is filled in, not learned
    paste: Path | None = None  # photo that is pasted where `mask` is bright, without seams (Pérez et al. 2003)
    mask: Path | None = None  # where `paste` goes
    domain: Literal["values", "gradients", "laplacian"] = "values"  # of pixels: what is learned
    zoom: int = 0  # also write the middle, so many times larger

    def check(self) -> None:
        super().check()
        if (self.paste is None) != (self.mask is None):
            raise ValueError(f"`paste` and `mask` must be given together, got {self.paste} and {self.mask}")
        if self.paste is not None and (self.domain != "values" or self.inpaint is not None):
            raise ValueError("`paste` goes with neither `domain` nor `inpaint`: it is their combination; give one")
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
    summary = "Fits colour as a function of position to a photo, and writes what was learned and where it errs."
    source_help = "photo: 8 or 16 bits, or OpenEXR; a drawn one if none"
    config: ImageConfig

    def __init__(self, config: ImageConfig, picture: Picture, path: Path | None = None) -> None:
        self.picture, self.path, shape = picture, path, picture.signal.shape
        if config.inpaint is not None:
            picture.signal.known = (~read_mask(config.inpaint, shape)).view(-1).nonzero().squeeze(1)
        if config.domain == "laplacian" and config.knows("max_resolution"):  # coarser cells have none inside
            config = config.replace(max_resolution=getattr(config.field, "max_resolution", 0) or max(shape))
        super().__init__(config, picture.signal)
        self.pasted, self.inside = None, torch.ones(len(self.signal), dtype=torch.bool, device=self.device)
        if config.paste is not None and config.mask is not None:
            other = read_picture(config.paste)
            if other.signal.values.shape != picture.signal.values.shape or other.is_linear != picture.is_linear:
                raise SignalError(f"`paste` must be like the photo, got {other.describe()} beside {picture.describe()}")
            self.pasted = other.signal.to(self.device)
            self.inside = read_mask(config.mask, shape).view(-1).to(self.device)

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
            return super().loss(progress)
        signal, index = self.signal, self.signal.draw(config.batch, config.seed, progress.step)
        source = self.pasted or signal
        ahead, exists = signal.neighbours(index, 1)
        behind, exists_behind = signal.neighbours(index, -1)
        neighbours = [ahead] if config.domain != "laplacian" else [ahead, behind]
        sites = torch.cat([index[:, None], *neighbours], dim=1)  # [N, 1 + D or 1 + 2 D]
        output = self.model(signal.places(sites.view(-1))).view(*sites.shape, -1)
        errors = output - source.at(sites.view(-1)).view_as(output)
        differences = errors[:, 1:] - errors[:, :1]  # their errors are differences of errors
        if config.domain == "laplacian":
            differences = differences.sum(dim=1, keepdim=True)
            exists = (exists & exists_behind).all(dim=1, keepdim=True)
        inside = self.inside[index]
        exists = exists & inside[:, None]
        loss = (differences.square().mean(-1) * exists).sum() / exists.sum().clamp_min(1)
        terms = {"mse_of_differences": loss.detach()}
        if self.pasted is not None:  # what is around it stays as it is
            around = (output[:, 0] - signal.at(index)).square().mean(-1)
            loss = loss + (around * ~inside).sum() / (~inside).sum().clamp_min(1)
        return Step(loss, terms, {"samples": sites.numel()})

    def evaluate(self, report: Report) -> dict[str, Any]:
        values = self.signal.sampled(self._levelled())
        self.picture.write(report.out / f"reconstruction.{self.picture.extension}", values)
        height, width = self.signal.shape
        figures = {"photo": str(self.path or "generated"), "width": width, "height": height}
        figures |= self.quality(values, None if self.pasted is None else ~self.inside)
        atomic_write_image(report.out / "error.png", self._errors(values))
        shown, truth = self.picture.shown(values), self.picture.shown(self.signal.values.cpu())
        if self.picture.is_linear:
            atomic_write_image(report.out / "reconstruction.png", shown)
        middle = tuple(slice((n - min(n, DETAIL)) // 2, (n + min(n, DETAIL)) // 2) for n in shown.shape[:2])
        write_comparison(report.out / "detail.png", truth[middle], shown[middle], error_scale=ERROR_SCALE)
        if min(height, width) > 10 and self.pasted is None:
            figures["ssim"] = ssim(shown, truth)
        if self.config.zoom > 1:
            atomic_write_image(report.out / "zoom.png", self._zoomed(truth))
        report.say(f"{self.describe()}, PSNR {figures['psnr']:.2f} dB")
        return figures

    @torch.no_grad()
    def _levelled(self) -> Callable[[Tensor], Tensor]:
        """The field; where differences alone were learned, ``a f + b`` of each channel that is nearest to the picture:
        they say nothing of the level, and Laplacians nothing of what is harmonic."""
        if self.config.domain == "values":
            return self.model
        index = self.signal.draw(min(len(self.signal), 1 << 16), self.config.seed, -1)
        output, target = self.model(self.signal.places(index)), self.signal.at(index)
        centred = output - output.mean(0)
        slope = (centred * target).sum(0) / centred.square().sum(0).clamp_min(1e-12)
        offset = target.mean(0) - slope * output.mean(0)
        return lambda x: slope * self.model(x) + offset

    def _errors(self, values: Tensor) -> Tensor:
        """Mean absolute error per pixel as a colour image [H, W, 3], uint8."""
        colours = torch.empty(len(self.signal), 3, dtype=torch.uint8)
        for index, difference in self.signal.differences(values):
            colours[index] = (colorize(difference.abs().mean(-1) / ERROR_SCALE) * 255 + 0.5).byte()
        return colours.view(*self.signal.shape, 3)

    @torch.no_grad()
    def _zoomed(self, truth: Tensor) -> Tensor:
        """The middle, as large as the picture: bicubic, and of the field, side by side [H, 2 W + gap, 3]."""
        height, width, zoom = *self.signal.shape, self.config.zoom
        y = 0.5 + ((torch.arange(height) + 0.5) / height - 0.5) / zoom
        x = 0.5 + ((torch.arange(width) + 0.5) / width - 0.5) / zoom
        field, fine, coarse = self._levelled(), [], []
        pixels = truth.permute(2, 0, 1)[None].float()
        for rows in y.split(max(1, CHUNK // width)):
            grid = torch.stack(torch.meshgrid(x, rows, indexing="xy"), dim=-1)
            output = field(grid.view(-1, 2).to(self.device)).cpu().view(len(rows), width, -1)
            fine.append(self.picture.shown(self.signal.stored(output)))
            bicubic = torch.nn.functional.grid_sample(
                pixels, 2 * grid[None] - 1, mode="bicubic", padding_mode="border", align_corners=False
            )
            coarse.append(bicubic[0].permute(1, 2, 0).clamp(0, 255).add(0.5).byte())
        gap = torch.full((height, GAP, 3), 255, dtype=torch.uint8)
        return torch.cat([torch.cat(coarse), gap, torch.cat(fine)], dim=1)
