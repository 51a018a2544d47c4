"""Pictures of what a field has learned of a picture: errors, the middle beside the truth, the middle enlarged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hashgrid.data.pictures import Picture
from hashgrid.data.signals import CHUNK
from hashgrid.util.files import atomic_write_image
from hashgrid.util.metrics import SSIM_WINDOW, ssim
from hashgrid.util.pictures import GAP, colorize, write_comparison

DETAIL = 256  # pixels along the sides of the middle that is shown beside the truth
ERROR_SCALE = 0.1  # mean absolute error that is shown brightest


def write_picture_views(
    out: Path, picture: Picture, values: Tensor, field: Callable[[Tensor], Tensor], zoom: int = 0
) -> dict[str, float]:
    """Writes ``error.png`` and ``detail.png``, with ``zoom`` above 1 ``zoom.png``, of a picture of floats one to look
    at; returns SSIM where the picture is large enough. ``values`` [H, W, C] are stored ones."""
    shown, truth = picture.shown(values), picture.shown(picture.signal.values.cpu())
    atomic_write_image(out / "error.png", error_picture(picture, values))
    middle = tuple(slice((n - min(n, DETAIL)) // 2, (n + min(n, DETAIL)) // 2) for n in shown.shape[:2])
    write_comparison(out / "detail.png", truth[middle], shown[middle], error_scale=ERROR_SCALE)
    if picture.is_linear:
        atomic_write_image(out / "reconstruction.png", shown)
    if zoom > 1:
        atomic_write_image(out / "zoom.png", enlarged(picture, truth, field, zoom))
    return {"ssim": ssim(shown, truth)} if min(shown.shape[:2]) >= SSIM_WINDOW else {}


def error_picture(picture: Picture, values: Tensor) -> Tensor:
    """Mean absolute error per pixel as a colour image [H, W, 3], uint8."""
    colours = torch.empty(len(picture.signal), 3, dtype=torch.uint8)
    for index, difference in picture.signal.differences(values):
        colours[index] = (colorize(difference.abs().mean(-1) / ERROR_SCALE) * 255 + 0.5).byte()
    return colours.view(*picture.signal.shape, 3)


@torch.no_grad()
def enlarged(picture: Picture, truth: Tensor, field: Callable[[Tensor], Tensor], zoom: int) -> Tensor:
    """The middle, as large as the picture, uint8 [H, 2 W + gap, 3]: ``truth`` [H, W, 3] bicubic, and the field."""
    height, width = picture.signal.shape
    device = picture.signal.values.device
    y = 0.5 + ((torch.arange(height) + 0.5) / height - 0.5) / zoom
    x = 0.5 + ((torch.arange(width) + 0.5) / width - 0.5) / zoom
    pixels, fine, coarse = truth.permute(2, 0, 1)[None].float(), [], []
    for rows in y.split(max(1, CHUNK // width)):
        grid = torch.stack(torch.meshgrid(x, rows, indexing="xy"), dim=-1)  # [rows, W, 2]
        output = field(grid.view(-1, 2).to(device)).cpu().view(len(rows), width, -1)
        fine.append(picture.shown(picture.signal.stored(output)))
        bicubic = torch.nn.functional.grid_sample(
            pixels, 2 * grid[None] - 1, mode="bicubic", padding_mode="border", align_corners=False
        )
        coarse.append(bicubic[0].permute(1, 2, 0).clamp(0, 255).add(0.5).byte())
    gap = torch.full((height, GAP, 3), 255, dtype=torch.uint8)
    return torch.cat([torch.cat(coarse), gap, torch.cat(fine)], dim=1)
