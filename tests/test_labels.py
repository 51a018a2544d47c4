"""Labels: how logits are composited, what of labels is known, how they are scored, what shows them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems.nerf import OPTIONS, nerf_trainer
from torch import Tensor, nn

from hashgrid.cli import main
from hashgrid.data.errors import SceneError
from hashgrid.data.scene import VOID, Scene, Views, load_scene
from hashgrid.fields.base import RadianceField
from hashgrid.geometry.rays import At, Rays
from hashgrid.nn import OccupancyGrid
from hashgrid.rendering.label_scores import confusion, figures, label_colors, score_views, shown_labels
from hashgrid.rendering.labels import FewLabels, LabelHead, SemanticConfig, known_labels
from hashgrid.rendering.ray_losses import of_labels
from hashgrid.rendering.samplers import OccupancySampler, Sampler, StratifiedSampler
from hashgrid.rendering.volume import render
from hashgrid.tasks.trained import trained_nerf
from hashgrid.train.checkpoint import load_checkpoint
from hashgrid.train.run import CHECKPOINT
from hashgrid.viewer import subject_of

iio = pytest.importorskip("imageio.v3")

BOX = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0])
K = 4
FEW = {"semantic": True, "labels_per_class": 1, "labelled_views": 3, "semantic_start": 0.5}


class Fog(RadianceField):
    """Denser towards +x, of the colours of places."""

    def __init__(self) -> None:
        super().__init__(BOX)
        self.strength = nn.Parameter(torch.tensor(2.0))
        self.labeler = LabelHead(K)

    def density(self, at: At) -> tuple[Tensor, None]:
        return self.strength * (0.2 + at.unit[:, 0] ** 2), None

    def color(self, at: At, carry: None) -> Tensor:
        return at.unit


def make_sampler(name: str) -> Sampler:
    if name == "stratified":
        return StratifiedSampler(12)
    grid = OccupancyGrid(BOX, resolution=8)
    grid.update(lambda points: torch.full((len(points),), 1e4), step=0)
    return OccupancySampler(grid, step_size=0.2)


@pytest.mark.parametrize("name", ["stratified", "occupancy"])
def test_composited_logits_are_those_of_a_loop(name: str) -> None:
    """Ray by ray, sample by sample, in double precision; so are gradients of their cross entropy, by the density and
    by the head, and colours are what they are without labels."""
    torch.manual_seed(3)
    field, sampler, n = Fog(), make_sampler(name), 7
    directions = nn.functional.normalize(torch.tensor([[1.0, 0.1, 0.2]]) + 0.3 * torch.randn(n, 3), dim=1)
    rays = Rays(torch.tensor([[-2.0, 0.1, -0.1]]) + 0.2 * torch.randn(n, 3), directions)
    labels, white = torch.tensor([0, 3, -1, 1, 2, -1, 0]), torch.ones(3)
    out = render(field, sampler, rays, white, labelled=True)
    plain = render(field, sampler, rays, white)
    assert out.logits is not None and plain.logits is None
    torch.testing.assert_close(out.colors, plain.colors, rtol=0, atol=1e-6)
    loss = of_labels(out.logits, labels)
    loss.backward()
    found = [param.grad.clone() for param in field.parameters() if param.grad is not None]
    assert len(found) == len(list(field.parameters()))
    field.zero_grad()

    rows = [torch.zeros(K, dtype=torch.float64) for _ in range(n)]
    light = [torch.ones((), dtype=torch.float64)] * n
    samples = out.samples
    assert samples.n_samples > 50
    for ray, start, end in zip(samples.ray_indices, samples.t_starts, samples.t_ends, strict=True):
        place = (rays.origins[ray] + (start + end) / 2 * rays.directions[ray] + 1) / 2
        at = At(rays, place[None], torch.tensor([int(ray)]))
        sigma = field.density(at)[0][0].double()
        through = torch.exp(-sigma * (end - start).double())
        rows[ray] = rows[ray] + light[ray] * (1 - through) * field.labeler(at, place[None])[0].double()
        light[ray] = light[ray] * through
    expected = torch.stack(rows)
    torch.testing.assert_close(out.logits.double(), expected, rtol=1e-4, atol=1e-5)
    known = [(row, int(label)) for row, label in zip(rows, labels, strict=True) if label >= 0]
    by_hand = sum(torch.log(torch.exp(row).sum()) - row[label] for row, label in known) / len(known)
    torch.testing.assert_close(loss.double(), by_hand, rtol=1e-4, atol=1e-6)
    by_hand.backward()
    for grad, param in zip(found, field.parameters(), strict=True):
        torch.testing.assert_close(grad, param.grad, rtol=1e-3, atol=1e-5)
    assert float(field.strength.grad.abs()) > 1e-3


def test_void_labels_give_no_loss() -> None:
    logits = torch.randn(5, K, requires_grad=True)
    nothing = of_labels(logits, torch.full((5,), -1))
    nothing.backward()
    assert nothing.item() == 0 and not bool(logits.grad.any())
    logits.grad = None
    of_labels(logits, torch.tensor([-1, 2, -1, 0, -1])).backward()
    assert logits.grad.any(1).tolist() == [False, True, False, True, False]


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Twelve views of seven classes."""
    return load_scene(Path("labelled:train=12,test=2,resolution=32"))


