"""Examples, the README's snippets and the commands as a user types them: each runs in a process of its own."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hashgrid.cli import COMMANDS, TASKS, _parser
from hashgrid.train.run import Options, parse

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def run(*command: object, cwd: Path) -> str:
    """Standard output of a command that has to succeed."""
    words = [sys.executable, *map(str, command)]
    environment = {"OMP_NUM_THREADS": "2"} | os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def hashgrid(*arguments: object, cwd: Path) -> str:
    return run("-m", "hashgrid", *arguments, cwd=cwd)


# ---- examples --------------------------------------------------------------------------------------------------------

# Per file its arguments, with {scene} and {photo} for what is made for it, what it writes and what it prints last. A
# file that is not named here fails a test.
EXAMPLES = {
    "drop_in.py": (["1"], [], r"step +0  mean error [\d.]+  \| gradient - 1 \|\^2 [\d.]+"),
    "fit_image.py": (["{photo}", "2"], ["fitted.png"], r"PSNR of the whole image [\d.]+ dB, written to fitted.png"),
    "pde_own.py": (["2"], ["fisher"], r"results in fisher"),
    "sdf_from_mesh.py": (["{mesh}", "20"], ["field.ply", "field.png"], r"[1-9]\d* faces in field.ply, .* field.png"),
    "sdf_from_points.py": (["{points}", "15"], ["surface.ply"], r"[1-9]\d* vertices, .* written to surface.ply"),
    "train_nerf.py": (["{scene}", "2"], ["view.png"], r"first test view: [\d.]+ dB, written to view.png"),
}
QUICK = ("drop_in.py",)  # others fit a photo, extract a mesh of 256^3 cells or fill an occupancy grid


def made_for(argument: str, folder: Path, request: pytest.FixtureRequest) -> str:
    """A small input in place of {its name}."""
    if argument == "{photo}":
        import imageio.v3 as imageio
        import numpy as np

        imageio.imwrite(folder / "photo.png", np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8))
        return str(folder / "photo.png")
    if argument in ("{mesh}", "{points}"):
        import trimesh

        ball = trimesh.creation.icosphere(subdivisions=3, radius=2.0)
        ball.export(folder / "ball.ply", vertex_normal=True)
        return str(folder / "ball.ply")
    return str(request.getfixturevalue("scene_path")) if argument == "{scene}" else argument


def test_every_example_is_run() -> None:
    assert set(EXAMPLES) == {path.name for path in (ROOT / "examples").glob("*.py")}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in EXAMPLES]
)
def test_example_runs(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("imageio.v3")
    if name.startswith("sdf"):
        pytest.importorskip("trimesh")
        pytest.importorskip("igl")
    arguments, files, last = EXAMPLES[name]
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    printed = run(
        ROOT / "examples" / name, *(made_for(argument, inputs, request) for argument in arguments), cwd=tmp_path
    )
    assert re.fullmatch(last, printed.splitlines()[-1]), printed
    assert {path.name for path in tmp_path.iterdir()} == {"inputs", *files}
    assert all((tmp_path / file).stat().st_size > 1000 for file in files)


# ---- README ----------------------------------------------------------------------------------------------------------


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_python_of_the_readme_runs(tmp_path: Path) -> None:
    assert snippets("python")
    for code in snippets("python"):
        run("-c", code + "\nassert field.grid.table.grad.any() and field.mlp.weights[0].grad.any()", cwd=tmp_path)


def commands_of_the_readme() -> list[list[str]]:
    lines = [line for block in snippets("sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("hashgrid ")]


@pytest.mark.parametrize("arguments", commands_of_the_readme(), ids=" ".join)
def test_command_of_the_readme_is_understood(arguments: list[str]) -> None:
    name, *words = arguments
    if name in TASKS:
        module, task, _ = TASKS[name]
        command = getattr(importlib.import_module(module), task)
        flags = {word for word in words if word.startswith("--")}
        options, config = parse(command, words, command.defaults(None, torch.device("cpu"), flags))
        assert isinstance(options, Options) and isinstance(config, command.Config)
    elif name in COMMANDS:
        assert importlib.import_module(COMMANDS[name][0]).make_parser().parse_args(words)
    elif name not in ("bench", "compare"):  # which read their own
        args = _parser().parse_args(arguments)
        assert isinstance(args, argparse.Namespace) and callable(args.run)


def test_the_readme_names_every_command() -> None:
    """And every file of examples/ that it links to exists."""
    (commands,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    assert {arguments[0] for arguments in commands_of_the_readme()} == set(commands.choices)
    linked = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(linked) > 5 and not [path for path in linked if not (ROOT / path).exists()]


# ---- commands --------------------------------------------------------------------------------------------------------


def test_info_says_what_was_built(tmp_path: Path) -> None:
    from hashgrid import __version__

    lines = dict(re.findall(r"^(\w[^:]*): +(.*)$", hashgrid("info", cwd=tmp_path), re.MULTILINE))
    assert lines["hashgrid"].startswith(__version__) and "torch" in lines


def test_scene_is_one_that_nerf_takes(tmp_path: Path) -> None:
    pytest.importorskip("imageio.v3")
    sizes = ["--resolution", "16", "--train-views", "3", "--test-views", "2"]
    hashgrid("scene", "small", *sizes, cwd=tmp_path)
    from hashgrid.data.scene import load_scene

    scene = load_scene(tmp_path / "small")
    assert (len(scene.train), len(scene.test)) == (3, 2) and scene.train.sizes.tolist() == [[16, 16]] * 3


@pytest.mark.full
def test_bench_writes_its_report(tmp_path: Path) -> None:
    arguments = ["bench", "encodings", "--quick", "--seconds", "0.2", "--no-peers", "--no-plot", "--out", "out"]
    hashgrid(*arguments, cwd=tmp_path)
    reports = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")]
    assert len(reports) == 1 and reports[0]
