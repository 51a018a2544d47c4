"""Opaque pictures of an object on a plain background train like their twins with alpha."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

iio = pytest.importorskip("imageio.v3")

from hashgrid.data.scene import Scene, load_scene  # noqa: E402

SIZE = 40
WHITE, GREY = (255, 255, 255), (200, 190, 180)


def write(folder: Path, images: list[np.ndarray], suffix: str = "png") -> Path:
    folder.mkdir()
    frames = []
    for i, image in enumerate(images):
        iio.imwrite(folder / f"{i}.{suffix}", image, **({"quality": 90} if suffix == "jpg" else {}))
        pose = [[1, 0, 0, i / 4], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1]]
        frames.append({"file_path": f"{i}.{suffix}", "transform_matrix": pose})
    (folder / "transforms.json").write_text(json.dumps({"fl_x": 50.0, "aabb": [[-1] * 3, [1] * 3], "frames": frames}))
    return folder


def coverage(i: int) -> np.ndarray:
    """How much of each pixel a ring covers [SIZE, SIZE], by 4x4 samples; its hole is open to one side."""
    at = (np.arange(4 * SIZE) + 0.5) / 4 - SIZE / 2
    x, y = np.meshgrid(at - i, at)
    ring = (np.hypot(x, y) < 12) & ~((np.hypot(x, y) < 5) | ((np.abs(y) < 2) & (x > 0)))
    return ring.reshape(SIZE, 4, SIZE, 4).mean(axis=(1, 3))


def pictures(background: tuple[int, int, int], n: int = 4) -> list[np.ndarray]:
    """A ring of two colours over ``background``, with a spot of the background's colour inside."""
    result = []
    for i in range(n):
        color = np.where(np.arange(SIZE)[:, None, None] < SIZE / 2, (180, 60, 20), (20, 60, 180)).astype(np.float64)
        color = np.broadcast_to(color, (SIZE, SIZE, 3)).copy()
        color[20 + 8 : 20 + 10, 18 + i : 20 + i] = background
        alpha = coverage(i)[..., None]
        result.append((color * alpha + np.array(background) * (1 - alpha) + 0.5).astype(np.uint8))
    return result


@pytest.mark.parametrize("background", [WHITE, GREY, (0, 0, 0)])
def test_plain_background_becomes_transparent(tmp_path, background) -> None:
    images = pictures(background)
    scene = load_scene(write(tmp_path / "s", images), holdout=2)
    assert scene.backdrop == pytest.approx([x / 255 for x in background], abs=1e-6)
    assert "on plain #" + "".join(f"{x:02x}" for x in background) in scene.describe()
    assert len(scene.train) == len(scene.test) == 2
    for views, first in ((scene.test, 0), (scene.train, 1)):
        for view in range(2):
            i = first + 2 * view
            alpha = views.image(view)[..., 3].numpy() / 255
            covered = coverage(i)
            assert (alpha[covered == 0] == 0).all()
            assert np.abs(alpha - covered).max() < 0.15  # at the rim, and at the spot, which is opaque
            # over its background it is the picture of the file
            over = views.image_rgb(view, scene.background("auto")) * 255
            np.testing.assert_allclose(over.numpy(), images[i], atol=1.01)
    assert load_scene(tmp_path / "s", cut_out_backdrop=False).backdrop is None
    assert not load_scene(tmp_path / "s", cut_out_backdrop=False).train.has_alpha


def test_noise_of_jpeg_is_part_of_the_background(tmp_path) -> None:
    scene = load_scene(write(tmp_path / "s", pictures(GREY), "jpg"), holdout=0)
    assert scene.backdrop == pytest.approx([x / 255 for x in GREY], abs=3 / 255)
    for view in range(4):
        alpha, covered = scene.train.image(view)[..., 3], torch.from_numpy(coverage(view))
        # JPEG mixes pixels within its blocks of 16
        near = torch.nn.functional.max_pool2d((covered > 0)[None].float(), 33, stride=1, padding=16)[0] > 0
        assert not alpha[~near].any() and bool((alpha[covered == 1] > 200).all())


def changed(change) -> list[np.ndarray]:
    images = pictures(WHITE)
    for i, image in enumerate(images):
        change(i, image)
    return images


def wall(i: int, image: np.ndarray) -> None:
    image[30:] = (90, 80, 70)


def other(i: int, image: np.ndarray) -> None:
    image[image.min(axis=-1) == 255] = 60 * i


def shaded(i: int, image: np.ndarray) -> None:
    image[:] = np.minimum(image, (255 - 2 * np.arange(SIZE))[None, :, None])


def filled(i: int, image: np.ndarray) -> None:
    image[1:-1, 1:-1] = 40 + 20 * i


@pytest.mark.parametrize("change", [wall, other, shaded, filled])
def test_other_pictures_stay_as_they_are(tmp_path, change) -> None:
    images = changed(change)
    scene = load_scene(write(tmp_path / "s", images), holdout=0)
    assert scene.backdrop is None and not scene.train.has_alpha
    assert np.array_equal(scene.train.image(1).numpy(), images[1])


def test_nothing_but_background_is_no_object(tmp_path) -> None:
    blank = [np.full((SIZE, SIZE, 3), 255, dtype=np.uint8)] * 3
    assert load_scene(write(tmp_path / "s", blank), holdout=0).backdrop is None


def test_evaluation_is_on_white_unless_the_scene_or_the_user_says_otherwise(tmp_path) -> None:
    scene: Scene = load_scene(write(tmp_path / "s", pictures(GREY)), holdout=0)
    torch.testing.assert_close(scene.background("auto"), torch.tensor(GREY) / 255)
    assert scene.background("black").tolist() == [0, 0, 0]
    plain = load_scene(tmp_path / "s", holdout=0, cut_out_backdrop=False)
    assert plain.background("auto").tolist() == [1, 1, 1]
