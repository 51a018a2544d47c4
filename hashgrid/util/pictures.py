"""Pictures: colours, colour scales, lines of text, strips to compare, depth, videos. Every file is written atomically.

Images are float tensors [H, W, 3] in [0, 1] or uint8.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hashgrid.util.files import atomic_path, atomic_write_image, to_uint8
from hashgrid.util.metrics import psnr
from hashgrid.util.optional import optional_import

# Anchors of a dark-to-bright map whose lightness rises evenly (after matplotlib's inferno).
COLOR_MAP = torch.tensor(
    [
        [0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85],
        [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164],
    ]
) / 255  # fmt: skip
# From clean to dirty, sRGB: the lightness falls evenly.
ERROR_MAP = torch.tensor(
    [[244, 243, 238], [250, 221, 147], [243, 160, 74], [214, 84, 66], [146, 34, 92], [58, 12, 78]]
) / 255  # fmt: skip
BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0), "grey": (0.5, 0.5, 0.5)}

EXTENSIONS = re.compile(r"\.(png|jpe?g|webp|tiff?|bmp|gif|avif|jp2|exr|hdr)$", re.IGNORECASE)
FORBIDDEN = re.compile(r'[\x00-\x1f<>:"|?*]')  # in file names, on some systems
GAP, HEADER = 4, 18  # pixels between panels, and of the line of text above them


def background_color(name: str | Sequence[float]) -> Tensor:
    """The colour [3] of ``"white"``, ``"black"``, ``"grey"``, ``"#rrggbb"``, ``"R,G,B"`` or three numbers in [0, 1].

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(name, str):
        if name in BACKGROUNDS:
            return torch.tensor(BACKGROUNDS[name])
        if re.fullmatch("#[0-9a-fA-F]{6}", name):
            return torch.tensor([int(name[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    try:
        color = [float(part) for part in (name.split(",") if isinstance(name, str) else name)]
    except (TypeError, ValueError):
        color = []
    if len(color) != 3 or not all(0 <= value <= 1 for value in color):
        raise ValueError(f"`background` must be {', '.join(BACKGROUNDS)}, #rrggbb or R,G,B in 0..1, got {name!r}")
    return torch.tensor(color)


def hex_color(color: Iterable[float]) -> str:
    """``"#rrggbb"`` of a colour in [0, 1]."""
    return "#" + "".join(f"{round(255 * x):02x}" for x in color)


def blend(rgba: Tensor, background: Tensor) -> Tensor:
    """Straight-alpha colours [..., 4] over ``background`` (broadcast to [..., 3]) -> [..., 3]."""
    return torch.lerp(background.to(rgba).expand(rgba.shape[:-1] + (3,)), rgba[..., :3], rgba[..., 3:])


def colorize(values: Tensor, low: float = 0.0, high: float = 1.0, colors: Tensor = COLOR_MAP) -> Tensor:
    """Values [...] through a colour map [K, 3], by default one from dark at ``low`` to bright at ``high`` -> [..., 3].
    What is no number has the colour of ``low``."""
    colors = colors.to(values.device)
    position = ((values.float() - low) / max(high - low, 1e-12)).nan_to_num(0, 1, 0).clamp(0, 1) * (len(colors) - 1)
    index = position.long().clamp_max(len(colors) - 2)
    return torch.lerp(colors[index], colors[index + 1], (position - index)[..., None])


def color_bar(height: int, width: int, colors: Tensor = COLOR_MAP) -> Tensor:
    """The scale of a colour map [height, width, 3], its end at the top."""
    return colorize(torch.linspace(1, 0, height)[:, None].expand(height, width), colors=colors)


def round_scale(error: Tensor) -> float:
    """1, 2 or 5 times a power of ten, such that 99 % of the errors [N] lie below; at least 1e-5."""
    high = float(np.quantile(error.numpy(), 0.99)) if len(error) else 0.0
    if not high > 1e-5:
        return 1e-5
    power = 10.0 ** math.floor(math.log10(high))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= high * (1 - 1e-6))


def with_scale(image: Tensor, scale: float, what: str) -> Tensor:
    """An error picture [h, w, 3] as uint8 with the scale of its colours, from 0 to ``scale``, drawn at the right."""
    height, width = image.shape[:2]
    image = image.clone()
    top, bottom, left = round(0.3 * height), round(0.7 * height), width - round(0.055 * width)
    bar_width = min(max(4, width // 50), width - left)
    image[top:bottom, left : left + bar_width] = color_bar(bottom - top, bar_width, ERROR_MAP)
    font = max(10, height // 45)
    texts = [(left - font, top - 2 * font, f"{scale:.0e}".replace("e-0", "e-")), (left, bottom + font // 2, "0")]
    return write_texts(image, [*texts, (font, height - 2 * font, what)], font)


def write_texts(image: Tensor, texts: Iterable[tuple[int, int, str]], size: float = 10) -> Tensor:
    """The image as uint8 with lines of text, ``size`` pixels high, at (x, y)."""
    optional_import("PIL")
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.fromarray(to_uint8(image))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size)
    for x, y, text in texts:
        draw.text((x, y), text.encode("latin-1", "replace").decode("latin-1"), fill=(40, 40, 40), font=font)
    return torch.from_numpy(np.array(canvas))


def write_comparison(
    path: str | Path, truth: Tensor, render: Tensor, title: str = "", error_scale: float = 0.2
) -> None:
    """A picture `truth | render | error` of images [H, W, 3], with a title and the colour scale of the error: the mean
    absolute one over the channels, brightest at ``error_scale``."""
    if truth.shape != render.shape or truth.ndim != 3 or truth.shape[-1] != 3:
        got = f"{list(truth.shape)} and {list(render.shape)}"
        raise ValueError(f"`truth` and `render` must be two images of shape [H, W, 3], got {got}")
    truth, render = (torch.from_numpy(to_uint8(image)).float() / 255 for image in (truth, render))
    height, width = truth.shape[:2]
    error = colorize((truth - render).abs().mean(-1), 0, error_scale)
    gap = torch.ones(height, GAP, 3)
    panels = torch.cat([truth, gap, render, gap, error, gap, color_bar(height, 12), torch.ones(height, 34, 3)], dim=1)
    columns = [i * (width + GAP) for i in range(4)]
    texts = [(columns[0] + 2, 3, f"truth  {title}"), (columns[1] + 2, 3, "render"), (columns[2] + 2, 3, "|error|")]
    texts += [(columns[3] + 15, HEADER, f"{error_scale:g}"), (columns[3] + 15, HEADER + height - 12, "0")]
    atomic_write_image(path, write_texts(torch.cat([torch.ones(HEADER, panels.shape[1], 3), panels]), texts))


def write_grid(path: str | Path, columns: Mapping[str, Sequence[Tensor]]) -> None:
    """Pictures [H, W, 3] of one size under titles, one column each."""
    width = next(iter(columns.values()))[0].shape[1]
    parts, texts = [], []
    for i, (title, images) in enumerate(columns.items()):
        gap = torch.ones(GAP, width, 3)
        column = torch.cat([part for image in images for part in (image.float().cpu(), gap)])
        parts += [column, torch.ones(len(column), GAP, 3)]
        texts.append((i * (width + GAP) + 2, 3, title))
    grid = torch.cat(parts, dim=1)
    atomic_write_image(path, write_texts(torch.cat([torch.ones(HEADER, grid.shape[1], 3), grid]), texts))


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
    write_comparison(out / "comparisons" / f"{name}.png", truth, color, title)
    write_depth(out / "depth" / f"{name}.png", depth / opacity.clamp_min(1e-6), opacity)


def write_video(path: str | Path, frames: Iterable[Tensor], fps: float = 30, n_frames: int | None = None) -> None:
    """Write frames [H, W, 3] (all of one even size) as H.264, as they come: they may be rendered on the fly. A bar says
    how far it is, of ``n_frames`` if given."""
    optional_import("imageio_ffmpeg")
    options: dict[str, Any] = {"codec": "libx264", "quality": None, "macro_block_size": 2, "ffmpeg_log_level": "error"}
    options["output_params"] = ["-crf", "20", "-movflags", "+faststart"]
    shape: tuple[int, ...] = ()
    open_video = optional_import("imageio.v2").get_writer
    with atomic_path(path) as temporary, open_video(temporary, fps=fps, **options) as video:
        for frame in optional_import("tqdm").tqdm(frames, desc="video", unit="frame", total=n_frames):
            image = np.ascontiguousarray(to_uint8(frame))
            shape = shape or image.shape
            if len(shape) != 3 or shape[2] != 3 or shape[0] % 2 or shape[1] % 2:
                raise ValueError(f"`frames` must have shape [H, W, 3] with even H and W, got {list(shape)}")
            if image.shape != shape:
                raise ValueError(f"`frames` must all have shape {list(shape)}, got {list(image.shape)}")
            video.append_data(image)
        if not shape:
            raise ValueError("`frames` must hold at least one image, got none")
