"""What a run leaves for people to look at: strips, depth, tables, plots, a turntable. Every file is written atomically.

Images are float tensors [H, W, 3] in [0, 1] or uint8.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.scene import Scene
from hashgrid.geometry.cameras import Cameras, look_at, nearest_point_to_axes
from hashgrid.util.files import atomic_path, atomic_write_image, atomic_write_text, to_uint8
from hashgrid.util.metrics import psnr
from hashgrid.util.optional import optional_import
from hashgrid.util.pictures import colorize, write_texts

EXTENSIONS = re.compile(r"\.(png|jpe?g|webp|tiff?|bmp|gif|avif|jp2|exr|hdr)$", re.IGNORECASE)
FORBIDDEN = re.compile(r'[\x00-\x1f<>:"|?*]')  # in file names, on some systems
GAP, HEADER = 4, 18  # pixels between panels, and of the line of text above them


def write_comparison(
    path: str | Path, pairs: Sequence[tuple[Tensor, Tensor]], titles: Sequence[str] = (), error_scale: float = 0.2
) -> None:
    """A picture with one row `truth | render | error` per pair, and the colour scale of the error.

    Args:
        pairs: truth and render, [H, W, 3] each.
        titles: text above each row.
        error_scale: mean absolute error over the channels that is shown brightest.
    """
    if not pairs:
        raise ValueError("`pairs` must hold at least one (truth, render), got none")
    rows = []
    for i, (truth, render) in enumerate(pairs):
        if truth.shape != render.shape or truth.ndim != 3 or truth.shape[-1] != 3:
            shapes = f"{list(truth.shape)} and {list(render.shape)}"
            raise ValueError(f"`pairs[{i}]` must be two images of shape [H, W, 3], got {shapes}")
        truth, render = (torch.from_numpy(to_uint8(image)).float() / 255 for image in (truth, render))
        height, width = truth.shape[:2]
        error = colorize((truth - render).abs().mean(-1), 0, error_scale)
        bar = colorize(torch.linspace(1, 0, height)[:, None].expand(height, 12))
        gap = torch.ones(height, GAP, 3)
        panels = [truth, gap, render, gap, error, gap, bar, torch.ones(height, 34, 3)]
        columns = [0, width + GAP, 2 * (width + GAP), 3 * (width + GAP)]
        row = torch.cat([torch.ones(HEADER, sum(panel.shape[1] for panel in panels), 3), torch.cat(panels, dim=1)])
        title = f"truth  {titles[i]}" if i < len(titles) else "truth"
        texts = [(columns[0] + 2, 3, title), (columns[1] + 2, 3, "render"), (columns[2] + 2, 3, "|error|")]
        texts += [(columns[3] + 15, HEADER, f"{error_scale:g}"), (columns[3] + 15, HEADER + height - 12, "0")]
        rows.append(write_texts(row, texts))
    widest = max(row.shape[1] for row in rows)
    atomic_write_image(path, torch.cat([_pad_right(row, widest) for row in rows]))


def _pad_right(image: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(image, (0, 0, 0, width - image.shape[1]), value=255)


def write_depth(path: str | Path, depth: Tensor, opacity: Tensor | None = None) -> None:
    """A depth image [H, W], near bright; ``opacity`` [H, W] fades what is not there to black.

    The range is that of the 1st to the 99th percentile of the opaque pixels. Give the depth of the surface: an
    accumulated one has to be divided by the opacity first.
    """
    depth = depth.detach().float().cpu()
    weight = torch.ones_like(depth) if opacity is None else opacity.detach().float().cpu().clamp(0, 1)
    shown = depth[(weight > 0.5) & depth.isfinite()]
    low, high = np.quantile(shown.numpy(), (0.01, 0.99)).tolist() if len(shown) else (0.0, 1.0)
    atomic_write_image(path, colorize(-depth, -high, -low) * weight[..., None])


def picture_names(names: Sequence[str]) -> list[str]:
    """File names without extension for the pictures of views, no two alike where upper and lower case are the same.

    A view's picture has the name of its image, with as many of its folders before it as tell all views apart
    (``front_000`` and ``back_000`` of a rig), and the number of the view where they do not.
    """
    paths = [
        [FORBIDDEN.sub("_", part) for part in EXTENSIONS.sub("", name.strip().replace("\\", "/")).split("/")]
        for name in names
    ]
    paths = [[part for part in path if part not in ("", ".", "..")] or ["view"] for path in paths]
    found: list[str] = []
    for n_parts in range(1, 1 + max(map(len, paths), default=0)):
        found = ["_".join(path[-n_parts:])[-150:] for path in paths]
        if len({name.lower() for name in found}) == len(found):
            return found
    return [f"{i:04d}_{name}" for i, name in enumerate(found)]


def write_view(out: str | Path, name: str, truth: Tensor, color: Tensor, opacity: Tensor, depth: Tensor) -> None:
    """The pictures of one test view: ``renders/NAME.png``, ``comparisons/NAME.png`` and ``depth/NAME.png``.

    Args:
        out: folder of the run.
        name: file name without extension.
        truth, color: [H, W, 3].
        opacity: [H, W].
        depth: accumulated distance [H, W], as `composite` returns it.
    """
    out = Path(out)
    atomic_write_image(out / "renders" / f"{name}.png", color)
    title = f"{name}  {psnr(color.float(), truth.float()):.2f} dB"
    write_comparison(out / "comparisons" / f"{name}.png", [(truth, color)], [title])
    write_depth(out / "depth" / f"{name}.png", depth / opacity.clamp_min(1e-6), opacity)


def write_scores(path: str | Path, scores: Iterable[tuple[str, float, float]]) -> None:
    """A CSV table `view,psnr,ssim`, one line per view."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("view", "psnr", "ssim"))
    for name, view_psnr, view_ssim in scores:
        writer.writerow((name, f"{view_psnr:.4f}", f"{view_ssim:.5f}"))
    atomic_write_text(path, text.getvalue())


