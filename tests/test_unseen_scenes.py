"""Fields that are learned across scenes: what they take from source views, the family, the task."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hashgrid.cli import main
from hashgrid.data.analytic import around
from hashgrid.data.analytic import seen as hits
from hashgrid.data.errors import SceneError
from hashgrid.data.scene import Scene, load_scene
from hashgrid.data.scene_families import (
    ELEVATIONS,
    FOV,
    HALF,
    RADIUS,
    FamilyOptions,
    few_views,
    generated_scenes,
    random_scene,
    random_shapes,
    scenes_of,
)
from hashgrid.fields import RADIANCE_FIELDS
from hashgrid.fields.ibrnet import RayAttention, moments
from hashgrid.fields.source_views import SourceField, look_up, project
from hashgrid.geometry.cameras import Cameras, look_at
from hashgrid.geometry.rays import At, Rays
from hashgrid.nn.image_encoder import ImageEncoder
from hashgrid.rendering.samplers import StratifiedSampler
from hashgrid.rendering.unseen_scores import nearest_view, score_unseen
from hashgrid.rendering.volume import render
from hashgrid.tasks.generalize import Generalize
from hashgrid.train.loop import Trainer

BOX = torch.tensor([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5])
FIELDS = ("pixelnerf", "ibrnet")
SIZES = {"n_features": 4, "encoder_width": 4, "compute_dtype": "float32", "n_coarse": 12}
WIDTH, HEIGHT = 26, 18


def cameras(n: int = 3) -> Cameras:
    """Some around the origin, whose principal points are off the middle of pictures that are no squares."""
    generator = torch.Generator().manual_seed(n)
    places = 3 * F.normalize(torch.randn(n, 3, generator=generator), dim=1)
    c2w = look_at(places, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    intrinsics = torch.tensor([[30.0, 26.0, 11.0, 8.0]]).repeat(n, 1)
    return Cameras(c2w, intrinsics, torch.tensor([[WIDTH, HEIGHT]]).repeat(n, 1))


def pictures(n: int = 3) -> Tensor:
    return torch.rand(n, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(7))


def make(name: str, views: Cameras, images: Tensor, **options: Any) -> Any:
    torch.manual_seed(1)
    kind = RADIANCE_FIELDS[name]
    config: Any = kind.Config()
    sizes = {key: value for key, value in {**SIZES, **options}.items() if config.knows(key)}
    field = kind(config.replace(**sizes), BOX)  # type: ignore[call-arg]
    field.see_views(views, lambda view: images[view])
    return field


def rays(n: int = 20, camera: Tensor | None = None) -> Rays:
    generator = torch.Generator().manual_seed(3)
    directions = F.normalize(torch.randn(n, 3, generator=generator), dim=1)
    return Rays(-3 * directions + 0.3 * torch.randn(n, 3, generator=generator), directions, camera)


def at_points(points: Tensor) -> At:
    """Where a field is asked to be asked at points [S, 3] of the scene, each on a ray of its own."""
    directions = F.normalize(torch.randn(len(points), 3, generator=torch.Generator().manual_seed(5)), dim=1)
    return At(Rays(points - directions, directions), (points + 1.5) / 3, torch.arange(len(points)))


@torch.no_grad()
def seen(field: Any, some: Rays) -> Tensor:
    return render(field, StratifiedSampler(12), some, torch.ones(3)).colors


# ---- source views ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_features_are_those_of_the_pixels_that_points_fall_on() -> None:
    """`grid_sample` at pixel coordinates that are computed by hand, inside of pictures and outside."""
    views, images = cameras(), pictures()
    field = make("pixelnerf", views, images)
    points = 4 * torch.rand(400, 3, generator=torch.Generator().manual_seed(0)) - 2
    found = field.seen(at_points(points))
    encoded = field.encoder(images.permute(0, 3, 1, 2))
    n_seen = []
    for view in range(3):
        x, y, z = ((points - views.origins[view]) @ views.c2w[view, :, :3]).unbind(1)
        u, v = 30 * x / -z + 11, 26 * -y / -z + 8
        inside = (z < 0) & (u >= 0) & (u <= WIDTH) & (v >= 0) & (v <= HEIGHT)
        assert torch.equal(found.mask[view], inside)
        grid = torch.stack((2 * u / WIDTH - 1, 2 * v / HEIGHT - 1), dim=1)[inside].view(1, -1, 1, 2)
        for values, maps in ((found.features, encoded), (found.colors, images.permute(0, 3, 1, 2))):
            expected = F.grid_sample(maps[view : view + 1], grid, padding_mode="border", align_corners=False)
            torch.testing.assert_close(values[view][inside], expected[0, :, :, 0].T, rtol=1e-4, atol=1e-5)
        n_seen.append(int(inside.sum()))
    assert all(50 < n < 380 for n in n_seen)
    torch.testing.assert_close(found.positions, points, rtol=0, atol=1e-5)
    inputs, latents = field.entered(at_points(points), found)
    expected = ((points - views.origins[1]) @ views.c2w[1, :, :3]) / 1.5
    torch.testing.assert_close(inputs[1, :, :3], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(latents, torch.cat((found.colors, found.features), dim=-1))


@torch.no_grad()
def test_a_picture_of_odd_size_and_others_beside_it() -> None:
    """Pictures of several sizes are looked up by their own pixels; features end before a border that was cut in two."""
    views = replace(cameras(2), sizes=torch.tensor([[25, 17], [12, 9]]))
    images = [torch.rand(17, 25, 3), torch.rand(9, 12, 3)]
    field = make("pixelnerf", views, images)  # type: ignore[arg-type]
    for view, (x, y) in ((0, (24, 16)), (1, (11, 8)), (1, (3, 2))):
        ray = views.rays(*(torch.tensor([i]) for i in (view, x, y)))
        found = field.seen(at_points(ray.origins + 2.5 * ray.directions))
        assert bool(found.mask[view, 0])
        torch.testing.assert_close(found.colors[view, 0], images[view][y, x], rtol=0, atol=1e-4)


@torch.no_grad()
def test_an_encoder_keeps_what_it_sees_in_its_place() -> None:
    """Turned pictures have turned features, if kernels are symmetric: no half pixel is lost on the way."""
    encoder = ImageEncoder(4, 4)
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.copy_((module.weight + module.weight.flip(2, 3)) / 2)
    x = torch.rand(2, 3, 32, 48)
    torch.testing.assert_close(encoder(x.flip(2, 3)), encoder(x).flip(2, 3), rtol=1e-4, atol=1e-5)


def test_small_parts_have_exact_gradients() -> None:
    torch.manual_seed(0)
    maps = torch.rand(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    places = (0.1 + 0.8 * torch.rand(2, 3, 2, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(look_up, (maps, places))
    x = torch.rand(2, 3, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, 3, 1, dtype=torch.float64).softmax(0).requires_grad_()
    assert torch.autograd.gradcheck(moments, (x, weights))
    attention, index = RayAttention(4, 2, "reference").double(), torch.tensor([0, 0, 2, 2, 2])
    values, along = (torch.rand(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 4), (5,)))
    assert torch.autograd.gradcheck(lambda x, t: attention(x, t, index), (values, along))
    points = (0.4 * torch.rand(4, 3, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: project(cameras(), p)[0], (points,), eps=1e-7, atol=1e-4)
    encoder, images = ImageEncoder(2, 1).double(), torch.rand(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(encoder, (images,))


@pytest.mark.parametrize("name", FIELDS)
def test_gradients_reach_the_encoder(name: str) -> None:
    field = make(name, cameras(), pictures())
    render(field, StratifiedSampler(12), rays(), None, (0, 1)).colors.square().sum().backward()
    assert all(param.grad is not None and bool(param.grad.any()) for param in field.encoder.parameters())


@pytest.mark.parametrize("name", FIELDS)
def test_the_order_of_sources_says_nothing(name: str) -> None:
    views, images, order = cameras(4), pictures(4), [2, 0, 3, 1]
    colors = seen(make(name, views, images), rays())
    torch.testing.assert_close(seen(make(name, views.select(order), images[order]), rays()), colors)
    assert not torch.allclose(seen(make(name, views, images[order]), rays()), colors, atol=1e-3)


@pytest.mark.parametrize("name", FIELDS)
def test_what_does_not_see_a_point_takes_no_part(name: str) -> None:
    """A camera that looks away; and in training that of the ray itself, whose pixel is to be predicted."""
    views, images = cameras(3), pictures(4)
    two = seen(make(name, views.select([0, 1]), images[:2]), rays())
    turned = views.c2w.clone()
    turned[2, :, [0, 2]] *= -1  # about its vertical axis: everything is behind it
    behind = Cameras(turned, views.intrinsics, views.sizes)
    torch.testing.assert_close(seen(make(name, behind, images), rays()), two)
    three = make(name, views, images)
    assert not torch.allclose(seen(three, rays()), two, atol=1e-3)
    torch.testing.assert_close(seen(three, rays(camera=torch.full((20,), 2))), two)
    alone = make(name, behind.select([2]), images[2:])
    assert torch.equal(seen(alone, rays()), torch.ones(20, 3))  # nobody sees anything: it is empty


@pytest.mark.parametrize("name", FIELDS)
def test_few_of_many_views_are_sources(name: str) -> None:
    views, images = cameras(9), pictures(9)
    field = make(name, views, images, n_sources=3)
    assert field.source_numbers == [0, 4, 8] and len(field.pictures) == 3
    expected = seen(make(name, views.select([0, 8]), images[[0, 8]]), rays())
    torch.testing.assert_close(seen(field, rays(camera=torch.full((20,), 4))), expected)
    with pytest.raises(ValueError, match=f"the field '{name}' must be given source views by `see_views`, got none"):
        kind = RADIANCE_FIELDS[name]
        seen(kind(kind.Config(), BOX), rays())  # type: ignore[call-arg]


@pytest.mark.parametrize("name", FIELDS)
def test_features_that_are_kept_are_those_of_the_weights(name: str) -> None:
    """Whatever changes the encoder: an optimiser, a checkpoint, another picture, a dtype."""
    views, images = cameras(), pictures()
    field = make(name, views, images)
    before = seen(field, rays())
    assert torch.equal(seen(field, rays()), before)
    state = {key: value + 0.1 if key.startswith("encoder") else value for key, value in field.state_dict().items()}
    field.load_state_dict(state)
    after = seen(field, rays())
    assert not torch.allclose(after, before, atol=1e-4)
    fresh = make(name, views, images)
    fresh.load_state_dict(state)
    assert torch.equal(seen(fresh, rays()), after)


# ---- IBRNet ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_blended_colours_are_among_those_of_the_sources() -> None:
    field = make("ibrnet", cameras(), pictures())
    at = at_points(2 * torch.rand(300, 3, generator=torch.Generator().manual_seed(0)) - 1)
    sigmas, carry = field.density(at)
    colors, found = field.color(at, carry), field.seen(at)
    mask = found.mask[..., None]
    some = found.mask.any(0)
    low = found.colors.masked_fill(~mask, 2.0).amin(0)[some]
    high = found.colors.masked_fill(~mask, -1.0).amax(0)[some]
    assert bool((colors[some] >= low - 1e-6).all()) and bool((colors[some] <= high + 1e-6).all())
    assert bool((sigmas[~some] == 0).all()) and bool((sigmas[some] > 0).all()) and 10 < int(some.sum()) < 300


@torch.no_grad()
def test_one_source_shows_its_pixels() -> None:
    """Along the rays through its pixels, at any depth."""
    views, images = cameras(1), pictures(1)
    field = make("ibrnet", views, images)
    ray = views.view_rays(0)
    for depth in (2.0, 3.3):
        at = at_points(ray.origins + depth * ray.directions)
        colors = field.color(at, field.density(at)[1])
        torch.testing.assert_close(colors, images[0].view(-1, 3), rtol=0, atol=1e-4)


@torch.no_grad()
def test_rays_may_have_any_number_of_samples() -> None:
    """What samples see of one another is what they see on a ray alone; others on it change what a sample says."""
    torch.manual_seed(0)
    attention, counts = RayAttention(8, 3), [3, 1, 7]
    index = torch.repeat_interleave(torch.tensor([0, 2, 5]), torch.tensor(counts))
    x, places = torch.randn(11, 8), torch.rand(11)
    together = attention(x, places, index)
    begin = 0
    for n in counts:
        rows = slice(begin, begin + n)
        torch.testing.assert_close(attention(x[rows], places[rows], index[rows]), together[rows])
        begin += n
    assert not torch.allclose(attention(x[5:], places[5:], index[5:])[0], together[5], atol=1e-3)
    assert attention(x[:0], places[:0], index[:0]).shape == (0, 8)


# ---- the family ------------------------------------------------------------------------------------------------------


def test_scenes_to_learn_from_and_others() -> None:
    """No scene is both; unseen ones can be named, and a name gives the same pixels each time."""
    family = generated_scenes(FamilyOptions(n_scenes=3, n_views=4, n_unseen=2, n_targets=2, resolution=16), 3)
    assert [len(scene.train) for scene in family.known] == [4] * 3 and all(not len(x.test) for x in family.known)
    assert [(len(scene.train), len(scene.test)) for scene in family.unseen] == [(3, 2)] * 2
    named = load_scene("primitives:train=3,test=2,resolution=16,seed=1")
    assert torch.equal(named.train.data, family.unseen[1].train.data) and named.bounded
    assert torch.equal(named.test.data, family.unseen[1].test.data)
    data = [scene.train.data[: 3 * 256] for scene in (*family.known, *family.unseen)]
    assert all(not torch.equal(a, b) for i, a in enumerate(data) for b in data[:i])
    assert all(0.1 < float((x[:, 3] > 0).float().mean()) < 0.8 for x in data)  # there is something, and empty space
    torch.testing.assert_close(family.aabb, BOX)
    with pytest.raises(ValueError, match="`n_views` must be at least 2, got 1"):
        FamilyOptions(n_views=1).check()


def test_everything_is_in_the_box() -> None:
    """What rays hit lies in the box that fields end at."""
    places = list[Tensor]()
    for seed in range(24):
        views = around(4, 24, seed, RADIUS, ELEVATIONS, FOV)
        which, distance = hits(random_shapes(seed), views)
        ray = [views.view_rays(view) for view in range(4)]
        origins, directions = (torch.cat([getattr(x, name) for x in ray]) for name in ("origins", "directions"))
        places.append((origins + distance[:, None] * directions)[which >= 0])
    assert 0.9 < float(torch.cat(places).abs().max()) < HALF


def test_views_of_a_scene_of_files(scene: Scene) -> None:
    """Some views, their pixels with them; where there are no test views those left of training are rendered."""
    few = few_views(scene, 3, 1)
    assert len(few.train) == 3 and len(few.test) == 1
    assert few.train.names == tuple(scene.train.names[i] for i in (0, 6, 11))
    assert torch.equal(few.train.image(1), scene.train.image(6)) and torch.equal(few.test.image(0), scene.test.image(0))
    alone = few_views(replace(scene, test=few_views(scene, 3, 1).train.select([])), 3, 4)  # type: ignore[arg-type]
    assert len(alone.test) == 4 and not set(alone.test.names) & set(alone.train.names)
    with pytest.raises(SceneError, match="must have 13 training views and another one, got 12"):
        few_views(scene, 13, 1)


def test_a_folder_of_scenes(scene_path: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).symlink_to(scene_path)
    family = scenes_of(tmp_path, FamilyOptions(), 3, Generalize.Config().scene)
    assert (len(family.known), len(family.unseen)) == (2, 1) and len(family.unseen[0].train) == 3
    with pytest.raises(SceneError, match="must be a folder of at least two scenes"):
        scenes_of(scene_path / "train", FamilyOptions(), 3, Generalize.Config().scene)


# ---- figures and the task --------------------------------------------------------------------------------------------


def test_the_nearest_view_is_that_of_the_least_angle() -> None:
    places = torch.tensor([[2.0, 0, 0], [0, 5.0, 0], [0, 0, 1.0]])
    views = replace(random_scene(3, 0, 8).train, c2w=look_at(places, torch.zeros(3), torch.tensor([0.0, 0.6, 0.8])))
    assert nearest_view(views, torch.tensor([0.1, 0.2, 0.0])) == 1
    assert nearest_view(views, torch.tensor([9.0, 0.0, 8.0])) == 0


def test_figures_are_what_they_are_called(tmp_path: Path) -> None:
    """Where targets are the sources themselves the nearest one is the truth, of other scenes' pictures it is not."""
    scenes = [random_scene(3, 2, 16, seed).normalized() for seed in range(2)]
    scenes = [replace(scene, test=scene.train) for scene in scenes]
    field = make("ibrnet", scenes[0].train, torch.ones(3, 16, 16, 3))
    found = score_unseen(field, StratifiedSampler(8), scenes, torch.ones(3), tmp_path)
    assert found["psnr_nearest"] > 90 > found["psnr_average"] and found["psnr_of_other"] != found["psnr_mean"]
    assert found["gain"] == pytest.approx(found["psnr_mean"] - found["psnr_nearest"])
    mean = sum(row["psnr"] for row in found["scenes"]) / 2
    assert found["psnr_mean"] == pytest.approx(mean) and (tmp_path / "unseen" / "01.png").is_file()
    assert score_unseen(field, StratifiedSampler(8), scenes, torch.ones(3), n_scenes=1)["psnr_of_other"] is None


