"""Options that are needed after training are checked before it, and each test view has a picture of its own."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from problems.nerf import OPTIONS, nerf_trainer

pytest.importorskip("imageio.v3")
pytest.importorskip("matplotlib")

from hashgrid.cli import main  # noqa: E402
from hashgrid.data.scene import Scene, SceneOptions  # noqa: E402
from hashgrid.tasks import nerf  # noqa: E402
from hashgrid.train.task import Progress, Report  # noqa: E402
from hashgrid.util.pictures import picture_names  # noqa: E402

ARGUMENTS = ["--steps", "2", "--device", "cpu", "--no-video"]
ARGUMENTS += OPTIONS
NO_COLOUR = "`background` must be white, black, grey, #rrggbb or R,G,B in 0..1, got"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--background", "pink"], f"{NO_COLOUR} 'pink'"),
        (["--background", "0.5,0.5,2"], f"{NO_COLOUR} '0.5,0.5,2'"),
        (["--background", "255,255,255"], f"{NO_COLOUR} '255,255,255'"),
        (["--views", "-1"], "`views` must be at least 0, got -1"),
        (["--steps", "-1"], "`steps` must be at least 0, got -1"),
        (["--time-limit", "0"], "`time_limit` must be positive, got 0.0"),
        (["--time-limit", "nan"], "`time_limit` must be positive, got nan"),
    ],
)
def test_wrong_options_are_found_before_images_are_read(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(nerf, "load_scene", lambda *args, **options: pytest.fail("images are read"))
    assert main(["nerf", str(tmp_path), "--out", str(tmp_path / "out"), *ARGUMENTS, *arguments]) == 1
    assert capsys.readouterr().err == f"hashgrid: error: {message}\n" and not (tmp_path / "out").exists()


def test_huge_images_are_asked_for_by_an_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def load_scene(path: Path, options: SceneOptions) -> Scene:
        asked.append(options.allow_huge)
        raise ValueError

    monkeypatch.setattr(nerf, "load_scene", load_scene)
    for arguments in ([], ["--allow-huge"]):
        assert main(["nerf", str(tmp_path), "--out", str(tmp_path / "out"), *ARGUMENTS, *arguments]) == 1
    assert asked == [False, True]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [(["--steps", "-3"], "steps"), (["--time-limit", "-1"], "time_limit"), (["--out", "photo.png"], "--out")],
)
def test_wrong_options_of_a_photo_are_found_before_it_is_read(
    arguments: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").touch()
    assert main(["image", "photo.png", *arguments]) == 1
    assert capsys.readouterr().err.startswith(f"hashgrid: error: `{name}` must be ")


@pytest.mark.parametrize(
    "arguments",
    [["--background", "0.5,0.5,0.5"], ["--background", "grey"]],
    ids=" ".join,
)
def test_backgrounds_of_the_help_are_taken(arguments: list[str], scene_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["nerf", str(scene_path), "--out", str(out), *ARGUMENTS, *arguments]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["protocol"]["background"] == arguments[-1]
    assert results["test"]["views"] == 2


def test_wrong_background_of_a_checkpoint_can_be_replaced(
    scene: Scene, scene_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    nerf_trainer(scene, 2, background="pink").save(checkpoint)
    for how in (["--eval", str(checkpoint)], ["--resume", "--out", str(tmp_path)]):
        command = ["nerf", str(scene_path), *how, *ARGUMENTS[2:5]]
        assert main(command) == 1
        error = capsys.readouterr().err
        assert f"{NO_COLOUR} 'pink'; the checkpoint says so, an option replaces it" in error
        assert main([*command, "--background", "#808080", "--views", "1"]) == 0


# Pictures of views ---------------------------------------------------------------------------------------------------

NAMES = {
    "blender": (["./test/r_0", "./test/r_1"], ["r_0", "r_1"]),
    "extensions": (["images/a.png", "images/b.JPG", "c.tif"], ["a", "b", "c"]),
    "rig": (["images/front/000.png", "images/back/000.png"], ["front_000", "back_000"]),
    "deep rig": (["a/cam/0/1.png", "b/cam/0/1.png"], ["a_cam_0_1", "b_cam_0_1"]),
    "dots": (["images/t_0.00", "images/t_0.08", "v1.2/x"], ["t_0.00", "t_0.08", "x"]),
    "back slashes": ([r"images\f_000.png", r"images\f_008.png"], ["f_000", "f_008"]),
    "outside": (["../a/x.png", "/b/x.png", "C:/c/x.png"], ["a_x", "b_x", "c_x"]),
    "formats": (["x.png", "x.jpg"], ["0000_x", "0001_x"]),
    "joined alike": (["a_b/c.png", "a/b_c.png", "c.png"], ["0000_a_b_c", "0001_a_b_c", "0002_c"]),
    "case": (["A/x.png", "a/X.png"], ["0000_A_x", "0001_a_X"]),
    "one image twice": (["x.png", "x.png"], ["0000_x", "0001_x"]),
    "none": ([], []),
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMES)
def test_names_of_pictures_do_not_meet(kind: str) -> None:
    names, pictures = NAMES[kind]
    assert picture_names(names) == pictures


def test_each_view_has_its_pictures(scene: Scene, tmp_path: Path) -> None:
    """Also where only some of them are evaluated, under the name it has among all."""
    scene.test.names, names = ("images/front/000.png", "images/back/000.png"), scene.test.names
    try:
        for n_views, pictures in ((2, {"front_000.png", "back_000.png"}), (1, {"front_000.png"})):
            out = tmp_path / str(n_views)
            nerf_trainer(scene, 1, views=n_views).task.evaluate(Report(out, Progress()))
            for folder in ("renders", "comparisons", "depth"):
                assert {path.name for path in (out / folder).iterdir()} == pictures
            with open(out / "test_views.csv", newline="") as file:
                assert len(list(csv.DictReader(file))) == n_views
    finally:
        scene.test.names = names


def test_images_and_splits_of_the_command_are_remembered(tmp_path: Path) -> None:
    """The options reach the loader, and a checkpoint is evaluated on what was held out when it was trained."""
    iio = pytest.importorskip("imageio.v3")
    frames = []
    for i in range(6):
        iio.imwrite(tmp_path / f"{i}.png", np.full((32, 32, 3), 40 * i, dtype=np.uint8))
        pose = [[1, 0, 0, i / 5], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1]]
        frames.append({"file_path": f"{i}.png", "transform_matrix": pose})
    (tmp_path / "transforms.json").write_text(json.dumps({"fl_x": 30.0, "frames": frames}))
    out = tmp_path / "out"
    options = ["--downscale", "2", "--holdout", "3"]
    assert main(["nerf", str(tmp_path), "--out", str(out), *options, *ARGUMENTS]) == 0
    for _ in range(2):
        results = json.loads((out / "results.json").read_text())
        assert results["test"]["views_total"] == 2 and results["protocol"]["test_views"] == "every 3rd view"
        assert iio.imread(out / "renders" / "3.png").shape == (16, 16, 3)
        (out / "results.json").unlink()
        assert main(["nerf", "--eval", str(out / "checkpoint.safetensors"), "--no-video", "--device", "cpu"]) == 0


def test_encoding_options_the_loader_are_checked_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--downscale=0", "--holdout=-1"):
        assert main(["nerf", str(tmp_path), "--out", str(tmp_path / "out"), *ARGUMENTS, option]) == 1
        assert "`downscale` must be at least 1 and `holdout` at least 0" in capsys.readouterr().err
