"""A picture from its gradients alone: what a SIREN (Sitzmann et al. 2020, section 4.1) makes of them, and how soon.

    python benchmarks/marks/siren_gradients.py  # camera.png, 128 x 128, 15 minutes; results/siren_gradients.json, .png
    python benchmarks/marks/siren_gradients.py --side 48 --seconds 30 --neurons 128 --batch 512 --w0 15 --out /tmp

The network learns the gradient of the picture's interpolant, a cosine series through the middles of its pixels, at
random points. Gradients say nothing of brightness: before each PSNR ``a f + b`` is fitted, and ``a`` should be 1. With
`--pixels` it learns it at the middles of pixels alone, and has to be drawn smooth enough (`--w0`) not to turn between
them: at 48 x 48 with w0 = 30 such a network had the gradients to 2e-5 of their energy and the picture to 24 dB. Those
that a Sobel filter finds are of a blurred picture, 29.6 dB from the real one at 128 x 128. Needs the photo: `--photo`,
or HASHGRID_DATA.
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

from hashgrid import Siren, gradient, own_threads
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


class Interpolant:
    """The cosine series through values [n, n] at the middles of the cells of [-1, 1]^2."""

    def __init__(self, image: Tensor) -> None:
        self.turns = math.pi * torch.arange(len(image), device=image.device)  # radians from side to side
        middles = (torch.arange(len(image), device=image.device) + 0.5) / len(image)
        analysis = torch.linalg.inv(torch.cos(middles[:, None].double() * self.turns))
        self.waves = (analysis @ image.double() @ analysis.T).float()

    def gradient(self, x: Tensor) -> Tensor:
        """Derivatives [N, 2] along x and y at points [N, 2]."""
        angles = 0.5 * (x + 1)[..., None] * self.turns  # [N, 2, n]
        value, slope = angles.cos(), -0.5 * self.turns * angles.sin()
        along_x = ((value[:, 1] @ self.waves) * slope[:, 0]).sum(-1)
        return torch.stack((along_x, ((slope[:, 1] @ self.waves) * value[:, 0]).sum(-1)), dim=-1)


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
    net = Siren(2, 1, args.neurons, args.layers, w0=args.w0, backend=args.backend).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr)
    x, truth = places(args.side).to(device), image.flatten()
    truth_between = Interpolant(image.to(device))
    energy = truth_between.gradient(x).square().sum(-1).mean()
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
        if args.pixels:
            points = x[torch.randint(len(x), (args.batch,), device=device)]
        else:
            points = 2 * torch.rand(args.batch, 2, device=device) - 1
        optimizer.zero_grad()
        error = gradient(net, points) - truth_between.gradient(points)
        (error.square().sum(-1).mean() / energy).backward()
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
    parser.add_argument("--batch", type=int, default=1 << 11, help="points per step")
    parser.add_argument("--pixels", action="store_true", help="learn at the middles of pixels alone")
    parser.add_argument("--w0", type=float, default=30.0, help="frequency of the first layer")
    parser.add_argument("--lr", type=float, default=2.5e-4)
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
