"""A field of what is around a box, seen behind what is in it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from problems.ball import ORIGIN, UNIT, ball_scene, inside_a_ball
from problems.nerf import TINY

from hashgrid.fields import Ngp
from hashgrid.fields.base import RadianceField
from hashgrid.geometry.rays import At, Rays
from hashgrid.rendering.around import Around, OutsideSampler
from hashgrid.rendering.choices import decided
from hashgrid.rendering.samplers import FAR
from hashgrid.tasks.nerf import Nerf, NerfConfig
from hashgrid.tasks.surface import Surface
from hashgrid.train.loop import Trainer
from hashgrid.train.task import Progress

BOX = torch.tensor([-1.0, -1, -1, 1, 1, 1])


def test_samples_are_outside_of_the_box() -> None:
    """Of rays from within, through it, past it, and away from it: all of the way but the box; behind it, where nothing
    is, even in the inverse of distances."""
    origins = torch.tensor([[0.0, 0, 0], [-3, 0, 0], [-3, 2, 0], [3, 2, 0]])
    field = Ngp(Ngp.Config(n_levels=2, log2_hashmap_size=8), BOX)
    field.initial_density = 0.0
    rays = Rays(origins, torch.tensor([[1.0, 0, 0]]).repeat(4, 1))
    ends = {}
    for behind, border in ((False, [0.5, 2.0, 3.0, 0.5]), (True, [1.0, 4.0, 3.0, 0.5])):
        sampler = OutsideSampler(5, 0.5, behind)
        found = sampler(rays, field, None).samples
        edges = torch.cat((found.t_starts.view(4, 5), found.t_ends.view(4, 5)[:, -1:]), dim=1)
        torch.testing.assert_close(edges[:, 0 if behind else -1], torch.tensor(border))
        ends[behind] = edges[:, -1 if behind else 0]
        if behind:
            inverse = 1 / edges[:3].double()
            steps = inverse[:, :-1] - inverse[:, 1:]
            torch.testing.assert_close(steps, steps.mean(1, keepdim=True).expand_as(steps), rtol=1e-4, atol=1e-6)
        moved = sampler(rays, field, (0, 1)).samples
        assert bool((moved.t_ends >= moved.t_starts).all()) and not torch.equal(moved.t_starts, found.t_starts)
    torch.testing.assert_close(ends[False], torch.full((4,), 0.5))
    torch.testing.assert_close(ends[True], torch.full((4,), FAR), rtol=1e-3, atol=0)


def test_most_samples_are_where_something_is() -> None:
    """A wall from x = 3 to 3.5, in which one of 24 even samples is."""

    class Wall(Fog):
        def density(self, at: At) -> tuple[torch.Tensor, torch.Tensor]:
            x = contracted(torch.tensor([3.0, 3.5]))
            return torch.where((at.unit[:, 0] > x[0]) & (at.unit[:, 0] < x[1]), 20.0, 0.0), at.unit

    def contracted(x: torch.Tensor) -> torch.Tensor:
        return (2 - 1 / x) / 4 + 0.5

    rays = Rays(torch.zeros(1, 3), torch.tensor([[1.0, 0, 0]]))
    found = OutsideSampler(24, 0.0, True)(rays, Wall(BOX), None).samples
    assert int(((found.t_starts > 2.6) & (found.t_ends < 4.1)).sum()) >= 12


class Fog(RadianceField):
    """Red, and half opaque from where rays begin to the box; green, and opaque, behind it."""

    contraction = "cube"

    def density(self, at: At) -> tuple[torch.Tensor, torch.Tensor]:
        x = at.unit[:, :1] - 0.5
        return torch.where(x[:, 0] < 0, math.log(2) / 2, 1e4), x

    def color(self, at: At, carry: torch.Tensor) -> torch.Tensor:
        return torch.cat((carry < 0, carry > 0, torch.zeros_like(carry) > 0), dim=1).float()


def test_order_along_a_ray() -> None:
    """What is before the box hides what is in it, and that what is behind; rays from within have nothing before."""
    around = Around(BOX)
    around.field = Fog(BOX)  # type: ignore[assignment]
    rays = Rays(torch.tensor([[-3.0, 0, 0], [0, 0, 0], [-3, 0, 0]]), torch.tensor([[1.0, 0, 0]]).repeat(3, 1))
    blue, opacities = torch.tensor([[0.0, 0, 0.5], [0, 0, 0.5], [0, 0, 1]]), torch.tensor([0.5, 0.5, 1])
    expected = torch.tensor([[0.5, 0.25, 0.25], [0, 0.5, 0.5], [0.5, 0, 0.5]])
    torch.testing.assert_close(around(blue, opacities, rays), expected, rtol=1e-4, atol=1e-5)
    nobody = Rays(torch.zeros(0, 3), torch.zeros(0, 3))
    assert around(torch.zeros(0, 3), torch.zeros(0), nobody).shape == (0, 3)


def test_who_has_a_field_around_the_box() -> None:
    """Surfaces of scenes without an end, in a cube with no camera inside of its ball; others where it is asked for."""
    scene = inside_a_ball(ball_scene(6, 16))
    sizes = {key: value for key, value in TINY.items() if Surface.Config().knows(key)}
    task = Surface(Surface.Config().replace(**sizes), scene)
    assert isinstance(task.model.capture.behind, Around) and task.config.sampling.contraction == "none"
    half = float(task.scene.aabb[3]) * task.scene.placement.unit
    given = (scene.train.origins - ORIGIN).norm(dim=1).min()
    assert half == pytest.approx(min(float(given), 1.5 * UNIT), rel=1e-5)
    near = replace(scene.train, c2w=scene.train.c2w.clone())
    near.c2w[0, :, 3] = ORIGIN + torch.tensor([0.0, 0, 0.7 * UNIT])
    task = Surface(Surface.Config().replace(**sizes), replace(scene, train=near))
    assert float(task.scene.aabb[3]) * task.scene.placement.unit == pytest.approx(0.7 * UNIT, rel=1e-5)
    config = NerfConfig(device="cpu")
    assert decided(config, scene).capture.background_model == "none"
    assert decided(config.replace(background_model="field"), scene).sampling.contraction == "none"
    assert decided(Surface.Config(device="cpu"), ball_scene(4, 16)).capture.background_model == "none"
    with pytest.raises(ValueError, match="`contraction` must be none with a field around the box, got 'cube'"):
        decided(config.replace(background_model="field", contraction="cube"), scene)


def test_it_is_trained_with_the_field() -> None:
    scene = inside_a_ball(ball_scene(6, 16))
    config = NerfConfig(device="cpu").replace(**TINY, steps=3, background_model="field")
    task = Nerf(config, scene)
    names = [name for name in task.model.state_dict() if name.startswith("capture.behind.field.")]
    before = {name: task.model.state_dict()[name].clone() for name in names}
    assert names and task.loss(Progress(1)).loss.isfinite()
    Trainer(task).train()
    changed = [name for name in names if not torch.equal(before[name], task.model.state_dict()[name])]
    assert any("grid" in name for name in changed) and any("color_mlp" in name for name in changed)
