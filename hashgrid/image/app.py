"""``hashgrid image``: colour as a function of pixel position."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hashgrid.data.images import PhotoError, read_photo
from hashgrid.nn import FusedMLP, HashGrid
from hashgrid.nn.network_with_input_encoding import encode_and_pass
from hashgrid.optim import Adam
from hashgrid.util.device import choose_device
from hashgrid.util.files import atomic_write_image, atomic_write_json
from hashgrid.util.metrics import psnr
from hashgrid.util.optional import optional_import
from hashgrid.util.threads import threads_for


@dataclass(frozen=True)
class ImageConfig:
    """Defaults of image fitting (Instant-NGP's recipe with a batch for a few CPU cores)."""

    backend: str = "native"
    device: str = "auto"
    seed: int = 0
    steps: int | None = None
    time_limit: float | None = None
    default_steps: int = 2000  # when neither budget is given
    batch: int = 1 << 15
    n_levels: int = 16
    n_features_per_level: int = 2
    log2_hashmap_size: int = 19
    base_resolution: int = 16
    n_neurons: int = 64
    n_hidden_layers: int = 2
    learning_rate: float = 1e-2
    final_learning_rate: float = 1e-4


class ImageModel(nn.Module):
    """sRGB colour [N, 3] of positions [N, 2] in the unit square."""

    def __init__(self, config: ImageConfig, width: int, height: int) -> None:
        super().__init__()
        self.grid = HashGrid(
            2,
            n_levels=config.n_levels,
            n_features_per_level=config.n_features_per_level,
            log2_hashmap_size=config.log2_hashmap_size,
            base_resolution=config.base_resolution,
            max_resolution=max(max(width, height) / 2, config.base_resolution),
            backend=config.backend,
        )
        self.mlp = FusedMLP(
            self.grid.n_output_dims, 3, config.n_neurons, config.n_hidden_layers, backend=config.backend
        )

    def forward(self, positions: Tensor) -> Tensor:
        return encode_and_pass(self.grid, self.mlp, positions)


def load_photo(path: Path, *, allow_huge: bool = False) -> Tensor:
    """sRGB [H, W, 3] in [0, 1]; transparency is blended onto white. See :func:`hashgrid.data.images.read_photo`.

    Raises:
        ValueError: the file is missing or not one picture.
    """
    if not path.is_file():
        raise ValueError(f"`PHOTO` must be an image file, `{path}` does not exist")
    try:
        pixels = torch.from_numpy(read_photo(path, allow_huge=allow_huge))
    except PhotoError as error:
        raise ValueError(f"`PHOTO`: {error}") from error
    image = pixels.float().div_(255 if pixels.dtype == torch.uint8 else 65535)
    if image.shape[2] in (2, 4):
        alpha = image[..., -1:]
        image = image[..., :-1] * alpha + (1 - alpha)
    return image.expand(-1, -1, 3).contiguous() if image.shape[2] == 1 else image.contiguous()


@torch.no_grad()
def reconstruct(model: ImageModel, width: int, height: int, chunk: int = 1 << 16) -> Tensor:
    """The image [H, W, 3] the model has learned, clipped to [0, 1], on the CPU."""
    image = torch.empty(width * height, 3)
    for start in range(0, len(image), chunk):
        pixel = torch.arange(start, min(start + chunk, len(image)), device=model.grid.table.device)
        image[start : start + chunk] = model(_centres(pixel, width, height))
    return image.clamp_(0, 1).view(height, width, 3)


def _centres(pixel: Tensor, width: int, height: int) -> Tensor:
    x = (pixel % width + 0.5) / width
    y = (torch.div(pixel, width, rounding_mode="floor") + 0.5) / height
    return torch.stack((x, y), dim=1)


def run(photo: Path, out: Path | None = None, changes: dict[str, Any] | None = None, allow_huge: bool = False) -> int:
    """Fits ``photo`` and writes reconstruction, error map and ``results.json`` to ``out``.

    Raises:
        ValueError: the photo or an option is wrong.
    """
    config = dataclasses.replace(ImageConfig(), **(changes or {}))
    if config.steps is None and config.time_limit is None:
        config = dataclasses.replace(config, steps=config.default_steps)
    out = Path("outputs") / "image" / photo.stem if out is None else out
    _check_options(out, config)
    with threads_for(config.backend):
        return _fit(photo, out, allow_huge, config)


def _check_options(out: Path, config: ImageConfig) -> None:
    """Finds what would only be found after training, or never, before anything takes time."""
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"`--out` must be a folder, `{existing}` is a file")
    if config.steps is not None and config.steps < 1:
        raise ValueError(f"`--steps` must be at least 1, got {config.steps}")
    if config.time_limit is not None and not config.time_limit > 0:
        raise ValueError(f"`--time-limit` must be positive, got {config.time_limit}")


