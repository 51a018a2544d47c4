"""Fit a photo with a hash grid and a small MLP, from library parts.

    python examples/fit_image.py [PHOTO] [STEPS]

Without PHOTO it draws a picture of its own. Writes fitted.png beside the working folder's other files.
"""

import sys
import time
from pathlib import Path

import torch

import hashgrid
from hashgrid.data.images import load_photo
from hashgrid.util.files import atomic_write_image
from hashgrid.util.metrics import psnr


def rings(size: int = 512) -> torch.Tensor:
    """A test picture [size, size, 3] with detail at every scale."""
    y, x = torch.meshgrid(*2 * [torch.linspace(-1, 1, size)], indexing="ij")
    radius, angle = torch.hypot(x, y), torch.atan2(y, x)
    waves = [torch.sin(40 * radius**2), torch.sin(9 * angle + 6 * radius), torch.sin(25 * x * y)]
    return torch.stack(waves, dim=-1) * 0.5 + 0.5


def main() -> None:
    torch.manual_seed(0)
    image = load_photo(Path(sys.argv[1])) if len(sys.argv) > 1 else rings()
    n_steps = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    height, width, _ = image.shape
    colors = image.reshape(-1, 3)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    positions = torch.stack(((x.flatten() + 0.5) / width, (y.flatten() + 0.5) / height), dim=1)

    encoding = hashgrid.HashGrid(2, n_levels=16, log2_hashmap_size=17, max_resolution=max(width, height) / 2)
    mlp = hashgrid.FusedMLP(encoding.n_output_dims, 3, n_neurons=64, n_hidden_layers=2)
    groups = [{"params": [encoding.table], "skip_zero": True}, {"params": mlp.parameters()}]
    optimizer = hashgrid.optim.Adam(groups, lr=1e-2)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.995)

    begin = time.perf_counter()
    for step in range(n_steps + 1):
        batch = torch.randint(len(colors), (1 << 14,))
        loss = torch.nn.functional.mse_loss(mlp(encoding(positions[batch])), colors[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(
                f"step {step:5d}  {time.perf_counter() - begin:5.1f} s  batch PSNR {-10 * loss.log10().item():.2f} dB"
            )

    with torch.no_grad():
        fitted = mlp(encoding(positions)).clamp(0, 1).view_as(image)
    atomic_write_image("fitted.png", fitted)
    print(f"PSNR of the whole image {float(psnr(fitted, image)):.2f} dB, written to fitted.png")


if __name__ == "__main__":
    main()
