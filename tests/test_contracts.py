"""What every encoding, field, sampler and task promises: a new one gets these tests by its name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from problems.nerf import TINY
from problems.shapes import SIZES as SHAPE_SIZES
from problems.shapes import small_shapes
from torch import Tensor, nn

from hashgrid.cli import TASKS, main
from hashgrid.data.analytic import around
from hashgrid.data.equations import find_equation
from hashgrid.data.generated import torus_knot
from hashgrid.data.mesh import make_mesh
from hashgrid.data.pictures import generated_picture
from hashgrid.data.projections import scan_phantom
from hashgrid.data.scene import Scene, Views
from hashgrid.data.scene_families import FamilyOptions, generated_scenes
from hashgrid.data.shape import Shape
from hashgrid.data.signal_families import generated_family
from hashgrid.data.sound import generated_sound
from hashgrid.data.videos import generated_video
from hashgrid.data.volumes import generated_volume
from hashgrid.fields import DISTANCE_FIELDS, LATENT_FIELDS, RADIANCE_FIELDS, SIGNAL_FIELDS
from hashgrid.fields.base import RadianceField
from hashgrid.fields.latent import pick
from hashgrid.geometry.rays import At, Rays
from hashgrid.nn import OccupancyGrid, derivatives_along, jacobian, laplacian
from hashgrid.nn.encoding import ENCODINGS, EncodingConfig, make_encoding
from hashgrid.rendering.choices import add_proposals
from hashgrid.rendering.first_hit import FirstHitSampler
from hashgrid.rendering.proposals import ProposalSampler, TwiceSampler
from hashgrid.rendering.samplers import CoarseToFineSampler, OccupancySampler, Sampler, SamplerConfig, StratifiedSampler
from hashgrid.rendering.volume import render, render_image
from hashgrid.tasks.audio import Audio
from hashgrid.tasks.compress import Compress, CompressConfig
from hashgrid.tasks.ct import Ct
from hashgrid.tasks.generalize import Generalize
from hashgrid.tasks.image import Image
from hashgrid.tasks.meta import Meta, MetaConfig
from hashgrid.tasks.nerf import Nerf
from hashgrid.tasks.pde import Pde, PdeConfig
from hashgrid.tasks.sdf import Sdf, SdfConfig
from hashgrid.tasks.surface import Surface
from hashgrid.tasks.video import VideoTask
from hashgrid.tasks.volume import VolumeTask
from hashgrid.train.checkpoint import load_checkpoint
from hashgrid.train.loop import Trainer
from hashgrid.train.task import Task
from hashgrid.util.config import Config

BOX = torch.tensor([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5])
BACKENDS = ("native", "reference")

# ---- encodings -------------------------------------------------------------------------------------------------------

SIZES = EncodingConfig(n_levels=4, log2_hashmap_size=8, base_resolution=4, max_resolution=32, n_frequencies=5).replace(
    dense_resolutions=(3, 8), plane_resolutions=(8, 16), n_plane_features=8, n_fourier_features=32
)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_input_dims", [2, 3])
@pytest.mark.parametrize("name", ENCODINGS)
def test_encoding(name: str, n_input_dims: int, backend: str) -> None:
    encoding = make_encoding(n_input_dims, SIZES.replace(encoding=name), backend).double()
    assert encoding.n_input_dims == n_input_dims
    x = torch.rand(7, 3, n_input_dims, dtype=torch.float64, requires_grad=True)
    y = encoding(x)
    assert y.shape == (7, 3, encoding.n_output_dims)
    torch.testing.assert_close(encoding(x[2]), y[2])  # a point is encoded by itself
    assert encoding(x[0, :0]).shape == (0, encoding.n_output_dims)
    cotangent = torch.rand_like(y)
    (gradient,) = torch.autograd.grad(y, x, cotangent)
    step = 1e-7 * torch.randn_like(x)  # grids have kinks at the borders of cells, one in so many points
    with torch.no_grad():
        change = ((encoding(x + step) - encoding(x - step)) / 2 * cotangent).sum((0, 1))
    assert gradient.isfinite().all() and gradient.shape == x.shape
    assert float((gradient * step).sum()) == pytest.approx(float(change.sum()), rel=1e-4, abs=1e-14)
    if encoding.n_levels:
        ones = torch.ones(encoding.n_levels, dtype=torch.float64)
        torch.testing.assert_close(encoding(x, ones), y)
        assert not encoding(x, 0 * ones).any()
    other = make_encoding(n_input_dims, SIZES.replace(encoding=name), backend).double()
    other.load_state_dict(encoding.state_dict())
    assert torch.equal(other(x), y)


# ---- fields ----------------------------------------------------------------------------------------------------------

GROWING = {"resolutions": (8, 12, 16), "grow_at": (0.3, 0.7)}  # both sides of the checkpoint below
SOURCES = {"n_features": 4, "encoder_width": 4, "n_coarse": 8, "n_fine": 8}
SMALL_FIELDS: dict[str, dict[str, Any]] = {
    "ngp": {"log2_hashmap_size": 8, "n_levels": 2, "compute_dtype": "float32"},
    "classic": {"n_neurons": 16, "n_hidden_layers": 5, "n_coarse": 8, "n_fine": 8, "compute_dtype": "float32"},
    "classic_paper": {"n_neurons": 16, "n_coarse": 8, "n_fine": 8, "compute_dtype": "float32"},
    "planes": {
        "plane_resolutions": (8, 16),
        "plane_axes": (1.0, 1.5, 0.5),
        "n_plane_features": 8,
        "compute_dtype": "float32",
    },
    "zip": {"log2_hashmap_size": 8, "n_levels": 4, "compute_dtype": "float32"},
    **{
        name: {"n_neurons": 16, "n_coarse": 8, "n_fine": 8, "compute_dtype": "float32"}
        for name in ("mip", "mip_paper", "mip360")
    },
    "planes_explicit": {"plane_resolutions": (8, 16), "n_plane_features": 8, "compute_dtype": "float32"},
    "planes_time": {"plane_resolutions": (8,), "n_plane_features": 8, "n_times": 5, "compute_dtype": "float32"},
    "triplane": {"plane_resolutions": (16,), "n_plane_features": 8, "compute_dtype": "float32"},
    **{
        name: {
            "log2_hashmap_size": 8,
            "n_levels": 4,
            "first_levels": 2,
            "n_neurons": 16,
            "start_radius": 0.4,
            "eikonal_points": 32,
        }
        for name in ("neus", "volsdf", "idr")
    },
    "neus_mlp": {
        "n_neurons": 64,
        "n_hidden_layers": 5,
        "n_geometry_features": 7,
        "start_radius": 0.4,
        "eikonal_points": 32,
    },
    "plenoxels": {**GROWING, "variation_vertices": 64},
    **{
        name: {**GROWING, "n_density_features": 8, "n_color_features": 8, "n_neurons": 16, "compute_dtype": "float32"}
        for name in ("tensorf", "tensorf_cp", "tensorf_paper", "hexplane")
    },
    **{
        name: {"log2_hashmap_size": 8, "n_levels": 2, "max_resolution": 32, "compute_dtype": "float32"}
        for name in ("ngp_time", "dnerf", "hypernerf")
    },
    "pixelnerf": {**SOURCES, "n_neurons": 16, "compute_dtype": "float32"},
    "ibrnet": SOURCES,
}
SMALL_SIGNALS: dict[str, dict[str, Any]] = {
    "hash": {"log2_hashmap_size": 8, "n_levels": 4},
    "dense": {"dense_resolutions": (4, 8)},
    **{name: {"plane_resolutions": (4, 8), "n_plane_features": 8} for name in ("planes", "vm", "cp")},
    "fourier": {"n_neurons": 16, "n_fourier_features": 16, "fourier_scale": 4.0},
}
NETWORKS: dict[str, dict[str, Any]] = {
    **{name: SMALL_SIGNALS.get(name, {"n_neurons": 16}) for name in DISTANCE_FIELDS},
    "grid": {"log2_hashmap_size": 8, "n_levels": 2},
    "bacon": {"n_neurons": 16, "output_layers": (4,)},  # distances are the last output
}


def make(name: str, backend: str = "native") -> RadianceField:
    kind = RADIANCE_FIELDS[name]
    torch.manual_seed(0)
    field = kind(kind.Config().replace(**SMALL_FIELDS.get(name, {})), BOX, 1, backend)  # type: ignore[call-arg,arg-type]
    if field.sampler == "proposal":
        add_proposals(field, SamplerConfig(), backend)
    views = around(3, 16, 0)
    field.see_views(views, lambda view: torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(view)))
    return field


def some_rays(n: int = 64) -> Rays:
    generator = torch.Generator().manual_seed(0)
    directions = nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    origins = -4 * directions + 0.2 * torch.randn(n, 3, generator=generator)
    return Rays(origins, directions, time=torch.linspace(0.1, 1, n), radii=torch.full((n,), 0.01))


def sampler_of(field: RadianceField, backend: str = "native") -> Sampler:
    grid = OccupancyGrid(BOX, 16, backend=backend)
    samplers: dict[str, Sampler] = {
        "occupancy": OccupancySampler(grid, step_size=0.1),
        "stratified": StratifiedSampler(16, backend=backend),
        "coarse_to_fine": CoarseToFineSampler(8, 8, backend=backend),
        "twice": TwiceSampler(8, 8, backend=backend),
        "proposal": ProposalSampler((8, 8, 8), backend=backend),
        "first_hit": FirstHitSampler(16, backend=backend),
    }
    return samplers[field.sampler]


@pytest.mark.parametrize("name", RADIANCE_FIELDS)
def test_radiance_field(name: str) -> None:
    """Both backends agree, every parameter is asked for, nothing depends on other samples."""
    field, rays = make(name), some_rays()
    out = render(field, sampler_of(field), rays, None, (0, 3))
    assert out.colors.shape == (64, 3) and out.weights.shape == out.samples.t_starts.shape
    proposed = [proposal.weights.square().sum() for proposal in out.proposals]
    (out.colors.sum() + (out.coarse.colors.sum() if out.coarse else 0) + sum(proposed)).backward()
    assert all(param.grad is not None and param.grad.isfinite().all() for param in field.parameters())
    assert sum(bool(param.grad.any()) for param in field.parameters()) == len(list(field.parameters()))
    reference = make(name, "reference")
    reference.load_state_dict(field.state_dict())
    expected = render(reference, sampler_of(reference, "reference"), rays, None, (0, 3))
    torch.testing.assert_close(out.colors, expected.colors, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        alone = render(field, sampler_of(field), rays[5:6], torch.ones(3))
        together = render(field, sampler_of(field), rays, torch.ones(3))
    torch.testing.assert_close(alone.colors[0], together.colors[5], rtol=1e-4, atol=1e-5)
    assert render(field, sampler_of(field), rays[:0], torch.ones(3)).colors.shape == (0, 3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", DISTANCE_FIELDS)
def test_distance_field(name: str, backend: str) -> None:
    kind = DISTANCE_FIELDS[name]
    field = kind(kind.Config().replace(**NETWORKS.get(name, {})), backend)  # type: ignore[call-arg]
    x = torch.rand(50, 3)
    distance, gradient = field.gradient(x)
    assert distance.shape == (50,) and gradient.shape == (50, 3)
    (gradient.square().sum() + distance.sum()).backward()
    assert all(param.grad is not None for param in field.parameters())
    assert field(x.view(5, 10, 3)).shape == (5, 10) and field(x[:0]).shape == (0,)
    alone, among = (field.double()(points.double()) for points in (x[:1], x))  # sums of one row and of many differ
    torch.testing.assert_close(alone[0], among[0])
    rate = field.Config().to_dict()
    assert 0 < rate["final_learning_rate"] < rate["learning_rate"]


@pytest.mark.parametrize("name", SIGNAL_FIELDS)
def test_signal_field(name: str) -> None:
    """Both backends agree, derivatives too; a point is asked by itself, and every parameter asks to be learned."""
    kind, fields = SIGNAL_FIELDS[name], {}
    config = kind.configured(kind.Config().replace(**SMALL_SIGNALS.get(name, {"n_neurons": 16})), (24, 30))
    config.check()
    for backend in BACKENDS:
        torch.manual_seed(0)
        fields[backend] = kind(config, 2, 3, backend).double()
    field, reference = fields["native"], fields["reference"]
    x = torch.rand(3, 5, 2, dtype=torch.float64)
    values = field(x)
    assert values.shape == (3, 5, 3) and field(x[:0]).shape == (0, 5, 3)
    torch.testing.assert_close(values, reference(x))
    torch.testing.assert_close(field(x[1]), values[1])
    outputs = field.outputs(x)
    torch.testing.assert_close(outputs[-1], values)
    torch.testing.assert_close(jacobian(field, x), derivatives_along(field, x, torch.eye(2))[1].transpose(-2, -1))
    expected = derivatives_along(reference, x, torch.eye(2))[2].sum(-2)
    torch.testing.assert_close(laplacian(field, x), expected, rtol=1e-6, atol=1e-8)
    sum(output.square().mean() for output in outputs).backward()
    assert all(param.grad is not None and param.grad.any() for param in field.parameters())
    other = kind(config, 2, 3).double()
    other.load_state_dict(field.state_dict())
    assert torch.equal(other(x), field(x))
    assert hasattr(config, field.size) and (field.n_levels == 0 or field(x, torch.ones(field.n_levels)).shape)
    options = Image.Config().replace(field=kind.Config(), **kind.recipe)
    options.check()


@pytest.mark.parametrize("name", LATENT_FIELDS)
def test_latent_field(name: str) -> None:
    """Every parameter is asked for, shapes and points are values of their own, and none are none."""
    kind, latents = LATENT_FIELDS[name], {}
    for backend in BACKENDS:
        torch.manual_seed(0)
        field = kind(kind.Config().replace(**SHAPE_SIZES[name.removesuffix("_paper")]), backend)  # type: ignore[call-arg]
        shape = field.code_shape
        x, points = torch.rand(3, 20, 3), torch.rand(3, 30, 3)
        latent = field.encode(points) if shape is None else torch.randn(3, *shape)
        field(x, latent).square().sum().backward()
        assert all(param.grad is not None and param.grad.isfinite().all() for param in field.parameters())
        field.eval()
        with torch.no_grad():
            latent = field.encode(points) if shape is None else latent
            values = field(x, latent)
            torch.testing.assert_close(field(x[1:2, 4:9], pick(latent, slice(1, 2)))[0], values[1, 4:9])
            assert values.shape == (3, 20) and field(x[:, :0], latent).shape == (3, 0)
            latents[backend] = values
    torch.testing.assert_close(latents["native"], latents["reference"], rtol=1e-4, atol=1e-5)
    rate = kind.Config().to_dict()
    assert 0 < rate["final_learning_rate"] < rate["learning_rate"]


# ---- samplers --------------------------------------------------------------------------------------------------------


class Slab(RadianceField):
    """Constant density and colour in the box."""

    def __init__(self, sigma: float) -> None:
        super().__init__(BOX)
        self.sigma = nn.Parameter(torch.tensor(sigma))

    def density(self, at: At) -> tuple[Tensor, None]:
        return self.sigma.expand(len(at.unit)), None

    def color(self, at: At, carry: None) -> Tensor:
        return torch.full((len(at.unit), 3), 0.5)


def samplers(backend: str) -> dict[str, Sampler]:
    grid = OccupancyGrid(BOX, 16, backend=backend)
    return {
        "occupancy": OccupancySampler(grid, step_size=0.05),
        "stratified": StratifiedSampler(24, backend=backend),
        "coarse to fine": CoarseToFineSampler(12, 24, backend=backend),
        "twice": TwiceSampler(12, 24, backend=backend),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", samplers("native"))
def test_sampler(name: str, backend: str) -> None:
    sampler, rays, field = samplers(backend)[name], some_rays(), Slab(0.7)
    with torch.no_grad():
        out = render(field, sampler, rays)
    low = (BOX[:3] - rays.origins) / rays.directions
    high = (BOX[3:] - rays.origins) / rays.directions
    length = (torch.maximum(low, high).amin(-1) - torch.minimum(low, high).amax(-1)).clamp(min=0)
    tolerance = 0.05 if name == "occupancy" else 1e-4  # whose steps do not end at the box
    torch.testing.assert_close(out.opacities, 1 - torch.exp(-0.7 * length), rtol=0, atol=tolerance)
    torch.testing.assert_close(out.colors, 0.5 * out.opacities[:, None].expand(-1, 3), rtol=1e-4, atol=1e-5)
    samples = sampler(rays, field, (1, 5)).samples
    assert torch.equal(samples.ray_indices, samples.ray_indices.sort().values)
    assert (samples.t_ends >= samples.t_starts).all() and int(samples.packed_info[:, 1].sum()) == samples.n_samples
    again, other = (sampler(rays, field, (1, step)).samples.t_starts for step in (5, 6))
    assert torch.equal(samples.t_starts, again)
    assert other.shape != again.shape or not torch.equal(other, again)
    assert sampler(rays[:0], field, None).samples.n_samples == 0
    away = Rays(rays.origins, -rays.directions)  # these see nothing
    with torch.no_grad():
        assert render(field, sampler, away).opacities.max() < 1e-6


def test_fine_samples_follow_the_coarse_weights() -> None:
    """Of a known distribution, as many in each interval as it says."""
    sampler = CoarseToFineSampler(8, 4000)
    edges, weights = torch.linspace(0, 1, 9)[None], torch.tensor([[0.0, 1, 2, 0, 0, 4, 1, 0]])
    for jitter in (None, (0, 1)):
        places = sampler.resample(edges, weights, jitter)
        counts = torch.histc(places, 8, 0, 1)
        torch.testing.assert_close(counts / 4000, weights[0] / 8, rtol=0, atol=0.002)


# ---- tasks -----------------------------------------------------------------------------------------------------------


def small_task(name: str, scene: Scene, **changes: Any) -> Task:
    """A task of some seconds on generated data, ready to train."""
    if name.startswith(("nerf", "surface")):
        command: Any = Nerf if name.startswith("nerf") else Surface
        field = name.partition(" ")[2] or "ngp"
        config = command.defaults(field, torch.device("cpu"), set())
        sizes = {key: value for key, value in {**TINY, **SMALL_FIELDS.get(field, {})}.items() if config.knows(key)}
        if "time" in RADIANCE_FIELDS[field].needs:
            scene = replace(scene, train=replace(scene.train, times=torch.linspace(0, 1, len(scene.train))))
        changes = {**sizes, "target_samples": 1024, "occupancy_time_share": 1.0, **changes}
        return command(config.replace(**changes), scene)  # type: ignore[no-any-return]
    if name.startswith("sdf"):
        field = name.partition(" ")[2] or "grid"
        sizes = {"pool": 4096, "batch": 512, "device": "cpu", **NETWORKS[field], **changes}
        task = Sdf(SdfConfig.defaults(field).replace(**sizes), Shape.of(make_mesh(*torus_knot(n_along=64, n_around=8))))
        task.begin()
        return task
    if name.startswith("compress"):
        config = Compress.defaults(name.partition(" ")[2], torch.device("cpu"), set()).replace(batch=256, compress=6.0)
        photo = generated_picture(30, 20).signal.values.view(20, 30, -1)[..., :3]
        return Compress(config.replace(device="cpu", **changes), photo)
    if name.startswith("shape"):
        return small_shapes(name.partition(" ")[2], **changes)
    command, _, field = name.partition(" ")
    if command == "pde":
        small = {"batch": 128, "redraw_steps": 3, "adam_share": 0.3, "device": "cpu", **changes}
        return Pde(PdeConfig().replace(**small), find_equation("heat"))
    if command == "meta":
        sizes = {"method": field, "image_size": 8, "n_neurons": 8, "n_hidden_layers": 1, "device": "cpu"}
        return Meta(MetaConfig().replace(**sizes, **changes), generated_family("images", 8))
    if command == "generalize":
        sizes = {**SMALL_FIELDS[field], "rays": 32, "device": "cpu", **changes}
        family = generated_scenes(FamilyOptions(n_scenes=2, n_views=4, n_unseen=1, n_targets=1, resolution=8), 2)
        return Generalize(Generalize.defaults(field, torch.device("cpu"), set()).replace(**sizes), family)
    task, signal = SIGNALS[command]
    sizes = {"batch": 256, **SMALL_SIGNALS.get(field or "hash", {"n_neurons": 16}), "device": "cpu", **changes}
    return task(task.defaults(field or None, torch.device("cpu"), set()).replace(**sizes), signal())


SIGNALS: dict[str, tuple[Any, Callable[[], Any]]] = {
    "image": (Image, lambda: generated_picture(30, 20)),
    "audio": (Audio, lambda: generated_sound(0.02, 8000)),
    "video": (VideoTask, lambda: generated_video(4, 16)),
    "volume": (VolumeTask, lambda: generated_volume(8)),
    "ct": (Ct, lambda: scan_phantom(5, 8)),
}
KINDS = [
    *(f"image {name}" for name in SIGNAL_FIELDS),
    *(name for name in SIGNALS if name != "image"),
    "pde",
    *(f"meta {method}" for method in ("metasdf", "reptile", "hypernet", "coinpp")),
    *(f"generalize {name}" for name in Generalize.Config.fields),
    *(f"compress {name}" for name in CompressConfig.fields),
    *(f"shape {name}" for name in LATENT_FIELDS if name != "deepsdf_paper"),
    *(f"nerf {name}" for name in RADIANCE_FIELDS),
    *(f"surface {name}" for name in Surface.Config.fields),
    *(f"sdf {name}" for name in DISTANCE_FIELDS if name not in SIGNAL_FIELDS or name in ("siren", "fourier")),
]


def test_every_task_is_here() -> None:
    assert {kind.partition(" ")[0] for kind in KINDS} == set(TASKS)


@pytest.mark.parametrize("kind", KINDS)
def test_task_goes_on_with_the_same_bits(kind: str, scene: Scene, tmp_path: Path) -> None:
    whole = Trainer(small_task(kind, scene, steps=9))
    losses = []
    whole.train(lambda progress: losses.append(progress.loss))
    assert len(losses) == 9 and all(map(math.isfinite, losses)) and len(set(losses)) == 9
    half = Trainer(small_task(kind, scene, steps=9))
    for _ in range(4):
        half.step()
    half.save(tmp_path / "checkpoint.safetensors")
    for _ in range(2):  # what is lost by a kill
        half.step()
    resumed = Trainer(small_task(kind, scene, steps=9))
    stored = load_checkpoint(tmp_path / "checkpoint.safetensors")
    resumed.load(*stored)
    assert resumed.progress.step == 4
    resumed.train()
    for trainer in (whole, half, resumed):
        trainer.task.close()
    for name, value in whole.task.model.state_dict().items():
        assert torch.equal(resumed.task.model.state_dict()[name], value), name
    for name, value in whole.task.state().items():
        assert name == "seconds" or torch.equal(resumed.task.state()[name], value), name
    assert resumed.progress.loss == whole.progress.loss and resumed.progress.counts == whole.progress.counts
    config = type(whole.task.config).from_dict(json.loads(json.dumps(stored.metadata["config"])))
    assert config == whole.task.config


@pytest.mark.parametrize("encoding", ["frequency", "none"])
@pytest.mark.parametrize("command", ["nerf", "sdf", "image"])
def test_encoding_is_chosen_by_one_flag(
    command: str, encoding: str, scene_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iio = pytest.importorskip("imageio.v3")
    for package in ("igl", "skimage", "matplotlib"):
        pytest.importorskip(package)
    monkeypatch.setattr("hashgrid.data.shape.torus_knot", lambda: torus_knot(n_along=64, n_around=8))
    monkeypatch.setattr("hashgrid.rendering.measure.iou", lambda *args: 0.5)
    monkeypatch.chdir(tmp_path)
    iio.imwrite(tmp_path / "photo.png", torch.randint(0, 255, (8, 9, 3), dtype=torch.uint8).numpy())
    source = {"nerf": [str(scene_path), "--views", "1"], "image": ["photo.png"], "sdf": ["--resolution", "16"]}[command]
    small = {"nerf": ["--target-samples", "512"], "image": ["--batch", "64"], "sdf": ["--batch", "64", "--pool", "512"]}
    arguments = [command, *source, "--encoding", encoding, "--steps", "2", "--device", "cpu", *small[command]]
    arguments += (
        ["--no-video", "--image-size", "16"] if command == "sdf" else ["--no-video"] if command == "nerf" else []
    )
    assert main([*arguments, "--out", "out"]) == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["field"]["encoding"] == encoding and written["steps"] == 2
    config = [command, *source, "--config", "out/config.json", "--steps", "3", "--out", "again"]
    assert main(config) == 0
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == {**written, "steps": 3}


def test_unknown_options_of_a_file_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.json"
    for content, message in (
        ('{"colour": 1}', "there is no option `colour`"),
        ('{"field": {"name": "ngp", "n_level": 3}}', "there is no option `n_level`"),
        ('{"field": {"name": "voxels"}}', "`field` must be one of"),
        ('{"steps": "many"}', "`steps` must be int or None, got 'many'"),
        ("[1]", "must hold an object"),
        ("{", "must be a JSON file"),
    ):
        path.write_text(content)
        assert main(["nerf", str(tmp_path), "--config", str(path)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("hashgrid: error: ") and message in error and error.count("\n") == 1


def test_options_that_a_checkpoint_decides_are_refused(
    scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    Trainer(small_task("nerf ngp", scene, steps=1)).save(path)
    for option, message in (
        (["--field", "planes"], "`--field` must be that of the checkpoint, ngp, got 'planes'"),
        (["--config", "config.json"], "`--config` and a checkpoint exclude each other"),
    ):
        assert main(["nerf", "--eval", str(path), *option]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", RADIANCE_FIELDS)
def test_any_field_is_rendered_and_learns(name: str, scene: Scene) -> None:
    task = small_task(f"nerf {name}", scene, steps=30)
    trainer = Trainer(task)
    trainer.step()
    before = trainer.progress.terms["mse"]
    trainer.train()
    assert trainer.progress.terms["mse"] < before
    assert isinstance(task, Nerf)
    color, opacity, depth = render_image(task.model, task.sampler, scene.test, 0, torch.ones(3), chunk=500)
    assert color.shape == (48, 48, 3) and opacity.shape == depth.shape == (48, 48) and color.isfinite().all()


class Tinted(RadianceField):
    """A wall around everything: a red and a green of its own for each camera, and as blue as it is late."""

    @dataclass(frozen=True)
    class Config(Config):
        name = "tinted"

    needs = ("camera", "time")
    sampler = "stratified"
    recipe = {"learning_rate": 0.1, "final_learning_rate": 0.01, "weight_decay": 0.0}

    def __init__(self, config: Config, aabb: Tensor, n_cascades: int = 1, backend: str = "native") -> None:
        super().__init__(aabb)
        self.tints = nn.Parameter(torch.zeros(12, 2))

    def density(self, at: At) -> tuple[Tensor, None]:
        return torch.full_like(at.unit[:, 0], 100.0), None

    def color(self, at: At, carry: None) -> Tensor:
        camera, time = at.rays.camera, at.rays.time
        assert time is not None
        tints = torch.full((len(time), 2), 0.5) if camera is None else self.tints.sigmoid().index_select(0, camera)
        return torch.cat((tints, time[:, None]), dim=1).index_select(0, at.ray_indices)


@pytest.mark.parametrize(("planted", "masked"), [(None, False), (None, True), ("camera", False), ("time", False)])
def test_field_knows_camera_and_time(
    planted: str | None, masked: bool, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training; a rendered picture has a time, but no camera that was trained on. A shift by one is noticed."""
    monkeypatch.setitem(RADIANCE_FIELDS, "tinted", Tinted)
    i = torch.arange(12)
    colors = torch.stack((40 + 16 * i, 220 - 15 * i, 2 * i * i), dim=1).byte()
    train = replace(
        scene.train,
        intrinsics=scene.train.intrinsics * torch.tensor([3.0, 3.0, 1.0, 1.0]),  # no ray misses the box
        data=colors.repeat_interleave(48 * 48, dim=0),
        times=colors[:, 2].float() / 255,
        counts=torch.rand(12 * 48 * 48) > 0.5 if masked else None,
    )
    scene = replace(scene, train=train, test=replace(scene.test, times=torch.tensor([0.3, 0.7])))
    if planted is not None:
        rays = Views.rays

        def shifted(self: Views, view: Tensor, x: Tensor, y: Tensor) -> Rays:
            wrong = rays(self, (view + 1) % len(self), x, y)
            return replace(rays(self, view, x, y), **{planted: getattr(wrong, planted)})

        monkeypatch.setattr(Views, "rays", shifted)
    config = Nerf.defaults("tinted", torch.device("cpu"), set()).replace(device="cpu", steps=150, max_rays=64)
    trainer = Trainer(Nerf(config, scene))
    trainer.train()
    task = trainer.task
    assert isinstance(task, Nerf) and isinstance(task.model, Tinted)
    error = (task.model.tints.detach().sigmoid() - colors[:, :2] / 255).abs().max()
    assert (float(error) < 0.01) == (planted != "camera")
    assert (trainer.progress.terms["mse"] < 1e-4) == (planted != "time")
    if planted is None:
        color, _, _ = render_image(task.model, task.sampler, scene.test, 1, torch.zeros(3))
        middle = color[12:36, 12:36]
        torch.testing.assert_close(middle, torch.tensor([0.5, 0.5, 0.7]).expand_as(middle), rtol=0, atol=1e-3)
