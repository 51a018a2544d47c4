"""``report.html``: what a run left, in one file that opens from disk, without a network."""

from __future__ import annotations

import base64
import csv
import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hashgrid.util.files import atomic_write_text
from hashgrid.util.info import describe
from hashgrid.util.pictures import picture_names

PAGE = "report.html"
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".mp4": "video/mp4"}
MOST = 8 << 20  # bytes of a picture or video; larger ones are named only
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 1.8em; }
img, video, svg { max-width: 100%; height: auto; display: block; background: #fff; }
table { border-collapse: collapse; } td { padding: .15em 1em .15em 0; vertical-align: top; }
td:first-child { color: #667; } td:last-child { font-variant-numeric: tabular-nums; word-break: break-word; }
pre { overflow: auto; background: #f4f4f6; padding: .8em; } figure { margin: 1em 0; } figcaption { color: #667; }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #dde; } pre { background: #22252b; } }
"""


def write_page(
    out: Path, results: Mapping[str, Any], config: Mapping[str, Any], curve: Sequence[Mapping[str, Any]]
) -> None:
    """Writes ``report.html`` of the folder of a run.

    Args:
        out: the folder; its pictures and videos become part of the page, of test views the best and the worst.
        results: figures of ``results.json``.
        config: options of the run.
        curve: ``seconds`` and ``loss`` over the run.
    """
    name = f"{results.get('task', 'run')}: {out.resolve().name}"
    parts = [f"<h1>hashgrid {html.escape(name)}</h1>", _table(_figures(results)), _plot(curve)]
    for file in sorted(f for f in out.iterdir() if f.suffix in TYPES):
        parts.append(_shown(file, file.name))
    parts += [_shown(file, caption) for file, caption in _extreme_views(out)]
    parts.append(f"<h2>Configuration</h2><pre>{html.escape(json.dumps(config, indent=1, default=str))}</pre>")
    parts.append("<h2>Machine and versions</h2>" + _table(describe()))
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{html.escape(name)}</title><style>{STYLE}</style>"
    atomic_write_text(
        out / PAGE, f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"
    )


def _figures(results: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Numbers and words of nested results, without lists and the configuration."""
    rows: list[tuple[str, str]] = []
    for key, value in results.items():
        if isinstance(value, Mapping) and key != "config":
            rows += _figures(value, f"{prefix}{key}.")
        elif key.endswith("_bytes") and isinstance(value, int):
            rows.append((prefix + key.removesuffix("_bytes"), f"{value / 1e6:.0f} MB"))
        elif isinstance(value, float):
            rows.append((prefix + key, f"{value:.6g}"))
        elif isinstance(value, (int, str)) and value != "":
            rows.append((prefix + key, str(value)))
    return rows


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = (f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{''.join(cells)}</table>"


def _shown(file: Path, caption: str) -> str:
    """A picture or a video, all of it in the page."""
    size = file.stat().st_size
    if size > MOST:
        return f"<p>{html.escape(caption)}: {size / 1e6:.1f} MB, not in this page</p>"
    source = f"data:{TYPES[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"
    is_video = file.suffix == ".mp4"
    media = (
        f'<video controls loop src="{source}"></video>'
        if is_video
        else f'<img alt="{html.escape(caption)}" src="{source}">'
    )
    return f"<figure>{media}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _extreme_views(out: Path) -> list[tuple[Path, str]]:
    """Comparisons of the best and the worst test view, where there are any."""
    table = out / "test_views.csv"
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8") as stream:
        rows = [(float(row["psnr"]), row["view"]) for row in csv.DictReader(stream)]
    rows = [(psnr, view) for psnr, view in rows if not math.isnan(psnr)]
    shown = []
    for kind, (psnr, view) in (("worst", min(rows)), ("best", max(rows))) if rows else ():
        whole = picture_names([view.replace("\\", "/").replace("/", "_")])[0]  # a file has some last parts of it
        files = [f for f in (out / "comparisons").glob("*.png") if f"_{whole}".endswith(f"_{f.stem}")]
        if files:
            file = max(files, key=lambda f: len(f.stem))
            shown.append((file, f"{kind} test view, {view}: {psnr:.2f} dB; truth, render, error"))
    return shown


def _plot(curve: Sequence[Mapping[str, Any]], width: int = 720, height: int = 220) -> str:
    """The loss over seconds, on a logarithmic scale."""
    points = [(point["seconds"], point["loss"]) for point in curve if point.get("loss", 0) > 0]
    if len(points) < 2:
        return ""
    end = max(seconds for seconds, _ in points) or 1.0
    logs = [math.log10(loss) for _, loss in points]
    low, high = min(logs), max(max(logs), min(logs) + 1e-6)
    places = " ".join(
        f"{60 + (width - 70) * seconds / end:.1f},{10 + (height - 40) * (high - y) / (high - low):.1f}"
        for (seconds, _), y in zip(points, logs, strict=True)
    )
    texts = [(4, 18, f"{10**high:.2g}"), (4, height - 28, f"{10**low:.2g}"), (60, height - 8, "loss over seconds")]
    texts.append((width - 60, height - 8, f"{end:.0f} s"))
    words = "".join(f'<text x="{x}" y="{y}" font-size="12">{text}</text>' for x, y, text in texts)
    line = f'<polyline fill="none" stroke="#c33" stroke-width="1.5" points="{places}"/>'
    return f'<svg viewBox="0 0 {width} {height}" width="{width}">{line}{words}</svg>'
