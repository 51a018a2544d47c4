"""What every loader promises: the same views, written in its format, are the same scene.

A format is a line of `WRITERS`: it writes the views of `SPLITS` and returns what `load_scene` takes.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

iio = pytest.importorskip("imageio.v3")

from hashgrid.data import scene as scene_module  # noqa: E402
from hashgrid.data.errors import SceneError  # noqa: E402
from hashgrid.data.procedural import CAMERA_ANGLE_X, orbit_cameras, render, write_scene  # noqa: E402
from hashgrid.data.scene import LOADERS, SceneOptions, Views, load_scene  # noqa: E402
from hashgrid.data.loaders.transforms import scene_name  # noqa: E402

SIZE = 24
SPLITS = {"train": orbit_cameras(5, SIZE, 6), "test": orbit_cameras(2, SIZE, 7)}  # those of seed 3
FOCAL = SIZE / 2 / math.tan(CAMERA_ANGLE_X / 2)


@pytest.fixture(scope="module")
def images() -> dict[str, list[np.ndarray]]:
    """uint8 [SIZE, SIZE, 4] of all views."""
    return {
        split: [
            np.floor(255 * render(cameras, i).clamp(0, 1).numpy() + 0.5).astype(np.uint8) for i in range(len(cameras))
        ]
        for split, cameras in SPLITS.items()
    }


Images = dict[str, list[np.ndarray]]


def frames(folder: Path, images: Images, split: str, name: Callable[[int], str], **keys) -> list[dict]:
    """Writes the images of a split, and gives its frames in the manner of transforms.json."""
    result = []
    for i, image in enumerate(images[split]):
        (folder / name(i)).parent.mkdir(parents=True, exist_ok=True)
        iio.imwrite(folder / name(i), image)
        matrix = [*SPLITS[split].c2w[i].tolist(), [0, 0, 0, 1]]
        result.append({"file_path": name(i), "transform_matrix": matrix, **keys})
    return result


def blender(folder: Path, images: Images) -> Path:
    """An angle, names without an extension, one file per split."""
    for split in SPLITS:
        listed = frames(folder, images, split, lambda i, split=split: f"{split}/r_{i}.png")
        for frame in listed:
            frame["file_path"] = "./" + frame["file_path"][:-4]
        text = json.dumps({"camera_angle_x": CAMERA_ANGLE_X, "frames": listed})
        (folder / f"transforms_{split}.json").write_text(text)
    return folder


def instant_ngp(folder: Path, images: Images) -> Path:
    """The lens for twice the size, the box as in the file; a file for each split, of which one is named."""
    lens = {"fl_x": 2 * FOCAL, "fl_y": 2 * FOCAL, "cx": SIZE, "cy": SIZE, "w": 2.0 * SIZE, "h": 2.0 * SIZE}
    for split in SPLITS:
        listed = frames(folder, images, split, lambda i, split=split: f"images/{split}_{i}.png")
        meta = {**lens, "aabb": [[-1.5] * 3, [1.5] * 3], "frames": listed}
        (folder / f"transforms_{split}.json").write_text(json.dumps(meta))
    return folder / "transforms_train.json"


def nerfstudio(folder: Path, images: Images) -> Path:
    """One file, a lens per frame, lists of names."""
    lens = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": SIZE / 2, "cy": SIZE / 2, "w": SIZE, "h": SIZE}
    listed = {
        split: frames(folder, images, split, lambda i, s=split: f"images/{s}_{i}.png", **lens) for split in SPLITS
    }
    names = {f"{split}_filenames": [frame["file_path"] for frame in part] for split, part in listed.items()}
    meta = {"camera_model": "OPENCV", "aabb": [[-1.5] * 3, [1.5] * 3], **names}
    (folder / "transforms.json").write_text(json.dumps({**meta, "frames": [*listed["test"], *listed["train"]]}))
    return folder


WRITERS: dict[tuple[str, str], Callable[[Path, Images], Path]] = {
    ("transforms", "Blender"): blender,
    ("transforms", "instant-ngp"): instant_ngp,
    ("transforms", "nerfstudio"): nerfstudio,
    ("transforms", "written scene"): lambda folder, images: write_scene(folder, 5, 2, SIZE, seed=3),
    ("procedural", "name"): lambda folder, images: Path(f"procedural:seed=3,train=5,test=2,resolution={SIZE}"),
}


def expect_views(views: Views, split: str, images: list[np.ndarray]) -> None:
    cameras = SPLITS[split]
    torch.testing.assert_close(views.c2w, cameras.c2w, rtol=0, atol=1e-6)
    torch.testing.assert_close(views.intrinsics, torch.tensor([[FOCAL, FOCAL, SIZE / 2, SIZE / 2]] * len(images)))
    assert views.sizes.tolist() == [[SIZE, SIZE]] * len(images) and not views.is_distorted
    assert views.counts is None and views.times is None and len(set(views.names)) == len(images)
    for view, image in enumerate(images):
        assert np.array_equal(views.image(view).numpy(), image)


def test_every_loader_is_tested() -> None:
    assert {name for name, _ in WRITERS} == set(LOADERS)


@pytest.mark.parametrize(("name", "dialect"), WRITERS, ids=map("-".join, WRITERS))
def test_same_views_are_the_same_scene(name: str, dialect: str, images: Images, tmp_path: Path) -> None:
    path = WRITERS[name, dialect](tmp_path, images)
    scene = load_scene(path)
    expect_views(scene.train, "train", images["train"])
    expect_views(scene.test, "test", images["test"])
    assert scene.aabb.tolist() == [-1.5] * 3 + [1.5] * 3
    assert (scene.n_cascades, scene.bounded, scene.near, scene.backdrop) == (1, True, 0.0, None)
    torch.testing.assert_close(scene.up.norm(), torch.tensor(1.0))
    assert scene.up[2] > 0.3 and scene.normalized() is scene and scene.split != "none"
    assert not set(scene.name + scene_name(path)) & set('/\\:*?"<>|')
    # its path finds it again, and it is of one format only
    again = load_scene(scene.path, SceneOptions(format=name))
    assert again.name == scene.name and torch.equal(again.train.data, scene.train.data)
    for other in set(LOADERS) - {name}:
        with pytest.raises(SceneError):
            load_scene(path, format=other)


@pytest.mark.parametrize(("name", "dialect"), WRITERS, ids=map("-".join, WRITERS))
def test_images_are_reduced(name: str, dialect: str, images: Images, tmp_path: Path) -> None:
    views = load_scene(WRITERS[name, dialect](tmp_path, images), downscale=2).train
    half = SIZE // 2
    assert views.sizes.tolist() == [[half, half]] * 5
    torch.testing.assert_close(views.intrinsics, torch.tensor([[FOCAL / 2, FOCAL / 2, half / 2, half / 2]] * 5))
    for view, image in enumerate(images["train"]):
        rgba = image.reshape(half, 2, half, 2, 4).astype(np.float64)
        alpha = rgba[..., 3:].mean((1, 3))
        premultiplied = (rgba[..., :3] * rgba[..., 3:]).mean((1, 3)) / np.maximum(alpha, 1e-9)
        expected = np.concatenate((premultiplied, alpha), axis=-1)
        assert np.abs(views.image(view).numpy() - expected).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("text", ["procedural:size=3", "procedural:train", "procedural:seed=-1", "procedural:test=two"])
def test_wrong_names_of_the_procedural_scene(text: str) -> None:
    with pytest.raises(
        SceneError, match="must be procedural:train=N,test=N,resolution=N,seed=N or fewer of these, got"
    ):
        load_scene(text)


def test_a_loader_is_one_module_and_one_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes before or behind the others as it is listed, and can be named."""
    toy = ModuleType("hashgrid.data.loaders.toy")
    toy.matches = lambda path: (path / "toy.txt").is_file()
    made: list[SceneOptions] = []
    toy.load = lambda path, options: made.append(options) or load_scene("procedural:train=1,test=1,resolution=8")
    monkeypatch.setitem(sys.modules, "hashgrid.data.loaders.toy", toy)
    monkeypatch.setattr(scene_module, "LOADERS", ("toy", *LOADERS))
    folder = write_scene(tmp_path / "both", 1, 1, 8)
    (folder / "toy.txt").touch()
    assert len(load_scene(folder, downscale=3).train) == 1 and made == [SceneOptions(downscale=3)]
    assert load_scene(folder, format="transforms").split == "transforms_test.json" and len(made) == 1
    load_scene(folder, format="toy")
    assert len(made) == 2
    monkeypatch.setattr(scene_module, "LOADERS", (*LOADERS, "toy"))
    load_scene(folder)
    assert len(made) == 2
    with pytest.raises(ValueError, match="`format` must be one of .*'transforms', 'procedural', 'toy'.*, got 'colmap'"):
        load_scene(folder, format="colmap")
    (tmp_path / "above" / "inside").mkdir(parents=True)
    (tmp_path / "above" / "inside" / "toy.txt").touch()
    with pytest.raises(SceneError, match=r"did you mean .*inside\?"):
        load_scene(tmp_path / "above")
