"""Rendering test views and scoring them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hashgrid.data.scene import Scene, Views
from hashgrid.fields.base import RadianceField
from hashgrid.geometry.cameras import Cameras
from hashgrid.rendering.samplers import Sampler
from hashgrid.rendering.volume import render_image, render_pixels
from hashgrid.util.config import Config
from hashgrid.util.files import atomic_write_csv
from hashgrid.util.metrics import psnr, ssim
from hashgrid.util.optional import optional_import
from hashgrid.util.perceptual import PIXELS_PER_DEGREE, Lpips, flip
from hashgrid.util.pictures import hex_color, picture_names, write_view

Metric = Callable[[Tensor, Tensor, Tensor | None], float]  # of image, truth, mask
LOOK = {"psnr": (".2f", " dB"), "ssim": (".4f", ""), "flip": (".4f", ""), "lpips": (".4f", "")}  # digits and unit


@dataclass(frozen=True)
class Scoring(Config):
    """What test views are scored with besides PSNR, SSIM and FLIP."""

    lpips: Literal["none", "alex", "vgg"] = "none"  # also LPIPS, with features of this network: see docs/photos.md
    views: int | None = None  # evaluate only so many test views, evenly spread
    score_seconds: float | None = None  # after which no further test view is begun; all are scored if none

    def check(self) -> None:
        super().check()
        if self.views is not None and self.views < 0:
            raise ValueError(f"`views` must be at least 0, got {self.views}")
        if self.score_seconds is not None and not self.score_seconds > 0:
            raise ValueError(f"`score_seconds` must be positive, got {self.score_seconds}")
        self.metrics()

    def metrics(self) -> dict[str, Metric]:
        """Functions of image, truth and mask by name.

        Raises:
            ImportError: LPIPS is wanted, and its package is missing.
            ValueError: LPIPS is wanted, and there are no weights.
        """
        found: dict[str, Metric] = {"psnr": psnr, "ssim": ssim, "flip": flip}
        return found if self.lpips == "none" else {**found, "lpips": Lpips(self.lpips)}

    def protocol(self, scene: Scene, background: str) -> dict[str, str]:
        """What scores depend on, with the name of a background: the wrong one alone moves a PSNR by 6 dB."""
        return {
            "background": hex_color(scene.background("auto").tolist()) if background == "auto" else background,
            "color": "sRGB, blended and compared in sRGB, 8 bits, clipped",
            "flip": f"LDR, {PIXELS_PER_DEGREE:.2f} pixels per degree",
            **({} if self.lpips == "none" else {"lpips": f"{self.lpips}, version 0.1, of images in [-1, 1]"}),
            "test_views": scene.split,
            "masks": scene.train.note or "none",
        }


def evaluate(
    field: RadianceField,
    sampler: Sampler,
    views: Views,
    background: Tensor,
    out: Path | None = None,
    n_views: int | None = None,
    scoring: Scoring = Scoring(),  # noqa: B008
    fit: Callable[[Cameras, int], None] | None = None,
) -> dict[str, Any]:
    """Scores of the views (all, or ``n_views`` at most, or as many as fit into ``scoring.score_seconds``, evenly
    spread): ``psnr_mean``, ``ssim_mean``, ``flip_mean``,
    with ``scoring.lpips`` also ``lpips_mean``; ``views``, ``views_total``, ``seconds``.

    With ``out``, shows how far it is, and writes for each view ``renders/NAME.png``, ``comparisons/NAME.png`` (truth |
    render | error) and ``depth/NAME.png``, and ``test_views.csv`` for all. Scores are those of the 8-bit image clipped
    to [0, 1], so that they can be repeated from the files; where views have times, ``psnr_of_time`` has ``[time,
    PSNR]`` in their order. Masked pixels are not scored: a view without any other has NaN. ``fit`` is called with the
    cameras and the number of each view before it is shown, may look at its left half, and may move its camera: the
    right half is scored then.
    """
    begin = time.perf_counter()
    metrics = scoring.metrics()
    scores: dict[str, list[float]] = {name: [] for name in metrics}
    pictures = picture_names(views.names)
    device = field.aabb.device
    cameras = views.select(range(len(views))).to(device)
    n = len(views) if n_views is None else min(n_views, len(views))
    indices: list[int] = []
    order = spread(n) if scoring.score_seconds else range(n)
    bar = optional_import("tqdm").tqdm(order, desc="test views", unit="view", total=n, disable=out is None)
    for place in bar:
        if indices and time.perf_counter() - begin > (scoring.score_seconds or math.inf):
            break
        view = place * len(views) // n
        indices.append(view)
        if fit is not None:
            fit(cameras, view)
        color, opacity, depth = (x.cpu() for x in render_image(field, sampler, cameras, view, background.to(device)))
        color = (color * 255).round() / 255
        truth, mask = views.image_rgb(view, background), views.mask(view)
        if fit is not None:
            right = torch.arange(truth.shape[1]).expand(truth.shape[:2]) >= truth.shape[1] // 2
            mask = right if mask is None else mask & right
        for name, metric in metrics.items():
            scores[name].append(metric(color, truth, mask))
        if out is not None:  # not in a thread: beside the kernels' threads it made two cores three times slower
            write_view(out, pictures[view], truth, color, opacity, depth)
            bar.set_postfix_str(f"PSNR {_spelled(_mean(scores['psnr']), *LOOK['psnr'])}", refresh=False)
    times = None if views.times is None else [float(views.times[view]) for view in indices]
    if out is not None:
        told = scores if times is None else {"time": times, **scores}
        columns = ([f"{value:.5f}" for value in values] for values in told.values())
        rows = zip(indices, (views.names[view] for view in indices), *columns, strict=True)
        atomic_write_csv(out / "test_views.csv", ("view", *told), [row[1:] for row in sorted(rows)])
    return {
        **{f"{name}_mean": _mean(values) for name, values in scores.items()},
        **({} if times is None else {"psnr_of_time": sorted(map(list, zip(times, scores["psnr"], strict=True)))}),
        "views": len(indices),
        "views_total": len(views),
        "seconds": time.perf_counter() - begin,
    }


@torch.no_grad()
def glance(field: RadianceField, sampler: Sampler, views: Views, background: Tensor, n_rays: int = 4096) -> float:
    """PSNR of ``n_rays`` pixels of the views, the same each time; NaN without views."""
    if not len(views):
        return math.nan
    rays, rgba = views.sample_rays(n_rays, 0, 0, needs=field.needs)[:2]
    device, behind = field.aabb.device, background.to(field.aabb.device)
    seen = render_pixels(field, sampler, rays.to(device), behind)[0]
    truth = torch.lerp(background.expand_as(rgba[:, :3]), rgba[:, :3], rgba[:, 3:])
    return psnr(seen.clamp(0, 1).cpu()[None], truth.cpu()[None])


def spread(n: int) -> list[int]:
    """The numbers up to ``n`` in an order of which each beginning is spread over all.

    Example:
        >>> spread(8)
        [0, 4, 2, 6, 1, 5, 3, 7]
    """
    digits = max(n - 1, 1).bit_length()
    turned = (int(f"{i:0{digits}b}"[::-1], 2) for i in range(1 << digits))
    return [i for i in turned if i < n]


def describe(test: dict[str, Any]) -> str:
    """Scores of :func:`evaluate` in one line."""
    if not test["views"]:
        return "no test views"
    means = {name: test[f"{name}_mean"] for name in LOOK if f"{name}_mean" in test}
    spelled = ", ".join(f"{name.upper()} {_spelled(mean, *LOOK[name])}" for name, mean in means.items())
    of_all = "" if test["views"] == test["views_total"] else f" of {test['views_total']}"
    if test.get("miou") is not None:
        spelled += f", labels {test['label_accuracy']:.1%} right, mIoU {test['miou']:.3f}"
    return f"{test['views']}{of_all} test views: {spelled} in {test['seconds']:.1f} s"


def _mean(scores: list[float]) -> float | None:
    """The mean of the scores that are there: a view whose pixels are all masked has NaN."""
    known = [score for score in scores if not math.isnan(score)]
    return statistics.fmean(known) if known else None


def _spelled(value: float | None, digits: str, unit: str) -> str:
    return "unknown (all masked)" if value is None else f"{value:{digits}}{unit}"
