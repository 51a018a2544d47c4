"""Rate and distortion of photos: hash grid and COIN at equal encoding time, beside JPEG and WebP.

    python benchmarks/marks/compression.py PHOTO ... [--bpp .3 .15 .6] [--methods grid coin jpeg webp] [--seconds 180]

Every file is written, read again and measured: all its bytes count, and PSNR is of RGB in 8 bits. Writes
results/compression.json after every file, and docs/compress.png at the end; what is in the results is not done again
(--again does), so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.compress.photo import decompress
from hashgrid.data.images import load_photo
from hashgrid.tasks.compress import Compress
from hashgrid.train.loop import Trainer
from hashgrid.util.files import atomic_path, atomic_write_json
from hashgrid.util.threads import own_threads

HERE = Path(__file__).parent
TRAINED, CODECS = ("grid", "coin"), {"jpeg": {"optimize": True}, "webp": {"method": 6}}
NAMES = {"grid": "hash grid", "coin": "COIN", "jpeg": "JPEG", "webp": "WebP"}
COLORS = {"grid": "#d62728", "coin": "#4c78a8", "jpeg": "#888888", "webp": "#2ca02c"}

Row = dict[str, Any]


def decibels(image: np.ndarray, photo: np.ndarray) -> float:
    """PSNR of uint8 images [H, W, 3]."""
    pairs = zip(np.array_split(image, 16), np.array_split(photo, 16), strict=True)
    error = sum(float(((a.astype(np.float64) - b) ** 2).sum()) for a, b in pairs) / photo.size
    return 10 * np.log10(255**2 / max(error, 1e-10))


def trained(method: str, photo: np.ndarray, bpp: float, args: argparse.Namespace) -> Row:
    """A photo through the task, as the command does it."""
    defaults = Compress.defaults(method, torch.device("cpu"), set())
    config = defaults.replace(compress=bpp, time_limit=args.seconds, device="cpu", steps=args.steps)
    begin, begin_cpu = time.perf_counter(), time.process_time()
    task = Compress(config, torch.from_numpy(photo))  # type: ignore[arg-type]
    trainer = Trainer(task)
    trainer.train()
    data = task.file()
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - begin_cpu
    begin = time.perf_counter()
    image = decompress(data)
    decode_seconds = time.perf_counter() - begin
    return {
        "bytes": len(data),
        "psnr": decibels(image, photo),
        "psnr_as_trained": task.signal.psnr(task.signal.sampled(task.model)),  # before it is rounded to what files hold
        "encode.seconds": seconds,
        "encode.cpu_seconds": cpu_seconds,  # of all threads: what a busy machine lengthens less
        "encode.steps": trainer.progress.step,
        "decode.seconds": decode_seconds,
        "parameters": sum(parameter.numel() for parameter in task.model.parameters()),
    }


def by_quality(method: str, photo: np.ndarray, bpp: float) -> Row:
    """The best quality of a codec whose file is no larger."""
    picture, best = Image.fromarray(photo), None
    low, high = 0, 100
    while low <= high:
        quality, file = (low + high) // 2, io.BytesIO()
        begin = time.perf_counter()
        picture.save(file, method.upper(), quality=quality, **CODECS[method])
        seconds = time.perf_counter() - begin
        if 8 * len(file.getvalue()) <= bpp * photo[..., 0].size:
            best, low = (quality, file, seconds), quality + 1
        else:
            high = quality - 1
    if best is None:
        return {"bytes": None, "psnr": None}  # it has no file so small
    quality, file, seconds = best
    begin = time.perf_counter()
    image = np.asarray(Image.open(file).convert("RGB"))
    row = {"bytes": len(file.getvalue()), "psnr": decibels(image, photo), "quality": quality}
    return {**row, "encode.seconds": seconds, "decode.seconds": time.perf_counter() - begin}


def key(row: Row) -> tuple[Any, ...]:
    return row["photo"], row["method"], row["asked"]


def table(rows: list[Row], bpp: float) -> str:
    """PSNR of every photo at one size, by method."""
    lines = [f"PSNR in dB at {bpp} bits per pixel", f"{'':34}" + "".join(f"{NAMES[name]:>11}" for name in NAMES)]
    for photo in dict.fromkeys(row["photo"] for row in rows):
        found = {row["method"]: row["psnr"] for row in rows if (row["photo"], row["asked"]) == (photo, bpp)}
        lines.append(f"{photo:34}" + "".join(f"{found.get(name) or float('nan'):11.2f}" for name in NAMES))
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """PSNR over bits per pixel, a panel per photo."""
    from matplotlib.figure import Figure

    photos = list(dict.fromkeys(row["photo"] for row in rows))
    n_columns = min(4, len(photos))
    n_rows = -(-len(photos) // n_columns)
    figure = Figure(figsize=(3.1 * n_columns, 2.7 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False).flat
    for photo, panel in zip(photos, panels, strict=False):  # in this order none is skipped
        for method, name in NAMES.items():
            of_method = [row for row in rows if (row["photo"], row["method"]) == (photo, method) and row["psnr"]]
            points = sorted((row["bpp"], row["psnr"]) for row in of_method)
            if points:
                panel.plot(
                    *zip(*points, strict=True), "o-", color=COLORS[method], markersize=3, linewidth=1.2, label=name
                )
        panel.set_title(photo, fontsize=8)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
    for panel in list(panels):
        panel.set_visible(False)
    axes = figure.axes
    axes[0].legend(frameon=False, fontsize=7)
    figure.supxlabel("bits per pixel of the whole file", fontsize=8)
    figure.supylabel("PSNR [dB]", fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="*", metavar="PHOTO")
    parser.add_argument("--bpp", type=float, nargs="+", default=[0.3, 0.15, 0.6])
    parser.add_argument("--methods", nargs="+", choices=[*NAMES], default=[*CODECS, *TRAINED])
    parser.add_argument("--seconds", type=float, default=180.0, help="of encoding, for the hash grid and COIN alike")
    parser.add_argument("--steps", type=int, help="at most, to try the script")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="do what is in the results already")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "compression.json")
    parser.add_argument("--plot", type=Path, default=HERE.parents[1] / "docs" / "compress.png")
    args = parser.parse_args()
    warn_if_busy()
    report = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    rows = {key(row): row for row in report["rows"]}
    todo = [(path, bpp, method) for bpp in args.bpp for path in args.photos for method in args.methods]
    for path, bpp, method in todo:
        name = path.stem
        done = rows.get((name, method, bpp))
        if done and done.get("seconds", args.seconds) == args.seconds and not args.again:
            continue
        load, photo = os.getloadavg(), load_photo(path).mul_(255).add_(0.5).byte().numpy()
        with own_threads(args.threads):
            row = trained(method, photo, bpp, args) if method in TRAINED else by_quality(method, photo, bpp)
        n_pixels = photo[..., 0].size
        row = {"photo": name, "pixels": n_pixels, "method": method, "asked": bpp, **row, "load_before": load}
        row["bpp"] = row["bytes"] and 8 * row["bytes"] / n_pixels
        if method in TRAINED:
            row["seconds"], row["threads"] = args.seconds, args.threads
        rows[key(row)] = row
        figures = f"{row['bpp']:.4f} bits per pixel, {row['psnr']:.2f} dB" if row["psnr"] else "no file so small"
        print(f"{name} {NAMES[method]} {bpp}: {figures}", flush=True)
        atomic_write_json(args.out, {"rows": list(rows.values()), "environment": environment(torch.device("cpu"))})
    for bpp in args.bpp:
        print(table(list(rows.values()), bpp))
    if rows:
        plot(list(rows.values()), args.plot)


if __name__ == "__main__":
    main()
