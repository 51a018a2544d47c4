"""Comparisons of fields: a table, a plot over time, a strip of pictures. A row says ``field``, ``metric``, ``value``,
``parameters``, ``steps``, ``seconds`` and ``curve``, pairs of seconds and the metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hashgrid.data.images import load_photo
from hashgrid.util.files import atomic_path, atomic_write_image
from hashgrid.util.optional import optional_import
from hashgrid.util.pictures import GAP, HEADER, write_texts

SMALL_IS_GOOD = ("relative_l2", "chamfer")  # of metrics


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown, best first."""
    metric = rows[0]["metric"] if rows else ""
    lines = [f"| field | {metric} | parameters | steps | seconds |", "|---|---|---|---|---|"]
    sign = 1 if metric in SMALL_IS_GOOD else -1
    for row in sorted(rows, key=lambda row: math.inf if row["value"] is None else sign * row["value"]):
        value = "none" if row["value"] is None else f"{row['value']:.4g}"
        lines.append(f"| {row['field']} | {value} | {row['parameters']} | {row['steps']} | {row['seconds']:.1f} |")
    return "\n".join(lines) + "\n"


def plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A plot of the metric over seconds of training, one line per field."""
    figure = optional_import("matplotlib.figure").Figure(figsize=(7.2, 4.5), layout="constrained")
    axes, colors = figure.add_subplot(), optional_import("matplotlib").colormaps["tab20"].colors
    for i, row in enumerate(rows):
        points = [(seconds, value) for seconds, value in row["curve"] if math.isfinite(value)]
        if points:
            color = colors[(2 * i % 20 + i // 10) % 20]
            axes.plot(*zip(*points, strict=True), color=color, label=row["field"], linewidth=1.5)
    axes.set(xlabel="training time [s]", ylabel=rows[0]["metric"] if rows else "")
    if rows and rows[0]["metric"] in SMALL_IS_GOOD:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def strip(path: Path, rows: Sequence[dict[str, Any]], out: Path, preview: str) -> None:
    """What the fields' evaluations drew, one below the other with its name and figure; nothing where they draw
    nothing."""
    panels = []
    for row in rows:
        files = sorted((out / row["field"]).glob(preview)) if preview else []
        if not files:
            continue
        image = load_photo(files[0])
        top = torch.ones(HEADER, image.shape[1], 3)
        value = "none" if row["value"] is None else f"{row['value']:.4g}"
        text = f"{row['field']}  {row['metric']} {value}"
        labelled = write_texts(torch.cat([top, image, torch.ones(GAP, image.shape[1], 3)]), [(2, 3, text)])
        panels.append(labelled)
    if panels:
        width = max(panel.shape[1] for panel in panels)
        padded = [torch.nn.functional.pad(p, (0, 0, 0, width - p.shape[1]), value=255) for p in panels]
        atomic_write_image(path, torch.cat(padded))
