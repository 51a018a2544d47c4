"""What random Fourier features (Tancik et al. 2020, section 6.1) tell a network of pixels that it was not shown.

    python benchmarks/marks/fourier_features.py  # 256 x 256, 1000 steps; results/fourier_features.json, .png
    python benchmarks/marks/fourier_features.py --side 512 --steps 2000  # the paper's size: 8 times as long
    python benchmarks/marks/fourier_features.py --side 64 --steps 60 --neurons 64 --scales 1 10 100 --out /tmp

It learns every other pixel of every other row, all of them in each step, and is asked for the ones between, diagonally:
too small a scale blurs, too large a one makes noise between what was learned. As in the paper: 256 features, 3 layers
of 256 neurons, ReLU, a sigmoid at the end, Adam with a rate of 1e-3, or 1e-2 without features. Needs the photo:
`--photo`, or HASHGRID_DATA.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid import FusedMLP, RandomFourier, own_threads
from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.data.images import load_photo
from hashgrid.util.files import atomic_write_json
from hashgrid.util.metrics import psnr

PHOTO = "image/astronaut.png"


def square(image: Tensor, side: int) -> Tensor:
    """The middle square of ``image`` [H, W, 3] by means over boxes [side, side, 3]."""
    height, width, _ = image.shape
    box = min(height, width) // side
    if box < 1 or side % 2:
        raise SystemExit(f"`--side` must be even and at most that of the photo, got {side} and {width}x{height}")
    top, left = (height - box * side) // 2, (width - box * side) // 2
    middle = image[top : top + box * side, left : left + box * side]
    return middle.reshape(side, box, side, box, 3).mean((1, 3))


def pixels(image: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Places [N, 2] in [0, 1) and colours [N, 3] of every other pixel of every other row, from ``first`` on."""
    side = len(image)
    axis = torch.arange(side)[first::2] / side
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack((x, y), dim=-1).view(-1, 2), image[first::2, first::2].reshape(-1, 3)


def train(image: Tensor, scale: float | None, args: argparse.Namespace) -> tuple[dict[str, Any], Tensor]:
    """PSNR of pixels that were learned and of those between; the latter [side / 2, side / 2, 3]. A scale of None is no
    encoding."""
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    x, colours = (tensor.to(device) for tensor in pixels(image, 0))
    between = pixels(image, 1)[0].to(device)
    if scale is None:
        n_inputs, known, unknown = 2, 2 * x - 1, 2 * between - 1
    else:
        encoding = RandomFourier(2, args.features, scale, args.backend).to(device)
        n_inputs, known, unknown = encoding.n_output_dims, encoding(x), encoding(between)  # places stay the same
    net = FusedMLP(n_inputs, 3, args.neurons, 3, output_activation="sigmoid", bias=True, backend=args.backend).to(
        device
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2 if scale is None else 1e-3)
    start = time.perf_counter()
    for _ in range(args.steps):
        optimizer.zero_grad()
        (0.5 * (net(known) - colours).square().mean()).backward()
        optimizer.step()
    with torch.no_grad():
        learned, guessed = (net(features).view(len(image) // 2, -1, 3).cpu() for features in (known, unknown))
    row = {
        "scale": scale,
        "psnr_learned": psnr(learned, image[0::2, 0::2]),
        "psnr_between": psnr(guessed, image[1::2, 1::2]),
        "seconds": time.perf_counter() - start,
    }
    return row, guessed


def draw(rows: list[dict[str, Any]], pictures: dict[str, Tensor], path: Path) -> None:
    """PSNR over the scale, and what the pixels between came out as."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(9, 3.2), dpi=110)
    axes = figure.add_axes((0.07, 0.16, 0.36, 0.74))
    with_scale = [row for row in rows if row["scale"] is not None]
    for name, label in (("psnr_learned", "learned pixels"), ("psnr_between", "pixels between")):
        axes.plot([row["scale"] for row in with_scale], [row[name] for row in with_scale], "o-", label=label)
    axes.axhline(rows[0]["psnr_between"], color="gray", linestyle="--", label="between, no encoding")
    axes.set_xscale("log")
    axes.set_xlabel("scale, periods along a side")
    axes.set_ylabel("PSNR, dB")
    axes.legend(fontsize=8, frameon=False)
    for i, (title, picture) in enumerate(pictures.items()):
        place = figure.add_axes((0.46 + 0.135 * i, 0.2, 0.125, 0.66))
        place.imshow(picture.clamp(0, 1).numpy())
        place.set_title(title, fontsize=8)
        place.axis("off")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("HASHGRID_DATA", Path(__file__).resolve().parents[3] / "shared"))
    parser.add_argument("--photo", type=Path, default=data / "data" / PHOTO)
    parser.add_argument("--side", type=int, default=256, help="of the photo; half of it is learned")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 3.0, 10.0, 30.0, 100.0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--neurons", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="native", help="native or reference")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    if not args.photo.is_file():
        print(f"skipped: there is no photo at {args.photo}")
        return
    warn_if_busy()
    image = square(load_photo(args.photo), args.side)
    rows, between = [], []
    for scale in [None, *sorted(args.scales)]:
        with own_threads():
            row, picture = train(image, scale, args)
        rows.append(row)
        between.append(picture)
        name = "no encoding" if scale is None else f"scale {scale:g}"
        figures = f"{row['psnr_learned']:.2f} dB learned, {row['psnr_between']:.2f} dB between"
        print(f"{name}: {figures}, {row['seconds']:.0f} s", flush=True)
    best = max(range(1, len(rows)), key=lambda i: rows[i]["psnr_between"])
    above = rows[best]["psnr_between"] - rows[0]["psnr_between"]
    print(f"best scale {rows[best]['scale']:g}: {above:+.2f} dB above no encoding")
    args.out.mkdir(parents=True, exist_ok=True)
    options = {name: value for name, value in vars(args).items() if name not in ("photo", "out")}
    facts = {"photo": args.photo.name, "options": options, "environment": environment(torch.device(args.device))}
    report = {**facts, "rows": rows, "best_scale": rows[best]["scale"], "above_no_encoding": above}
    atomic_write_json(args.out / "fourier_features.json", report)
    shown = {"none": 0, f"{rows[1]['scale']:g}": 1, f"{rows[best]['scale']:g}": best, f"{rows[-1]['scale']:g}": -1}
    draw(rows, {title: between[i] for title, i in shown.items()}, args.out / "fourier_features.png")


if __name__ == "__main__":
    main()
