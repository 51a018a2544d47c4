"""Rays through the field of Instant-NGP in one kernel, against the ops it is made of and the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hashgrid import ops, reference
from hashgrid.levels import make_level_table

pytestmark = pytest.mark.every_kernel

BF16, FP16 = torch.bfloat16, torch.float16
LEVELS = make_level_table(3, n_levels=4, log2_hashmap_size=9, base_resolution=4, max_resolution=30)
RESOLUTION = (16, 16, 16)
FIELD = ("table", "levels", "density_weights", "color_weights", "shadow", "compute_dtype")
MARCH = ("step_size", "cone_angle", "near", "far", "max_samples_per_ray")


def scene(n: int, n_cascades: int = 1, density: float = 2.0, **options: Any) -> dict[str, Any]:
    """``n`` rays from around a box, most of them into it; a third of the cells are occupied."""
    origins = torch.randn(n, 3)
    origins *= 2.5 / origins.norm(dim=1, keepdim=True)
    targets = 1.6 * torch.rand(n, 3) - 0.8
    weights = [torch.randn(32, LEVELS.n_levels * 2) / 3, torch.randn(16, 32) / 6]
    weights[1][0] *= density
    n_bytes = n_cascades * 16**3 // 8
    return {
        "rays_o": origins,
        "rays_d": torch.nn.functional.normalize(targets - origins, dim=1),
        "ray_features": torch.randn(n, 6),
        "aabb": torch.tensor([-0.5, -0.5, -0.5, 0.5, 0.5, 0.5]),
        "bits": torch.randint(256, (n_bytes,), dtype=torch.uint8) & torch.randint(256, (n_bytes,), dtype=torch.uint8),
        "resolution": RESOLUTION,
        "n_cascades": n_cascades,
        "field_aabb": torch.tensor([-0.6, -0.5, -0.7, 0.5, 0.6, 0.6]) * 2 ** (n_cascades - 1),
        "table": torch.randn(LEVELS.n_entries, 2),
        "levels": LEVELS,
        "density_weights": weights,
        "color_weights": [torch.randn(32, 22) / 4, torch.randn(3, 32) / 4],
        "step_size": 0.04,
    } | options


def in_parts(arguments: dict[str, Any], library: Any = ops) -> tuple[Tensor, Tensor, Tensor, int]:
    """March, field at every sample, compositing; and how many samples can be seen."""
    grid = (arguments[name] for name in ("rays_o", "rays_d", "aabb", "bits", "resolution", "n_cascades"))
    march = {name: arguments[name] for name in MARCH if name in arguments}
    t_starts, t_ends, rays, packed_info = library.march_rays(*grid, **march)
    low, high = arguments["field_aabb"].split(3)
    unit_o, unit_d = (arguments["rays_o"] - low) * (1 / (high - low)), arguments["rays_d"] * (1 / (high - low))
    positions = library.sample_positions(unit_o, unit_d, rays, t_starts, t_ends)
    field = {name: arguments[name] for name in FIELD if name in arguments}
    sigmas, colors = library.radiance_field(positions, arguments["ray_features"], rays, **field)
    eps = arguments.get("early_stop_eps", 1e-4)
    rendered = library.composite(sigmas, colors, t_starts, t_ends, packed_info, eps)
    return *rendered[:3], len(library.visible_samples(sigmas, t_starts, t_ends, packed_info, eps)[0])


def check(arguments: dict[str, Any], library: Any = ops, rtol: float = 1e-5) -> tuple[int, int]:
    """Returns how many samples were evaluated, and how many can be seen."""
    *ours, n_evaluated = ops.render_rays(**arguments)
    *expected, n_visible = in_parts(arguments, library)
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=rtol)
    return int(n_evaluated), n_visible


@pytest.mark.parametrize("half", [BF16, FP16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("n", [0, 1, 33, 1000])
def test_matches_the_ops_it_is_made_of(n: int, half: torch.dtype, kernels: str) -> None:
    """More rays than lanes: these take others when one has ended. Where there is a kernel, no hidden sample counts."""
    arguments = scene(n, compute_dtype=half)
    n_evaluated, n_visible = check(arguments)
    assert n_evaluated == n_visible if kernels != "cpu" else n_evaluated >= n_visible
    assert n < 33 or n_visible > n  # most rays see something, more than one sample


@pytest.mark.parametrize(
    "options",
    [
        {"n_cascades": 3},
        {"n_cascades": 2, "cone_angle": 1 / 64},
        {"near": 2.3, "far": 2.9},
        {"max_samples_per_ray": 3},
        {"max_samples_per_ray": 0},
        {"density": 60.0},
        {"early_stop_eps": 0.5},
        {"early_stop_eps": 2.0},
        {"bits": torch.zeros(512, dtype=torch.uint8)},
        {"bits": torch.full((512,), 255, dtype=torch.uint8), "resolution": (16, 16, 16)},
    ],
    ids=lambda options: "-".join(options),
)
def test_options_of_march_and_compositing(options: dict[str, Any], kernels: str) -> None:
    n_evaluated, n_visible = check(scene(70, compute_dtype=BF16, **options))
    assert kernels == "cpu" or n_evaluated == n_visible


def test_fp32_matches_the_reference() -> None:
    """Products in fp32 have no kernel on a GPU: it takes the ops."""
    arguments = scene(70)
    check(arguments, reference, rtol=2e-4)
    *ours, n_samples = reference.render_rays(**arguments)
    *expected, _ = in_parts(arguments, reference)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True)) and int(n_samples) > 70


def test_half_table_and_other_numbers_of_colours() -> None:
    arguments = scene(40, compute_dtype=FP16)
    check(arguments | {"shadow": arguments["table"].to(FP16)})
    check(arguments | {"color_weights": [torch.randn(32, 22) / 4, torch.randn(5, 32) / 4]})


def test_a_ray_is_nothing_to_the_others() -> None:
    """Its bits do not depend on what lies in front of it or behind it."""
    arguments = scene(200, compute_dtype=BF16)
    order = torch.randperm(200)
    by_ray = ("rays_o", "rays_d", "ray_features")
    shuffled = ops.render_rays(**arguments | {name: arguments[name][order] for name in by_ray})
    for mine, other in zip(ops.render_rays(**arguments)[:3], shuffled[:3], strict=True):
        assert torch.equal(mine[order], other)


def test_densities_that_are_not_finite_stay_on_their_ray() -> None:
    arguments = scene(64, compute_dtype=BF16)
    arguments["ray_features"][5] = float("nan")
    arguments["rays_o"][9, 1] = float("nan")  # sees nothing
    colors, opacities, _, _ = ops.render_rays(**arguments)
    expected, expected_opacities, *_ = in_parts(arguments)
    assert colors[5].isnan().all() and expected[5].isnan().all() and not colors[9].any()
    torch.testing.assert_close(colors, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(opacities, expected_opacities, rtol=1e-5, atol=1e-5)


def test_one_kernel_where_there_is_one(kernels: str, request: pytest.FixtureRequest) -> None:
    if kernels != "cuda_on_host":
        pytest.skip("launches are counted by the emulation")
    host = request.getfixturevalue("cuda_on_host")
    before = host.launches()
    ops.render_rays(**scene(40, compute_dtype=BF16))
    launches = {name: n - before[name] for name, n in host.launches().items() if n > before[name]}
    expected = ("mlp_pack_kernel", "march_rays_mark_bricks_kernel", "march_rays_bricks_kernel", "render_rays_kernel")
    assert launches == dict.fromkeys(expected, 1)


def test_bad_input_is_refused() -> None:
    arguments = scene(40, compute_dtype=BF16)
    with pytest.raises(ValueError, match=r"`ray_features` must have shape \[40, E\], got \[39, 6\]"):
        ops.render_rays(**arguments | {"ray_features": torch.rand(39, 6)})
    with pytest.raises(ValueError, match=r"`field_aabb` must have shape \[6\], got \[3\]"):
        ops.render_rays(**arguments | {"field_aabb": torch.rand(3)})
    with pytest.raises(ValueError, match=r"`color_weights\[0\]` must have shape \[out, 22\]"):
        ops.render_rays(**arguments | {"color_weights": [torch.rand(32, 21), torch.rand(3, 32)]})
    with pytest.raises(ValueError, match=r"`output_activation` must be"):
        ops.render_rays(**arguments, output_activation="round")
    with pytest.raises(RuntimeError, match=r"`bits` must have shape \[512\], got \[511\]"):
        ops.render_rays(**arguments | {"bits": arguments["bits"][1:]})
    with pytest.raises(RuntimeError, match=r"`step_size` must be positive"):
        ops.render_rays(**arguments | {"step_size": 0.0})
