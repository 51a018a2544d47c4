"""A picture from its gradients alone: what a SIREN (Sitzmann et al. 2020, section 4.1) makes of them, and how soon.

    python benchmarks/marks/siren_gradients.py  # camera.png at 128 x 128, 15 minutes; writes results/siren_gradients.json
    python benchmarks/marks/siren_gradients.py --seconds 30 --neurons 128 --out /tmp

Gradients say nothing of brightness: before each PSNR ``a f + b`` is fitted, and ``a`` should be 1. They are those of the
picture's own interpolant, a cosine series through the middles of its pixels. Those that a Sobel filter finds are of a blurred
picture: no field could come nearer than 29.6 dB with them. Needs the photo: `--photo`, or HASHGRID_DATA.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid import Siren, jacobian, own_threads
from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.data.images import load_photo
from hashgrid.util.files import atomic_write_image, atomic_write_json

PHOTO = "image/camera.png"


def reduced(image: Tensor, side: int) -> Tensor:
    """The middle square of ``image`` [H, W, C] by means over boxes [side, side, C]."""
    height, width, channels = image.shape
    box = min(height, width) // side
    if box < 1:
        raise SystemExit(f"the photo must have at least {side} pixels along each side, got {width}x{height}")
    top, left = (height - box * side) // 2, (width - box * side) // 2
    middle = image[top : top + box * side, left : left + box * side]
    return middle.reshape(side, box, side, box, channels).mean((1, 3))


def slopes_of(n: int) -> Tensor:
    """Matrix [n, n] from values at the middles of n cells of [-1, 1] to slopes of their cosine series there."""
    angles = (torch.arange(n, dtype=torch.float64)[:, None] + 0.5) / n * math.pi * torch.arange(n, dtype=torch.float64)
    frequencies = 0.5 * math.pi * torch.arange(n, dtype=torch.float64)
    return -(torch.sin(angles) * frequencies) @ torch.linalg.inv(torch.cos(angles))


def gradients(image: Tensor) -> Tensor:
    """Derivatives [H, W, 2] of ``image`` [H, W] along x and y, per unit of the square [-1, 1]^2."""
    height, width = image.shape
    return torch.stack((image @ slopes_of(width).T, slopes_of(height) @ image), dim=-1)


def places(n: int) -> Tensor:
    """Middles [n * n, 2] of pixels in [-1, 1]^2 as (x, y), row by row."""
    axis = 2 * (torch.arange(n) + 0.5) / n - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack((x, y), dim=-1).view(-1, 2)


def fitted(output: Tensor, truth: Tensor) -> tuple[Tensor, float, float]:
    """``a f + b`` that is nearest to ``truth`` [N], with ``a`` and its PSNR in dB."""
    columns = torch.stack((output, torch.ones_like(output)), dim=1).double()
    solution = torch.linalg.lstsq(columns, truth.double()[:, None]).solution
    result = (columns @ solution).squeeze(1)
    return result, float(solution[0]), -10 * math.log10(float((result - truth).square().mean()))


def train(image: Tensor, args: argparse.Namespace) -> tuple[Tensor, dict[str, Any]]:
    """The picture [H, W] that was learned, and how it went."""
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    net = Siren(2, 1, args.neurons, args.layers, backend=args.backend).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr)
    x, truth = places(args.side).to(device), image.flatten()
    target = gradients(image.double()).view(-1, 2).float().to(device)
    size = target.square().sum(-1).mean()
    curve: list[dict[str, float]] = []
    seconds, step, next_look = 0.0, 0, 0.0
    picture = torch.zeros_like(image)
    while True:
        if seconds >= next_look or seconds >= args.seconds:
            with torch.no_grad():
                output = net(x).squeeze(-1).cpu()
            fit, slope, psnr = fitted(output, truth)
            curve.append({"seconds": seconds, "step": step, "psnr": psnr, "slope": slope})
            print(f"{seconds:6.1f} s, {step} steps: {psnr:.2f} dB, a = {slope:.4f}", flush=True)
            picture, next_look = fit.view_as(image).float(), max(1.5 * next_look, 5.0)
        if seconds >= args.seconds:
            break
        start = time.perf_counter()
        share = min(seconds / args.seconds, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / 50) * 0.02 ** (share**2)
        index = torch.randint(len(x), (args.batch,), device=device)
        optimizer.zero_grad()
        slopes = jacobian(net, x[index]).squeeze(-2)
        ((slopes - target[index]).square().sum(-1).mean() / size).backward()
        optimizer.step()
        seconds, step = seconds + time.perf_counter() - start, step + 1
    return picture, {"psnr": curve[-1]["psnr"], "slope": curve[-1]["slope"], "steps": step, "curve": curve}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("HASHGRID_DATA", Path(__file__).resolve().parents[3] / "shared"))
    parser.add_argument("--photo", type=Path, default=data / "data" / PHOTO)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--neurons", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4, help="of sines")
    parser.add_argument("--batch", type=int, default=1 << 12, help="pixels per step")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="native", help="native or reference")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    if not args.photo.is_file():
        print(f"skipped: there is no photo at {args.photo}")
        return
    warn_if_busy()
    image = reduced(load_photo(args.photo), args.side).mean(-1)
    with own_threads():
        picture, report = train(image, args)
    options = {name: value for name, value in vars(args).items() if name not in ("photo", "out")}
    args.out.mkdir(parents=True, exist_ok=True)
    facts = environment(torch.device(args.device))
    row = {"photo": args.photo.name, "options": options, **report, "environment": facts}
    atomic_write_json(args.out / "siren_gradients.json", row)
    strip = torch.cat((image, picture.clamp(0, 1)), dim=1)[..., None].expand(-1, -1, 3)
    atomic_write_image(args.out / "siren_gradients.png", strip.contiguous())
    print(json.dumps({name: report[name] for name in ("psnr", "slope", "steps")}))


if __name__ == "__main__":
    main()
