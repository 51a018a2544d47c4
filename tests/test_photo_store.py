"""Photos whose pixels are in a file: the same views as in memory, found again, made anew, gone on with, refused."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

iio = pytest.importorskip("imageio.v3")

from hashgrid.data.errors import SceneError  # noqa: E402
from hashgrid.data.photo_store import AROUND, MOST_RESIDENT, Pages  # noqa: E402
from hashgrid.data.scene import Scene, load_scene  # noqa: E402

N, WIDTH, HEIGHT = 5, 30, 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos of noise, the first of which has transparent pixels, and masks."""
    out, rng, frames = tmp_path / "scene", np.random.default_rng(0), []
    for name in ("images", "masks"):
        (out / name).mkdir(parents=True)
    for i in range(N):
        image = rng.integers(0, 256, (HEIGHT, WIDTH, 4 if i == 0 else 3), dtype=np.uint8)
        iio.imwrite(out / f"images/{i}.png", image)
        iio.imwrite(out / f"masks/{i}.png", 255 * (rng.random((HEIGHT, WIDTH)) < 0.8).astype(np.uint8))
        pose = [[1, 0, 0, i / 4], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1]]
        frames.append({"file_path": f"images/{i}.png", "transform_matrix": pose})
    meta = {"fl_x": 20.0, "aabb": [[-1] * 3, [1] * 3], "frames": frames}
    (out / "transforms.json").write_text(json.dumps(meta))
    return out


def assert_same(scene: Scene, expected: Scene) -> None:
    for views, truth in ((scene.train, expected.train), (scene.test, expected.test)):
        assert torch.equal(views.data, truth.data)
        assert (views.counts is None) == (truth.counts is None)
        assert truth.counts is None or torch.equal(views.counts, truth.counts)
        assert views.note == truth.note and torch.equal(views.sizes, truth.sizes)
    if len(scene.train):
        for a, b in zip(scene.train.sample_rays(50, 1, 2)[1:], expected.train.sample_rays(50, 1, 2)[1:], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("options", [{}, {"downscale": 2}, {"masks": "none"}, {"transparent": "masked"}])
def test_a_file_holds_what_memory_would(folder: Path, tmp_path: Path, options: dict) -> None:
    expected = load_scene(folder, holdout=2, **options)
    assert expected.train.pages is None
    for _ in range(2):
        scene = load_scene(folder, holdout=2, cache=str(tmp_path / "cache"), **options)
        assert scene.train.pages is not None
        assert_same(scene, expected)
        assert_same(scene.normalized(), expected.normalized())


def test_opaque_alpha_takes_no_room(folder: Path, tmp_path: Path) -> None:
    image = iio.imread(folder / "images/0.png")
    image[..., 3] = 255
    iio.imwrite(folder / "images/0.png", image)
    views = load_scene(folder, holdout=0, masks="none", cache=str(tmp_path / "cache")).train
    assert not views.has_alpha and np.array_equal(views.image(0).numpy(), image[..., :3])


def test_a_file_is_found_again_and_follows_its_photos(folder: Path, tmp_path: Path, capsys) -> None:
    cache = tmp_path / "cache"
    load_scene(folder, holdout=0, cache=str(cache))
    assert "free there" in capsys.readouterr().out
    file = next(cache.glob("*.pixels"))
    before = file.stat().st_mtime_ns
    load_scene(folder, holdout=0, cache=str(cache))
    assert file.stat().st_mtime_ns == before and "it is there already" in capsys.readouterr().out
    changed = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    iio.imwrite(folder / "images/3.png", changed)
    views = load_scene(folder, holdout=0, cache=str(cache)).train
    assert np.array_equal(views.image(3)[..., :3].numpy(), changed) and len(list(cache.glob("*.pixels"))) == 1
    time = (folder / "masks/1.png").stat().st_mtime + 5
    iio.imwrite(folder / "masks/1.png", np.full((HEIGHT, WIDTH), 255, np.uint8))
    os.utime(folder / "masks/1.png", (time, time))
    assert load_scene(folder, holdout=0, cache=str(cache)).train.mask(1).all()


def test_what_was_not_finished_is_gone_on_with(folder: Path, tmp_path: Path, capsys) -> None:
    """A killed process leaves lines for some images, the last one cut, and pixels that nobody vouches for."""
    cache, expected = tmp_path / "cache", load_scene(folder, holdout=0)
    load_scene(folder, holdout=0, cache=str(cache))
    log, file = next(cache.glob("*.jsonl")), next(cache.glob("*.pixels"))
    lines = {json.loads(line).get("image"): line for line in log.read_text().splitlines() if line}
    log.write_text("\n".join((lines[None], lines[0], lines[1], lines[4][:15])))
    stored, size = np.fromfile(file, np.uint8), expected.train.data.shape[1]
    first = len(stored) - size * N * WIDTH * HEIGHT
    stored[first + 2 * size * WIDTH * HEIGHT :] = 7
    stored[0] = 1 - stored[0]  # that of an image that is there is not read again
    stored.tofile(file)
    capsys.readouterr()
    views = load_scene(folder, holdout=0, cache=str(cache)).train
    assert "2 images are there already" in capsys.readouterr().out
    assert torch.equal(views.data, expected.train.data)
    assert bool(views.counts[0]) != bool(expected.train.counts[0])
    assert torch.equal(views.counts[1:], expected.train.counts[1:])
    load_scene(folder, holdout=0, cache=str(cache))
    assert "it is there already" in capsys.readouterr().out


def test_errors_leave_nothing_that_is_taken_for_pixels(folder: Path, tmp_path: Path) -> None:
    cache, whole = tmp_path / "cache", (folder / "images/2.png").read_bytes()
    (folder / "images/2.png").write_bytes(whole[:200])
    with pytest.raises(SceneError, match=r"images/2.png` cannot be read"):
        load_scene(folder, holdout=0, cache=str(cache))
    (folder / "images/2.png").write_bytes(whole)
    assert_same(load_scene(folder, holdout=0, cache=str(cache)), load_scene(folder, holdout=0))


def test_a_small_disk_is_one_error(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2e9, 1.5e9, 5e8))
    why = r"pixels of 5 images take 0.0 GB, and .* has 0.5 GB free; pass `--downscale 2` .*`--cache FOLDER`"
    with pytest.raises(SceneError, match=why):
        load_scene(folder, holdout=0, cache=str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(SceneError, match="`--cache` must be a folder, memory or auto"):
        load_scene(folder, holdout=0, cache=str(tmp_path / "file"))


def test_pages_are_dropped_before_they_are_too_many() -> None:
    class Memory:
        dropped = 0

        def madvise(self, _: int) -> None:
            self.dropped += 1

    pages = Pages(Memory())  # type: ignore[arg-type]
    most = MOST_RESIDENT // AROUND
    for i in range(1, 21):
        pages.touch(most // 4)
        assert pages.touched <= most and pages.memory.dropped == i // 5  # type: ignore[attr-defined]
