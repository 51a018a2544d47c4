"""What is learned of a capture beside its scene: rays, lens, appearance, background."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from problems.nerf import OPTIONS, TINY
from torch import Tensor

from hashgrid.cli import main
from hashgrid.data.procedural import procedural_scene
from hashgrid.data.scene import Scene, Views
from hashgrid.fields import Classic, Ngp
from hashgrid.fields.base import RadianceField
from hashgrid.geometry.cameras import nearest_point_to_axes
from hashgrid.geometry.lenses import KINDS, coefficients, distort, relens, unproject
from hashgrid.geometry.motions import angle_between, so3_exp
from hashgrid.geometry.rays import At, Rays
from hashgrid.rendering.appearance import balanced, exposed, shown
from hashgrid.rendering.capture_scores import fit_code, fit_pose, left_half, pose_errors, refined, score_capture
from hashgrid.rendering.objective import objective
from hashgrid.rendering.refinement import Capture, CaptureConfig, add_capture, perturbed
from hashgrid.rendering.samplers import Found, Jitter, StratifiedSampler
from hashgrid.rendering.scores import Scoring
from hashgrid.rendering.volume import render, render_image
from hashgrid.tasks.nerf import Nerf, NerfConfig
from hashgrid.train.checkpoint import load_checkpoint
from hashgrid.train.loop import Trainer
from hashgrid.train.run import CHECKPOINT

BOX = torch.tensor([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5])


@pytest.fixture(scope="module")
def views() -> Scene:
    return procedural_scene(n_train=6, n_test=2, resolution=32)


class Still(StratifiedSampler):
    """The same distances on all rays, whatever they meet."""

    def __init__(self, prunes: bool) -> None:
        super().__init__(12)
        self.prunes = prunes

    def edges(self, rays: Rays, aabb: Tensor, jitter: Jitter) -> Tensor:
        return torch.linspace(2.5, 5.5, 13, dtype=rays.origins.dtype).expand(len(rays), 13)

    def forward(self, rays: Rays, field: RadianceField, jitter: Jitter) -> Found:
        assert not rays.origins.requires_grad and not rays.directions.requires_grad
        return super().forward(rays, field, jitter)


class Wall(RadianceField):
    """A globe with waves of colours, that is opaque at once."""

    radius = 1.2

    def density(self, at: At) -> tuple[Tensor, Tensor]:
        x = 3 * at.unit - 1.5
        return 40 * torch.sigmoid((self.radius - x.norm(dim=-1)) * 20), x

    def color(self, at: At, carry: Tensor) -> Tensor:
        return 0.5 + 0.4 * torch.sin(4 * carry + torch.tensor([0.0, 1.0, 2.0]))


def capture_of(field: RadianceField, train: Views, **options: Any) -> Capture:
    add_capture(
        CaptureConfig().replace(**{"camera_start": 0.0, "camera_rate": 1e-3, **options}), field, scene_of(train), 0.01
    )
    assert isinstance(field.capture, Capture)
    return field.capture


def scene_of(train: Views) -> Scene:
    return Scene(train, train, BOX, 1, True, 0.0, torch.tensor([0.0, 0.0, 1.0]), Path("none"))


def some_rays(views: Views, n: int = 40) -> Rays:
    generator = torch.Generator().manual_seed(1)
    view, x, y = (torch.randint(high, (n,), generator=generator) for high in (len(views), 32, 32))
    return views.rays(view, x, y)


# ---- rays ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prunes", [False, True])
@pytest.mark.parametrize("refine_cameras", ["so3xr3", "se3"])
def test_gradient_of_poses_and_lens(refine_cameras: str, prunes: bool, views: Scene) -> None:
    """Of a photometric loss, against finite differences, also where most samples are found to be hidden before."""
    sizes = {"n_levels": 3, "log2_hashmap_size": 10, "max_resolution": 24, "n_neurons": 16}
    field = Ngp(Ngp.Config().replace(**sizes, interpolation="smoothstep", compute_dtype="float32"), BOX)
    torch.nn.init.normal_(field.grid.table, std=0.3)
    capture = capture_of(field, views.train, refine_cameras=refine_cameras, refine_lens=True)
    assert capture.moves is not None and capture.lens is not None
    params = [capture.moves.table, capture.lens.table]
    with torch.no_grad():
        for param in params:
            param.normal_(std=0.02)
    field.double()
    for module in (field.grid, *field.modules()):
        if hasattr(module, "accumulate_grad"):
            module.accumulate_grad = False
    rays = some_rays(views.train)._each(lambda x: x.double() if x.is_floating_point() else x)
    target = torch.rand(len(rays), 3, dtype=torch.float64)

    def loss() -> Tensor:
        return (render(field, Still(prunes), rays).colors - target).square().sum()

    params = [capture.moves.table, capture.lens.table]
    gradients = torch.autograd.grad(loss(), params)
    for param, gradient in zip(params, gradients, strict=True):
        change = torch.randn_like(param)
        with torch.no_grad():
            param += 1e-6 * change
            above = float(loss())
            param -= 2e-6 * change
            below = float(loss())
            param += 1e-6 * change
        assert gradient.any()
        assert float((gradient * change).sum()) == pytest.approx((above - below) / 2e-6, rel=1e-4)


@pytest.mark.parametrize("refine_cameras", ["so3xr3", "se3"])
def test_rays_are_those_of_the_poses_and_the_lens(refine_cameras: str, views: Scene) -> None:
    """Rays that are moved in training are those of the cameras that are written afterwards."""
    train = replace(views.train, distortion=torch.tensor([0.08, -0.02, 0.0, 0.0, 1e-3, 0.0]).repeat(6, 1))
    field = Wall(BOX)
    capture = capture_of(field, train, refine_cameras=refine_cameras, refine_lens=True)
    assert capture.moves is not None and capture.lens is not None
    with torch.no_grad():
        capture.moves.table.normal_(std=0.5)
        capture.lens.table.copy_(torch.tensor([[0.2, -0.5, 0.02]]))
    rays = some_rays(train)
    moved = capture.rays(rays)
    after = refined(scene_of(train), capture)
    expected = some_rays(after.train)
    torch.testing.assert_close(moved.origins, expected.origins, rtol=0, atol=1e-5)
    torch.testing.assert_close(moved.directions, expected.directions, rtol=0, atol=2e-5)
    assert (moved.directions - rays.directions).norm(dim=-1).min() > 1e-3
    assert float((after.train.distortion - train.distortion)[0, 0]) == pytest.approx(-0.05 / float(capture.corner))
    others = replace(rays, camera=None)
    assert capture.rays(others) is others


def test_relens_is_what_the_other_lens_sees() -> None:
    given = torch.tensor(coefficients(k1=0.1, k2=-0.03, p1=2e-3), dtype=torch.float64)
    changed = torch.tensor(coefficients(k1=-0.05, k2=0.02, p1=2e-3), dtype=torch.float64).requires_grad_()
    zoom = torch.tensor(1.04, dtype=torch.float64, requires_grad=True)
    ideal = 0.6 * torch.rand(50, 2, dtype=torch.float64) - 0.3
    ours = relens(ideal, given, changed, zoom)
    direction, residual = unproject(distort(ideal, given) / 1.04, "perspective", changed.detach())
    torch.testing.assert_close(ours.detach(), direction[:, :2] / direction[:, 2:], rtol=1e-9, atol=1e-12)
    assert residual.max() < 1e-10
    assert torch.autograd.gradcheck(lambda c, z: relens(ideal, given, c, z), (changed, zoom), atol=1e-6)


@pytest.mark.parametrize("what", ["so3xr3", "se3", "lens"])
def test_pictures_say_what_is_wrong(what: str, views: Scene) -> None:
    """Of a known scene: cameras that were moved by 1 degree and 1 %, and a lens of a wrong k1 and focal length.

    A camera that turns about its own place, and moves, shows nearly the same from many places: its picture says which
    of them it is only by parallax. A screw about what it looks at has no such valley.
    """
    field, truth, sampler, n = Wall(BOX), views.train, StratifiedSampler(20), 400
    rays = some_rays(truth, n)
    with torch.no_grad():
        target = render(field, sampler, rays).colors
    if what == "lens":
        field.radius = 1.45  # up to the corners of the pictures, where distortion is
        with torch.no_grad():
            target = render(field, sampler, rays).colors
        wrong = replace(truth, intrinsics=truth.intrinsics * torch.tensor([1.02, 1.02, 1, 1]))
        wrong = replace(wrong, distortion=torch.tensor([[0.1, 0.0]]).repeat(6, 1))
        capture = capture_of(field, wrong, refine_lens=True)
    else:
        wrong = perturbed(truth, 1.0, 0)
        capture = capture_of(field, wrong, refine_cameras=what)
    rays, losses = some_rays(wrong, n), []
    optimizer = torch.optim.Adam(capture.parameters())
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 0.06 * 0.98**step
        loss = (render(field, sampler, rays).colors - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 100
    after = refined(scene_of(wrong), capture).train
    if what == "lens":
        seen = target.sum(1) > 0
        lost, left = (
            (x.directions - some_rays(truth, n).directions)[seen].norm(dim=-1).mean()
            for x in (rays, capture.rays(rays))
        )
        assert float(left) < 0.05 * float(lost)
        assert float(after.intrinsics[0, 0] / truth.intrinsics[0, 0]) == pytest.approx(1, abs=4e-3)
        assert float(after.distortion[0, 0]) == pytest.approx(0, abs=0.04)
    if what == "se3":
        turned = angle_between(after.c2w[:, :, :3].double(), truth.c2w[:, :, :3].double()).rad2deg()
        assert turned.mean() < 0.1 and (after.origins - truth.origins).norm(dim=-1).mean() < 0.1 / 100 * 4


def test_perturbed_by_what_it_says_and_aligned(views: Scene) -> None:
    """Errors are what was put in; those of cameras that only moved together are none."""
    train = views.train
    wrong = perturbed(train, 1.0, 0)
    turned = angle_between(wrong.c2w[:, :, :3].double(), train.c2w[:, :, :3].double()).rad2deg()
    distance = (train.origins.double() - nearest_point_to_axes(train)).norm(dim=-1)
    torch.testing.assert_close(turned, torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-4)
    moved = (wrong.origins - train.origins).norm(dim=-1).double() / distance
    torch.testing.assert_close(moved, torch.full((6,), 0.01, dtype=torch.float64), rtol=0, atol=1e-5)
    assert not torch.equal(perturbed(train, 1.0, 1).c2w, wrong.c2w) and torch.equal(
        perturbed(train, 1, 0).c2w, wrong.c2w
    )
    rotation = so3_exp(torch.tensor([0.3, -0.2, 0.1]))
    together = torch.cat((rotation @ train.c2w[:, :, :3], (rotation @ (1.1 * train.c2w[:, :, 3:])) + 0.2), dim=2)
    errors = pose_errors(together, train.c2w, 4.0)
    assert errors["rotation"] < 1e-3 and errors["translation"] < 1e-3
    errors = pose_errors(wrong.c2w, train.c2w, 4.0)
    assert 0.5 < errors["rotation"] < 1.5 and 0.3 < errors["translation"] < 1.2


def test_levels_come_one_after_the_other(views: Scene) -> None:
    """In coarse fields and in kernels, too, and all are there in the end, and after a checkpoint as they were."""
    field = Ngp(Ngp.Config().replace(n_levels=6, log2_hashmap_size=10), BOX)
    capture = capture_of(field, views.train, refine_cameras="se3", coarse_levels=2, coarse_share=0.5)
    assert torch.equal(field.level_weights, torch.tensor([1.0, 1, 0, 0, 0, 0])) and field.kernels() is None  # type: ignore[arg-type]
    x = torch.rand(5, 3)
    torch.nn.init.normal_(field.grid.table)
    at = At(Rays(x, x), x, torch.arange(5))
    with torch.no_grad():
        before = field.density(at)[0]
        field.grid.table[field.grid.levels.offsets[2] :].zero_()
        torch.testing.assert_close(field.density(at)[0], before)
    field.fade(0.25)
    torch.testing.assert_close(field.level_weights, torch.tensor([1.0, 1, 1, 1, 0, 0]))
    field.level_weights = None
    field.fade()
    torch.testing.assert_close(field.level_weights, torch.tensor([1.0, 1, 1, 1, 0, 0]))
    field.fade(0.5)
    assert field.level_weights is None and field.kernels() is not None and float(capture.share) == 0.5
    classic = Classic(Classic.Config().replace(n_neurons=8), BOX)
    capture_of(classic, views.train, refine_lens=True)
    assert classic.coarse is not None and torch.equal(classic.level_weights, classic.coarse.level_weights)  # type: ignore[arg-type]


# ---- colours ---------------------------------------------------------------------------------------------------------


def test_exposure_is_light() -> None:
    """Twice the light, and back; 0.18 of a stop more is what a spot meter says; white stays white."""
    grey = torch.linspace(0, 0.6, 20)[:, None].expand(20, 3).requires_grad_()
    torch.testing.assert_close(exposed(exposed(grey, torch.tensor([0.8])), torch.tensor([-0.8])), grey)
    linear = ((0.5 + 0.055) / 1.055) ** 2.4
    expected = 1.055 * (2 * linear) ** (1 / 2.4) - 0.055
    assert float(exposed(torch.tensor([0.5]), torch.tensor([1.0]))) == pytest.approx(expected)
    bright = torch.full((1, 3), 0.9, requires_grad=True)
    stops = torch.tensor([[2.0]], requires_grad=True)
    out = exposed(bright, stops)
    out.sum().backward()
    assert torch.equal(out, torch.ones(1, 3)) and float(stops.grad) > 0  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(exposed(grey, torch.zeros(1)).sum(), grey)
    assert gradient.isfinite().all()


def test_appearance_of_a_ray_is_that_of_its_samples() -> None:
    """An affine map of every sample is one of the composited ray; transparent rays have finite gradients."""
    weights = torch.rand(7, 5) / 5
    colors, numbers = torch.rand(7, 5, 3), 0.3 * torch.randn(7, 12)
    opacities = weights.sum(1)
    expected = (weights[..., None] * balanced(colors, numbers[:, None].expand(7, 5, 12))).sum(1)
    ours = shown("affine", (weights[..., None] * colors).sum(1), opacities, numbers)
    torch.testing.assert_close(ours, expected)
    nothing, stops = torch.zeros(4, 5, requires_grad=True), torch.zeros(4, 1, requires_grad=True)
    out = shown("exposure", nothing, torch.zeros(4), stops)
    out.sum().backward()
    assert out.shape == (4, 5) and nothing.grad.isfinite().all() and stops.grad.isfinite().all()  # type: ignore[union-attr]


@pytest.mark.parametrize("appearance", ["exposure", "affine", "code"])
def test_appearance_of_a_view_is_found(appearance: str, views: Scene) -> None:
    """From some of its pixels, by what no training view has; training views have their own."""
    sizes = {"n_levels": 3, "log2_hashmap_size": 10, "max_resolution": 24, "n_neurons": 16, "compute_dtype": "float32"}
    field = Ngp(Ngp.Config().replace(**sizes), BOX)
    torch.nn.init.normal_(field.grid.table, std=0.3)
    capture = capture_of(field, views.train, appearance=appearance, appearance_size=4)
    assert capture.codes is not None
    torch.nn.init.normal_(capture.codes.table, std=0.25)
    sampler, rays, white = StratifiedSampler(16), some_rays(views.train, 400), torch.ones(3)
    others = replace(rays, camera=None)
    with torch.no_grad():
        neutral = render(field, sampler, others, white).colors
        of_each = render(field, sampler, rays, white).colors
        capture.code_of_others = capture.code(rays)[rays.camera == 2][0] if rays.camera is not None else None
        target = render(field, sampler, others, white).colors
    assert rays.camera is not None
    torch.testing.assert_close(target[rays.camera == 2], of_each[rays.camera == 2])
    lost = (target - neutral).square().mean()
    fit_code(field, sampler, others, target, white)
    with torch.no_grad():
        assert (render(field, sampler, others, white).colors - target).square().mean() < 0.05 * lost
    assert field.capture is capture and capture.code_of_others is not None


def test_pose_of_a_view_is_found(views: Scene) -> None:
    """From the left half of its picture: of a camera that is off by a degree and a percent the right half is seen as it
    is."""
    field = Wall(BOX)
    sampler, white, truth = StratifiedSampler(64), torch.ones(3), views.train.c2w[1]
    with torch.no_grad():
        shown = render_image(field, sampler, views.train, 1, white)[0]
    wrong = perturbed(views.train, 1.0, 3)
    pixels, _ = left_half(wrong, 1, white)
    assert int(pixels[1].max()) < wrong.size(1)[0] // 2
    moved, errors = wrong.select(range(6)), []
    for _ in range(2):
        seen = render_image(field, sampler, moved, 1, white)[0]
        errors.append(float((seen - shown)[:, wrong.size(1)[0] // 2 :].square().mean().detach()))
        moved.c2w[1] = fit_pose(field, sampler, moved, pixels, shown[pixels[2], pixels[1]], white)
    turned = angle_between(moved.c2w[1:2, :, :3], truth[None, :, :3]).rad2deg()
    assert errors[1] < errors[0] / 1000 and float(turned) < 0.1


def test_code_of_no_view_is_the_mean(views: Scene) -> None:
    field = Wall(BOX)
    capture = capture_of(field, views.train, appearance="exposure")
    assert capture.codes is not None
    torch.nn.init.normal_(capture.codes.table, 5.0, 1.0)
    rays = some_rays(views.train, 9)
    assert not capture.code(replace(rays, camera=None)).any()
    every = capture.code(replace(rays[:6], camera=torch.arange(6)))
    torch.testing.assert_close(every.mean(0), torch.zeros(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(every.std(0) / capture.codes.rate, capture.codes.table.std(0))


def test_pictures_after_scoring_have_no_code_of_a_test_view(views: Scene, tmp_path: Path) -> None:
    field = Wall(BOX)
    capture = capture_of(field, views.train, appearance="exposure")
    scene = replace(views, test=views.train)
    found = score_capture(field, StratifiedSampler(8), scene, "white", tmp_path, 1, Scoring())
    assert "left half" in found["protocol"]["appearance"] and capture.code_of_others is None


@pytest.mark.parametrize("kind", ["color", "network"])
def test_what_is_behind_everything(kind: str, views: Scene) -> None:
    """Instead of a background, and through what is half transparent."""
    opaque = replace(views.train, data=views.train.data[:, :3].contiguous())
    field = Wall(BOX)
    rays = Rays(torch.tensor([[0.0, 0, 4], [0, 0, 4]]), torch.tensor([[0.0, 0, -1], [0, 0, 1]]))
    plain = render(field, StratifiedSampler(64), rays)
    capture = capture_of(field, opaque, background_model=kind)
    assert capture.behind is not None and capture.changes_colors
    with torch.no_grad():
        capture.behind.color.copy_(torch.tensor([-1.0, 0.0, 1.0]))
        out = render(field, StratifiedSampler(64), rays, torch.tensor([9.0, 9.0, 9.0]))
        behind = capture.behind(torch.zeros(2, 3), torch.zeros(2), rays)
    expected = plain.colors + (1 - plain.opacities)[:, None] * behind
    torch.testing.assert_close(out.colors, expected)
    torch.testing.assert_close(out.opacities, plain.opacities)
    with torch.no_grad(), capture.without_background():
        torch.testing.assert_close(render(field, StratifiedSampler(64), rays).colors, plain.colors)
    assert capture.behind is not None
    if kind == "color":
        torch.testing.assert_close(out.colors[1], torch.tensor([-1.0, 0.0, 1.0]).sigmoid())


# ---- the task --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"background_model": "color"}, "`background_model` must be none: pictures with alpha"),
        ({"appearance": "code"}, "`appearance` must be none, exposure or affine with the field 'classic'"),
    ],
)
def test_what_cannot_be_learned(options: dict[str, Any], message: str, views: Scene) -> None:
    with pytest.raises(ValueError, match=message):
        add_capture(CaptureConfig().replace(**options), Classic(Classic.Config(), BOX), views, 0.01)


def test_lenses_that_cannot_be_refined(views: Scene) -> None:
    fisheyes = replace(views.train, lens=torch.ones(6, dtype=torch.int64))
    with pytest.raises(ValueError, match="`refine_lens` must be off"):
        add_capture(CaptureConfig(refine_lens=True), Wall(BOX), scene_of(fisheyes), 0.01)
    around = replace(views.train, lens=torch.full((6,), KINDS.index("equirectangular")))
    with pytest.raises(ValueError, match="cameras must be perspective or fisheyes"):
        add_capture(CaptureConfig(refine_cameras="se3"), Wall(BOX), scene_of(around), 0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"camera_rate": 0.0}, "camera_rate"), ({"coarse_share": 1.5}, "0..1"), ({"coarse_levels": 0}, "at least 1")],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaptureConfig().replace(**options).check()


def test_views_of_no_ray_stay(views: Scene) -> None:
    """Momentum moves no camera that a step does not see."""
    config = NerfConfig().replace(**TINY, refine_cameras="so3xr3", steps=9, coarse_share=0.0, camera_start=0.2)
    task = Nerf(config, views)
    trainer = Trainer(task)
    assert isinstance(task.model.capture, Capture) and task.model.capture.moves is not None
    table = task.model.capture.moves.table
    for step in range(4):
        assert table.any() == (step > 2)  # nor before there is something to see
        trainer.step()
    assert (table != 0).all()
    counts = (torch.arange(len(views.train.data)) // (32 * 32)) != 4  # no pixel of view 4 from now on
    task.views = replace(task.views, counts=counts)
    before = table.detach().clone()
    for _ in range(3):
        trainer.step()
    changed = (table.detach() != before).any(1)
    assert changed.tolist() == [True, True, True, True, False, True]


@pytest.mark.parametrize("field", ["ngp", "classic"])
def test_a_run_goes_on_with_the_same_bits(field: str, views: Scene, tmp_path: Path) -> None:
    config = Nerf.defaults(field, torch.device("cpu"), set())
    known = {key: value for key, value in TINY.items() if config.knows(key)}
    options = {"refine_cameras": "se3", "refine_lens": True, "appearance": "affine", "coarse_share": 1.0}
    config = config.replace(**{**known, "target_samples": 512, "steps": 4}, **options)
    whole = Trainer(Nerf(config, views))
    for _ in range(4):
        whole.step()
        if whole.progress.step == 2:
            whole.save(tmp_path / CHECKPOINT)
    rest = Trainer(Nerf(config, views))
    rest.load(*load_checkpoint(tmp_path / CHECKPOINT))
    assert isinstance(rest.task, Nerf) and isinstance(whole.task, Nerf)
    assert rest.task.model.level_weights is not None
    for _ in range(2):
        rest.step()
    theirs = whole.task.model.state_dict()
    assert any(name.startswith("capture.moves") for name in theirs)
    for name, value in rest.task.model.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def test_what_is_added_to_the_loss(views: Scene) -> None:
    """By weights: rays that neither end nor are seen through, and corrections of poses; a background hides another."""
    out = render(Wall(BOX), StratifiedSampler(8), some_rays(views.train, 5))
    out = replace(out, opacities=torch.tensor([0.0, 0.2, 0.5, 1.0, 1.0]))
    field, target = Wall(BOX), torch.rand(5, 3)
    behind = torch.rand(5, 3)
    config = NerfConfig(huber_delta=10.0)
    plain, means = objective(config, field, out, behind, target)
    expected = (out.colors + (1 - out.opacities)[:, None] * behind - target).square().mean()
    assert float(means[1]) == pytest.approx(float(expected), rel=1e-5)
    entropy = (-(0.2 * math.log(0.2) + 0.8 * math.log(0.8)) + math.log(2)) / 5
    with_entropy = objective(config.replace(opacity_entropy_weight=2.0), field, out, behind, target)[0]
    assert float(with_entropy - plain) == pytest.approx(2 * entropy, abs=1e-4)
    capture = capture_of(field, views.train, refine_cameras="se3", camera_penalty=3.0)
    assert capture.moves is not None
    torch.nn.init.constant_(capture.moves.table, 2.0)
    penalised = objective(config, field, out, behind, target)[0]
    assert float((penalised - plain).detach()) == pytest.approx(3 * 6 * (2 * capture.moves.rate) ** 2, rel=1e-3)
    field = Wall(BOX)
    capture_of(field, replace(views.train, data=views.train.data[:, :3].contiguous()), background_model="color")
    assert float(objective(config, field, out, behind, target)[1][1]) == pytest.approx(
        float((out.colors - target).square().mean()), rel=1e-5
    )


ALL = ["--refine-cameras", "se3", "--refine-lens", "--appearance", "exposure", "--perturb-cameras", "2"]
ALL += ["--views", "1"]


def test_results_of_a_capture(scene_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cameras in the coordinates of the file, figures and protocol; the same after a checkpoint is read."""
    pytest.importorskip("matplotlib")
    transforms = json.loads((scene_path / "transforms_train.json").read_text())
    far = tmp_path / "far"
    far.mkdir()
    for split in ("train", "test"):
        (far / split).symlink_to(scene_path / split)
        moved = json.loads((scene_path / f"transforms_{split}.json").read_text())
        for frame in moved["frames"]:
            for row in frame["transform_matrix"][:3]:
                row[3] = 100 * row[3] + 7
        (far / f"transforms_{split}.json").write_text(json.dumps(moved))
    out = tmp_path / "out"
    run = ["nerf", str(far), "--out", str(out), "--steps", "3", *OPTIONS, "--no-video", *ALL]
    assert main(run) == 0
    said, results = capsys.readouterr().out, json.loads((out / "results.json").read_text())
    written = json.loads((out / "transforms.json").read_text())["frames"]
    assert len(written) == 14 and written[0]["file_path"] == transforms["frames"][0]["file_path"]
    for frame, given in zip(written, transforms["frames"], strict=False):
        ours, theirs = (torch.tensor(x["transform_matrix"], dtype=torch.float64)[:3] for x in (frame, given))
        assert float(angle_between(ours[:, :3], theirs[:, :3])) < math.radians(4)
        assert float((ours[:, 3] - 100 * theirs[:, 3] - 7).norm()) < 0.05 * 400
    found = results["capture"]
    assert 1 < found["pose_errors"]["before"]["rotation"] < 3 and len(found["exposure_stops"]) == 12
    assert set(found["lens"]) == {"focal_factor", "k1_added", "k2_added"}
    assert "left half" in results["protocol"]["appearance"] and "left half" in results["protocol"]["poses"]
    assert "true to refined" in results["protocol"]["poses"]
    assert "pose errors before: " in said and "exposures from" in said and "the right half is scored" in said
    assert main(["nerf", str(far), "--eval", str(out / CHECKPOINT), "--out", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["test"]["psnr_mean"] == pytest.approx(results["test"]["psnr_mean"], abs=0.05)
    assert again["capture"]["pose_errors"] == found["pose_errors"]
    assert main(["export", str(out), str(tmp_path / "cameras.json"), "--what", "cameras"]) == 0
    exported = json.loads((tmp_path / "cameras.json").read_text())["frames"]
    assert exported == written