def known_of(scene: Scene, seed: int = 0, **options: Any) -> Tensor:
    views = known_labels(SemanticConfig(semantic=True, **options), scene.train, scene.n_classes, seed)
    assert views.labels is not None
    return views.labels.view(12, -1)


def test_the_scene_has_a_class_for_each_thing(scene: Scene) -> None:
    """Seven, all of them in most views; what shows nothing is void, and a ball looks like another thing."""
    labels, alpha = scene.train.labels, scene.train.data[:, 3]
    assert labels is not None and scene.n_classes == 7
    assert bool((labels[alpha == 0] == VOID).all()) and bool((labels[alpha == 255] != VOID).all())
    rows = labels.view(12, -1)
    assert sum(len(row.unique()) == 8 for row in rows) > 6
    colors = torch.stack([scene.train.data[(labels == k) & (alpha == 255), :3].float().mean(0) for k in range(7)]) / 255
    for k in (1, 2, 3):
        assert float((colors[k] - colors[k + 3]).abs().max()) < 0.05


def test_noise_makes_other_labels(scene: Scene) -> None:
    """Of the share that was asked for, each of the other classes as often, void stays void; a function of the seed."""
    truth = scene.train.labels.view(12, -1)  # type: ignore[union-attr]
    noisy = known_of(scene, label_noise=0.7)
    assert torch.equal(noisy == VOID, truth == VOID)
    known = truth != VOID
    n, wrong = int(known.sum()), known & (noisy != truth)
    assert abs(float(wrong.sum()) / n - 0.7) < 4 * math.sqrt(0.21 / n)
    step = torch.bincount((noisy[wrong].long() - truth[wrong].long()) % 7, minlength=7) / int(wrong.sum())
    torch.testing.assert_close(step, torch.tensor([0.0, *[1 / 6] * 6]), rtol=0, atol=0.03)
    assert torch.equal(noisy, known_of(scene, label_noise=0.7))
    assert not torch.equal(noisy, known_of(scene, seed=1, label_noise=0.7))


def test_few_labels(scene: Scene) -> None:
    """One of each class on evenly spread views, and true; batches have rays of them beside their own."""
    truth = scene.train.labels.view(12, -1)  # type: ignore[union-attr]
    few = known_of(scene, labels_per_class=1, labelled_views=3)
    for view in range(12):
        kept = few[view] != VOID
        present = sorted(set(truth[view].tolist()) - {VOID}) if view in (0, 4, 8) else []
        assert sorted(few[view][kept].tolist()) == present and torch.equal(few[view][kept], truth[view][kept])
    views = nerf_trainer(scene, **FEW).task.views  # type: ignore[attr-defined]
    assert isinstance(views, FewLabels)
    rays, rgba, noise = views.sample_rays(64, 0, 3, "native", {"labels"})
    assert len(rays) == len(rgba) == len(noise) > 64
    assert bool((rays.labels[64:] >= 0).all()) and int((rays.labels[:64] >= 0).sum()) < 8