def _fit(photo: Path, out: Path, allow_huge: bool, config: ImageConfig) -> int:
    """Trains and writes what :func:`run` promises; returns its exit status."""
    tqdm = optional_import("tqdm", "image").tqdm
    begin = time.perf_counter()
    image = load_photo(photo, allow_huge=allow_huge)
    height, width, _ = image.shape
    device = choose_device(config.device, config.backend)
    config = dataclasses.replace(config, device=str(device))
    pixels = image.reshape(-1, 3).to(device)
    torch.manual_seed(config.seed)
    model = ImageModel(config, width, height).to(device)
    learning_rate = torch.tensor(config.learning_rate, device=device)
    groups = [
        {"params": [model.grid.table], "skip_zero": True},
        {"params": list(model.mlp.parameters()), "weight_decay": 1e-6},
    ]
    optimizer = Adam(groups, lr=learning_rate, betas=(0.9, 0.99), eps=1e-15, backend=config.backend)

    step, fraction, smooth = 0, 0.0, 0.0
    bar = tqdm(total=100, bar_format="image {percentage:3.0f}%|{bar:20}| {elapsed} {desc}")
    try:
        while fraction < 1.0:
            learning_rate.fill_(
                config.learning_rate * (config.final_learning_rate / config.learning_rate) ** (fraction**2)
            )
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            index = torch.randint(len(pixels), (config.batch,), generator=generator).to(device)
            loss = torch.nn.functional.mse_loss(model(_centres(index, width, height)), pixels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            value = float(loss.detach())
            if not math.isfinite(value):
                raise RuntimeError(f"the loss is {value} at step {step}; lower `learning_rate`")
            step += 1
            smooth = value if step == 1 else 0.95 * smooth + 0.05 * value
            seconds = time.perf_counter() - begin
            fraction = max(
                step / config.steps if config.steps else 0.0, seconds / config.time_limit if config.time_limit else 0.0
            )
            bar.set_description_str(f"loss {smooth:.2e}  PSNR {-10 * math.log10(smooth + 1e-10):.2f} dB", refresh=False)
            bar.update(min(100 * fraction, 100) - bar.n)
    except KeyboardInterrupt:
        bar.write("interrupted; writing what there is")
    finally:  # an error, too, is told behind it
        bar.close()
    seconds = time.perf_counter() - begin

    rendered = reconstruct(model, width, height)
    result = psnr(rendered, image)
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_image(out / "reconstruction.png", rendered)
    atomic_write_image(out / "error.png", error_map(rendered, image))
    results = {
        "photo": str(photo),
        "width": width,
        "height": height,
        "psnr": float(result),
        "train": {"seconds": seconds, "steps": step, "samples": step * config.batch},
        "config": dataclasses.asdict(config),
    }
    atomic_write_json(out / "results.json", results)
    print(f"{photo.name}: {width}x{height}, {step} steps in {seconds:.1f} s, PSNR {float(result):.2f} dB; see {out}")
    return 0


def error_map(rendered: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error per pixel as a colour image [H, W, 3], full scale at 0.1."""
    from hashgrid.nerf.report import colorize

    image, n_rows = torch.empty_like(truth), 256  # at once: further copies of a gigapixel would not fit
    for start in range(0, len(truth), n_rows):
        rows = slice(start, start + n_rows)
        image[rows] = colorize((rendered[rows] - truth[rows]).abs().mean(dim=-1) / 0.1)
    return image
