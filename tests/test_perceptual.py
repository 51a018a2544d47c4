"""FLIP against its authors' implementation and closed forms, LPIPS against its package."""

from __future__ import annotations

import math
import sys
import urllib.error
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from problems.nerf import OPTIONS, nerf_trainer

from hashgrid.cli import main
from hashgrid.data.procedural import procedural_scene
from hashgrid.data.scene import Scene
from hashgrid.rendering.scores import Scoring, describe, evaluate, spread
from hashgrid.tasks.nerf import Nerf
from hashgrid.util.perceptual import PIXELS_PER_DEGREE, Lpips, flip, flip_map


def pair(height: int, width: int, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks of colour, and the same with noise."""
    rng = np.random.default_rng(height * width)
    truth = np.kron(rng.random((height // 4 + 1, width // 4 + 1, channels)), np.ones((4, 4, 1)))[:height, :width]
    image = np.clip(truth + rng.normal(0, 0.1, truth.shape), 0, 1)
    return torch.from_numpy(image).float(), torch.from_numpy(truth).float()


@pytest.mark.parametrize("pixels_per_degree", [PIXELS_PER_DEGREE, 25.0])
@pytest.mark.parametrize("shape", [(5, 4), (40, 53), (33, 70)])
def test_flip_is_that_of_its_authors(shape: tuple[int, int], pixels_per_degree: float) -> None:
    evaluator = pytest.importorskip("flip_evaluator")
    for image, truth in (pair(*shape), (torch.rand(*shape, 3), torch.rand(*shape, 3))):
        options = {"applyMagma": False, "parameters": {"ppd": pixels_per_degree}}
        expected, mean, _ = evaluator.evaluate(truth.numpy(), image.numpy(), "LDR", **options)
        errors = flip_map(image, truth, pixels_per_degree)
        torch.testing.assert_close(errors, torch.from_numpy(expected)[..., 0].view(shape), rtol=0, atol=2e-5)
        assert flip(image, truth, None, pixels_per_degree) == pytest.approx(mean, abs=2e-5)


def test_flip_of_flat_images() -> None:
    """Nothing to blur and no edges: what is left is the distance of two colours, from CIE's definitions."""
    skimage = pytest.importorskip("skimage.color")

    def hunt(color: list[float]) -> np.ndarray:
        lab = skimage.rgb2lab(np.array([[color]]))[0, 0]
        return lab * [1, 0.01 * lab[0], 0.01 * lab[0]]

    def distance(a: list[float], b: list[float]) -> float:
        difference = hunt(a) - hunt(b)
        return (abs(difference[0]) + math.hypot(*difference[1:])) ** 0.7

    most = distance([0.0, 1.0, 0.0], [0.0, 0.0, 1.0])
    for a, b in ([[0.5, 0.5, 0.5], [0.6, 0.5, 0.4]], [[0.2, 0.9, 0.1], [0.9, 0.1, 0.3]]):
        ratio = distance(a, b) / most
        expected = ratio / 0.4 * 0.95 if ratio < 0.4 else 0.95 + (ratio - 0.4) / 0.6 * 0.05
        image, truth = (torch.tensor(color).expand(16, 16, 3) for color in (a, b))
        assert flip(image, truth) == pytest.approx(expected, abs=2e-4)


def test_flip_of_bytes_greys_strips_and_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    image, truth = ((x * 255).round().byte() for x in pair(60, 40))
    whole = flip_map(image, truth)
    torch.testing.assert_close(flip_map(image / 255, truth / 255), whole)
    grey = flip_map(image[..., :1], truth[..., :1])
    torch.testing.assert_close(grey, flip_map(image[..., :1].expand(-1, -1, 3), truth[..., :1].expand(-1, -1, 3)))
    monkeypatch.setattr("hashgrid.util.perceptual.STRIP", 1000)
    torch.testing.assert_close(flip_map(image, truth), whole, rtol=0, atol=1e-6)
    mask = torch.zeros(60, 40, dtype=torch.bool)
    assert math.isnan(flip(image, truth, mask))
    mask[:30] = True
    spoiled = torch.where(mask.unsqueeze(-1), image, 255 - truth)
    assert flip(spoiled, truth, mask) == flip(image, truth, mask) > 0
    assert flip(spoiled, torch.where(mask.unsqueeze(-1), image, truth), mask) == 0
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        flip(torch.rand(8, 8, 4), torch.rand(8, 8, 4))


@pytest.fixture
def lpips() -> ModuleType:
    """The package; where torchvision's operators are of another build of torch, without them: it needs none."""
    pytest.importorskip("scipy")
    if "torchvision" not in sys.modules:
        try:
            import torchvision  # noqa: F401
        except ImportError:
            pytest.skip("no torchvision")
        except RuntimeError:
            for name in ("nms", "qnms"):
                torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
    return pytest.importorskip("lpips")


def test_lpips_is_that_of_its_package(lpips: ModuleType) -> None:
    """With random features; images in [-1, 1], as its weights are made for."""
    torch.manual_seed(1)
    metric = Lpips("alex", trained=False)
    torch.manual_seed(1)
    expected = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    image, truth = pair(64, 80)
    wanted = float(expected(*((2 * x - 1).permute(2, 0, 1)[None] for x in (image, truth))))
    assert metric(image, truth) == pytest.approx(wanted, rel=1e-5) and wanted > 0
    assert metric(truth, truth) == 0
    mask = torch.zeros(64, 80, dtype=torch.bool)
    mask[:, :40] = True
    spoiled = torch.where(mask.unsqueeze(-1), image, 1 - truth)
    assert 0 < metric(spoiled, truth, mask) == metric(image, truth, mask)
    assert math.isnan(metric(image, truth, ~mask & mask))


def test_lpips_without_its_weights(lpips: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    with pytest.raises(ValueError, match="weights of `alex`, and they cannot be downloaded .*put them into `.*checkp"):
        Lpips("alex")


def test_lpips_is_asked_for_before_training(scene_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchvision", None)
        assert main(["nerf", str(scene_path), "--lpips", "alex", "--out", str(tmp_path / "out"), *OPTIONS]) == 1
    assert "pip install 'torch-hashgrid[lpips]'" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_scores_of_test_views(scene: Scene, tmp_path: Path) -> None:
    """The mean of FLIP is that of the files that are written, and the table has it by view."""
    imageio = pytest.importorskip("imageio.v3")
    task = nerf_trainer(scene).task
    assert isinstance(task, Nerf)
    found = evaluate(task.model, task.sampler, task.scene.test, torch.ones(3), tmp_path)
    flips = []
    for view, file in enumerate(sorted((tmp_path / "renders").glob("*.png"))):
        truth = task.scene.test.image_rgb(view, torch.ones(3))
        flips.append(flip(torch.from_numpy(imageio.imread(file)).float() / 255, truth))
    assert len(flips) == 2 and found["flip_mean"] == pytest.approx(sum(flips) / 2, abs=1e-6)
    table = (tmp_path / "test_views.csv").read_text().splitlines()
    assert table[0] == "view,psnr,ssim,flip" and float(table[2].split(",")[3]) == pytest.approx(flips[1], abs=1e-5)
    assert f"FLIP {found['flip_mean']:.4f} in" in describe(found)


def test_views_that_fit_into_a_time(tmp_path: Path) -> None:
    """The first always does; of what was scored is said how many of how many, and the table has these alone."""
    scene = procedural_scene(n_train=2, n_test=5, resolution=16)
    task = nerf_trainer(scene).task
    assert isinstance(task, Nerf)
    how = task.model, task.sampler, task.scene.test, torch.ones(3), tmp_path
    for seconds, n in ((1e-9, 1), (1e9, 5)):
        found = evaluate(*how, scoring=Scoring(score_seconds=seconds))
        assert (found["views"], found["views_total"]) == (n, 5)
        names = [line.split(",")[0] for line in (tmp_path / "test_views.csv").read_text().splitlines()[1:]]
        assert names == list(scene.test.names[:n])
        assert describe(found).startswith("1 of 5 test views: " if n == 1 else "5 test views: ")
    with pytest.raises(ValueError, match="`score_seconds` must be positive, got 0"):
        Scoring(score_seconds=0.0).check()
    for n in range(1, 20):
        order = spread(n)
        assert sorted(order) == list(range(n)) and (n < 3 or abs(order[0] - order[1]) >= n // 2)
