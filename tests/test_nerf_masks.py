"""Masked pixels are neither drawn nor scored; masks that cannot be used are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

iio = pytest.importorskip("imageio.v3")

from hashgrid.data.errors import SceneError  # noqa: E402
from hashgrid.data.scene import load_scene  # noqa: E402
from hashgrid.util.metrics import psnr, ssim  # noqa: E402

SIZE = 16
KEPT = np.full((SIZE, SIZE), 255, dtype=np.uint8)
KEPT[:4, :8] = 0


def write(folder: Path, n: int = 4, scene: dict | None = None, frame=lambda i: {}) -> Path:
    """Grey images with a magenta block where `KEPT` is 0."""
    (folder / "images").mkdir(parents=True)
    frames = []
    for i in range(n):
        image = np.full((SIZE, SIZE, 3), 60 + 20 * i, dtype=np.uint8)
        image[KEPT == 0] = (255, 0, 255)
        iio.imwrite(folder / f"images/f_{i}.png", image)
        pose = [[1, 0, 0, i / 4], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1]]
        frames.append({"file_path": f"images/f_{i}.png", "transform_matrix": pose, **frame(i)})
    meta = {"fl_x": 20.0, "aabb": [[-1] * 3, [1] * 3], **(scene or {}), "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(meta))
    return folder


def magenta(folder: Path, **options) -> float:
    """The share of masked pixels in what is drawn."""
    views = load_scene(folder, holdout=0, **options).train
    rgba = views.sample_rays(4096)[1]
    return float(((rgba[:, 0] > 0.99) & (rgba[:, 1] < 0.5)).float().mean())


def test_masks_of_nerfstudio_and_instant_ngp(tmp_path) -> None:
    assert magenta(write(tmp_path / "none")) == pytest.approx(1 / 8, abs=0.03)
    for key in ("mask_path", "mask_filename"):
        folder = write(tmp_path / key, frame=lambda i, key=key: {key: f"masks\\f_{i}.png"})
        (folder / "masks").mkdir()
        for i in range(4):
            iio.imwrite(folder / f"masks/f_{i}.png", KEPT if i % 2 else np.stack([KEPT] * 3, axis=-1))
        assert magenta(folder) == 0
        assert magenta(folder, downscale=2) == 0
    folder = write(tmp_path / "scene", scene={"mask_path": "mask.png"})
    iio.imwrite(folder / "mask.png", KEPT)
    assert magenta(folder) == 0
    folder = write(tmp_path / "ngp")
    for i in range(4):
        iio.imwrite(folder / f"images/dynamic_mask_f_{i}.png", 255 - KEPT)
    assert magenta(folder) == 0


def test_rays_go_through_the_pixels_that_are_drawn(tmp_path) -> None:
    folder = write(tmp_path / "s", scene={"mask_path": "mask.png"})
    only = np.zeros((SIZE, SIZE), dtype=np.uint8)
    only[5, 11] = 255
    iio.imwrite(folder / "mask.png", only)
    views = load_scene(folder, holdout=0).train
    rays, rgba, _ = views.sample_rays(200, seed=1)
    rays_o, rays_d = rays.origins, rays.directions
    expected = torch.tensor([(11.5 - 8) / 20, -(5.5 - 8) / 20, -1.0])
    torch.testing.assert_close(rays_d, (expected / expected.norm()).expand(200, 3))
    # the camera and the image of one view
    torch.testing.assert_close(rgba[:, 0], (60 + 80 * rays_o[:, 0]) / 255)
    assert rays_o[:, 0].unique().numel() == 4


def test_reduced_pixels_count_where_all_of_theirs_do(tmp_path) -> None:
    folder = write(tmp_path / "s", scene={"mask_path": "mask.png"})
    mask = np.full((SIZE, SIZE), 255, dtype=np.uint8)
    mask[5, 5] = 0
    iio.imwrite(folder / "mask.png", mask)
    counts = load_scene(folder, holdout=0, downscale=4).train.mask(0)
    assert counts.shape == (4, 4) and (~counts).nonzero().tolist() == [[1, 1]]


def test_masked_pixels_are_not_scored() -> None:
    truth = torch.rand(40, 30, 3)
    mask = torch.ones(40, 30, dtype=torch.bool)
    mask[:10, 12:] = False
    image = (truth + 0.1 * torch.rand(40, 30, 3)).clamp(0, 1)
    spoilt = image.clone()
    spoilt[~mask] = 0
    assert psnr(spoilt, truth, mask) == psnr(image, truth, mask) > psnr(spoilt, truth) + 1
    assert psnr(image, truth, mask) == pytest.approx(
        -10 * math.log10(float((image - truth)[mask].double().square().mean())), abs=1e-5
    )
    assert ssim(spoilt, truth, mask) == pytest.approx(ssim(image, truth, mask), abs=1e-12)
    assert ssim(image, truth, torch.ones_like(mask)) == ssim(image, truth)
    assert ssim(image, truth, mask) != ssim(image, truth)
    # below the masked rows lie all windows of a smaller image
    lower = mask.clone()
    lower[:10] = False
    assert ssim(spoilt, truth, lower) == pytest.approx(ssim(image[10:], truth[10:]), abs=1e-12)
    assert math.isnan(psnr(image, truth, ~mask & mask)) and math.isnan(ssim(image, truth, ~mask))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (None, "`mask_path` must be an image relative to .*'mask.png' does not exist"),
        (KEPT[:8], r"mask.png: a mask must have the size of its image \S+, 16x16, got 16x8"),
        (0 * KEPT, r"the masks leave no pixel of 4 image\(s\); are they inverted?"),
    ],
)
def test_masks_that_cannot_be_used(tmp_path, mask, message) -> None:
    folder = write(tmp_path / "s", scene={"mask_path": "mask.png"})
    if mask is not None:
        iio.imwrite(folder / "mask.png", mask)
    with pytest.raises(SceneError, match=message):
        load_scene(folder, holdout=0)
