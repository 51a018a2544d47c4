"""Masked pixels are neither drawn nor scored; masks that cannot be used are refused."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

iio = pytest.importorskip("imageio.v3")

from hashgrid.data.errors import SceneError, SceneWarning  # noqa: E402
from hashgrid.data.masks import write_masks  # noqa: E402
from hashgrid.data.scene import Views, load_scene  # noqa: E402
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


@pytest.mark.parametrize("name", ["f_{}.png.png", "f_{}.jpg"])
def test_masks_of_a_folder(tmp_path, name) -> None:
    """Named as COLMAP does, or as the image; beside the images, or anywhere."""
    beside, elsewhere = write(tmp_path / "beside"), write(tmp_path / "plain")
    for masks in (beside / "masks", tmp_path / "away" / "images"):
        masks.mkdir(parents=True)
        for i in range(4):
            iio.imwrite(masks / name.format(i), KEPT)
    assert magenta(beside) == 0
    assert magenta(elsewhere, masks=str(tmp_path / "away")) == 0
    assert magenta(elsewhere, masks=str(tmp_path / "away" / "images")) == 0
    assert magenta(beside, masks="none") == pytest.approx(1 / 8, abs=0.03)
    scene = load_scene(beside, holdout=2)
    assert "87.5% of the pixels of 2 images count" in scene.describe() and "black is hidden" in scene.describe()
    assert not bool(scene.test.mask(0)[:4, :8].any())


def test_masks_of_training_images_are_not_those_of_tests(tmp_path) -> None:
    """Pictures of a split have the same names as those of the other."""
    folder = write(tmp_path / "s")
    for split in ("train", "test"):
        meta = json.loads((folder / "transforms.json").read_text())
        shutil.copytree(folder / "images", folder / split)
        for frame in meta["frames"]:
            frame["file_path"] = frame["file_path"].replace("images", split)
        (folder / f"transforms_{split}.json").write_text(json.dumps(meta))
    (folder / "masks").mkdir()
    for i in range(4):
        iio.imwrite(folder / f"masks/f_{i}.png", KEPT)
    for options in ({}, {"masks": str(folder / "masks")}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scene = load_scene(folder, **options)
        assert scene.test.counts is None and not bool(scene.train.mask(2)[0, 0])
    shutil.copytree(folder / "masks", folder / "masks/test")
    assert not bool(load_scene(folder).test.mask(2)[0, 0])


def test_polarity_of_masks_is_flipped_and_questioned(tmp_path) -> None:
    """Masks that keep a corner in each picture, and masks that hide its middle, are named; those of an object and of
    something small are not."""
    folder = write(tmp_path / "s")
    (folder / "masks").mkdir()
    block = np.zeros((SIZE, SIZE), dtype=bool)
    block[5:11, 5:11] = True
    for mask, warned in ((KEPT > 0, False), (KEPT == 0, True), (block, False), (~block, True)):
        for i in range(4):
            iio.imwrite(folder / f"masks/f_{i}.png", mask.astype(np.uint8) * 255)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            views = load_scene(folder, holdout=0).train
        assert [True for entry in caught if "wrong way round" in str(entry.message)] == [True] * warned
        assert not warned or "--mask-polarity white-hidden" in str(caught[0].message)
        np.testing.assert_array_equal(views.mask(0).numpy(), mask)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flipped = load_scene(folder, holdout=0, mask_polarity="white-hidden").train
        np.testing.assert_array_equal(flipped.mask(2).numpy(), ~mask)


def test_transparent_pixels_are_empty_or_masked(tmp_path) -> None:
    folder = write(tmp_path / "s")
    for i in range(4):
        image = iio.imread(folder / f"images/f_{i}.png")
        iio.imwrite(folder / f"images/f_{i}.png", np.dstack((image, KEPT)))
    views = load_scene(folder, holdout=0).train
    assert views.has_alpha and views.counts is None
    views = load_scene(folder, holdout=0, transparent="masked").train
    assert not views.has_alpha and magenta(folder, transparent="masked") == 0
    np.testing.assert_array_equal(views.mask(1).numpy(), KEPT > 0)
    assert "transparent is hidden" in views.note


def test_alpha_and_circle_of_files(tmp_path) -> None:
    """instant-ngp's pictures of alpha, and nerfstudio's radius in pixels of `w`."""
    folder = write(tmp_path / "alpha")
    for i in range(4):
        iio.imwrite(folder / f"images/f_{i}.png.alpha.png", KEPT // 2)
    np.testing.assert_array_equal(load_scene(folder, holdout=0).train.image(3)[..., 3], KEPT // 2)
    folder = write(tmp_path / "circle", scene={"fisheye_crop_radius": 12.0, "w": 2 * SIZE, "h": 2 * SIZE})
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    mask = load_scene(folder, holdout=0).train.mask(0)
    np.testing.assert_array_equal(mask.numpy(), np.hypot(x - SIZE / 2, y - SIZE / 2) <= 6)


def test_masks_by_name_that_cannot_be_used(tmp_path) -> None:
    folder = write(tmp_path / "s")
    with pytest.raises(SceneError, match="--masks` must be a folder"):
        load_scene(folder, masks=str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with (
        pytest.warns(SceneWarning, match=r"named as f_\d.png.png or f_\d.png for images/f_\d.png"),
        pytest.raises(SceneError, match="must have a mask for some training image"),
    ):
        load_scene(folder, masks=str(tmp_path / "empty"))
    meta = json.loads((folder / "transforms.json").read_text())
    for i, frame in enumerate(meta["frames"]):
        place = folder / f"images/cam{i}/same.png"
        place.parent.mkdir()
        (folder / frame["file_path"]).rename(place)
        frame["file_path"] = f"images/cam{i}/same.png"
    (folder / "transforms.json").write_text(json.dumps(meta))
    iio.imwrite(tmp_path / "empty/same.png", KEPT)
    with pytest.raises(SceneError, match="would be the mask of both images/cam1/same.png and images/cam2/same.png"):
        load_scene(folder, masks=str(tmp_path / "empty"))
    for i in range(3):
        (tmp_path / f"empty/cam{i}").mkdir()
        iio.imwrite(tmp_path / f"empty/cam{i}/same.png.png", KEPT)
    (tmp_path / "empty/same.png").unlink()
    with pytest.warns(SceneWarning, match="1 of 4 images have no mask, all of them counts: images/cam3/same.png"):
        assert load_scene(folder, masks=str(tmp_path / "empty"), holdout=0).train.mask(3).all()


def test_the_picture_of_a_mask_is_red_where_it_hides(tmp_path) -> None:
    folder = write(tmp_path / "s", scene={"mask_path": "mask.png"})
    iio.imwrite(folder / "mask.png", KEPT)
    write_masks(tmp_path / "masks.png", load_scene(folder, holdout=0).train, torch.ones(3))
    picture = iio.imread(tmp_path / "masks.png")
    marked = picture[-SIZE - 4 : -4, -SIZE - 4 : -4].astype(int)
    np.testing.assert_array_equal(np.abs(marked - 60).max(axis=2) > 1, KEPT == 0)
    assert (marked[0, 0] == np.round(0.35 * np.array([255, 0, 255]) + 0.65 * np.array([255, 40, 40]))).all()
    write_masks(tmp_path / "none.png", load_scene(folder, holdout=0, masks="none").train, torch.ones(3))
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("n", [1, 511, 512, 1025, 5000])
def test_any_pixel_that_counts_is_found(n) -> None:
    counts = torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.3
    counts[0] = True
    views = Views(torch.eye(3, 4)[None], torch.ones(1, 4), torch.tensor([[n, 1]]), data=torch.zeros(n, 3).byte())
    views.counts = counts
    rows = counts.nonzero()[:, 0]
    assert views._rows_of(torch.arange(len(rows))).tolist() == rows.tolist()


def test_what_else_leaves_out_pixels_is_named(tmp_path) -> None:
    """Keys and files of instant-ngp that are not read."""
    folder = write(tmp_path / "s", scene={"n_frames": 3, "sharpness_discard_threshold": 0.5})
    (folder / "images/rays_f_2.dat").write_bytes(b"")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(load_scene(folder, holdout=0).train) == 4
    said = "\n".join(str(entry.message) for entry in caught)
    for words in ("`n_frames`, which leaves out 1 of the 4", "leaves out blurred", "rays_NAME.dat of 1 image"):
        assert words in said
