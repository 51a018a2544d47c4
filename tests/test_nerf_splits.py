"""Which views are trained on and which are scored, in every spelling; scenes given as files; encodings of JSON."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

iio = pytest.importorskip("imageio.v3")

from hashgrid.data.errors import SceneError, SceneWarning  # noqa: E402
from hashgrid.data.loaders.transforms import scene_name  # noqa: E402
from hashgrid.data.scene import load_scene  # noqa: E402

NAMES = [f"images/f_{i}.png" for i in range(6)]


def write(folder: Path, names: list[str] = NAMES, file: str = "transforms.json", **meta) -> Path:
    frames = []
    for i, name in enumerate(names):
        image = folder / name.replace("\\", "/")
        image.parent.mkdir(parents=True, exist_ok=True)
        iio.imwrite(image, np.full((4, 5, 3), 40 * i, dtype=np.uint8))
        pose = [[1, 0, 0, float(i)], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1]]
        frames.append({"file_path": name, "transform_matrix": pose})
    (folder / file).write_text(json.dumps({"fl_x": 5.0, "aabb": [[-1] * 3, [1] * 3], **meta, "frames": frames}))
    return folder


def split(folder: Path, **options) -> tuple[list[int], list[int], str]:
    """Numbers of the training and of the test views, and what made the split; any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scene = load_scene(folder, **options)
    train, test = (
        [int(views.image(i)[0, 0, 0]) // 40 for i in range(len(views))] for views in (scene.train, scene.test)
    )
    return train, test, scene.split


@pytest.mark.parametrize("spell", ["{}", "./{}", "images/../{}", " {} "], ids=str)
@pytest.mark.parametrize("change", [lambda x: x, lambda x: x.replace("/", "\\"), lambda x: x.removesuffix(".png")])
def test_names_are_compared_as_paths(tmp_path, spell, change) -> None:
    names = [change(spell.format(name)) for name in NAMES]
    write(tmp_path, train_filenames=names[:4], test_filenames=names[5:], val_filenames=names[4:5])
    assert split(tmp_path) == ([0, 1, 2, 3], [5], "test_filenames")
    assert split(tmp_path, test_split="val") == ([0, 1, 2, 3], [4], "val_filenames")
    folder = tmp_path / "reversed"
    folder.mkdir()
    write(folder, ["./" + name for name in NAMES], test_filenames=names[4:])
    assert split(folder) == ([0, 1, 2, 3], [4, 5], "test_filenames")


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"train": [0, 1, 2, 3], "val": [4, 5]}, ([0, 1, 2, 3], [4, 5], "val_filenames")),
        ({"val": [4, 5]}, ([0, 1, 2, 3], [4, 5], "val_filenames")),
        ({"test": [4, 5]}, ([0, 1, 2, 3], [4, 5], "test_filenames")),
        ({"train": [0, 1]}, ([0, 1], [2, 3, 4, 5], "train_filenames")),
        ({"train": [0, 1, 2, 3, 4, 5], "test": [3]}, ([0, 1, 2, 4, 5], [3], "test_filenames")),
        ({"train": [0, 1], "test": [], "val": [2]}, ([0, 1], [2], "val_filenames")),
        ({"test": [5], "val": [4]}, ([0, 1, 2, 3], [5], "test_filenames")),
    ],
)
def test_lists_in_every_combination(tmp_path, lists, expected) -> None:
    write(tmp_path, **{f"{key}_filenames": [NAMES[i] for i in views] for key, views in lists.items()})
    assert split(tmp_path) == expected


def test_names_of_no_frame_are_named(tmp_path) -> None:
    write(tmp_path, train_filenames=NAMES[:4], test_filenames=["images/f_5.png", "images/g_6.png"])
    with pytest.raises(SceneError, match=r"`test_filenames` names 1 view\(s\) .*images/g_6.png"):
        load_scene(tmp_path)
    write(tmp_path, test_filenames="images/f_5.png")
    with pytest.raises(SceneError, match="`test_filenames` must be a list of file names"):
        load_scene(tmp_path)


def test_no_test_views_are_said_aloud(tmp_path) -> None:
    write(tmp_path, train_filenames=NAMES)
    with pytest.warns(SceneWarning, match="no test views, nothing will be scored: `train_filenames` leaves none"):
        assert len(load_scene(tmp_path).test) == 0
    write(tmp_path)
    assert split(tmp_path, holdout=0) == ([0, 1, 2, 3, 4, 5], [], "none")  # asked for
    assert split(tmp_path, holdout=2) == ([1, 3, 5], [0, 2, 4], "every 2nd view")


def test_validation_views_stand_in_and_test_images_are_not_trained_on(tmp_path) -> None:
    write(tmp_path, NAMES[:4], "transforms_train.json")
    write(tmp_path, NAMES[3:], "transforms_val.json")
    with pytest.warns(SceneWarning, match=r"not training on 1 view\(s\) that are test views, too: images/f_3.png"):
        scene = load_scene(tmp_path)
    assert scene.split == "transforms_val.json"
    assert scene.train.names == tuple(NAMES[:3]) and scene.test.names == tuple(NAMES[3:])


def test_scene_given_as_a_file(tmp_path) -> None:
    write(tmp_path, NAMES[:4], "transforms_train.json")
    write(tmp_path, NAMES[4:], "transforms_test.json")
    assert split(tmp_path / "transforms_train.json") == split(tmp_path)
    assert load_scene(tmp_path / "transforms_train.json").path == load_scene(tmp_path).path == tmp_path.resolve()
    # a file that the folder does not stand for has a name of its own, and is found again
    write(tmp_path, NAMES, "transforms_colmap.json")
    scene = load_scene(tmp_path / "transforms_colmap.json", holdout=3)
    assert scene.path == (tmp_path / "transforms_colmap.json").resolve() and scene.split == "every 3rd view"
    assert load_scene(scene.path, holdout=3).train.names == scene.train.names != load_scene(tmp_path).train.names
    names = [scene_name(tmp_path / name) for name in ("", "transforms_train.json", "transforms_colmap.json")]
    assert names == [tmp_path.name, tmp_path.name, f"{tmp_path.name}_transforms_colmap"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom"])
def test_json_of_windows_tools(tmp_path, encoding) -> None:
    names = ["bilder/häuser_0.png", *NAMES[1:]]
    file = write(tmp_path, names) / "transforms.json"
    text = json.dumps(json.loads(file.read_text()), ensure_ascii=False)
    bom = encoding == "utf-16-le-bom"
    file.write_bytes(b"\xff\xfe" * bom + text.encode("utf-16-le" if bom else encoding))
    assert split(tmp_path, holdout=0)[0] == [0, 1, 2, 3, 4, 5]
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(SceneError, match="it must be UTF-8 or UTF-16"):
        load_scene(tmp_path)
