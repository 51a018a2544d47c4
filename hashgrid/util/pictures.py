"""What pictures of all applications share: a colour map, lines of text, videos. Every file is written atomically.

Images are float tensors [H, W, 3] in [0, 1] or uint8.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hashgrid.util.files import atomic_path, to_uint8
from hashgrid.util.optional import optional_import

# Anchors of a dark-to-bright map whose lightness rises evenly (after matplotlib's inferno).
COLOR_MAP = torch.tensor(
    [
        [0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85],
        [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164],
    ]
) / 255  # fmt: skip


BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0), "grey": (0.5, 0.5, 0.5)}


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


def colorize(values: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Values [H, W] through the colour map, ``low`` dark and ``high`` bright -> [H, W, 3]."""
    position = ((values.float() - low) / max(high - low, 1e-12)).nan_to_num(0, 1, 0).clamp(0, 1) * (len(COLOR_MAP) - 1)
    index = position.long().clamp_max(len(COLOR_MAP) - 2)
    return torch.lerp(COLOR_MAP[index], COLOR_MAP[index + 1], (position - index)[..., None])


def write_texts(image: Tensor, texts: Iterable[tuple[int, int, str]], size: float = 10) -> Tensor:
    """The image as uint8 with lines of text, ``size`` pixels high, at (x, y)."""
    optional_import("PIL")
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.fromarray(to_uint8(image))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size)
    for x, y, text in texts:
        draw.text((x, y), text.encode("latin-1", "replace").decode("latin-1"), fill=(40, 40, 40), font=font)
    return torch.from_numpy(np.array(canvas))


def write_video(path: str | Path, frames: Iterable[Tensor], fps: int = 30) -> None:
    """Write frames [H, W, 3] (all of one even size) as H.264, as they come: they may be rendered on the fly."""
    ffmpeg = optional_import("imageio_ffmpeg")
    with atomic_path(path) as temporary:
        writer, shape = None, None
        try:
            for frame in frames:
                image = np.ascontiguousarray(to_uint8(frame))
                if writer is None:
                    shape = image.shape
                    if len(shape) != 3 or shape[2] != 3 or shape[0] % 2 or shape[1] % 2:
                        raise ValueError(f"`frames` must have shape [H, W, 3] with even H and W, got {list(shape)}")
                    writer = ffmpeg.write_frames(
                        str(temporary), shape[1::-1], fps=fps, codec="libx264", quality=None, macro_block_size=2,
                        output_params=["-crf", "20", "-movflags", "+faststart"], ffmpeg_log_level="error",
                    )  # fmt: skip
                    writer.send(None)
                if image.shape != shape:
                    raise ValueError(f"`frames` must all have shape {list(shape or ())}, got {list(image.shape)}")
                writer.send(image)
        finally:
            if writer is not None:
                writer.close()
        if writer is None:
            raise ValueError("`frames` must hold at least one image, got none")
