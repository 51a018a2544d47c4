"""Rendering test views and scoring them."""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from hashgrid.data.scene import Scene, Views
from hashgrid.fields.base import RadianceField
from hashgrid.rendering.samplers import Sampler
from hashgrid.rendering.volume import render_image
from hashgrid.util.files import atomic_write_csv
from hashgrid.util.metrics import psnr, ssim
from hashgrid.util.optional import optional_import
from hashgrid.util.pictures import hex_color, picture_names, write_view


def evaluate(
    field: RadianceField,
    sampler: Sampler,
    views: Views,
    background: Tensor,
    out: Path | None = None,
    n_views: int | None = None,
) -> dict[str, Any]:
    """Scores of the views (all, or ``n_views`` at most, evenly spread): ``psnr_mean``, ``ssim_mean``, ``views``,
    ``views_total``, ``seconds``.

    With ``out``, shows how far it is, and writes for each view ``renders/NAME.png``, ``comparisons/NAME.png`` (truth |
    render | error) and ``depth/NAME.png``, and ``test_views.csv`` for all. PSNR is that of the 8-bit image clipped to
    [0, 1], so that it can be repeated from the files. Masked pixels are not scored: a view without any other has NaN.
    """
    begin = time.perf_counter()
    scores: list[tuple[str, float, float]] = []
    pictures = picture_names(views.names)
    device = field.aabb.device
    cameras = views.select(range(len(views))).to(device)
    n = len(views) if n_views is None else min(n_views, len(views))
    indices = (i * len(views) // n for i in range(n))
    bar = optional_import("tqdm").tqdm(indices, desc="test views", unit="view", total=n, disable=out is None)
    for view in bar:
        color, opacity, depth = (x.cpu() for x in render_image(field, sampler, cameras, view, background.to(device)))
        color = (color * 255).round() / 255
        truth, mask = views.image_rgb(view, background), views.mask(view)
        scores.append((views.names[view], psnr(color, truth, mask), ssim(color, truth, mask)))
        if out is not None:  # not in a thread: beside the kernels' threads it made two cores three times slower
            write_view(out, pictures[view], truth, color, opacity, depth)
            mean = _spelled(_mean([score[1] for score in scores]), ".2f", " dB")
            bar.set_postfix_str(f"PSNR {mean}", refresh=False)
    if out is not None:
        rows = [(name, f"{view_psnr:.4f}", f"{view_ssim:.5f}") for name, view_psnr, view_ssim in scores]
        atomic_write_csv(out / "test_views.csv", ("view", "psnr", "ssim"), rows)
    return {
        "psnr_mean": _mean([score[1] for score in scores]),
        "ssim_mean": _mean([score[2] for score in scores]),
        "views": len(scores),
        "views_total": len(views),
        "seconds": time.perf_counter() - begin,
    }


def describe(test: dict[str, Any]) -> str:
    """Scores of :func:`evaluate` in one line."""
    psnr_mean, ssim_mean = _spelled(test["psnr_mean"], ".2f", " dB"), _spelled(test["ssim_mean"], ".4f")
    return f"{test['views']} test views: PSNR {psnr_mean}, SSIM {ssim_mean} in {test['seconds']:.1f} s"


def protocol(scene: Scene, background: str) -> dict[str, str]:
    """What scores depend on, with the name of a background: the wrong one alone moves a PSNR by 6 dB."""
    return {
        "background": hex_color(scene.background("auto").tolist()) if background == "auto" else background,
        "color": "sRGB, blended and compared in sRGB, 8 bits, clipped",
        "test_views": scene.split,
    }


def _mean(scores: list[float]) -> float | None:
    """The mean of the scores that are there: a view whose pixels are all masked has NaN."""
    known = [score for score in scores if not math.isnan(score)]
    return statistics.fmean(known) if known else None


def _spelled(value: float | None, digits: str, unit: str = "") -> str:
    return "unknown (all masked)" if value is None else f"{value:{digits}}{unit}"
