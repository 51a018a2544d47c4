"""Rendering and scoring the test views."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hashgrid.data.scene import Views
from hashgrid.fields.ngp import NerfModel
from hashgrid.nerf import report
from hashgrid.nn import OccupancyGrid
from hashgrid.rendering.volume import Marching, render_view
from hashgrid.util.metrics import psnr, ssim


@dataclass(frozen=True)
class ViewScore:
    """One test view: its name, PSNR in dB and SSIM."""

    view: str
    psnr: float
    ssim: float


def evaluate(
    model: NerfModel,
    occupancy: OccupancyGrid,
    views: Views,
    marching: Marching,
    background: torch.Tensor,
    out: Path | None = None,
    indices: Sequence[int] | None = None,
    on_view: Callable[[ViewScore], None] | None = None,
) -> tuple[list[ViewScore], float]:
    """Scores of the views (all, or ``indices``) and the seconds that took.

    With ``out``, writes for each view ``renders/NAME.png``, ``comparisons/NAME.png`` (truth | render | error) and
    ``depth/NAME.png``, with the names of :func:`hashgrid.nerf.report.picture_names`. PSNR is that of the 8-bit image
    clipped to [0, 1], so that it can be repeated from the files. Masked pixels are not scored: a view without any other
    has NaN.
    """
    begin = time.perf_counter()
    scores, pictures = [], report.picture_names(views.names)
    cameras = views.select(range(len(views))).to(model.aabb.device)
    for view in range(len(views)) if indices is None else indices:
        color, opacity, depth = render_view(model, occupancy, cameras, view, marching, background)
        color = (color * 255).round() / 255
        truth = views.image_rgb(view, background)
        mask = views.mask(view)
        score = ViewScore(views.names[view], psnr(color, truth, mask), ssim(color, truth, mask))
        scores.append(score)
        if out is not None:  # not in a thread: beside the kernels' threads it made two cores three times slower
            report.write_view(out, pictures[view], truth, color, opacity, depth)
        if on_view is not None:
            on_view(score)
    return scores, time.perf_counter() - begin
