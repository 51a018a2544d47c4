"""Every sampler with every field, in a box and in contracted space: colours, gradients, and what proposals learn."""

from __future__ import annotations

import pytest
import torch

from hashgrid.data.procedural import procedural_scene
from hashgrid.data.scene import Scene
from hashgrid.fields import RADIANCE_FIELDS
from hashgrid.fields.base import RadianceField
from hashgrid.geometry.rays import At, Rays
from hashgrid.optim import Adam
from hashgrid.rendering.choices import add_proposals, make_field, make_sampler
from hashgrid.rendering.proposals import ProposalSampler
from hashgrid.rendering.ray_losses import interlevel, of_histograms
from hashgrid.rendering.samplers import SamplerConfig, StratifiedSampler
from hashgrid.rendering.volume import render
from hashgrid.train.groups import adam_groups
from hashgrid.util.config import Config

SAMPLERS = ("occupancy", "stratified", "coarse_to_fine", "twice", "proposal")
FIELDS = [name for name in RADIANCE_FIELDS if not name.endswith("_paper")]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return procedural_scene(n_train=4, n_test=1, resolution=24).normalized()


def rays_into(scene: Scene, n: int = 64) -> Rays:
    return scene.train.sample_rays(n, 0, 0, needs=("radii",))[0]


@pytest.mark.parametrize("contraction", ["none", "cube"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", FIELDS)
def test_every_sampler_works_with_every_field(name: str, sampler: str, contraction: str, scene: Scene) -> None:
    torch.manual_seed(0)
    config: Config = RADIANCE_FIELDS[name].Config()
    small = {"log2_hashmap_size": 10, "n_coarse": 8, "n_fine": 8}
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