def plot_training(
    path: str | Path, curve: Sequence[Mapping[str, float]], test_psnr: float | None = None, title: str = ""
) -> None:
    """PSNR in dB over seconds of training.

    Args:
        path: picture to write.
        curve: points with ``seconds`` and ``train_psnr``, ``test_psnr`` or both.
        test_psnr: mean over the test views at the end.
        title: of the plot.
    """
    optional_import("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    def points(key: str) -> list[tuple[float, float]]:
        return [(p["seconds"], p[key]) for p in curve if key in p and p[key] is not None and math.isfinite(p[key])]

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    train, test = points("train_psnr"), points("test_psnr")
    if train:
        axes.plot(*zip(*train, strict=True), color="#4c78a8", linewidth=1, alpha=0.8, label="training batches")
    if test_psnr is not None and math.isfinite(test_psnr):
        test.append((max((p["seconds"] for p in curve), default=0.0), test_psnr))
    if test:
        axes.plot(*zip(*test, strict=True), "o-", color="#d62728", markersize=4, label="test views")
        axes.annotate(f"{test[-1][1]:.2f} dB", test[-1], textcoords="offset points", xytext=(0, -14), ha="right")
    axes.set(xlabel="training time [s]", ylabel="PSNR [dB]", title=title)
    axes.grid(alpha=0.3)
    if train or test:
        axes.legend(loc="lower right", frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


def orbit(scene: Scene, n_frames: int = 120, max_size: int = 400) -> Cameras:
    """Cameras that circle the scene at the training cameras' mean distance, height and field of view.

    Where the training cameras leave a gap of more than 120 degrees, the path swings to and fro on their side instead:
    nothing is known about the other one.

    Args:
        n_frames: number of cameras.
        max_size: the longer side of the pictures in pixels; both sides come out even, as video wants them.
    """
    views = scene.train
    centre = nearest_point_to_axes(views)
    up = scene.up.double()
    offsets = views.origins.double() - centre
    distance = offsets.norm(dim=-1).clamp_min(1e-9)
    # An orthonormal frame about `up`: the mean viewing direction is azimuth 0.
    across = offsets - (offsets @ up)[:, None] * up
    mean = across.mean(0)
    if float(mean.norm()) < 1e-3 * float(distance.mean()):
        mean = across[0]
    east = torch.nn.functional.normalize(mean - (mean @ up) * up, dim=0)
    if float(east.norm()) < 0.5:  # a single camera straight above
        east = look_at(centre + up, centre, up)[:, 0]
    north = torch.linalg.cross(up, east)
    azimuth = torch.atan2(offsets @ north, offsets @ east)
    ordered = azimuth.sort().values
    gap = torch.cat((ordered[1:] - ordered[:-1], ordered[:1] + 2 * math.pi - ordered[-1:])).max()

    phase = torch.arange(n_frames, dtype=torch.float64) / max(n_frames, 1) * 2 * math.pi
    if float(gap) > math.radians(120):
        low, high = torch.quantile(azimuth, torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
        phase = 0.5 * (low + high) + 0.5 * (high - low) * torch.sin(phase)
    elevation = torch.asin(((offsets @ up) / distance).clamp(-1, 1)).mean()
    ring = torch.cos(phase)[:, None] * east + torch.sin(phase)[:, None] * north
    origins = centre + distance.mean() * (torch.cos(elevation) * ring + torch.sin(elevation) * up)
    c2w = torch.stack([look_at(origin, centre, up) for origin in origins]).float() if n_frames else torch.empty(0, 3, 4)

    size = views.sizes[0].double()
    scale = min(1.0, max_size / float(size.max()))
    width, height = (max(2, int(side * scale) // 2 * 2) for side in size.tolist())
    focal = float(views.intrinsics[:, :2].mean()) * width / float(size[0])
    intrinsics = torch.tensor([focal, focal, width / 2, height / 2]).expand(n_frames, 4).contiguous()
    return Cameras(c2w, intrinsics, torch.tensor([[width, height]]).expand(n_frames, 2).contiguous())