SMALL = ["--n-scenes", "3", "--n-views", "4", "--n-unseen", "2", "--n-targets", "1", "--resolution", "16"]
SMALL += ["--rays", "16", "--n-features", "4", "--encoder-width", "4", "--n-coarse", "6", "--device", "cpu"]


@pytest.mark.parametrize("name", FIELDS)
def test_a_start_is_rendered_and_goes_on(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`nerf --init` without a step shows what `generalize` shows of the same three views; with steps it learns."""
    out, one = tmp_path / "all", tmp_path / "one"
    assert main(["generalize", "--field", name, *SMALL, "--steps", "2", "--out", str(out)]) == 0
    found = json.loads((out / "results.json").read_text())
    assert len(found["test"]["scenes"]) == 2 and found["field" if "field" in found else "task"]
    checkpoint = str(out / "checkpoint.safetensors")
    source = "primitives:train=3,test=1,resolution=16,seed=1"
    words = ["nerf", source, "--field", name, "--init", checkpoint, "--no-video", "--device", "cpu"]
    assert main([*words, "--steps", "0", "--out", str(one)]) == 0
    psnr = json.loads((one / "results.json").read_text())["test"]["psnr_mean"]
    assert psnr == pytest.approx(found["test"]["scenes"][1]["psnr"], abs=1e-3)
    more = ["--steps", "2", "--target-samples", "384", "--out", str(tmp_path / "more")]
    assert main([*words, *more]) == 0
    Path(checkpoint).rename(out / "moved")
    assert main(["nerf", "--eval", str(tmp_path / "more" / "checkpoint.safetensors"), "--no-video"]) == 0
    assert main([*words, "--steps", "0", "--out", str(one)]) == 1
    assert "must be a checkpoint of `hashgrid generalize`, there is no" in capsys.readouterr().err
    other = {"pixelnerf": "ibrnet", "ibrnet": "pixelnerf"}[name]
    words = ["nerf", source, "--field", other, "--init", str(out / "moved"), "--steps", "0", "--out", str(one)]
    assert main(words) == 1
    assert f"is one of `hashgrid generalize` and the field '{name}'" in capsys.readouterr().err


def test_wrong_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, message in (
        (["--sources", "0"], "`sources` must be at least 1, got 0"),
        (["--rays", "2"], "`rays` must be at least `scenes_per_step`, got 2 and 4"),
        (["--field", "ngp"], "`--field` must be one of pixelnerf, ibrnet, got 'ngp'"),
        ([str(tmp_path / "none")], "`SOURCE` must be a folder of at least two scenes"),
    ):
        assert main(["generalize", *words, "--device", "cpu"]) == 1
        assert message in capsys.readouterr().err


def test_targets_are_no_sources() -> None:
    """Rays that are learned from are of views that the field does not look at, of one to three sources."""
    family = generated_scenes(FamilyOptions(n_scenes=2, n_views=5, n_unseen=1, n_targets=1, resolution=8), 3)
    config: Any = Generalize.defaults("ibrnet", torch.device("cpu"), set()).replace(steps=1, device="cpu")
    task, counts = Generalize(config, family), set()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        some, rgba = task.draw(family.known[0], 40, generator)
        sources = task.model.sources
        assert isinstance(task.model, SourceField) and sources is not None
        counts.add(len(sources))
        apart = (some.origins[:, None] - sources.origins).norm(dim=-1)
        assert float(apart.min()) > 0.1 and some.camera is None and rgba.shape == (40, 4)
    assert counts == {1, 2, 3}
    Trainer(task).train()
