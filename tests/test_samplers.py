"""Every sampler with every field, in a box and in contracted space: colours, gradients, and what proposals learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from hashgrid.data.procedural import procedural_scene
from hashgrid.data.scene import Scene
from hashgrid.fields import RADIANCE_FIELDS
from hashgrid.fields.base import RadianceField
from hashgrid.fields.ngp import Ngp
from hashgrid.geometry.cameras import alike, look_at
from hashgrid.geometry.rays import At, Rays
from hashgrid.optim import Adam
from hashgrid.rendering.choices import add_proposals, decided, make_field, make_sampler
from hashgrid.rendering.proposals import ProposalSampler
from hashgrid.rendering.ray_losses import interlevel, of_histograms
from hashgrid.rendering.samplers import SamplerConfig, StratifiedSampler, calmed
from hashgrid.rendering.volume import render, render_image
from hashgrid.tasks.nerf import NerfConfig
from hashgrid.train.groups import adam_groups
from hashgrid.util.config import Config

SAMPLERS = ("occupancy", "stratified", "coarse_to_fine", "twice", "proposal")
FIELDS = [name for name in RADIANCE_FIELDS if not name.endswith("_paper")]
PAIRS = [*((name, sampler) for sampler in SAMPLERS for name in FIELDS), ("volsdf", "error_bounded")]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return procedural_scene(n_train=4, n_test=1, resolution=24).normalized()


def rays_into(scene: Scene, n: int = 64) -> Rays:
    return scene.train.sample_rays(n, 0, 0, needs=("radii",))[0]


@pytest.mark.parametrize("contraction", ["none", "cube"])
@pytest.mark.parametrize(("name", "sampler"), PAIRS)
def test_every_sampler_works_with_every_field(name: str, sampler: str, contraction: str, scene: Scene) -> None:
    torch.manual_seed(0)
    config: Config = RADIANCE_FIELDS[name].Config()
    small = {"log2_hashmap_size": 10, "n_coarse": 8, "n_fine": 8}
    small |= {"n_neurons": 64, "n_hidden_layers": 5, "n_geometry_features": 15} if name == "neus_mlp" else {}
    config = config.replace(**{key: value for key, value in small.items() if config.knows(key)})
    sampling = SamplerConfig(
        sampler=sampler,  # type: ignore[arg-type]
        contraction=contraction,  # type: ignore[arg-type]
        occupancy_resolution=16,
        steps_per_diagonal=32,
        proposal_samples=(8, 8),
        samples=8,
    )
    field = make_field(RADIANCE_FIELDS[name], config, sampling, scene)
    chosen = make_sampler(sampling, field, scene)
    rays = rays_into(scene)
    out = render(field, chosen, rays, None, (0, 1))
    assert out.colors.shape == (64, 3) and out.colors.isfinite().all()
    assert ((out.opacities >= 0) & (out.opacities <= 1 + 1e-5)).all() and bool((out.opacities > 0.01).any())
    (out.colors.square().mean() + of_histograms(out, 0.01)).backward()
    grads = [param.grad for param in field.parameters() if param.grad is not None]
    assert any(bool(grad.any()) for grad in grads) and all(grad.isfinite().all() for grad in grads)
    assert len(field.proposals) == (2 if sampler == "proposal" else 0)


class Shell(RadianceField):
    """A thin opaque shell at a distance of 2 from the origin."""

    def density(self, at: At) -> tuple[torch.Tensor, None]:
        place = self.aabb[:3] + at.unit / self.inverse_extent
        return 400.0 * ((place.norm(dim=-1) - 2).abs() < 0.02), None

    def color(self, at: At, carry: None) -> torch.Tensor:
        return torch.ones_like(at.unit)


def test_proposals_that_have_learned_put_samples_on_a_thin_shell() -> None:
    """16 samples behind a proposal find what 16 even ones mostly miss."""
    torch.manual_seed(0)
    field = Shell(torch.tensor([-3.0, -3, -3, 3, 3, 3]))
    config = SamplerConfig(sampler="proposal", proposal_resolutions=(64,), proposal_samples=(64,), samples=16)
    add_proposals(field, config, "native")
    sampler = ProposalSampler((64, 16))
    optimizer = Adam(adam_groups(field, 0.0), lr=3e-2, zero_grad_in_step=True)
    truth = torch.tensor([[1.98, 2.02]]).repeat(64, 1), torch.ones(64, 1)  # all of a ray's weight is on the shell
    for step in range(100):
        found = sampler(rays_from_the_middle(64), field, (0, step))
        loss = interlevel(*truth, *found.proposals[0]).mean()
        loss.backward()
        optimizer.step()
    rays = rays_from_the_middle(256)
    with torch.no_grad():
        proposed = render(field, sampler, rays).opacities.mean()
        even = render(field, StratifiedSampler(16), rays).opacities.mean()
    assert float(proposed) > 0.8 > 0.5 > float(even), (proposed, even)


def test_proposals_learn_in_some_steps_alone(scene: Scene) -> None:
    """In every step at first, in every fourth in the end; what they find, and what the field learns, is the same."""
    sampling = SamplerConfig(sampler="proposal", contraction="cube", proposal_samples=(8, 8), samples=8)
    field = make_field(Ngp, Ngp.Config().replace(log2_hashmap_size=10), sampling, scene)
    sampler = make_sampler(sampling, field, scene)
    learned, gradients = [], {}
    for step in (0, 249, 401, 402, 1001, 1002, 1003, 1004):
        sampler.before_step(field, step, 0.0)
        field.zero_grad(set_to_none=True)
        out = render(field, sampler, rays_into(scene), None, (0, 1))
        (out.colors.square().mean() + of_histograms(out, 0.01)).backward()
        if any(param.grad is not None for param in field.proposals.parameters()):
            learned.append(step)
        gradients[step] = [param.grad for name, param in field.named_parameters() if "proposals" not in name]
    assert learned == [0, 249, 402, 1004]
    assert all(torch.equal(a, b) for a, b in zip(gradients[1003], gradients[1004], strict=True))


def rays_from_the_middle(n: int) -> Rays:
    return Rays(torch.zeros(n, 3), torch.nn.functional.normalize(torch.randn(n, 3), dim=1))


def test_a_frozen_box_of_contracted_space_is_where_it_was(scene: Scene) -> None:
    """Inside of the innermost box contraction changes nothing but the scale."""
    config = RADIANCE_FIELDS["ngp"].Config().replace(log2_hashmap_size=10)
    field = make_field(RADIANCE_FIELDS["ngp"], config, SamplerConfig(contraction="ball"), scene)
    inside = torch.rand(50, 3) * 0.5 + 0.25  # of the unit cube: half of the radius
    torch.testing.assert_close(field.inside(inside), 0.25 + inside / 2)
    far = field.inside(torch.tensor([[1e6, 0.5, 0.5], [-1e6, 0.5, 0.5]]))
    torch.testing.assert_close(far, torch.tensor([[1.0, 0.5, 0.5], [0.0, 0.5, 0.5]]))
    assert field.kernels() is None and field.fused() is not None


@pytest.mark.parametrize("sampler", ["stratified", "coarse_to_fine", "twice", "proposal"])
def test_rays_through_contracted_space_do_not_end_at_the_box(sampler: str, scene: Scene) -> None:
    """They go from near the camera to a thousand times half of its side."""
    sampling = SamplerConfig(sampler=sampler, contraction="cube", proposal_samples=(16, 16), samples=16)  # type: ignore[arg-type]
    config = RADIANCE_FIELDS["classic"].Config().replace(n_neurons=16, n_coarse=16, n_fine=16)
    field = make_field(RADIANCE_FIELDS["classic"], config, sampling, scene)
    samples = make_sampler(sampling, field, scene)(rays_into(scene), field, None).samples
    half = float((field.aabb[3:] - field.aabb[:3]).max()) / 2
    assert float(samples.t_starts.min()) == pytest.approx(scene.near, abs=1e-5)
    assert float(samples.t_ends.max()) == pytest.approx(1000 * half, rel=1e-2)


def test_gradients_near_a_camera_are_small_where_there_is_no_end(scene: Scene) -> None:
    """By the square of the distance, up to ``calm_distance``; values are as they are, and bounded scenes keep all."""
    config = RADIANCE_FIELDS["ngp"].Config().replace(log2_hashmap_size=10)
    assert make_field(RADIANCE_FIELDS["ngp"], config, SamplerConfig(), scene).calm_distance == 0
    endless = replace(scene, bounded=False)
    field = make_field(RADIANCE_FIELDS["ngp"], config, SamplerConfig(calm_distance=2.0), endless)
    samples = StratifiedSampler(3).pack(torch.tensor([[0.0, 1.0, 2.0, 6.0]]))  # middles at 0.5, 1.5 and 4
    sigmas, colors = torch.ones(3, requires_grad=True), torch.full((3, 2), 0.5, requires_grad=True)
    calm = calmed(field, samples, sigmas, colors)
    assert torch.equal(calm[0], sigmas) and torch.equal(calm[1], colors)
    (5 * calm[0].sum() + 7 * calm[1].sum()).backward()
    share = torch.tensor([1 / 16, 9 / 16, 1.0])
    torch.testing.assert_close(sigmas.grad, 5 * share)
    torch.testing.assert_close(colors.grad, 7 * share[:, None].expand(3, 2))


@pytest.mark.parametrize("contraction, expected", [("none", 1.0), ("cube", 0.25), ("ball", 0.25)])
def test_contracted_space_begins_thin(contraction: str, expected: float, scene: Scene) -> None:
    """Of the field and of its proposals, by what is seen of a place and what kernels say of it."""
    sampling = SamplerConfig(sampler="proposal", contraction=contraction, proposal_samples=(8, 8))  # type: ignore[arg-type]
    field = make_field(RADIANCE_FIELDS["ngp"], RADIANCE_FIELDS["ngp"].Config(), sampling, scene)
    make_sampler(sampling, field, scene)
    at = At(rays_into(scene), torch.rand(64, 3), torch.arange(64))
    for part in (field, *field.proposals):
        assert float(part.density(at)[0].detach().mean()) == pytest.approx(expected, rel=0.2)
    assert float(field.radiance(at)[0].detach().mean()) == pytest.approx(expected, rel=0.2)


def test_what_is_decided_for_a_scene(scene: Scene) -> None:
    """Without an end a capture is contracted and asked where proposals say; what is asked for stays."""
    endless, config = replace(scene, bounded=False), NerfConfig(device="cpu")

    def chosen(scene: Scene, **options: Any) -> tuple[str, str]:
        sampling = decided(config.replace(**options), scene).sampling
        return sampling.sampler, sampling.contraction

    assert chosen(scene) == ("occupancy", "none") and chosen(endless) == ("proposal", "cube")
    assert chosen(endless, contraction="ball") == ("proposal", "ball")
    assert chosen(endless, sampler="occupancy") == ("occupancy", "none")
    assert chosen(endless, contraction="none") == ("occupancy", "none")
    assert chosen(endless, device="cuda") == ("occupancy", "none")
    assert chosen(endless, field=RADIANCE_FIELDS["classic"].Config())[1] == "none"
    assert decided(config.replace(fixed_size=True, device="cuda"), scene).fixed_size
    assert not decided(config.replace(fixed_size=True, device="cuda", sampler="proposal"), scene).fixed_size


class Patch(RadianceField):
    """A striped square, thin and opaque, in the middle of the box, and a wall far behind it."""

    colors_follow_carry = True
    n_asked = 0

    def density(self, at: At) -> tuple[torch.Tensor, torch.Tensor]:
        Patch.n_asked += len(at.unit)
        x, y, z = (4 * at.unit - 2).unbind(-1)  # in units of half the box, as long as inside
        square = (x.abs() < 0.4) & (z.abs() < 0.3) & (y.abs() < 0.05)
        stripes = torch.where(square, 0.5 + 0.5 * torch.sin(12 * x), 0.2)
        return 200.0 * square + 5.0 * (y > 1.9), stripes[:, None].repeat(1, 3)

    def color(self, at: At, carry: torch.Tensor) -> torch.Tensor:
        return carry


def test_pixels_of_a_picture_share_what_proposals_found() -> None:
    """A picture looks as that of pixels which each ask for themselves, also at the edge of something, and asks
    proposals for one pixel in 16; even samples miss what is thin."""
    field, proposal = (Patch(torch.tensor([-1.0, -1, -1, 1, 1, 1])) for _ in range(2))
    field.contraction = proposal.contraction = "cube"
    field.proposals.append(proposal)
    pose = look_at(torch.tensor([[0.1, -1.5, 0.2]]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    cameras, pictures, asked = alike(pose, 60.0, (50, 37)), [], []
    for sampler in (
        ProposalSampler((128, 32)),
        ProposalSampler((128, 32), block=4),
        ProposalSampler((128, 32), block=4, n_colors=8),
        StratifiedSampler(32),
    ):
        Patch.n_asked = 0
        pictures.append(render_image(field, sampler, cameras, 0, torch.zeros(3))[0])
        asked.append(Patch.n_asked)
    alone, shared, grouped, even = pictures
    odd = render_image(field, ProposalSampler((128, 32), block=4, n_colors=5), cameras, 0, torch.zeros(3))[0]
    assert torch.equal(odd, shared)  # 5 does not divide 32
    with pytest.raises(ValueError, match="`picture_block` must be at least 1, got 0"):
        SamplerConfig(picture_block=0).check()
    assert asked[0] == 50 * 37 * (128 + 32) and asked[1] == asked[2] == 50 * 37 * 32 + 14 * 11 * 128
    wrong = [float(((other - alone).abs().amax(-1) > 0.05).float().mean()) for other in (shared, grouped, even)]
    assert wrong[0] < 0.01 and wrong[1] < 0.01 and wrong[2] > 0.05, wrong