def test_scores_are_those_of_counting() -> None:
    """Void pixels are not scored, a class that was never learned is never right, one that is not there has no score."""
    truth, found = torch.tensor([0, 0, 0, 1, 1, 3, VOID, VOID]), torch.tensor([0, 0, 1, 1, VOID, 0, 2, 0])
    scores = figures(confusion(truth.byte(), found.byte(), 3))
    expected = [2 / 4, 1 / 3, 0 / 1]  # right ones by those that are, or were said to be, of classes 0, 1 and 3
    assert scores == {"label_accuracy": pytest.approx(3 / 6), "miou": pytest.approx(np.mean(expected))}
    twice = confusion(truth.byte(), found.byte(), 3) + confusion(truth.byte(), found.byte(), 3)
    assert figures(twice) == scores
    nothing = torch.full((3,), VOID, dtype=torch.uint8)
    assert figures(confusion(nothing, nothing, 3)) == {"label_accuracy": None, "miou": None}


def test_colours_of_classes_are_told_apart() -> None:
    colors = label_colors(torch.arange(256))
    assert len({tuple((255 * color).round().int().tolist()) for color in colors[:36]}) == 36
    assert torch.equal(colors[VOID], label_colors(torch.tensor(VOID)))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.zeros(3 * 1024, dtype=torch.int64), "`labels` must be uint8 of shape .* got torch.int64"),
        (torch.zeros(3 * 1024 - 1, dtype=torch.uint8), r"one per pixel, got torch.uint8 \[3071\]"),
        (torch.zeros(3 * 1024, 2, dtype=torch.uint8), r"one per pixel, got torch.uint8 \[3072, 2\]"),
    ],
)
def test_wrong_labels_are_one_error(labels: Tensor, said: str, scene: Scene) -> None:
    train = scene.train
    with pytest.raises(ValueError, match=said):
        Views(train.c2w[:3], train.intrinsics[:3], train.sizes[:3], data=train.data[: 3 * 1024], labels=labels)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda labels: None, "training views must have labels with `--semantic`, this scene has none"),
        (lambda labels: torch.full_like(labels, VOID), "some training pixel must have a label .* all of them are void"),
    ],
)
def test_scenes_without_labels_are_refused(change: Any, said: str, scene: Scene) -> None:
    with pytest.raises(SceneError, match=said):
        nerf_trainer(replace(scene, train=replace(scene.train, labels=change(scene.train.labels))), semantic=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"label_noise": 0.1}, "`label_noise` must be 0 without `--semantic`, got 0.1"),
        ({"semantic": True, "label_noise": 1.5}, r"`label_noise` must be in 0..1, got 1.5"),
        ({"semantic": True, "labelled_views": -1}, "`labelled_views` must be at least 0, got -1"),
        ({"semantic_weight": math.nan}, "`semantic_weight` must be at least 0, got nan"),
    ],
)
def test_wrong_options_are_one_error(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SemanticConfig(**options).check()


def test_a_run_goes_on_with_the_same_bits(scene: Scene, tmp_path: Path) -> None:
    """Saved before labels are learned, ended after."""
    whole, half, resumed = (nerf_trainer(scene, steps=10, occupancy_time_share=1.0, **FEW) for _ in range(3))
    whole.train()
    for _ in range(3):
        half.step()
    half.save(tmp_path / CHECKPOINT)
    resumed.load(*load_checkpoint(tmp_path / CHECKPOINT))
    assert resumed.progress.step == 3
    before = {name: value.clone() for name, value in resumed.task.model.state_dict().items()}
    resumed.train()
    for name, value in whole.task.model.state_dict().items():
        assert torch.equal(resumed.task.model.state_dict()[name], value), name
        assert not name.startswith("labeler") or not torch.equal(before[name], value), name
    assert resumed.progress.loss == whole.progress.loss and resumed.progress.counts == whole.progress.counts


def test_labels_that_are_not_asked_for_change_no_bit(scene: Scene) -> None:
    bare = replace(scene, train=replace(scene.train, labels=None))
    with_labels, without = (nerf_trainer(each, steps=4, occupancy_time_share=1.0) for each in (scene, bare))
    for trainer in (with_labels, without):
        trainer.train()
    states = [trainer.task.model.state_dict() for trainer in (with_labels, without)]
    assert states[0].keys() == states[1].keys() and not any("labeler" in name for name in states[0])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the command, for some steps."""
    out = tmp_path_factory.mktemp("labelled") / "run"
    quick = "--steps 250 --learning-rate 0.05 --semantic-start 0.2 --max-resolution 32 --log2-hashmap-size 12".split()
    words = ["nerf", "labelled:train=12,test=2,resolution=32", "--semantic", "--no-video", *OPTIONS, *quick]
    assert main([*words, "--steps-per-diagonal", "128", "--out", str(out)]) == 0
    return out


def test_labels_are_reported(run: Path) -> None:
    """Figures of held-out and of training views, and a picture of each: truth | rendered | wrong."""
    found = json.loads((run / "results.json").read_text())
    assert 0.8 < found["test"]["label_accuracy"] <= 1 and 0.5 < found["test"]["miou"] <= 1
    assert 0.8 < found["training_views"]["label_accuracy"] <= 1
    pictures = [sorted((run / "labels" / folder).glob("*.png")) for folder in ("", "training")]
    assert [len(part) for part in pictures] == [2, 4] and "test.miou" in (run / "report.html").read_text()
    assert {iio.imread(picture).shape for picture in sum(pictures, [])} == {(32, 3 * 32 + 2 * 4, 3)}


def test_ignored_pixels_are_not_scored(run: Path, tmp_path: Path) -> None:
    """Without those that are wrong all are right, without those that are right none is."""
    task, _ = trained_nerf(run, "cpu")
    test: Any = task.scene.test
    found = torch.cat([shown_labels(task.model, task.sampler, test, view).view(-1) for view in range(2)])
    for counts, share in ((found == test.labels, 1.0), (found != test.labels, 0.0)):
        masked = replace(test, counts=counts)
        assert score_views(task.model, task.sampler, masked, 2, tmp_path)["label_accuracy"] == share


def test_labels_are_seen_in_every_tool(run: Path, tmp_path: Path) -> None:
    """The colours of `render --semantic` and of the viewer are those of the classes that are found; vertices of
    `export --semantic` have no other ones, and those of a thing its."""
    task, _ = trained_nerf(run, "cpu")
    view = task.scene.test.select([0])
    labels = shown_labels(task.model, task.sampler, view, 0)
    assert len(labels.unique()) > 3 and torch.equal(labels, shown_labels(task.model, task.sampler, view, 0))
    subject = subject_of(task)
    assert "labels" in subject.modes
    assert torch.equal(subject.draw(view, "labels").color, label_colors(labels))
    nothing = subject.draw(view, "labels", torch.tensor([5.0, 5, 5, 6, 6, 6])).color
    assert torch.equal(nothing, label_colors(torch.full((32, 32), VOID)))

    words = ["render", str(run), "--path", "test", "--no-video", "--semantic", "--out", str(tmp_path / "path")]
    assert main(words) == 0
    picture = iio.imread(tmp_path / "path" / "labels" / "00000.png")
    assert np.array_equal(picture, (label_colors(labels) * 255).round().byte().numpy())

    trimesh = pytest.importorskip("trimesh")
    words = ["export", str(run), str(tmp_path / "mesh.ply"), "--semantic", "--resolution", "24", "--views", "12"]
    assert main([*words, "--device", "cpu"]) == 0
    classes = json.loads((tmp_path / "export.json").read_text())["mesh.ply"]["classes"]
    mesh = trimesh.load(tmp_path / "mesh.ply", process=False)
    spelled = ["#" + bytes(color[:3].tolist()).hex() for color in mesh.visual.vertex_colors]
    assert len(classes) == 7 and set(spelled) <= set(classes.values())
    for number in (2, 6):  # boxes, half as high as they are above the floor
        angle, middle = math.pi / 3 * (number - 1) + 0.4, -0.5 + 0.16 + 0.06 * (number - 1)
        place = 0.72 * math.cos(angle), 0.72 * math.sin(angle), middle
        near = np.nonzero(np.linalg.norm(np.asarray(mesh.vertices) - place, axis=1) < 0.3)[0]
        assert len(near) > 10 and np.mean([spelled[i] == classes[str(number)] for i in near]) > 0.8
