"""Fields that move: what they are at the first moment, what a time does, and scenes to learn them from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hashgrid.data.errors import SceneError
from hashgrid.data.scene import SceneOptions, load_scene
from hashgrid.fields import RADIANCE_FIELDS
from hashgrid.fields.base import RadianceField
from hashgrid.fields.dnerf import Dnerf
from hashgrid.fields.hypernerf import Hypernerf
from hashgrid.fields.ngp import Ngp
from hashgrid.geometry.motions import screw
from hashgrid.geometry.rays import At, Rays
from hashgrid.nn import OccupancyGrid
from hashgrid.rendering.samplers import OccupancySampler, moments
from hashgrid.tasks.nerf import Nerf
from hashgrid.train.loop import Trainer

BOX = torch.tensor([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5])
N = 200
SIZES = {"n_levels": 3, "log2_hashmap_size": 10, "base_resolution": 4, "max_resolution": 16, "compute_dtype": "float32"}


def make(name: str, **options: Any) -> Any:
    torch.manual_seed(1)
    kind = RADIANCE_FIELDS[name]
    config: Any = kind.Config()
    field = kind(config.replace(**SIZES, **options), BOX)  # type: ignore[call-arg]
    with torch.no_grad():
        for module in field.modules():
            if hasattr(module, "table"):
                nn.init.uniform_(module.table, -1, 1)
    return field


def asked(time: float | Tensor) -> At:
    torch.manual_seed(2)
    directions = nn.functional.normalize(torch.randn(N, 3), dim=1)
    times = time if isinstance(time, Tensor) else torch.full((N,), time)
    return At(Rays(torch.rand(N, 3), directions, time=times), torch.rand(N, 3), torch.arange(N))


def disturb(network: nn.Module) -> None:
    for param in network.parameters():
        nn.init.uniform_(param, -0.2, 0.2)


@torch.no_grad()
def test_no_deformation_at_the_first_moment() -> None:
    """Bit for bit the field that stands still, whatever the network says; at any other time another one."""
    moving, still = make("dnerf"), make("ngp", interpolation="smoothstep", sh_degree=1)
    assert isinstance(moving, Dnerf) and type(still) is Ngp
    disturb(moving.deformation.network)
    still.load_state_dict({name: value for name, value in moving.state_dict().items() if name in still.state_dict()})
    for y, expected in zip(moving.radiance(asked(0.0)), still.radiance(asked(0.0)), strict=True):
        assert torch.equal(y, expected)
    later = moving.where(asked(1e-3)) - asked(0.0).unit
    assert float(later.norm(dim=1).min()) > 1e-4
    assert not torch.equal(moving.density(asked(1e-3))[0], still.density(asked(0.0))[0])


@torch.no_grad()
def test_a_deformation_is_added_to_places() -> None:
    """A network that says one displacement everywhere shows the field elsewhere."""
    moving, shift = make("dnerf"), torch.tensor([0.02, -0.01, 0.03])
    nn.init.zeros_(moving.deformation.network.weights[-1])
    moving.deformation.network.biases[-1].copy_(shift)
    at = asked(0.5)
    moved = At(asked(0.0).rays, at.unit + shift, at.ray_indices)
    torch.testing.assert_close(moving.density(at)[0], moving.density(moved)[0], rtol=0, atol=0)


@torch.no_grad()
def test_a_template_is_at_rest_at_first() -> None:
    """Places are next to themselves, and all slices the middle one; without a further dimension there is none."""
    for dims in (0, 1, 2):
        field = make("hypernerf", ambient_dims=dims)
        assert isinstance(field, Hypernerf)
        where = field.where(asked(0.7))
        assert where.shape == (N, 3 + dims) and field.grid.n_input_dims == 3 + dims
        torch.testing.assert_close(where[:, :3], asked(0.0).unit, rtol=0, atol=2e-3)
        torch.testing.assert_close(where[:, 3:], torch.full((N, dims), 0.5), rtol=0, atol=1e-3)


@torch.no_grad()
def test_slices_open_after_motions() -> None:
    """Before, every place and time sees the same one, whatever networks say; a checkpoint knows how far they are."""
    field, again = make("hypernerf", ambient_begin=0.2, ambient_full=0.5), make("hypernerf")
    disturb(field.slice)
    seen = []
    for progress in (0.0, 0.2, 0.35, 0.5, 1.0):
        field.grow(progress)
        seen.append(field.where(asked(0.7))[:, 3] - 0.5)
    assert not seen[0].any() and not seen[1].any() and bool(seen[3].any())
    torch.testing.assert_close(seen[2], seen[3] / 2)
    torch.testing.assert_close(seen[4], seen[3])
    field.grow(0.35)
    again.load_state_dict(field.state_dict())
    torch.testing.assert_close(again.where(asked(0.7))[:, 3] - 0.5, seen[2])


@torch.no_grad()
def test_codes_between_pictures_are_means_of_their_neighbours() -> None:
    field = make("hypernerf", n_times=5)
    codes = field.codes(torch.tensor([[0.25], [0.375], [0.5]]))
    torch.testing.assert_close(codes[1], (codes[0] + codes[2]) / 2)
    assert float((codes[0] - codes[2]).norm()) > 0.1


@torch.no_grad()
def test_a_screw_moves_points_as_its_matrix_does() -> None:
    """Constant outputs of the network are one rigid motion about the middle of the cube."""
    field = make("hypernerf", ambient_dims=0)
    twist = torch.tensor([0.01, -0.02, 0.03, 0.2, -0.1, 0.3])
    nn.init.zeros_(field.motion.weights[-1])
    field.motion.biases[-1].copy_(twist)
    generator = torch.zeros(4, 4, dtype=torch.float64)
    x, y, z = twist[3:].tolist()
    generator[:3, :3] = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    generator[:3, 3] = twist[:3]
    matrix = torch.linalg.matrix_exp(generator)
    at = asked(0.3)
    expected = (at.unit.double() - 0.5) @ matrix[:3, :3].T + matrix[:3, 3] + 0.5
    torch.testing.assert_close(field.where(at).double(), expected, rtol=0, atol=1e-6)


def test_a_screw_has_a_slope_at_rest() -> None:
    """``v + w x p`` along a twist ``(v, w)``; second derivatives are finite, too."""
    torch.manual_seed(0)
    points, twist = torch.randn(5, 3).double(), torch.zeros(5, 6).double().requires_grad_()
    direction = torch.randn(5, 6).double()
    _, slope = torch.autograd.functional.jvp(lambda t: screw(t, points), twist, direction)
    expected = direction[:, :3] + torch.linalg.cross(direction[:, 3:], points)
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(lambda t: screw(t, points), twist)
    assert torch.autograd.gradgradcheck(lambda t: screw(t, points), twist)


@pytest.mark.parametrize("name", ["ngp_time", "dnerf", "hypernerf"])
def test_gradients_of_training_are_those_of_the_whole_field(name: str) -> None:
    """What was found before is gone on from, with the gradients of places, which deformations are learned by."""
    field = make(name)
    for part in ("deformation", "motion", "slice"):
        if hasattr(field, part):
            disturb(getattr(field, part))
    from hashgrid.fields.base import Kept

    at = asked(torch.linspace(0, 1, N))
    found = []
    for kept in (True, False):
        field.zero_grad(set_to_none=False)
        if kept:
            with torch.no_grad():
                sigmas, sketch = field.sketch(at, True)
            sigmas, colors = field.radiance(at, Kept([sketch], torch.arange(N), sigmas, True))
        else:
            sigmas, carry = field.density(at)
            colors = field.color(at, carry)
        (sigmas.log().sum() + colors.square().sum()).backward()
        found.append([sigmas.detach(), colors.detach(), *(x.grad.clone() for x in field.parameters())])
    assert sum(float(grad.norm()) > 0 for grad in found[0][2:]) == len(found[0]) - 2
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_grid_of_time_needs_hashing() -> None:
    with pytest.raises(ValueError, match="`encoding` must be hash for the field 'ngp_time', got 'planes'"):
        make("ngp_time", encoding="planes")


# ---- occupancy over time ---------------------------------------------------------------------------------------------


class Passing(RadianceField):
    """Something opaque that is in an eighth of the box for a share of all time alone."""

    needs = ("time",)
    share = 0.05

    def density(self, at: At) -> tuple[Tensor, Any]:
        assert at.rays.time is not None
        there = (at.rays.time - 0.4).abs() < self.share / 2
        return torch.where(there & (at.unit < 0.5).all(-1), 100.0, 0.0), None


def test_times_of_a_cell_leave_no_gap() -> None:
    """Of any 2 / s updates one falls into any share s of time; cells are asked at different ones."""
    times = torch.stack([time for update in range(1000, 1010) for time in moments(torch.arange(512), update)])
    assert bool((times >= 0).all()) and bool((times < 1).all())
    ordered = times.sort(dim=0).values
    assert float(ordered.diff(dim=0).max()) < 2 / 40
    assert float(times[0].sort().values.diff().max()) < 0.02


def test_what_passes_is_never_dropped() -> None:
    """It is in a cell for a twentieth of the time, and where the grid once had it, it has it in each of 1000 updates,
    and after the last nowhere else. Asked at one time at random in each update, three tenths are lost."""
    field = Passing(BOX)
    grid = OccupancyGrid(BOX, 16, 1)
    sampler = OccupancySampler(grid, 0.02)
    low = torch.cartesian_prod(*[torch.linspace(-1.4, -0.1, 8)] * 3)
    grid.update(lambda x: 100.0 * (x < 0).all(-1).float(), 0, step_size=0.02)
    least, interval = 1.0, sampler.config.occupancy_interval
    for update in range(1000):
        sampler.before_step(field, update * interval, math.inf)
        least = min(least, float(grid.occupied_at(low).float().mean()))
    assert least == 1.0
    assert not bool(grid.occupied_at(-low).any())


# ---- scenes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["moving", "splitting"])
def test_scenes_show_each_moment_once(name: str) -> None:
    """Held-out times lie between those of training, and pictures of one moment from one place are what is there."""
    scene = load_scene(Path(f"{name}:train=9,test=4,resolution=24"), SceneOptions())
    assert scene.train.times is not None and scene.test.times is not None
    torch.testing.assert_close(scene.train.times, torch.linspace(0, 1, 9))
    torch.testing.assert_close((8 * scene.test.times) % 1, torch.full((4,), 0.5))
    assert scene.bounded and scene.train.has_alpha and len(scene.train) == 9 and scene.train.size(0) == (24, 24)


def test_the_ball_is_where_it_should_be() -> None:
    """A pixel shows one of the two balls where its ray comes near enough to the middle of one, as it is at its time."""
    scene = load_scene(Path("splitting:train=4,test=2,resolution=48"), SceneOptions())
    views = scene.train
    assert views.times is not None
    for view in range(4):
        rays, apart = views.view_rays(view), 1.35 * max(float(views.times[view]) - 1 / 3, 0.0)
        nearest = [
            torch.linalg.cross(rays.origins - torch.tensor([side * apart, 0, 0]), rays.directions).norm(dim=1)
            for side in (-1, 1)
        ]
        near, alpha = torch.stack(nearest).amin(0), views.image(view)[..., 3].flatten()
        assert bool((alpha[near < 0.45] == 255).all()) and bool((alpha[near > 0.55] == 0).all())
        assert float((near < 0.45).float().mean()) > 0.02


def test_wrong_names() -> None:
    with pytest.raises(SceneError, match="must be moving:train=N,test=N,resolution=N,seed=N or fewer of these, got"):
        load_scene(Path("moving:x=1"), SceneOptions())


def test_a_scene_without_times_is_refused() -> None:
    """And one whose times are no part of the whole: networks and planes know those from 0 to 1."""
    config: Any = Nerf.defaults("dnerf", torch.device("cpu"), set()).replace(steps=1)
    scene = load_scene(Path("procedural:train=2,test=1,resolution=8"), SceneOptions())
    for times, said in ((None, "every view must have a `time`"), ([0.0, 2.5], "must be between 0 and 1 .* 0 to 2.5;")):
        scene.train.times = None if times is None else torch.tensor(times)
        with pytest.raises(SceneError, match=said):
            Trainer(Nerf(config, scene)).train()
