"""The examples of docs/extending.md, as they stand there."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from problems.nerf import TINY

from hashgrid import cli, fields
from hashgrid.cli import main
from hashgrid.data import scene as scene_module
from hashgrid.data.scene import Scene, load_scene
from hashgrid.nn import encoding
from hashgrid.tasks.nerf import Nerf, NerfConfig
from hashgrid.train.loop import Trainer

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
TITLES = ("An encoding", "A field", "A loader", "A loss", "A task")


def example(title: str, name: str, folder: Path) -> types.ModuleType:
    """The code under a heading of the page, as a module."""
    code = re.search(rf"^## {title}\n.*?^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert code is not None
    path = folder / f"{name}.py"
    path.write_text(code[1])
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def names() -> Iterator[None]:
    """What the examples add to the dicts of names lasts for a test."""
    dicts = (encoding.ENCODINGS, fields.RADIANCE_FIELDS, cli.TASKS)
    before = [dict(known) for known in dicts]
    yield
    for known, content in zip(dicts, before, strict=True):
        known.clear()
        known.update(content)  # type: ignore[arg-type]


def test_the_page_has_every_kind() -> None:
    assert re.findall(r"^## (.*)$", PAGE, re.MULTILINE) == list(TITLES)


def test_encoding(tmp_path: Path) -> None:
    """By its flag, in a task."""
    iio = pytest.importorskip("imageio.v3")
    example("An encoding", "triangle", tmp_path)
    iio.imwrite(tmp_path / "photo.png", np.random.default_rng(0).integers(0, 255, (8, 9, 3)).astype(np.uint8))
    arguments = ["--steps", "2", "--batch", "64", "--device", "cpu", "--encoding", "triangle"]
    assert main(["image", str(tmp_path / "photo.png"), "--out", str(tmp_path / "out"), *arguments]) == 0
    made = encoding.make_encoding(2, encoding.EncodingConfig(encoding="triangle", n_frequencies=3))
    expected = torch.tensor([[-1.0, -1, -1, 1, -1, -1]])  # at 0 and 1/2; waves of length 1, 1/2 and 1/4
    torch.testing.assert_close(made(torch.tensor([[0.0, 0.5]])), expected)


def test_field(scene: Scene, tmp_path: Path) -> None:
    example("A field", "voxels", tmp_path)
    config = Nerf.defaults("voxels", torch.device("cpu"), set()).replace(steps=120, occupancy_time_share=1.0, side=24)
    sizes = {key: value for key, value in TINY.items() if config.knows(key)}
    assert config.to_dict()["field"] == {"name": "voxels", "side": 24} and config.learning_rate == 0.1
    assert NerfConfig.from_dict(config.to_dict()) == config
    trainer = Trainer(Nerf(config.replace(**sizes), scene))
    trainer.train()
    assert trainer.progress.psnr > 16  # 14.4 without training


def test_loader(tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    example("A loader", "hashgrid.data.loaders.tiny", tmp_path)
    monkeypatch.setattr(scene_module, "LOADERS", (*scene_module.LOADERS, "tiny"))
    views = scene.train
    images = np.stack([views.image_rgb(i, torch.ones(3)).numpy() for i in range(len(views))])
    poses = np.stack([np.vstack([pose.numpy(), [0, 0, 0, 1]]) for pose in views.c2w])
    np.savez(tmp_path / "tiny.npz", images=images, poses=poses, focal=float(views.intrinsics[0, 0]))
    loaded = load_scene(tmp_path / "tiny.npz", holdout=4, cut_out_backdrop=False)
    assert len(loaded.train) == 9 and len(loaded.test) == 3 and loaded.split == "every 4th view"
    torch.testing.assert_close(loaded.test.c2w, views.c2w[::4].to(loaded.test.c2w))
    torch.testing.assert_close(
        loaded.test.image_rgb(1, torch.ones(3)), views.image_rgb(4, torch.ones(3)), rtol=0, atol=0.5 / 255
    )


def test_loss(scene: Scene, tmp_path: Path) -> None:
    module = example("A loss", "solid", tmp_path)
    weights = []
    for weight in (0.0, 1.0):
        config = module.SolidConfig().replace(**TINY, steps=20, occupancy_time_share=1.0, entropy_weight=weight)
        task = module.SolidNerf(config, scene)
        Trainer(task).train()
        weights.append(torch.cat([param.detach().flatten() for param in task.model.parameters()]))
    assert not torch.equal(*weights)
    p = torch.tensor([0.5, 0.0, 1.0])
    torch.testing.assert_close(module.half_opaque(p), torch.tensor(2.0).log() / 3, rtol=1e-3, atol=0)


def test_task(tmp_path: Path) -> None:
    """A chord, by its command, from options to results."""
    example("A task", "series", tmp_path)
    time = np.arange(8000) / 8000
    chord = sum(np.sin(2 * np.pi * f * time) for f in (220, 277, 330)) / 3
    np.savetxt(tmp_path / "chord.txt", chord)
    sizes = ["--batch", "2048", "--max-resolution", "4096", "--log2-hashmap-size", "13", "--device", "cpu"]
    out = ["--out", str(tmp_path / "out")]
    assert main(["series", str(tmp_path / "chord.txt"), *out, "--steps", "150", *sizes]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["task"] == "series" and results["train"]["steps"] == 150 and results["snr"] > 20
    assert main(["series", str(tmp_path / "chord.txt"), *out, "--resume", "--steps", "151"]) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["train"]["steps"] == 151
